"PromptExplorer: strokes and undo, conflicts, prompts made of a state, code that draws the same picture, bad uploads."

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from latref_nb.core import make_generator
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.judges import Judge
from latref_nb.prompt_explorer import (
    COLOURS,
    PART_WORDS,
    WAYS,
    PromptExplorer,
    Wanted,
    class_numbers,
    colour_key,
    conflict_figure,
    conflict_prompts,
    conflicts,
    draw_conflicts,
    mask_png,
    painted,
    reads_with,
    verdict,
)
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder, read_classes

GLASSES, HAIR = CLASSES.index("eye_g"), CLASSES.index("hair")


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return PromptedPipeline(
        prompted_unet((16, 24, 32), dim=16, mask_by="both"), PromptEncoder(dim=16), prompted_scheduler(), mask_by="both"
    )


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(8, 64, seed=5)


@pytest.fixture
def explorer(pipe, faces):
    torch.manual_seed(1)
    return PromptExplorer(pipe, faces, Judge().eval(), range(4), preview=2, steps=4).wait()


def file_of(array):
    buf = io.BytesIO()
    Image.fromarray(array).save(buf, "PNG")
    return buf.getvalue()


def upload(explorer, name, content):
    explorer._uploaded({"new": [{"name": name, "content": memoryview(content)}]})


def test_a_stroke_is_a_disc_along_a_line():
    mask = np.zeros((64, 64), np.uint8)
    dot = painted(mask, [[0.5, 0.5]], HAIR, 8)
    assert abs((dot == HAIR).sum() - np.pi * 16) < 8 and not mask.any(), "a new mask, the old one as it was"
    line = painted(mask, [[0.25, 0.5], [0.75, 0.5]], HAIR, 4)
    rows, columns = np.nonzero(line)
    assert (rows.min(), rows.max()) == (30, 33) and (columns.min(), columns.max()) == (14, 49)
    assert set(np.unique(line)) == {0, HAIR}
    out = painted(mask, [[-0.2, 0.5], [1.3, 0.5]], HAIR, 2)
    assert (out[31:33] == HAIR).all(), "a stroke may leave the picture"


@pytest.mark.parametrize("stroke", [[], [[np.nan, 0.5]]])
def test_a_stroke_without_places_is_refused(stroke):
    with pytest.raises(ValueError, match="without places"):
        painted(np.zeros((64, 64), np.uint8), stroke, HAIR, 4)


def test_masks_of_any_form_and_size_come_as_class_numbers(faces):
    layers = faces.masks([0])[0]
    own = class_numbers(layers, 64)
    assert own.dtype == np.uint8 and torch.equal(read_classes(own).argmax(0), layers.int().argmax(0))
    big = np.kron(own, np.ones((2, 2), np.uint8))
    assert (class_numbers(big, 64) == own).all()
    with pytest.raises(ValueError, match="64×32"):
        class_numbers(own[:32], 64)


def test_conflicts_only_where_both_speak():
    bare = np.zeros((64, 64), np.uint8)
    worn = painted(bare, [[0.5, 0.5]], GLASSES, 8)
    assert conflicts({"Eyeglasses": "without"}, worn) == [("Eyeglasses", "without", "with")]
    assert conflicts({"Eyeglasses": "with"}, bare) == [("Eyeglasses", "with", "without")]
    for tags, mask in (({"Eyeglasses": "with"}, worn), ({"Smiling": "with"}, worn), ({"Eyeglasses": "with"}, None)):
        assert conflicts(tags, mask) == []
    assert verdict("Eyeglasses", "without", "with", {"Eyeglasses": "without"}).endswith("the tag won.")
    assert verdict("Eyeglasses", "without", "with", {"Eyeglasses": "with"}).endswith("the mask won.")
    assert "won" not in verdict("Eyeglasses", "without", "with")


def test_every_way_in_which_tag_and_mask_speak(faces):
    said = conflict_prompts(faces, [0, 3])
    at, tag = faces.tags.index("Eyeglasses"), faces.tags["Eyeglasses"]
    assert len(said) == 18 and (said.labels.index_select(1, torch.tensor([i for i in range(6) if i != at])) == -1).all()
    labels, told = said.labels[:, at].view(3, 3, 2), said.told.view(3, 3, 2, -1)
    for i, v in enumerate(WAYS):
        assert (labels[i] == (-1 if v is None else tag.index(v))).all() and (told[:, i] == (v is not None)).all()
    worn = said.cover[:, GLASSES].view(3, 3, 2, -1).sum(-1)
    assert (worn[:, 2] > 0).all() and not worn[:, :2].any(), "true masks, with the glasses and without them"


def test_shares_of_a_conflict(pipe, faces):
    said = conflict_prompts(faces, [0, 3])
    drawn = draw_conflicts(pipe, said, 2.0, steps=2)
    assert drawn.shape == (3, 3, 2, 3, 64, 64)
    one = dict(generator=make_generator(1), num_inference_steps=2, guidance_scale=2.0, output_type="pt")
    assert torch.allclose(drawn[1, 2, 1], pipe(said[11], **one).images[0] * 2 - 1, atol=1e-4), "face 1 from noise 1"

    class Reader:
        "Reads glasses where the picture is bright."

        tags = faces.tags

        def predict(self, x):
            return (x.mean((1, 2, 3)) > 0).long()[:, None].expand(-1, 6)

    bright = torch.zeros(3, 3, 4, 3, 8, 8) - 1
    bright[1, 2, :3], bright[2] = 1, 1
    shares = reads_with(Reader(), bright)
    assert shares.tolist() == [[0, 0, 0], [0, 0, 0.75], [1, 1, 1]]
    fig = conflict_figure({1.0: shares, 2.0: shares})
    assert [t.get_text() for t in fig.axes[0].texts][5] == "75 %" and len(fig.axes) == 2


def test_a_key_names_what_the_mask_has():
    assert len(PART_WORDS) == len(CLASSES) and colour_key(None) == "No mask is said."
    key = colour_key(painted(np.zeros((64, 64), np.uint8), [[0.5, 0.5]], GLASSES, 8))
    assert "glasses" in key and "background" in key and "hair" not in key
    assert bytes(COLOURS[GLASSES]).hex() in key


def test_a_state_draws_what_its_prompt_draws(pipe, faces):
    mask = class_numbers(faces.masks([1])[0], 64)
    wanted = Wanted({"Smiling": "with", "HairColor": "blond"}, mask, 2.0, 3.0, 7, 3)
    how = dict(num_inference_steps=3, generator=make_generator(7), output_type="pt")
    direct = pipe("Smiling=with, HairColor=blond", mask, guidance_scale=2.0, mask_guidance_scale=3.0, **how).images[0]
    assert torch.equal(wanted.draw(pipe), direct * 2 - 1) and torch.equal(wanted.draw(pipe), wanted.draw(pipe))
    assert Wanted({}, None, 2.0, 3.0, 0, 3).weights() == (2.0, None) and Wanted({}, None, 2.0, 3.0, 0, 3).words() is None
    assert Wanted({}, mask, 2.0, 3.0, 0, 3).weights() == (3.0, 3.0), "open tags have no weight of their own"


@pytest.mark.parametrize("with_mask", [True, False])
def test_code_draws_the_same_picture(pipe, faces, with_mask, monkeypatch):
    mask = class_numbers(faces.masks([2])[0], 64) if with_mask else None
    wanted = Wanted({"Eyeglasses": "with"}, mask, 1.5, 2.5, 4, 3)
    monkeypatch.setattr(PromptedPipeline, "from_pretrained", lambda name: pipe)
    names = {}
    exec(wanted.code(), names)
    assert max(map(len, wanted.code().splitlines())) <= 120
    seen = torch.from_numpy(np.array(names["out"].images[0])).movedim(-1, 0) / 127.5 - 1
    assert (seen - wanted.draw(pipe).clamp(-1, 1)).abs().max() < 0.01


def test_painting_undo_and_clear(explorer):
    assert explorer.mask is None and explorer.back.disabled and explorer.clear.disabled
    explorer.part, explorer.brush = "hair", 10
    assert explorer.canvas.colour == "#" + bytes(COLOURS[HAIR]).hex() and explorer.canvas.brush == 10 / 64
    explorer.paint([[0.5, 0.2], [0.6, 0.2]])
    one = explorer.mask
    explorer.lend(0)
    assert explorer.sheet.column == 0
    explorer.part = "eye_g"
    explorer.paint([[0.5, 0.5]])
    assert explorer.mask[32, 32] == GLASSES and explorer.sheet.column == -1
    assert "glasses" in explorer.key.value
    explorer.put(None)
    assert explorer.mask is None
    for _ in range(3):
        explorer.undo()
    assert (explorer.mask == one).all()
    explorer.undo()
    explorer.undo()
    assert explorer.mask is None and explorer.back.disabled


def test_a_clicked_face_lends_its_mask_once(explorer, faces):
    with explorer.sheet.hold_trait_notifications():
        explorer.sheet.row, explorer.sheet.column = 0, 2
    assert len(explorer.before) == 1 and (explorer.mask == class_numbers(faces.masks([2])[0], 64)).all()
    explorer.put(None)
    explorer.sheet.column = 2
    assert explorer.mask is not None


def test_menus_and_state_are_one(explorer):
    explorer.menus["Smiling"].value = "with"
    explorer.menus["HairColor"].value = "brown"
    assert explorer.said == {"Smiling": "with", "HairColor": "brown"}
    explorer.said = {"Young": "without"}
    assert {t: m.value for t, m in explorer.menus.items() if m.value} == {"Young": "without"}
    explorer.menus["Young"].value = ""
    assert explorer.said == {}
    for wrong in ({"Hat": "with"}, {"Smiling": "perhaps"}):
        with pytest.raises(ValueError):
            explorer.said = wrong
    assert explorer.said == {}


def test_a_preview_comes_first_and_the_state_is_drawn(explorer, pipe):
    seen, shown = [], explorer.worker.show
    explorer.worker.show = lambda r: (seen.append(r[2]), shown(r))
    explorer.seed = 3
    explorer.wait()
    assert seen == [2, 4] and torch.equal(explorer.result[1], explorer.request().draw(pipe))
    assert explorer.words.startswith("Drawn in 4 steps. The judge reads Smiling")


def test_a_conflict_is_said_with_its_winner(explorer):
    explorer.part = "eye_g"
    explorer.paint([[0.3, 0.5], [0.7, 0.5]])
    explorer.said = {"Eyeglasses": "without"}
    assert "the tag says without." in explorer.clash.value, "said at once, before anything is drawn"
    explorer.wait()
    assert "The mask says Eyeglasses with, the tag says without." in explorer.clash.value
    assert "won." in explorer.clash.value
    explorer.said = {}
    assert not explorer.wait().clash.value


def test_uploads(explorer, faces):
    own = class_numbers(faces.masks([3])[0], 64)
    upload(explorer, "own.png", mask_png(own))
    assert (explorer.mask == own).all() and not explorer.wait().bad
    colour, high = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 200, np.uint8)
    for name, content, says in (
        ("words.png", b"no picture", "no PNG of class numbers"),
        ("colour.png", file_of(colour), "shape"),
        ("high.png", file_of(high), "0 to 18"),
        ("small.png", file_of(np.zeros((8, 8), np.uint8)), "16 or more on a side"),
        ("flat.png", file_of(np.zeros((32, 64), np.uint8)), "Needed: a square"),
    ):
        upload(explorer, name, content)
        assert explorer.bad and explorer.words.startswith(name) and says in explorer.words, explorer.words
        assert (explorer.mask == own).all() and len(explorer.before) == 1, "the mask stays"


def test_files(explorer, tmp_path):
    with pytest.raises(ValueError, match="no mask is said"):
        explorer.take("mask")
    explorer.lend(1)
    name, content = explorer.take("mask")
    (tmp_path / name).write_bytes(content)
    assert (class_numbers(tmp_path / name, 64) == explorer.mask).all(), "latref_draw --mask reads it"
    assert explorer.take("picture")[1] == explorer.main.png
    assert b"PromptedPipeline" in explorer.take("code")[1]
    page = explorer.to_html(weights=(0.0, 2.0))
    assert "mask weight 2" in page and page.lower().startswith("<!doctype")
    assert explorer.take("strip")[1].startswith(b"\x89PNG")
    explorer.coded = True
    assert base64.b64encode(content).decode()[:60] in explorer.listing.value


def test_a_stroke_of_the_page_arrives(explorer):
    explorer.canvas._handle_custom_msg({"stroke": [[0.5, 0.5]]}, [])
    assert explorer.mask[32, 32] == CLASSES.index(explorer.part)
