"`latref_draw`: files, the record, and a folder that only grows."

import json, sys
import numpy as np
import pytest
import torch
from PIL import Image
from latref_nb.draw import RECORD, draw_files, latref_draw
from latref_nb.faces import SynthFaces
from test_prompted import made

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    made().save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, model):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["latref_draw", *map(str, words), "--model", str(model)])
        try:
            code = latref_draw()
        except SystemExit as e:
            code = e.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return call


def test_the_command_draws_and_says_how(call, tmp_path):
    mask = SynthFaces(1, 64, seed=5).masks(0).int().argmax(0).numpy().astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("--tags", "Smiling=with, Eyeglasses=with", "--mask", tmp_path / "mask.png", "--n", 3, "--steps", 2)
    code, out, err = call(*words, "--out", tmp_path / "out")
    assert code == 0 and "3 faces" in out, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [RECORD, *(f"drawn_{i:04d}.png" for i in range(3))]
    code, out, err = call("--n", 1, "--steps", 2, "--out", tmp_path / "out")
    runs = json.loads((tmp_path / "out" / RECORD).read_text())["runs"]
    assert code == 0 and [r["files"] for r in runs][1] == ["drawn_0003.png"] and runs[0]["tags"].startswith("Smiling")


def test_a_face_can_be_drawn_again_from_its_record(tmp_path):
    pipe = made()
    a = draw_files(pipe, tmp_path / "a", "Smiling=with", n=5, seed=3, steps=2, batch_size=2)
    b = draw_files(pipe, tmp_path / "b", "Smiling=with", n=1, seed=7, steps=2)
    assert np.abs(np.asarray(Image.open(a[4]), int) - np.asarray(Image.open(b[0]), int)).max() <= 2


@pytest.mark.parametrize(
    "words, said",
    [
        (("--tags", "Smilin=with"), "Smiling"),
        (("--mask", "nothing.png"), "is no file"),
        (("--guidance", "nan"), "guidance"),
        (("--mask-guidance", "-1"), "mask_guidance"),
        (("--tags", "Smiling=with, Smiling=without"), "said twice"),
        (("--n", 0), "--n"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(call, tmp_path, words, said):
    code, out, err = call(*words, "--steps", 2, "--out", tmp_path / "out")
    assert code and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "pixels, said",
    [
        (np.zeros((64, 64), np.uint8), "no part of a face is anywhere"),
        (np.zeros((64, 64, 3), np.uint8), "a picture in colours, RGB"),
        (np.full((64, 64), 19, np.uint8), "Allowed: class numbers 0 to 18"),
        (np.ones((64, 32), np.uint8), "32×64 pixels. Needed: a square"),
    ],
)
def test_masks_that_cannot_be_followed_are_one_line(call, tmp_path, pixels, said):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    code, out, err = call("--mask", tmp_path / "mask.png", "--steps", 2, "--out", tmp_path / "out")
    assert code and said in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_somebodys_file_stays(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_text('{"mine": 1}')
    code, out, err = call("--n", 1, "--steps", 2, "--out", tmp_path / "out")
    assert code and "no record of drawn faces" in err and (tmp_path / "out" / RECORD).read_text() == '{"mine": 1}'
