"Picture files and folders: what is read and how, what is refused in one clear line, what is passed over."

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latref_nb.core import load_image, save_image
from latref_nb.images import (
    ImageError,
    image_files,
    image_suffixes,
    passed_over,
    read_formats,
    read_rgb,
)
from picture_case import as_tensor, encoded, not_regular, photo, refused


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff", ".ppm"])
def test_lossless_files_give_the_pixels(tmp_path, suffix):
    im = photo()
    path = tmp_path / f"me{suffix}"
    im.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    x = load_image(path)
    assert x.shape == (3, 30, 40) and x.dtype == torch.float32
    assert torch.equal(x, as_tensor(im))
    assert torch.equal(load_image(path.read_bytes()), x)


def test_jpeg_is_close(tmp_path):
    im = photo()
    im.save(tmp_path / "me.jpg", quality=95)
    assert (load_image(tmp_path / "me.jpg") - as_tensor(im)).abs().mean() < 0.03


@pytest.mark.parametrize(
    "code,undo",
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_every_exif_orientation_comes_out_upright(code, undo):
    exif = Image.Exif()
    exif[0x0112] = code
    assert torch.equal(load_image(encoded(photo().transpose(undo), exif=exif)), as_tensor(photo()))


def test_broken_exif_is_passed_over():
    assert load_image(encoded(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")).shape == (3, 30, 40)


def test_grey_bilevel_and_palette():
    g = load_image(encoded(photo().convert("L")))
    assert torch.equal(g[0], g[1]) and torch.equal(g[1], g[2])
    assert load_image(encoded(photo().convert("1"))).unique().tolist() == [-1.0, 1.0]
    p = photo().quantize(8)
    assert torch.equal(load_image(encoded(p)), as_tensor(p))


def test_alpha_goes_on_white():
    im = photo().convert("RGBA")
    im.paste((10, 20, 30, 0), (0, 0, 10, 10))
    im.paste((0, 0, 0, 127), (20, 0, 30, 10))
    x = load_image(encoded(im))
    assert torch.equal(x[:, :10, :10], torch.ones(3, 10, 10))
    assert (x[:, 5, 25] - (128 / 127.5 - 1)).abs().max() < 0.02
    la = Image.new("LA", (20, 20), (0, 0))
    assert torch.equal(load_image(encoded(la)), torch.ones(3, 20, 20))
    palette = photo().quantize(8)
    assert (load_image(encoded(palette, transparency=0)) == 1).all(0).sum() >= (np.asarray(palette) == 0).sum()


def test_sixteen_bits_are_scaled():
    ramp = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    x = load_image(encoded(Image.fromarray(ramp)))
    assert x.min() == -1 and x.max() == 1
    assert (x[0] - torch.from_numpy(ramp / 32767.5 - 1)).abs().max() < 1 / 127
    assert torch.equal(load_image(ramp), x)


def test_cmyk_is_converted():
    im = photo()
    assert (load_image(encoded(im.convert("CMYK"), "JPEG", quality=98)) - as_tensor(im)).abs().mean() < 0.05
    assert (load_image(encoded(im.convert("CMYK"), "TIFF")) - as_tensor(im)).abs().mean() < 0.02


def test_a_phone_photo_with_a_preview_is_one_photo():
    b = encoded(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    assert (load_image(b) - as_tensor(photo())).abs().mean() < 0.05


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(fmt):
    b = encoded(photo(), fmt, save_all=True, append_images=[photo(seed=1), photo(seed=2)])
    refused(lambda: load_image(b), "frames", "save one frame as PNG")


def test_what_is_not_an_image(tmp_path):
    (tmp_path / "letter.jpg").write_text("Dear reader,")
    (tmp_path / "nothing.png").touch()
    (tmp_path / "zeros.png").write_bytes(bytes(5000))
    refused(lambda: load_image(tmp_path / "letter.jpg"), "letter.jpg", "not an image", "PNG, JPEG")
    refused(lambda: load_image(tmp_path / "nothing.png"), "zero bytes")
    refused(lambda: load_image(tmp_path / "zeros.png"), "not an image")
    refused(lambda: load_image(b""), "zero bytes")
    refused(lambda: load_image(tmp_path / "gone.png"), "no such file")
    refused(lambda: load_image(tmp_path), "is a folder")
    refused(lambda: load_image(3), "int came as an image")


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_cut_short_at_any_length(fmt):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noisy, fmt)
    for share in (0.01, 0.1, 0.5, 0.8):
        refused(lambda: load_image(whole[: int(len(whole) * share)]))


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(1)
    for fmt in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = np.frombuffer(encoded(photo(), fmt), np.uint8)
        for _ in range(40):
            bad = whole.copy()
            bad[rng.integers(0, len(bad), 6)] = rng.integers(0, 256, 6)
            try:
                assert torch.isfinite(load_image(bad.tobytes())).all()
            except ImageError as e:
                assert "\n" not in str(e)


def test_sizes_no_face_can_be_read_from():
    refused(lambda: load_image(encoded(Image.new("RGB", (1, 1)))), "1×1", "at least 8")
    refused(lambda: load_image(encoded(Image.new("RGB", (20_000, 10)))), "20000×10", "crop it around the face")
    refused(lambda: load_image(encoded(Image.new("1", (20_000, 20_000)))), "100 megapixels")
    refused(lambda: load_image(encoded(Image.new("1", (11_000, 10_000)))), "110 megapixels")
    refused(lambda: load_image(np.zeros((4, 400, 3), np.uint8)), "too small")
    assert load_image(encoded(Image.new("RGB", (8, 8))), 64).shape == (3, 64, 64)


def test_arrays():
    a = np.array(photo())
    for src in (a, a / 255.0, (a / 255.0).astype(np.float32)):
        assert (load_image(src) - as_tensor(photo())).abs().max() < 1e-6
    assert torch.equal(load_image(a[..., 0])[0], load_image(a[..., :1])[2])
    refused(lambda: load_image(a.astype(np.float32)), "[0, 1]")
    refused(lambda: load_image(a / 127.5 - 1), "[0, 1]")
    refused(lambda: load_image(np.full((9, 9), np.nan)), "[0, 1]")
    refused(lambda: load_image(a.astype(np.int64)), "int64")
    refused(lambda: load_image(a[None]), "channels come last")
    refused(lambda: load_image(a.transpose(2, 0, 1)), "channels come last")


def test_a_lazy_pil_image_that_is_cut_short(tmp_path):
    b = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    refused(lambda: load_image(Image.open(io.BytesIO(b[: len(b) // 2]))), "cut short")


@pytest.mark.parametrize("w,h", [(40, 30), (30, 40), (200, 11), (64, 64), (9, 9)])
def test_shorter_side_then_centre(w, h):
    a = np.zeros((h, w, 3), np.uint8)
    a[:, :, 0] = np.linspace(0, 255, w)[None]
    a[:, :, 1] = np.linspace(0, 255, h)[:, None]
    x = load_image(a, 32)
    assert x.shape == (3, 32, 32)
    assert abs(x[0].mean()) < 0.05 and abs(x[1].mean()) < 0.05  # the centre of both ramps is mid-grey
    assert min(load_image(a, 32, crop=False).shape[1:]) == 32


def test_folders(tmp_path):
    refused(lambda: image_files(tmp_path), "holds no image")
    refused(lambda: image_files(tmp_path / "gone"), "no such folder")
    (tmp_path / "in").mkdir()
    photo().save(tmp_path / "b.JPG", "JPEG")
    photo().save(tmp_path / "in" / "a.png")
    (tmp_path / "._c.png").touch()
    (tmp_path / "list.txt").touch()
    assert [p.name for p in image_files(tmp_path)] == ["b.JPG"]
    assert [p.name for p in image_files(tmp_path, recursive=True)] == ["b.JPG", "a.png"]
    refused(lambda: image_files(tmp_path / "b.JPG"), "is a file")


def test_every_format_that_is_read_is_found(tmp_path):
    known = Image.registered_extensions()
    suffixes = image_suffixes()
    assert suffixes[0] == ".png" and ".eps" not in suffixes
    saved = {}
    for suffix in suffixes:
        if known[suffix] not in Image.SAVE:
            continue
        photo().save(tmp_path / f"a{suffix.upper()}", known[suffix])
        saved[f"a{suffix.upper()}"] = load_image(tmp_path / f"a{suffix.upper()}").shape
    assert [p.name for p in image_files(tmp_path)] == sorted(saved) and set(saved.values()) == {(3, 30, 40)}
    assert {"PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM"} <= set(read_formats()) and {
        ".mpo",
        ".apng",
        ".tif",
        ".pgm",
    } <= set(suffixes)


UNREAD = [".heic", ".HEIF", ".raw", ".cr2", ".nef", ".psd", ".svg", ".jxl", ".pdf", ".eps", ".dng", ".ico"]


def test_what_is_passed_over_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo().save("me.jpg")
    for name in (*(f"a{s}" for s in UNREAD), "list.txt", "b.json", ".hidden.psd"):
        Path(name).touch()
    os.mkfifo("pipe.png")
    Path("gone.png").symlink_to("nowhere.png")
    Path("folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket.png")
    assert image_files(".") == [Path("me.jpg")]
    said = {p.name: why for p, why in passed_over(".")}
    unread = {f"a{s}" for s in UNREAD if s.lower() not in image_suffixes()}
    assert set(said) == unread | {"pipe.png", "gone.png", "socket.png"}
    if "a.heic" in said:
        assert "pip install pillow-heif" in said["a.heic"] and "pillow-heif" in said["a.HEIF"]
    assert "JPEG or TIFF" in said["a.cr2"] and "save it as PNG" in said["a.psd"]
    assert "link to nothing" in said["gone.png"]
    Path("me.jpg").unlink()
    refused(lambda: image_files("."), "holds no image", "a.HEIF" if "a.HEIF" in said else "a.cr2", "more")


def test_hidden_folders_are_never_entered_and_links_end(tmp_path):
    root = tmp_path / "root"
    for name in (".ipynb_checkpoints/a.png", ".b.png", "in/c.png", "in/.d/e.png", "far/f.png"):
        save_image(as_tensor(photo()), root / name)
    save_image(as_tensor(photo()), tmp_path / "other" / "deep" / "g.png")
    (root / "a_link").symlink_to(tmp_path / "other")
    (root / "again").symlink_to(root / "in")
    (root / "in" / "up").symlink_to(root)
    (root / "in" / "above").symlink_to(tmp_path)
    (tmp_path / "other" / "round").symlink_to(tmp_path / "other", target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "link.png").symlink_to(root / "far" / "f.png")
    found = [p.relative_to(root).as_posix() for p in image_files(root, recursive=True)]
    assert found == ["a_link/deep/g.png", "far/f.png", "in/c.png", "link.png"]
    assert [p.name for p in image_files(root)] == ["link.png"] and passed_over(root, True) == []
    assert image_files(root / ".ipynb_checkpoints")[0].name == "a.png"  # asked for by name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_without_permission_is_said(tmp_path):
    save_image(as_tensor(photo()), tmp_path / "a.png")
    (tmp_path / "shut").mkdir(mode=0)
    assert [p.name for p in image_files(tmp_path, True)] == ["a.png"]
    assert [(p.name, "permissions" in why) for p, why in passed_over(tmp_path, True)] == [("shut", True)]
    (tmp_path / "shut").chmod(0o700)


def test_no_reader_waits_for_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in not_regular(Path()):
        refused(lambda: load_image(path), "one image file is needed")


def test_pixels_alone_without_tensors():
    im = read_rgb(encoded(photo().convert("P")))
    assert im.mode == "RGB" and np.array_equal(np.array(im), np.array(photo().convert("P").convert("RGB")))
    assert read_rgb(photo(4000, 3000), size=64).size < (4000, 3000)  # a large one comes smaller at once
    refused(lambda: read_rgb(torch.zeros(3, 8, 8)), "a Tensor came as an image")
