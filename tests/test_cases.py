"Small inputs that other programs made oddly, and variations of each kind: read as meant, or refused in one line."

import io, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features
from repo import HANG
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.images import ImageError, read_formats
from latref_nb.core import load_image
from latref_nb.datasets import AnnotationError, FaceFolder, FacesWarning, open_faces

CASES = Path(__file__).parent / "fixtures" / "cases"


def halves(w=96, h=64):
    "Red left, blue right, a green corner: every way to turn it looks different."
    a = np.zeros((h, w, 3), np.uint8)
    a[:, : w // 2, 0] = 230
    a[:, w // 2 :, 2] = 230
    a[: h // 4, : w // 8, 1] = 230
    return Image.fromarray(a)


def encoded(im, fmt="PNG", **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def pixels(im):
    return torch.from_numpy(np.array(im.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1  # (3,H,W)


def refused(f, *words, exc=ImageError):
    "`f` raises `exc` with one short line that holds all words."
    with pytest.raises(exc) as e:
        f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 400, said
    for w in words:
        assert w in said, said
    return said


# ---- orientation: one tag alone, whatever is wrong with the others


def directory(entries, order="<"):
    "EXIF of one directory; entries are (tag, type, count, four bytes)."
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(struct.pack(order + "HHI", *e[:3]) + e[3].ljust(4, b"\0") for e in entries) + bytes(4)


def turned(order, code=6, kind=3):
    "The entry of the orientation."
    return 0x0112, kind, 1, struct.pack(order + {1: "B", 3: "H", 4: "I", 8: "h", 11: "f"}.get(kind, "H"), code)


BROKEN = {
    "resolution undefined": (0x011A, 7, 8, b"\xff\xff\xff\xff"),
    "artist rational": (0x013B, 5, 1, b"\xff\xff\xff\x0f"),
    "no such type": (0x010F, 99, 3, b"abc"),
    "count without end": (0x0110, 2, 0xFFFFFFFF, b"\x08"),
    "unit a string": (0x0128, 2, 4, b"inch"),
    "exif elsewhere": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "gps of no type": (0x8825, 0, 0, b""),
    "description a float": (0x010E, 11, 1, b"\x00\x00\xc0\x7f"),
    "resolution without parts": (0x011B, 5, 0, b""),
    "date signed": (0x0132, 9, 2, b"\xff\xff\xff\xff"),
}


def with_exif(fmt, exif):
    if fmt == "raw profile":
        text = "\nexif\n%8d\n%s\n" % (len(exif), exif.hex())
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", text, zip=True)
        return encoded(halves(), "PNG", pnginfo=info)
    return encoded(halves(), fmt, exif=b"Exif\0\0" + exif, **({"lossless": True} if fmt == "WEBP" else {}))


@pytest.mark.parametrize("name", ["rational_as_undefined", "artist_rational"])
def test_the_cases_are_read_upright(name):
    want = load_image(CASES / "exif" / "good6.jpg")
    assert want.shape == (3, 96, 64)
    for src in (
        CASES / f"exif/{name}.jpg",
        (CASES / f"exif/{name}.jpg").read_bytes(),
        Image.open(CASES / f"exif/{name}.jpg"),
    ):
        assert torch.equal(load_image(src), want)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "raw profile"])
def test_no_other_tag_decides_about_the_orientation(fmt, order):
    want = load_image(with_exif(fmt, b"")).rot90(-1, (1, 2))
    for name, tag in BROKEN.items():
        entries = sorted([turned(order), (0x0100, 3, 1, b"\1\0"), tag])
        assert torch.equal(load_image(with_exif(fmt, directory(entries, order))), want), name
    assert torch.equal(load_image(with_exif(fmt, directory([*BROKEN.values(), turned(order)], order))), want)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    "code,undo",
    [
        (2, "FLIP_LEFT_RIGHT"),
        (3, "ROTATE_180"),
        (4, "FLIP_TOP_BOTTOM"),
        (5, "TRANSPOSE"),
        (6, "ROTATE_90"),
        (7, "TRANSVERSE"),
        (8, "ROTATE_270"),
    ],
)
def test_all_eight_orientations_in_every_format(fmt, code, undo):
    if fmt not in read_formats():
        pytest.skip(f"this Pillow has no {fmt}")
    exif = Image.Exif()
    exif[0x0112] = code
    lying = halves().transpose(getattr(Image.Transpose, undo))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 95, "subsampling": 0}}.get(
        fmt, {}
    )
    for src in (data := encoded(lying, fmt, exif=exif, **options), Image.open(io.BytesIO(data))):
        x = load_image(src)
        assert x.shape == (3, 64, 96) and (x - pixels(halves())).abs().mean() < 0.05


@pytest.mark.parametrize(
    "entry",
    [
        (0x0112, 2, 2, b"6"),
        (0x0112, 5, 1, b"\6"),
        (0x0112, 7, 1, b"\6"),
        (0x0112, 3, 0, b"\6"),
        (0x0112, 3, 2, b"\6\0\6\0"),
        (0x0112, 3, 1, b"\0"),
        (0x0112, 3, 1, b"\11"),
        (0x0112, 3, 1, b"\xff\xff"),
        (0x0112, 4, 1, b"\6\0\1\0"),
        (0x0112, 99, 1, b"\6"),
    ],
    ids=str,
)
@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_an_orientation_of_a_wrong_kind_is_passed_over(fmt, entry):
    assert load_image(with_exif(fmt, directory([entry]))).shape == (3, 64, 96)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_whole_numbers_of_any_width_turn(order, kind):
    assert load_image(with_exif("JPEG", directory([turned(order, 6, kind)], order))).shape == (3, 96, 64)


def tiff(entries, big=False):
    "An uncompressed grey TIFF of 16×12 pixels, left half white, with more tags."
    data = bytes([255] * 8 + [0] * 8) * 12
    H = lambda v: struct.pack("<H", v)
    at = 16 + len(data)
    tags = [
        (256, 3, 1, H(16)),
        (257, 3, 1, H(12)),
        (258, 3, 1, H(8)),
        (259, 3, 1, H(1)),
        (262, 3, 1, H(1)),
        (273, 3, 1, H(16)),
        (277, 3, 1, H(1)),
        (278, 3, 1, H(12)),
        (279, 3, 1, H(len(data))),
    ]
    tags = sorted([*tags, *entries])
    if not big:
        body = b"".join(struct.pack("<HHI", *t[:3]) + t[3].ljust(4, b"\0") for t in tags)
        return b"II*\0" + struct.pack("<I", at) + bytes(8) + data + struct.pack("<H", len(tags)) + body + bytes(4)
    body = b"".join(struct.pack("<HHQ", *t[:3]) + t[3].ljust(8, b"\0") for t in tags)
    return b"II+\0" + struct.pack("<HHQ", 8, 0, at) + data + struct.pack("<Q", len(tags)) + body + bytes(8)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_read_by_its_pixel_tags_alone(big):
    assert load_image(tiff([], big))[0, 0].tolist() == [1.0] * 8 + [-1.0] * 8
    for name, tag in BROKEN.items():
        x = load_image(tiff([turned("<"), tag], big))
        assert x.shape == (3, 16, 12) and (x[0, :8] == 1).all() and (x[0, 8:] == -1).all(), name
    everything = [*BROKEN.values(), (0x8773, 7, 4, b"icc?"), (0x02BC, 1, 4, b"<xmp"), (0x0128, 3, 1, b"\3\0")]
    assert load_image(tiff(everything, big)).shape == (3, 12, 16)


# ---- metadata never decides whether pixels are read


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks, last=False):
    "A PNG with more chunks, behind its header or behind its pixels."
    data = encoded(halves())
    at = data.index(b"IEND") - 4 if last else 33
    return data[:at] + b"".join(chunks) + data[at:]


MUCH = zlib.compress(bytes(40_000_000))
CHUNKS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + MUCH),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MUCH),
    "tEXt": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "iccp": chunk(b"iCCP", b"p\0\0" + MUCH),
    "profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + MUCH),
    "no icc": chunk(b"iCCP", b"p\0\0not packed"),
    "icc method": chunk(b"iCCP", b"p\0\7" + MUCH),
    "no text": chunk(b"zTXt", b"Comment\0\0not packed"),
    "eXIf": chunk(b"eXIf", b"MM no directory"),
    "pHYs": chunk(b"pHYs", b"\0"),
    "cHRM": chunk(b"cHRM", b"\0"),
    "gAMA": chunk(b"gAMA", b""),
    "sRGB": chunk(b"sRGB", b""),
    "crc": chunk(b"tIME", b"now")[:-4] + b"oops",
    "private": chunk(b"prVt", bytes(50)),
}


@pytest.mark.parametrize("last", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", CHUNKS)
def test_png_metadata(name, last):
    assert torch.equal(load_image(png_with(CHUNKS[name], last=last)), pixels(halves()))


def test_much_text_in_many_pieces():
    x = load_image(CASES / "ztxt1m.png")
    assert x.shape == (3, 64, 96) and x.std() > 0.1
    assert torch.equal(load_image(png_with(*[CHUNKS["zTXt"]] * 20, *CHUNKS.values())), pixels(halves()))


def segment(kind, data):
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


MPF = b"MPF\0II*\0\x08\0\0\0"
SEGMENTS = {
    "exif": segment(0xE1, b"Exif\0\0MM no directory"),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "icc": segment(0xE2, b"ICC_PROFILE\0\1"),
    "icc counts": segment(0xE2, b"ICC_PROFILE\0\xff\xffbad") * 300,
    "mpf": segment(0xE2, MPF + b"\xff\xff"),
    "mpf tags": segment(0xE2, MPF + struct.pack("<HHHI4s", 1, 0xB001, 2, 9, b"two\0")),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff"),
    "comment": segment(0xFE, b"\xff" * 60_000) * 40,
    "jfif": segment(0xE0, b"JFIF\0\1"),
    "adobe": segment(0xEE, b"Adobe"),
    "empty": segment(0xE1, b"") + segment(0xE5, b""),
    "fill": b"\xff" * 7,
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_jpeg_metadata(name):
    data = encoded(halves(), "JPEG", quality=95)
    want = load_image(data)
    assert torch.equal(load_image(data[:20] + SEGMENTS[name] + data[20:]), want)
    assert torch.equal(load_image(data[:2] + SEGMENTS[name] + data[2:]), want)
    assert torch.equal(load_image(data + b"a preview, a film, or anything" * 99), want)


def test_adobe_colours_are_kept():
    "Without its Adobe segment a CMYK JPEG would come out inverted."
    data = encoded(halves().convert("CMYK"), "JPEG", quality=95)
    assert (load_image(data) - pixels(halves())).abs().mean() < 0.05


@pytest.mark.parametrize(
    "fmt,at", [("WEBP", b"EXIF"), ("WEBP", b"XMP "), ("WEBP", b"ICCP"), ("AVIF", b"Exif"), ("AVIF", b"mime")]
)
def test_metadata_of_webp_and_avif(fmt, at):
    if fmt not in read_formats():
        pytest.skip(f"this Pillow has no {fmt}")
    junk = b"\xffMM no directory at all, nor a profile"
    options = {"exif": junk} if at in (b"EXIF", b"Exif") else {"icc_profile": junk} if at == b"ICCP" else {"xmp": junk}
    if fmt == "AVIF" and at == b"Exif":  # a whole one is written, then its directory broken
        exif = Image.Exif()
        exif[0x0112], exif[0x013B] = 1, "somebody"
        data = encoded(halves(), fmt, quality=100, exif=exif.tobytes(), icc_profile=b"", xmp=b"")
        data = data.replace(b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\x7f")
        data = data.replace(b"MM\0*\0\0\0\x08", b"MM\0*\x7f\xff\xff\xff")
    else:
        data = encoded(halves(), fmt, quality=100, **options)
    assert at in data and (load_image(data) - pixels(halves())).abs().mean() < 0.1


@pytest.mark.parametrize(
    "data", [png_with(*CHUNKS.values()), encoded(halves(), "JPEG", comment=b"x" * 99)], ids=["png", "jpeg"]
)
def test_damaged_pixels_are_still_told(data):
    said = refused(lambda: load_image(data[:-40]), "pixels are damaged or cut short")
    assert "is damaged" not in said


# ---- one reader for faces and masks: formats, sizes, modes, memory

PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n0 0 40 40 rectfill showpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["face.png", "face.jpg", "face.eps"])
def test_no_other_program_is_started(tmp_path, monkeypatch, name):
    "An EPS under any name would start Ghostscript: here one that leaves a mark."
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / name).write_bytes(PS)
    refused(lambda: load_image(tmp_path / name), "not an image")
    refused(lambda: load_image(PS), "not an image")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("fmt", ["ICO", "TGA", "PCX", "SGI", "PDF", "DDS", "ICNS"])
def test_formats_that_are_not_named_are_not_opened(fmt):
    refused(lambda: load_image(encoded(halves(64, 64), fmt)), "not an image", "PNG, JPEG")


def grey_file(a, fmt, **kw):
    return encoded(Image.fromarray(a), fmt, **kw)


RAMP = np.arange(256, dtype=np.int32).reshape(8, 32)


@pytest.mark.parametrize(
    "src,want",
    [
        (Image.fromarray(RAMP), RAMP),
        (Image.fromarray(RAMP * 257), RAMP),
        (grey_file(RAMP, "TIFF"), RAMP),
        (grey_file(RAMP * 257, "TIFF"), RAMP),
        (grey_file((RAMP * 257).astype(np.uint16), "PNG"), RAMP),
        (grey_file((RAMP * 257).astype(np.uint16), "TIFF"), RAMP),
        (Image.fromarray((RAMP * 257).astype(">u2")), RAMP),
        (grey_file(RAMP.astype(np.uint16), "PNG"), (RAMP + 128) // 257),
        (grey_file((RAMP / 255).astype(np.float32), "TIFF"), RAMP),
        (b"P5 32 8 65535\n" + (RAMP * 257).astype(">u2").tobytes(), RAMP),
        (b"P5 32 8 65535\n" + RAMP.astype(">u2").tobytes(), RAMP // 257),
    ],
    ids=[
        "I 8 bits",
        "I 16 bits",
        "tiff I 8",
        "tiff I 16",
        "png 16",
        "tiff 16",
        "I;16B",
        "png 16 dark",
        "tiff floats",
        "pgm 16",
        "pgm dark",
    ],
)
def test_numbers_of_every_width(src, want):
    got = (load_image(src)[0] * 127.5 + 127.5).round()
    assert (got - torch.from_numpy(np.asarray(want))).abs().max() <= 1


@pytest.mark.parametrize(
    "a", [RAMP - 1, RAMP + 65500, RAMP * 1_000_000, (RAMP / 4).astype(np.float32), np.full((9, 9), np.nan, np.float32)]
)
def test_numbers_that_are_no_picture_are_refused(a):
    for src in (Image.fromarray(a), grey_file(a, "TIFF")):
        refused(lambda: load_image(src), "range over")


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "LAB", "I;16"],
)
def test_every_mode_is_read_right_or_refused(mode):
    im = halves().convert("L").convert("I") if mode == "I" else halves()
    if mode == "LAB" and not features.check("littlecms2"):
        pytest.skip("this Pillow cannot make LAB pictures")
    grey = halves().convert("L")
    numbers, plain = ("I", "F", "I;16", "La"), halves()
    want = grey if mode in numbers else plain if mode == "RGBa" else halves().convert(mode).convert("RGB")
    if mode == "F":
        im = Image.fromarray(np.asarray(grey, np.float32) / 255)
    elif mode == "I;16":
        im = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("La", "RGBa"):
        im = halves().convert(mode[:-1] + "A").convert(mode)
    else:
        im = im.convert(mode)
    assert (load_image(im) - pixels(want)).abs().max() < 0.03


def test_transparency_in_all_its_ways():
    palette = halves().quantize(4)
    clear = [palette.getpixel((0, 40)), palette.getpixel((90, 40))]
    opacity = bytes(0 if i == clear[0] else 255 for i in range(4))
    x = load_image(encoded(palette, transparency=opacity))
    assert (x[:, 40, 0] == 1).all() and (x[:, 40, 90] != 1).any()
    for mode, value in (("L", 7), ("RGB", (9, 9, 9)), ("1", 0)):
        x = load_image(encoded(Image.new(mode, (20, 20), value), transparency=value))
        assert (x == 1).all(), mode
    sixteen = np.full((16, 16), 300, np.uint16)
    sixteen[:8] = 40_000
    x = load_image(encoded(Image.fromarray(sixteen), transparency=300))
    assert (x[:, 8:] == 1).all() and (x[:, :8] < 1).all()


def closed(path):
    (im := Image.open(path)).close()
    return im


def closed_after_loading(path):
    (im := Image.open(path)).load()
    im.close()
    return im


def file_closed(path):
    with open(path, "rb") as f:
        return Image.open(f)


def bytes_closed(path):
    (f := io.BytesIO(path.read_bytes()))
    im = Image.open(f)
    f.close()
    return im


@pytest.mark.parametrize("make", [closed, closed_after_loading, file_closed, bytes_closed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "TIFF", "BMP"])
def test_closed_pil_images(tmp_path, make, fmt):
    halves().save(tmp_path / "a", fmt)
    refused(lambda: load_image(make(tmp_path / "a")), "closed", "Open it again")


def test_a_pil_image_of_a_file_that_is_gone(tmp_path):
    halves().save(tmp_path / "a.png")
    im = Image.open(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert torch.equal(load_image(im), pixels(halves()))


MEASURE = """
import resource, sys
from latref_nb.core import load_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in sys.argv[1:]:
    before, x = peak(), load_image(path, 64)
    assert x.shape == (3, 64, 64)
    print(peak() - before)
"""


def big_files(folder):
    "Files of some hundred kilobytes that are huge when decoded: {path: megabytes that reading it small may take}."
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        Image.new("RGB", (8660, 5774), "red").save(folder / "fifty.jpg")
        Image.new("P", (9990, 9990)).save(folder / "palette.png")
        Image.fromarray(np.full((9990, 9990), 999, np.uint16)).save(folder / "sixteen.png")
        Image.new("LA", (7000, 7000)).save(folder / "transparent.png")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return {
        folder / "fifty.jpg": 100,
        folder / "palette.png": 200,
        folder / "sixteen.png": 300,
        folder / "transparent.png": 300,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_memory_is_bounded_by_what_is_decoded(tmp_path):
    limits = big_files(tmp_path)
    assert all(p.stat().st_size < 1_000_000 for p in limits)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, limits)], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr[-500:]
    for grown, (path, limit) in zip(map(int, done.stdout.split()), limits.items()):
        assert grown < limit, (path.name, grown)


@pytest.mark.parametrize("mode,size", [("RGB", 16), ("RGB", 100), ("RGBA", 16), ("P", 16), ("L", 16)])
def test_a_large_picture_made_small_on_the_way_is_the_same(mode, size):
    "Against Pillow's plain way: the whole picture converted, then resized."
    small = np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8)
    im = Image.fromarray(small).resize((2601, 1801), Image.Resampling.BICUBIC).convert(mode)
    k = size / 1801
    want = im.convert("RGB").resize((round(2601 * k), size), Image.Resampling.LANCZOS)
    got = load_image(im, size, crop=False)
    assert got.shape[1:] == (size, round(2601 * k)) and (got - pixels(want)).abs().mean() < 0.01
    assert (
        load_image(encoded(im.convert("RGB"), "JPEG", quality=95), size, crop=False) - pixels(want)
    ).abs().mean() < 0.02


# ---- labels.csv: a cell means what its tag says, or is refused


@pytest.mark.parametrize("case,want", [("digits12", [0, 1, 0, 1])])
def test_the_cases_of_labels(case, want):
    ds = open_faces(CASES / "labels" / case, 16, TagSet.load(CASES / "labels" / f"{case}.tags.json"))
    assert ds.labels[:, 0].tolist() == want


def test_the_case_of_a_word_that_is_a_number():
    tags = TagSet.load(CASES / "labels" / "word_is_col3.tags.json")
    refused(
        lambda: open_faces(CASES / "labels" / "word_is_col3", 16, tags),
        "labels.csv, line 2",
        "'1'",
        "black, blond, brown",
        exc=AnnotationError,
    )


def folder_of(root, names):
    for n in names:
        (root / n).parent.mkdir(parents=True, exist_ok=True)
        halves(16, 16).save(root / n, "PNG")
    return root


def read_labels(root, text, tags, recursive=False):
    "The first column of labels that a CSV gives a folder, by file name."
    data = text if isinstance(text, bytes) else text.encode()
    (root / "labels.csv").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FacesWarning)
        ds = FaceFolder(root, 16, tags, root / "labels.csv", recursive)
    return {p.relative_to(root).as_posix(): l for p, l in zip(ds.paths, ds.labels[:, 0].tolist())}


def one(*values, attributes=()):
    return TagSet([Tag("T", values, attributes)])


TWO, THREE = one("without", "with"), one("red", "green", "blue")


@pytest.mark.parametrize(
    "tags,cells,want",
    [
        (TWO, ["with", "without", "1", "0", "-1", "+1"], [1, 0, 1, 0, 0, 1]),
        (TWO, ["1.0", "0.0", "-1.0", "", "nan", "NaN"], [1, 0, 0, -1, -1, -1]),
        (one("1", "2"), ["1", "2", "1.0", "2.0", "", "NA"], [0, 1, 0, 1, -1, -1]),
        (one("0", "1"), ["0", "1", "0.0", "1.0"], [0, 1, 0, 1]),
        (one("1", "0"), ["1", "0", "1.0"], [0, 1, 0]),
        (one("-1", "1"), ["-1", "1"], [0, 1]),
        (one("2", "1", "0"), ["2", "1", "0", ""], [0, 1, 2, -1]),
        (one("none", "some"), ["none", "some", ""], [0, 1, -1]),
        (one("na", "da"), ["na", "da", "nan"], [0, 1, -1]),
        (one("1.0", "2.5"), ["1", "1.0", "2.5"], [0, 0, 1]),
        (THREE, ["blue", "red", "null"], [2, 0, -1]),
        (one("caf\u00e9", "th\u00e9"), ["caf\u00e9", "the\u0301"], [0, 1]),
        (one("a, b", "c"), ['"a, b"', "c"], [0, 1]),
    ],
)
def test_what_cells_mean(tmp_path, tags, cells, want):
    folder_of(tmp_path, [f"{i}.png" for i in range(len(cells))])
    rows = "".join(f"{i}.png,{c}\n" for i, c in enumerate(cells))
    assert list(read_labels(tmp_path, "file,T\n" + rows, tags).values()) == want


@pytest.mark.parametrize(
    "tags,cell",
    [
        (THREE, "0"),
        (THREE, "1"),
        (THREE, "-1"),
        (THREE, "1.0"),
        (THREE, "rde"),
        (one("1", "2"), "0"),
        (one("1", "2"), "-1"),
        (one("1", "2"), "3"),
        (one("0", "1"), "-1"),
        (TWO, "2"),
        (TWO, "yes"),
        (TWO, "With"),
        (TWO, "1.5"),
        (TWO, "\u0661"),
        (one("x", "1"), "0"),
    ],
)
def test_cells_that_mean_nothing_are_refused(tmp_path, tags, cell):
    folder_of(tmp_path, ["a.png", "b.png"])
    said = refused(
        lambda: read_labels(tmp_path, f"file,T\na.png,\nb.png,{cell}\n", tags),
        "labels.csv, line 3",
        exc=AnnotationError,
    )
    assert all(v in said for v in tags["T"].values)


PAIR = {"a.png": 1, "b c.png": 0}


@pytest.mark.parametrize(
    "text",
    [
        "file,T\na.png,with\nb c.png,without\n",
        "file ,T \na.png ,with \nb c.png , without\n",
        "file;T\na.png;with\nb c.png;without\n",
        "file\tT\na.png\twith\nb c.png\twithout\n",
        "file,T\r\na.png,with\r\nb c.png,without\r\n",
        "file,T\ra.png,with\rb c.png,without",
        '"file","T"\n"a.png","with"\n"b c.png","without"\n',
        '"file" , "T"\n"a.png" , "with"\n "b c.png" , "without"\n',
        ",file,T\n0,a.png,with\n1,b c.png,without\n",
        "Unnamed: 0,file,T\n5,a.png,1.0\n9,b c.png,0.0\n",
        ",T\na.png,with\nb c.png,without\n",
        "file,T,\na.png,with,\nb c.png,without,\n",
        "file,T\n\na.png,with\n,\nb c.png,without,,\n\n",
        "file,note,T\na,1.5,with\n./b c.png,?,without\n",
        "\ufefffile,T\na.png,with\nb c.png,without\n",
        "file,T\na.png,with\nb c.png,without\na,with\n",
        "file,T\na.png,\nb c.png,without\na.png,with\n",
        "file,T,B\na.png,with,1\nb c.png,without,0\n",
        "file,B\na.png,1.0\nb c.png,-1.0\n",
    ],
)
def test_the_many_ways_to_write_a_csv(tmp_path, text):
    folder_of(tmp_path, PAIR)
    assert read_labels(tmp_path, text, one("without", "with", attributes=("B",))) == PAIR


@pytest.mark.parametrize(
    "text,words",
    [
        ("file,T\na.png,with\nb c.png,with\na,without\n", ["lines 2 and 4", "a.png"]),
        ("file,T\na.png,with\n\na.png,0\n", ["lines 2 and 4"]),
        ("file,T\nz.png,with\n", ["none of its 1 rows", "a.png"]),
        ("T,file\nwith,a.png\n", ["none of the columns file is a tag"]),
        ("file,T\n", ["holds no rows"]),
        ("file,T,T\na.png,with,without\n", ["'T' comes twice"]),
        ("file,t\na.png,with\n", ["none of the columns t"]),
        ("file,T,B\na.png,with,0\n", ["line 2", "T is with in its own column and without by"]),
        ("file T\na.png with\n", ["none of the columns (none)"]),
        ("file,T\n,with\n", ["line 2", "names no file"]),
        ("file,T\na.png,with,1\n", ["line 2", "3 cells"]),
        ("file,T\na.png\n", ["line 2", "1 cells"]),
        (b"file,T\n\xff\xfe.png,with\n", ["not a text file", "UTF-8"]),
        ('file,T\na.png,"with\n' + "x" * 200_000, ["field larger"]),
        ("file,B\na.png,with\n", ["line 2", "'with' came for B"]),
        (" \n\n", ["is empty"]),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path, text, words):
    folder_of(tmp_path, PAIR)
    refused(
        lambda: read_labels(tmp_path, text, one("without", "with", attributes=("B",))),
        "labels.csv",
        *words,
        exc=AnnotationError,
    )


@pytest.mark.parametrize(
    "of_file,of_row",
    [
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("\uac00.png", "\u1100\u1161"),
        ("cafe\u0301.png", "cafe\u0301.png"),
        ("in\u0308/a.png", "\u00efn/a.png".replace("\u00efn", "i\u006e\u0308")),
    ],
)
def test_accents_in_both_ways(tmp_path, of_file, of_row):
    folder_of(tmp_path, [of_file, "other.png"])
    assert read_labels(tmp_path, f"file,T\n{of_row},with\n", TWO, recursive=True)[of_file] == 1
    both = TagSet([Tag("Stra\u00dfe\u0301", ("o\u0308de", "voll"))])
    assert read_labels(tmp_path, f"file,Stra\u00df\u00e9\n{of_row},\u00f6de\n", both, recursive=True)[of_file] == 0


def test_one_name_for_several_pictures(tmp_path):
    folder_of(tmp_path, ["x/1.png", "y/1.png", "2.png", "x/2.png", "y/3.png"])
    read = lambda rows: read_labels(tmp_path, "file,T\n" + rows, TWO, recursive=True)
    for row in ("1.png", "1"):
        refused(
            lambda: read(f"2.png,1\n{row},1\n"),
            "line 3",
            "2 pictures (x/1.png, y/1.png)",
            "Write the path",
            exc=AnnotationError,
        )
    assert read("x/1.png,1\ny\\1.png,0\n2.png,1\nx/2,0\n3,1\n") == {
        "x/1.png": 1,
        "y/1.png": 0,
        "2.png": 1,
        "x/2.png": 0,
        "y/3.png": 1,
    }
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.png").read_bytes())
    assert read("2.png,1\n2.jpg,0\n")["2.jpg"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "image_id,Smiling,Male\n000001.jpg,1,-1\n000002.jpg,0,\n",
        ",image_id,Smiling,Male\n0,000001.jpg,1.0,-1.0\n1,000002.jpg,-1.0,nan\n",
        "image_id;Smiling;Male\r\n000001.png;1;0\r\n000002;-1;NaN\r\n",
        "image_id,Smiling,Male\n000001.jpg,1,-1\n000002.jpg,0,\n000001.jpg,1,\n",
    ],
)
def test_celeba_as_a_csv_takes_the_same_cells(tmp_path, text):
    folder_of(tmp_path / "img_align_celeba", ["000001.jpg", "000002.jpg"])
    (tmp_path / "list_attr_celeba.csv").write_text(text)
    ds = open_faces(tmp_path, 16)
    assert ds.layout == "CelebA" and [CELEBA_TAGS.decode(l)["Smiling"] for l in ds.labels] == ["with", "without"]
    assert [CELEBA_TAGS.decode(l)["Male"] for l in ds.labels] == ["without", None] and ds.attributes.tolist() == [
        [1, -1],
        [-1, 0],
    ]


@pytest.mark.parametrize(
    "text,words",
    [
        ("2\nSmiling\n000001.jpg 1\n000002.jpg 1\n000001.jpg -1\n", "lines 3 and 5"),
        ("Smiling Smiling\n000001.jpg 1 1\n", "'Smiling' comes twice"),
        ("image_id,Smiling\n000001.jpg,1\n000001.jpg,0\n", "lines 2 and 3"),
        ("image_id,Smiling\n000001.jpg,yes\n", "line 2: the value 'yes'"),
    ],
)
def test_celeba_rows_that_contradict(tmp_path, text, words):
    folder_of(tmp_path / "img_align_celeba", ["000001.jpg", "000002.jpg"])
    (tmp_path / ("list_attr_celeba.csv" if "," in text else "list_attr_celeba.txt")).write_text(text)
    refused(lambda: open_faces(tmp_path, 16), words, exc=AnnotationError)


def test_celeba_with_a_second_copy_of_a_picture(tmp_path):
    folder_of(tmp_path / "img_align_celeba", ["000001.jpg", "000001.png", "000002.png", "000002.webp"])
    (tmp_path / "list_attr_celeba.txt").write_text("Smiling\n000001.jpg 1.0\n")
    with pytest.warns(FacesWarning, match="3 pictures have no row"):
        ds = open_faces(tmp_path)
    assert [p.name for p in ds.paths] == ["000001.jpg"]
    (tmp_path / "list_attr_celeba.txt").write_text("Smiling\n000001.jpg 1\n000002.jpg 1\n")
    refused(lambda: open_faces(tmp_path, 16), "line 3", "2 pictures", exc=AnnotationError)
