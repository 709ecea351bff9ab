"Pictures, tags and files: what is accepted, what is refused in one clear line, and what stays behind when writing fails."

import io, json, math, os, resource, socket, subprocess, sys
from pathlib import Path
from contextlib import contextmanager
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from latref_nb.core import (
    CELEBA_TAGS,
    IMAGE_SUFFIXES,
    FileError,
    ImageError,
    Tag,
    TagSet,
    atomic_folder,
    atomic_write,
    batched,
    check_images,
    default_device,
    file_size,
    image_files,
    image_suffixes,
    json_text,
    load_image,
    load_images,
    make_folder,
    make_generator,
    nearest,
    passed_over,
    randn,
    read_formats,
    read_json,
    save_image,
    settle_folder,
    shipped_names,
    shipped_path,
    short_name,
    shown,
    to_numpy,
    to_pil,
    user_path,
    write_json,
)


ODD = ["plain", "ü é 中 🙂", "caf\udce9", "\\udcff \udcff", "two\nlines", 'a"b\\', "\x00\x1f\x7f", "\ud800"]  # names


def photo(w=40, h=30, seed=0):
    "Smooth random colours, so that JPEG and resizing keep them nearly."
    small = np.random.default_rng(seed).integers(30, 225, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


def as_tensor(im):
    return torch.from_numpy(np.array(im.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1  # (3,H,W)


def encoded(im, fmt="PNG", **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def refused(f, *contains, exc=ImageError):
    "`f` raises `exc` with one line that contains all of `contains`."
    with pytest.raises(exc) as e:
        f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 300, said
    for c in contains:
        assert c in said, said
    return said


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


# ---- folders: what is found, what is passed over and said, what is never entered


def test_every_format_that_is_read_is_found(tmp_path):
    known = Image.registered_extensions()
    assert IMAGE_SUFFIXES[0] == ".png" and set(IMAGE_SUFFIXES) == set(image_suffixes()) and ".eps" not in IMAGE_SUFFIXES
    saved = {}
    for suffix in IMAGE_SUFFIXES:
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
    } <= set(IMAGE_SUFFIXES)


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
    unread = {f"a{s}" for s in UNREAD if s.lower() not in IMAGE_SUFFIXES}
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
        refused(lambda: TagSet.load(path), "a tags file is needed", exc=ValueError)


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


def test_batches():
    assert list(batched(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_tags_there_and_back(tmp_path):
    every = torch.cartesian_prod(*[torch.arange(len(t)) for t in CELEBA_TAGS])
    for l in every:
        assert torch.equal(CELEBA_TAGS.encode(CELEBA_TAGS.decode(l)), l)
        assert torch.equal(CELEBA_TAGS.from_celeba(CELEBA_TAGS.to_celeba(l)), l)
    assert TagSet.load(CELEBA_TAGS.save(tmp_path / "tags.json")) == CELEBA_TAGS and hash(CELEBA_TAGS) == hash(
        TagSet(CELEBA_TAGS)
    )
    assert (
        CELEBA_TAGS.names == ["Smiling", "Eyeglasses", "Bangs", "HairColor", "Young", "Male"]
        and len(CELEBA_TAGS.pairs) == 13
    )
    assert CELEBA_TAGS["HairColor"] == CELEBA_TAGS[3] and "Bangs" in CELEBA_TAGS and "Beard" not in CELEBA_TAGS


def test_celeba_rows_that_do_not_decide():
    t = CELEBA_TAGS.from_celeba({"Black_Hair": "1", "Blond_Hair": "-1", "Brown_Hair": "1", "Smiling": "1"})
    assert t.tolist() == [1, -1, -1, -1, -1, -1]
    assert TagSet([Tag("Mood", ("calm", "glad", "sad"))]).from_celeba({"Mood": 1}).tolist() == [-1]


def test_names_that_do_not_exist():
    refused(lambda: CELEBA_TAGS.index("Eyeglass"), "Did you mean 'Eyeglasses'?", "Known: Smiling", exc=ValueError)
    refused(lambda: CELEBA_TAGS["eyeglasses"], "Did you mean 'Eyeglasses'?", exc=ValueError)
    refused(lambda: CELEBA_TAGS.encode({"HairColor": "blonde"}), "Did you mean 'blond'?", exc=ValueError)
    refused(lambda: CELEBA_TAGS["Smiling"].index("yes"), "Known: without, with", exc=ValueError)
    assert nearest("qqq", ["Smiling"]) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[1, 2]",
        "3",
        "null",
        '{"Smiling": 1}',
        '{"Smiling": {"values": ["only"]}}',
        "{}",
        '{"a": {"values": "ab"}}',
        '{"a": {"values": [1, 2]}}',
        '{"a": {"values": [[1], [2]]}}',
        '{"a": {"values": {"x": 1}}}',
        '{"a": {"values": ["x", ""]}}',
        '{"": {"values": ["x", "y"]}}',
        '{"a": {"values": ["x", "y"], "attributes": 7}}',
        '{"a": {"values": ["x", "y"], "attributes": "xy"}}',
        '{"a": {"values": ["x", null]}}',
        '{"a": {"values": ["x", "x"]}}',
        '{"a":' * 30_000,
        '{"a": "' + "x" * 1_000_000 + '"}',
        "\udcff",
    ],
)
def test_tag_files_that_are_none(tmp_path, text):
    (tmp_path / "tags.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    refused(lambda: TagSet.load(tmp_path / "tags.json"), "tags.json", exc=ValueError)


@contextmanager
def small_disk(limit=2000):
    "Writes beyond `limit` bytes fail, as they do on a full disk."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path):
    x = torch.rand(3, 128, 128) * 2 - 1
    path = save_image(as_tensor(photo()), tmp_path / "me.png")
    old = path.read_bytes()
    with small_disk():
        refused(lambda: save_image(x, path), "cannot write", "me.png", "choose another place", exc=OSError)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["me.png"]


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


# ---- names and places

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
    x, path = as_tensor(photo()), tmp_path / f"{stem}.png"
    assert torch.equal(load_image(save_image(x, path)), x)
    assert load_image(save_image(x, tmp_path / (short_name(stem, room=11) + "_edited.png"))).shape == (3, 30, 40)
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


@pytest.mark.parametrize("name", ODD[:6])
def test_odd_names_are_written_and_told(tmp_path, name):
    name = name.replace("\0", "").replace("/", "") + ".png"
    assert load_image(save_image(as_tensor(photo()), tmp_path / name)).shape == (3, 30, 40) and [
        p.name for p in image_files(tmp_path)
    ] == [name]
    (tmp_path / name).write_bytes(b"no picture")
    refused(lambda: load_image(tmp_path / name), "not an image").encode("utf-8")


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


def test_pictures_that_a_format_cannot_hold(tmp_path):
    refused(lambda: save_image(photo().convert("RGBA"), tmp_path / "a.jpg"), "a.jpg", "RGBA", exc=OSError)
    refused(lambda: save_image(photo(), tmp_path / "a.jpg", quality="best of all"), "a.jpg", exc=OSError)
    refused(lambda: save_image(photo(20_000, 8), tmp_path / "a.webp"), "a.webp", exc=OSError)
    for name in ("a.psd", "a.xyz", "a"):
        refused(lambda: save_image(photo(), tmp_path / name), "names no image format", exc=ValueError)
    assert os.listdir(tmp_path) == []


# ---- JSON, and what is no regular file


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


def not_regular(folder):
    "Paths of what stands in a folder under a file's name and is none."
    os.mkfifo(folder / "pipe")
    for name, target in (("broken", folder / "gone"), ("device", "/dev/zero"), ("loop", "loop")):
        (folder / name).symlink_to(target)
    (folder / "folder").mkdir()
    (folder / "file").touch()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(folder / "socket"))
    names = ("pipe", "broken", "device", "loop", "folder", "socket", "gone", "file/x", "n" * 300, "nul\0")
    return [folder / n for n in names]


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


# ---- the package itself


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


@pytest.mark.parametrize("seed", [2**64, 2**70, -(2**63) - 1])
def test_seeds_beyond_what_a_generator_takes(seed):
    refused(lambda: make_generator(seed), f"seed={seed} came", exc=ValueError)
