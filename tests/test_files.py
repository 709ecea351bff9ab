"Files: what is refused in one clear line, and what stays behind when writing fails."

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latref_nb.checks import shown
from latref_nb.files import (
    FileError,
    atomic_folder,
    atomic_write,
    file_size,
    json_text,
    make_folder,
    read_json,
    settle_folder,
    shipped_names,
    shipped_path,
    short_name,
    user_path,
    write_json,
)
from picture_case import ODD, not_regular, refused, small_disk


@pytest.mark.parametrize(
    "writer",
    [
        lambda t: save_file({"w": torch.rand(5000)}, t / "a.safetensors"),
        lambda t: torch.save(torch.rand(5000), t / "a.pt"),
        lambda t: np.save(t / "a.npy", np.zeros(5000)),
    ],
)
def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path, writer):
    with atomic_folder(tmp_path / "model") as t:
        (t / "old.txt").write_text("old")

    def write():
        with atomic_folder(tmp_path / "model") as t:
            writer(t)

    with small_disk():
        with pytest.raises((OSError, RuntimeError)):
            write()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["old.txt"]


def test_safetensors_on_a_full_disk_says_so(tmp_path):
    def write():
        with atomic_folder(tmp_path / "model") as t:
            save_file({"w": torch.rand(5000)}, t / "a.safetensors")

    with small_disk():
        refused(write, "cannot write", "model", exc=OSError)


def test_errors_of_the_body_stay_as_they_are(tmp_path):
    def write():
        with atomic_write(tmp_path / "a.txt"):
            open(tmp_path.parent / "not-there.txt")

    with pytest.raises(FileNotFoundError):
        write()

    def fail():
        with atomic_folder(tmp_path / "f") as t:
            (t / "x").touch()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_kill_between_the_renames_is_mended(tmp_path):
    with atomic_folder(tmp_path / "m") as t:
        (t / "one").touch()
    (tmp_path / "m").rename(tmp_path / ".m.previous")
    assert settle_folder(tmp_path / "m").is_dir() and os.listdir(tmp_path) == ["m"]
    with atomic_folder(tmp_path / "m") as t:
        (t / "two").touch()
    assert os.listdir(tmp_path) == ["m"] and os.listdir(tmp_path / "m") == ["two"]


LONG = {
    "emoji": "🙂" * 59,
    "letters": "x" * 245,
    "accents": "é" * 120,
    "bytes": "\udcff" * 240,
    "dots": "a." + "b" * 240,
    "full": "y" * 251,
}


@pytest.mark.parametrize("stem", LONG.values(), ids=LONG)
def test_names_as_long_as_a_system_takes(tmp_path, stem):
    for name in (f"{stem}.png", short_name(stem, room=11) + "_edited.png"):
        with atomic_write(tmp_path / name) as t:
            t.write_text(name, "utf-8", "surrogateescape")
        assert (tmp_path / name).read_text("utf-8", "surrogateescape") == name
    for text in ("one", "two"):
        with atomic_folder(tmp_path / f"{stem}.dir") as t:
            (t / text).touch()
    assert os.listdir(tmp_path / f"{stem}.dir") == ["two"] and len(os.listdir(tmp_path)) == 3
    (tmp_path / f"{stem}.dir").rename(tmp_path / f".{short_name(f'{stem}.dir', room=10)}.previous")
    assert settle_folder(tmp_path / f"{stem}.dir").is_dir()


@pytest.mark.parametrize(
    "stem", [*LONG.values(), "z" * 4000, "\ud800" * 100, "", "a"], ids=[*LONG, "long", "surrogates", "none", "one"]
)
@pytest.mark.parametrize("room", [0, 11, 60, 250])
def test_short_names_fit_and_stay_different(stem, room):
    short = short_name(stem, room)
    length = len(os.fsencode(short)) if "\ud800" not in short else len(short.encode("utf-8", "surrogatepass"))
    assert length <= 255 - min(room, 246)  # a hash and its mark are the least
    if len(stem) <= 1:
        assert short == stem
    elif short != stem:
        assert short != short_name(stem + "b", room) and short[:-9] == stem[: len(short) - 9]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "🙂" * 70 + ".png", "nul\0.png", "\ud800.png", "." + "p" * 300])
def test_names_that_no_system_takes(tmp_path, name):
    def folder():
        with atomic_folder(tmp_path / name):
            pass

    def file():
        with atomic_write(tmp_path / name):
            pass

    for write in (folder, file, lambda: make_folder(tmp_path / name), lambda: write_json([], tmp_path / name)):
        refused(write, "cannot write", exc=OSError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", [".", "", "..", "../..", "here/..", "/", "./", "../here", "link"])
def test_the_folder_one_is_in_is_not_exchanged(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("mine")
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")

    def write():
        with atomic_folder(place) as t:
            (t / "new").touch()

    refused(write, "cannot write", "the folder you are in", exc=OSError)
    assert settle_folder(place).is_dir() and (tmp_path / "here" / "mine.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["here"] and sorted(os.listdir(".")) == ["here", "link", "mine.txt"]


def test_a_folder_by_a_roundabout_path_and_by_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a", "b").mkdir(parents=True)
    Path("link").symlink_to("a")
    for n, place in enumerate(("a/b/..", "a/.", "link", "./link/", "a/b/../../a")):
        with atomic_folder(place) as t:
            (t / f"{n}").touch()
        Path("a", "b").mkdir()
        assert (
            sorted(os.listdir("a")) == [f"{n}", "b"]
            and Path("link").is_symlink()
            and sorted(os.listdir()) == ["a", "link"]
        )


@pytest.mark.parametrize("name", ODD)
def test_json_takes_any_name(tmp_path, name):
    path = write_json({name: [name]}, tmp_path / "new" / "a.json")
    assert read_json(path) == {name: [name]} and json.loads(path.read_text(encoding="utf-8")) == {name: [name]}
    assert "\n" not in shown(name) and shown(name).encode("utf-8")


def test_json_takes_numbers_of_all_kinds(tmp_path):
    data = {"n": np.float32(0.5), "a": np.arange(3), "t": torch.ones(2), "p": tmp_path}
    data |= {"nan": math.nan, "inf": -math.inf, "none": None}
    back = read_json(write_json(data, tmp_path / "a.json"))
    assert back["n"] == 0.5 and back["a"] == [0, 1, 2] and back["t"] == [1, 1] and back["p"] == str(tmp_path)
    assert math.isnan(back["nan"]) and back["inf"] == -math.inf and back["none"] is None
    assert write_json({}, None) is None
    with pytest.raises(TypeError, match="cannot be written"):
        write_json({"o": object()}, tmp_path / "b.json")
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00\x80", "is not JSON"),
        (b"<html>\n404", "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b"[" + b"1," * 600_000 + b"1]", "at most 1,000,000"),
    ],
)
def test_json_that_cannot_be_used_is_one_line(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    refused(lambda: read_json(tmp_path / "x.json", "a recipe"), "x.json", words, "a recipe", exc=FileError)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for path in not_regular(Path()):
        refused(lambda: read_json(path), "a JSON file is needed", exc=FileError)
    (tmp_path / "link.json").symlink_to(write_json([1], tmp_path / "real.json"))
    assert read_json(tmp_path / "link.json") == [1] and file_size("real.json", "x") == len(json_text([1]))


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_json([1], "~/a.json")
    assert os.listdir(tmp_path) == ["a.json"] and read_json("~/a.json") == [1]
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "b.json").write_text("[2]")
    assert read_json("~/b.json") == [2] and user_path("~nobody-here/x") == Path("~nobody-here/x")


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a.txt") as t:
        t.write_text("a")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_shipped_things():
    for name in shipped_names():
        assert shipped_path(name).exists()
    for bad in ("", "..", "../setup.py", "/etc/passwd", "synthfaces46x"):
        refused(lambda: shipped_path(bad), "ships with the package", exc=FileNotFoundError)
