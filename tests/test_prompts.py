"Prompts: words, numbers and masks, what is left open, and what wrong input says."

import numpy as np
import pytest
import torch
from PIL import Image
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.prompts import GRID, FacePrompt, PromptEncoder, class_layers, coverage, face_prompt, joined, read_classes
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(6, 64, seed=31_020)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return PromptEncoder(dim=16).eval()


def numbers(faces, i=0):
    return faces.masks(i).int().argmax(0)


def test_words_numbers_and_dicts_say_the_same(encoder):
    words = face_prompt("Smiling=with, HairColor=blond")
    data = face_prompt({"Smiling": "with", "HairColor": "blond"})
    labels = face_prompt(words.labels[0].tolist())
    assert torch.equal(words.labels, data.labels) and torch.equal(words.labels, labels.labels)
    assert (words.labels >= 0).sum() == 2 and not words.told.any()
    assert torch.equal(encoder(words), encoder(data))


def test_every_token_has_a_name(faces):
    prompt = FacePrompt.of_faces(faces, range(2))
    assert prompt.names[:6] == list(CELEBA_TAGS.names) and prompt.names[6:] == [f"mask {c}" for c in CLASSES]
    assert len(prompt.names) == 25 and len(prompt) == 2


def test_coverage_is_the_share_of_each_place(faces):
    cover = coverage(faces.masks(range(2)))
    assert cover.shape == (2, 19, GRID, GRID)
    assert torch.allclose(cover.sum(1), torch.ones(2, GRID, GRID), atol=1e-6)
    by_hand = faces.masks(0)[13, :4, :4].float().mean()
    assert torch.isclose(cover[0, 13, 0, 0], by_hand)


def test_a_mask_comes_as_file_array_picture_or_layers(faces, tmp_path):
    m = numbers(faces).numpy().astype(np.uint8)
    Image.fromarray(m).save(tmp_path / "m.png")
    layers = faces.masks(0).float()
    for form in (tmp_path / "m.png", str(tmp_path / "m.png"), m, Image.fromarray(m), layers, class_layers(torch.tensor(m))):
        assert torch.equal(read_classes(form), layers)


def test_a_palette_picture_keeps_its_numbers(faces, tmp_path):
    arr = numbers(faces).numpy().astype(np.uint8)
    im = Image.frombytes("P", (64, 64), arr.tobytes())
    im.putpalette([(i * 37) % 256 for i in range(768)])
    im.save(tmp_path / "p.png")
    assert torch.equal(read_classes(tmp_path / "p.png"), faces.masks(0).float())


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.full((64, 64), 19), "class numbers 0 to 18"),
        (np.full((64, 64), -1), "class numbers 0 to 18"),
        (np.zeros((64, 64)), r"\(64, 64\), float64"),
        (np.ones((64, 64), bool), "whole class numbers"),
        (np.zeros((0, 0), int), "no array of pixels"),
        (["hair"], "no array of pixels"),
        (np.zeros((64, 64), int), "no part of a face is anywhere"),
        (torch.zeros(0, 19, 64, 64), "no array of pixels"),
        (np.zeros((3, 64, 64)), r"\(3, 64, 64\)"),
        (torch.zeros(19, 64, 64), "is empty"),
        (torch.full((19, 64, 64), float("nan")), "outside 0 to 1"),
        (torch.full((19, 64, 64), 2.0), "outside 0 to 1"),
        (np.zeros((8, 8), int), "a square of 16 or more on a side"),
        (np.zeros((64, 32), int), "a square of 16 or more"),
        ("no_such_file.png", "is no file"),
    ],
)
def test_masks_that_are_none_are_refused(mask, said):
    with pytest.raises(ValueError, match=said):
        face_prompt(mask=mask)


@pytest.mark.parametrize("name, said", [("m.jpg", "JPEG, which changes"), ("m.png", "a picture in colours, RGB")])
def test_files_whose_numbers_are_no_classes_are_refused(name, said, tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(ValueError, match=said):
        read_classes(tmp_path / name)


@pytest.mark.parametrize(
    "tags, said",
    [
        ("Smiling", "says no value"),
        ("Smilin=with", "Smiling"),
        ("Smiling=maybe", "with"),
        ("Smiling=with, Smiling=without", "said twice"),
        ([9] * 6, "out of range"),
        ([0.5] * 6, "is no prompt"),
        (["Smiling=with"], "is no prompt"),
        (3, "is no prompt"),
        ([0, 1], "needed|Needed|shapes"),
    ],
)
def test_tags_that_are_none_are_refused(tags, said):
    with pytest.raises((ValueError, KeyError), match=said):
        face_prompt(tags)


@pytest.mark.parametrize("value", [float("nan"), 7.0, -0.5])
def test_cover_that_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match="cover has values outside 0 to 1"):
        FacePrompt(torch.zeros(1, 6).long(), torch.full((1, 19, 16, 16), value), torch.ones(1, 19).bool())


def test_saying_less_leaves_the_rest(faces, encoder):
    prompt = FacePrompt.of_faces(faces, range(3))
    full, nothing = encoder(prompt), encoder(prompt.without(tags=True, mask=True))
    tags, mask = encoder(prompt.without(mask=True)), encoder(prompt.without(tags=True))
    assert torch.equal(tags[:, :6], full[:, :6]) and torch.equal(tags[:, 6:], nothing[:, 6:])
    assert torch.equal(mask[:, 6:], full[:, 6:]) and torch.equal(mask[:, :6], nothing[:, :6])
    assert torch.equal(nothing, encoder(face_prompt(n=3)))
    some = prompt.without(tags=torch.tensor([True, False, False]))
    assert torch.equal(encoder(some)[1:], full[1:]) and torch.equal(encoder(some)[0], mask[0])


def test_a_batch_is_as_one_by_one(faces, encoder):
    prompt = FacePrompt.of_faces(faces, range(4))
    one = torch.cat([encoder(prompt[i]) for i in range(4)])
    assert torch.allclose(encoder(prompt), one, atol=1e-6)
    assert torch.equal(joined([prompt[0], prompt[slice(1, 4)]]).labels, prompt.labels)


def test_a_prompt_of_other_tags_is_refused(encoder):
    other = TagSet([Tag("Hat", ("with", "without"))])
    with pytest.raises(ValueError, match="Make it with the model's tags"):
        encoder(face_prompt("Hat=with", tagset=other))


def test_counts_that_do_not_fit_are_refused(faces):
    with pytest.raises(ValueError, match="Give one for all"):
        face_prompt(torch.zeros(2, 6).long(), faces.masks(range(3)))
    assert len(face_prompt("Smiling=with", faces.masks(range(3)))) == 3


def test_the_encoder_is_saved_and_loaded(encoder, tmp_path, faces):
    encoder.save_pretrained(tmp_path)
    again = PromptEncoder.from_pretrained(tmp_path)
    prompt = FacePrompt.of_faces(faces, range(2))
    assert torch.equal(again(prompt), encoder(prompt)) and again.tags.alike(CELEBA_TAGS)
