"Pictures as tensors and back, devices, random numbers; and where the names of the package are found."

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from latref_nb import checks, core, files, images, tags
from latref_nb.core import (
    batched,
    check_images,
    default_device,
    load_image,
    load_images,
    make_generator,
    randn,
    save_image,
    to_numpy,
    to_pil,
)
from latref_nb.files import atomic_folder, make_folder, settle_folder
from latref_nb.images import image_files
from latref_nb.tags import CELEBA_TAGS, TagSet
from picture_case import ODD, as_tensor, photo, refused, small_disk


def test_a_batch_of_files_of_all_sizes(tmp_path):
    for i, wh in enumerate([(40, 30), (64, 64), (30, 90)]):
        photo(*wh).save(tmp_path / f"{i}.png")
    assert load_images(image_files(tmp_path), 48).shape == (3, 3, 48, 48)
    assert load_images(str(tmp_path / "0.png"), 48).shape == (1, 3, 48, 48)
    refused(lambda: load_images([], 48), "at least one")


def test_bytes_survive(tmp_path):
    x = as_tensor(photo())
    assert torch.equal(load_image(to_pil(x)), x) and np.array_equal(to_numpy(x[None])[0], np.array(photo()))
    assert torch.equal(load_image(save_image(x, tmp_path / "a" / "b" / "me.png")), x)
    for bad in (torch.zeros(1, 3, 3), torch.zeros(3, 3), torch.zeros(2, 3, 3, 3, 3)):
        refused(lambda: to_pil(bad), "(3,H,W)", exc=ValueError)
    refused(lambda: to_pil(torch.full((3, 8, 8), float("inf"))), "NaN or infinity", exc=ValueError)


@pytest.mark.parametrize(
    "bad,contains",
    [
        (torch.zeros(3, 8, 8), "x[None]"),
        (torch.zeros(1, 8, 8, 3), "Channels come before"),
        (torch.zeros(1, 1, 8, 8), "(B,3,H,W)"),
        (torch.zeros(0, 3, 8, 8), "(B,3,H,W)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "from_uint8"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 3, 8, 8), 255.0), "0..255"),
        (torch.full((1, 3, 8, 8), -1.01), "clamp"),
        (np.zeros((1, 3, 8, 8)), "ndarray"),
        ([1], "list"),
    ],
)
def test_tensors_that_are_not_images(bad, contains):
    refused(lambda: check_images(bad), contains, exc=ValueError)


def test_tensors_that_are():
    x = torch.rand(2, 3, 8, 12) * 2 - 1
    assert (
        check_images(x) is x
        and check_images(x, (8, 12)) is x
        and check_images(x.half()) is not None
        and check_images(x[:, :1], channels=1) is not None
    )
    refused(lambda: check_images(x, 8), "(B,3,8,8) is needed", exc=ValueError)


def test_devices():
    assert default_device("cpu").type == "cpu" and default_device().type in ("cpu", "cuda", "mps")
    refused(lambda: default_device("tpu9"), "is not known", exc=ValueError)
    if not torch.cuda.is_available():
        refused(lambda: default_device("cuda"), "asked for", exc=ValueError)


def test_noise_of_one_image_does_not_depend_on_the_others():
    x = randn((3, 3, 4, 4), make_generator([5, 6, 7]))
    assert torch.equal(x[1:2], randn((1, 3, 4, 4), make_generator([6])))
    assert torch.equal(randn((2, 2), make_generator(3)), randn((2, 2), make_generator(3)))
    assert make_generator(None) is None and randn((2,), None, dtype=torch.float64).dtype == torch.float64
    refused(lambda: randn((3, 2), make_generator([1])), "1 generators came for a batch of 3", exc=ValueError)


@pytest.mark.parametrize("seed", [2**64, 2**70, -(2**63) - 1])
def test_seeds_beyond_what_a_generator_takes(seed):
    refused(lambda: make_generator(seed), f"seed={seed} came", exc=ValueError)


def test_batches():
    assert list(batched(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path):
    x = torch.rand(3, 128, 128) * 2 - 1
    path = save_image(as_tensor(photo()), tmp_path / "me.png")
    old = path.read_bytes()
    with small_disk():
        refused(lambda: save_image(x, path), "cannot write", "me.png", "choose another place", exc=OSError)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["me.png"]


@pytest.mark.parametrize("place", ["file/me.png", "file/deep/me.png", "/proc/latref/me.png", "/dev/null/me.png"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    refused(lambda: save_image(as_tensor(photo()), tmp_path / place), "cannot write", "another place", exc=OSError)

    def write():
        with atomic_folder(tmp_path / place):
            pass

    refused(write, "cannot write", exc=OSError)
    assert os.listdir(tmp_path) == ["file"]


def test_names_that_cannot_be_written(tmp_path):
    refused(lambda: save_image(as_tensor(photo()), tmp_path / "me.face"), ".png", exc=ValueError)
    refused(lambda: save_image(as_tensor(photo()), tmp_path / "me"), ".png", exc=ValueError)
    (tmp_path / "dir.png").mkdir()
    refused(lambda: save_image(as_tensor(photo()), tmp_path / "dir.png"), "that is a folder", exc=OSError)
    assert os.listdir(tmp_path) == ["dir.png"]


@pytest.mark.parametrize("name", ODD[:6])
def test_odd_names_are_written_and_told(tmp_path, name):
    name = name.replace("\0", "").replace("/", "") + ".png"
    assert load_image(save_image(as_tensor(photo()), tmp_path / name)).shape == (3, 30, 40) and [
        p.name for p in image_files(tmp_path)
    ] == [name]
    (tmp_path / name).write_bytes(b"no picture")
    refused(lambda: load_image(tmp_path / name), "not an image").encode("utf-8")


def test_pictures_that_a_format_cannot_hold(tmp_path):
    refused(lambda: save_image(photo().convert("RGBA"), tmp_path / "a.jpg"), "a.jpg", "RGBA", exc=OSError)
    refused(lambda: save_image(photo(), tmp_path / "a.jpg", quality="best of all"), "a.jpg", exc=OSError)
    refused(lambda: save_image(photo(20_000, 8), tmp_path / "a.webp"), "a.webp", exc=OSError)
    for name in ("a.psd", "a.xyz", "a"):
        refused(lambda: save_image(photo(), tmp_path / name), "names no image format", exc=ValueError)
    assert os.listdir(tmp_path) == []


def test_paths_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_image(as_tensor(photo()), "~/in/x.png")
    CELEBA_TAGS.save("~/tags.json")
    assert torch.equal(load_image("~/in/x.png"), as_tensor(photo())) and image_files("~/in") == [
        tmp_path / "in" / "x.png"
    ]
    assert TagSet.load("~/tags.json") == CELEBA_TAGS and make_folder("~/new/deep") == tmp_path / "new" / "deep"
    with atomic_folder("~/made") as t:
        (t / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["in", "made", "new", "tags.json"] and settle_folder("~/made").is_dir()


def test_importing_the_package_is_light_and_names_come_when_asked_for():
    code = """
import sys, latref_nb
assert "torch" not in sys.modules and "PIL" not in sys.modules, "import latref_nb brings its heavy parts along"
from latref_nb import Edit, LatRefPipeline
import latref_nb.pipeline
assert Edit is latref_nb.pipeline.Edit and "LatRefPipeline" in dir(latref_nb)
try: latref_nb.LatRefPipelin
except AttributeError as e: assert "LatRefPipeline" in str(e)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", [checks, files, tags, images], ids=lambda m: m.__name__)
def test_names_that_lived_here_once_are_still_found(module):
    assert [n for n in module.__all__ if getattr(core, n) is not getattr(module, n)] == []
