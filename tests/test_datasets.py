"Faces on disk: tiny copies of the real layouts, all they can get wrong, and the cache."

import csv, json, os, resource, warnings
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch.utils.data import DataLoader
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.images import ImageError
from latref_nb.core import save_image
from latref_nb.faces import CLASSES, SynthFaces
from latref_nb import datasets as D

FACES = SynthFaces(8, size=32, seed=3)
PICTURES, MASKS = FACES.batch(range(8))["image"], FACES.masks(range(8), size=64)  # rendered once
NAMES = [
    "5_o_Clock_Shadow",
    "Bangs",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Eyeglasses",
    "Male",
    "Smiling",
    "Young",
]


def rows_of(ds, n):
    return [{**{"5_o_Clock_Shadow": -1}, **CELEBA_TAGS.to_celeba(l)} for l in ds.labels[:n]]


def fake_mask_hq(root, n=6):
    "CelebAMask-HQ as its zip unpacks: 1024 px pictures (here 48), RGB masks at 512 (here 64), a trailing space after the names."
    (root / "CelebA-HQ-img").mkdir(parents=True)
    for i in range(n):
        save_image(PICTURES[i], root / f"CelebA-HQ-img/{i}.jpg")
        folder = root / "CelebAMask-HQ-mask-anno" / str(i // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        for c, name in enumerate(CLASSES[1:], 1):
            m = MASKS[i, c].numpy()
            if m.any():
                Image.fromarray((m * 225).astype(np.uint8)).convert("RGB").save(folder / f"{i:05d}_{name}.png")
    lines = [str(n), " ".join(NAMES) + " "] + [
        f"{i}.jpg  " + " ".join(f"{r[k]:2d}".strip() if r[k] < 0 else f" {r[k]}" for k in NAMES)
        for i, r in enumerate(rows_of(FACES, n))
    ]
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(lines) + "\n")
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("idx orig_idx orig_file\n0 119613 119614.jpg\n")
    return root


def fake_celeba(root, n=6, official=False):
    "CelebA: flat, or with the Anno/ and Img/ folders of the official drive."
    images, anno = (root / "Img/img_align_celeba", root / "Anno") if official else (root / "img_align_celeba", root)
    images.mkdir(parents=True)
    anno.mkdir(exist_ok=True)
    for i in range(n):
        save_image(PICTURES[i], images / f"{i + 1:06d}.jpg")
    lines = [str(n), " ".join(NAMES) + " "] + [
        f"{i + 1:06d}.jpg " + " ".join(f"{r[k]:2d}" for k in NAMES) + " " for i, r in enumerate(rows_of(FACES, n))
    ]
    (anno / "list_attr_celeba.txt").write_text("\r\n".join(lines) + "\r\n")
    (anno / "list_landmarks_align_celeba.txt").write_text(f"{n}\nlefteye_x lefteye_y\n000001.jpg 69 109\n")
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    return root


def quietly(f, *args, **kw):
    "The result, and the text of each warning."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        out = f(*args, **kw)
    return out, [str(o.message) for o in w]


@pytest.fixture
def layouts(tmp_path):
    (tmp_path / "folder").mkdir()
    for i in range(6):
        save_image(PICTURES[i], tmp_path / f"folder/face{i}.png")
    kaggle = fake_celeba(tmp_path / "kaggle")
    inner = kaggle / "img_align_celeba"
    inner.rename(kaggle / "x")
    inner.mkdir()
    (kaggle / "x").rename(inner / "img_align_celeba")
    (kaggle / "list_attr_celeba.txt").unlink()
    with open(kaggle / "list_attr_celeba.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [
                ["image_id", *NAMES],
                *([f"{i + 1:06d}.jpg", *(r[k] for k in NAMES)] for i, r in enumerate(rows_of(FACES, 6))),
            ]
        )
    return {
        "CelebAMask-HQ": fake_mask_hq(tmp_path / "hq"),
        "CelebA": fake_celeba(tmp_path / "celeba"),
        "official": fake_celeba(tmp_path / "official", official=True),
        "kaggle": kaggle,
        "folder": tmp_path / "folder",
    }


def test_every_layout_is_recognised_and_gives_the_same_items(layouts):
    for name, root in layouts.items():
        ds, notes = quietly(D.open_faces, root, 24)
        assert ds.layout == ("CelebA" if name in ("official", "kaggle") else name) and len(ds) == 6 and not notes
        o = ds[2]
        assert (
            set(o) == {"image", "labels", "index", "path"}
            and o["image"].shape == (3, 24, 24)
            and o["index"] == 2
            and Path(o["path"]).is_file()
        )
        assert torch.equal(o["labels"], torch.full((6,), -1) if name == "folder" else FACES.labels[2])
        b = ds.batch([4, 0])
        assert (
            torch.equal(b["image"][1], ds[0]["image"])
            and torch.equal(b["labels"], ds.labels[[4, 0]])
            and b["index"].tolist() == [4, 0]
            and len(b["path"]) == 2
        )
        assert next(iter(DataLoader(ds, batch_size=3)))["image"].shape == (3, 3, 24, 24)
        assert len(list(ds)) == 6  # iteration ends


def test_the_outer_folder_of_the_zip_works_too(tmp_path):
    fake_mask_hq(tmp_path / "CelebAMask-HQ")
    assert len(D.open_faces(tmp_path)) == 6


def test_pictures_are_what_the_files_hold(layouts):
    assert torch.equal(
        D.open_faces(layouts["folder"], 32)[3]["image"], (PICTURES[3] + 1).mul(127.5).round().div(127.5) - 1
    )


def test_rows_keep_their_order_with_many_faces(tmp_path):
    "2.jpg comes before 10.jpg, as in the file, not as in the folder."
    ds = D.open_faces(fake_mask_hq(tmp_path, 6))
    text = (tmp_path / "CelebAMask-HQ-attribute-anno.txt").read_text()
    for i in range(6, 12):
        save_image(PICTURES[0], tmp_path / f"CelebA-HQ-img/{i}.jpg")
    rows = "".join(f"{i}.jpg  " + " ".join(["-1"] * len(NAMES)) + "\n" for i in range(6, 12))
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text(text.replace("6\n", "12\n", 1) + rows)
    ds, notes = quietly(D.open_faces, tmp_path)
    assert [p.stem for p in ds.paths] == [str(i) for i in range(12)] and not notes


def test_masks_one_class_a_pixel_and_resized(layouts):
    ds = D.open_faces(layouts["CelebAMask-HQ"], 64)
    for i in range(6):
        assert torch.equal(ds.masks(i), MASKS[i])
    small = ds.masks(1, size=32)
    assert small.shape == (19, 32, 32) and (small.sum(0) == 1).all()


def test_masks_overlap_and_faults(layouts):
    root = layouts["CelebAMask-HQ"]
    ds = D.open_faces(root, 32)
    folder = root / "CelebAMask-HQ-mask-anno/0"
    Image.new("L", (64, 64), 255).save(folder / "00002_hair.png")
    Image.new("L", (64, 64), 255).save(folder / "00002_cloth.png")
    assert ds.masks(2)[CLASSES.index("cloth")].all()  # later classes lie on top
    (folder / "00003_skin.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="00003_skin.png: is not a picture"):
        ds.masks(3)
    import shutil

    shutil.rmtree(root / "CelebAMask-HQ-mask-anno")
    with pytest.raises(FileNotFoundError, match="unpack CelebAMask-HQ-mask-anno"):
        ds.masks(0)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda p: Image.new("1", (11_000, 10_000)).save(p), "110 megapixels"),
        (lambda p: Image.new("L", (4, 64)).save(p), "too small"),
        (lambda p: Image.new("L", (4000, 16)).save(p), "too elongated"),
        (lambda p: p.write_bytes(b""), "zero bytes"),
        (
            lambda p: Image.new("L", (64, 64)).save(p, save_all=True, append_images=[Image.new("L", (64, 64), 255)]),
            "2 frames",
        ),
        (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n"), "not an image"),
        (os.mkfifo, "a pipe"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes((p.parent / "00003_nose.png").read_bytes()[:-30]), "cut short"),
    ],
)
def test_masks_are_checked_as_faces_are(tmp_path, make, words):
    ds = D.open_faces(fake_mask_hq(tmp_path), 32)
    path = tmp_path / "CelebAMask-HQ-mask-anno/0/00003_skin.png"
    path.unlink()
    make(path)
    with pytest.raises(ImageError, match="00003_skin.png: is not a picture") as e:
        ds.masks(3)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_masks_of_every_mode_are_the_same(tmp_path):
    ds, path = D.open_faces(fake_mask_hq(tmp_path), 64), tmp_path / "CelebAMask-HQ-mask-anno/0/00003_skin.png"
    white, want = Image.open(path).convert("L").point(lambda v: 255 * (v > 127)), ds.masks(3)
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"):
        if mode == "I;16":
            Image.fromarray(np.asarray(white).astype(np.uint16) * 257).save(path)
        else:
            white.convert(mode).save(path)
        assert torch.equal(ds.masks(3), want), mode


def test_a_face_without_a_number_has_no_masks(tmp_path):
    root = fake_mask_hq(tmp_path)
    (root / "CelebA-HQ-img/5.jpg").rename(root / "CelebA-HQ-img/five.jpg")
    text = (root / "CelebAMask-HQ-attribute-anno.txt").read_text().replace("5.jpg", "five.jpg")
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    with pytest.raises(ValueError, match="'five' is none"):
        D.open_faces(root, 32).masks(5)


def test_folders_in_the_home_folder(layouts, monkeypatch):
    home = layouts["folder"].parent
    monkeypatch.setenv("HOME", str(home))
    for name, folder in (("CelebAMask-HQ", "hq"), ("CelebA", "celeba"), ("kaggle", "kaggle"), ("folder", "folder")):
        assert len(D.open_faces(f"~/{folder}", 24)) == 6
    (home / "my.csv").write_text("file,Smiling\nface0,with\n")
    ds, _ = quietly(D.FaceFolder, "~/folder", labels_file="~/my.csv")
    assert ds.labels[0, 0] == 1 and len(D.CelebA("~/kaggle")) == 6
    D.cached(ds, path="~/c.st", progress=False)
    D.write_celeba(FACES, "~/written", 2, progress=False)
    assert (home / "c.st").is_file() and (home / "written" / "list_attr_celeba.txt").is_file()


def test_a_folder_of_pictures_that_cannot_be_read_says_which(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.psd").touch()
    with pytest.raises(ImageError, match="holds no pictures.*scan.psd: .*save it as PNG"):
        D.open_faces(tmp_path)


@pytest.mark.parametrize("name", ["labels.csv", "list_attr_celeba.txt"])
@pytest.mark.parametrize(
    "make,words",
    [(os.mkfifo, "a pipe"), (lambda p: p.mkdir(), "is a folder"), (lambda p: p.symlink_to("/dev/zero"), "a device")],
)
def test_annotations_that_are_no_files(tmp_path, name, make, words):
    save_image(PICTURES[0], tmp_path / "img_align_celeba" / "000001.jpg")
    make(tmp_path / name)
    read = lambda: (
        D.CelebA(tmp_path)
        if "celeba" in name
        else D.FaceFolder(tmp_path / "img_align_celeba", labels_file=tmp_path / name)
    )
    with pytest.raises(D.AnnotationError, match=words):
        read()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"faces": 3}', '{"faces": [], "kind": 1}', "[" * 50_000, "\x00"])
def test_a_record_of_faces_that_is_none(tmp_path, text):
    D.write_celeba(FACES, tmp_path / "a", 2, progress=False)
    (tmp_path / "a" / D._KEY_FILE).write_text(text)
    with pytest.raises(ValueError) as e:
        D.write_celeba(FACES, tmp_path / "a", 2, progress=False)
    assert str(tmp_path / "a") in str(e.value) and "\n" not in str(e.value)


def test_masks_lie_in_folders_of_two_thousand(tmp_path):
    root = fake_mask_hq(tmp_path)
    (root / "CelebAMask-HQ-mask-anno/1").mkdir()
    (root / "CelebA-HQ-img/5.jpg").rename(root / "CelebA-HQ-img/2003.jpg")
    text = (root / "CelebAMask-HQ-attribute-anno.txt").read_text().replace("5.jpg", "2003.jpg")
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    Image.new("L", (32, 32), 255).save(root / "CelebAMask-HQ-mask-anno/1/02003_nose.png")
    assert D.open_faces(root, 32).masks(5)[CLASSES.index("nose")].all()


def test_unmatched_rows_and_pictures_are_counted_in_one_line_and_left_out(layouts):
    for root, picture in (
        (layouts["CelebA"], "img_align_celeba/{:06d}.jpg"),
        (layouts["CelebAMask-HQ"], "CelebA-HQ-img/{}.jpg"),
    ):
        (root / picture.format(1)).unlink()
        (root / picture.format(3)).unlink()
        save_image(PICTURES[0], root / picture.format(777))
        ds, notes = quietly(D.open_faces, root, 32)
        assert (
            len(ds) == 4
            and len(notes) == 1
            and "\n" not in notes[0]
            and "2 rows have no picture" in notes[0]
            and "1 pictures have no row" in notes[0]
        )
        assert not any(p.stem in ("777", "000777") for p in ds.paths)


def test_no_row_has_a_picture(layouts):
    root = layouts["CelebA"]
    for p in (root / "img_align_celeba").iterdir():
        p.rename(p.with_name("x" + p.name))
    with pytest.raises(D.AnnotationError, match="none of its 6 rows has a picture among the 6"):
        D.open_faces(root)


def test_a_file_cut_short_is_noticed(layouts):
    path = layouts["CelebA"] / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n")
    ds, notes = quietly(D.open_faces, layouts["CelebA"])
    assert len(ds) == 4 and "first line says 6 rows and it holds 4" in notes[0]
    path.write_text("\n".join(lines)[:-9])
    with pytest.raises(D.AnnotationError, match="line 8: .* values came for 9 names"):
        D.open_faces(layouts["CelebA"])


@pytest.mark.parametrize(
    "text,words",
    [
        ("", "is empty"),
        ("6\n", "ends after its first line"),
        ("<html>404</html>", "holds no rows"),
        ("2\nSmiling\n000001.jpg 2\n", "line 3: the value '2'"),
        ("2\nSmiling Young\n000001.jpg 1\n", "line 3: 1 values came for 2"),
        ("Smiling\n000001.jpg nan\n", "line 2: the value 'nan'"),
    ],
)
def test_bad_annotations_name_file_and_line(layouts, text, words):
    (layouts["CelebA"] / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(D.AnnotationError) as e:
        D.open_faces(layouts["CelebA"])
    assert words in str(e.value) and "list_attr_celeba.txt" in str(e.value) and "\n" not in str(e.value)


def test_binary_annotations_and_missing_ones(layouts):
    path = layouts["CelebA"] / "list_attr_celeba.txt"
    path.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(D.AnnotationError, match="not a text file"):
        D.open_faces(layouts["CelebA"])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no annotations.*FaceFolder"):
        D.CelebA(layouts["CelebA"])
    with pytest.raises(FileNotFoundError, match="holds no pictures. Expected CelebA-HQ-img; unpack"):
        D.CelebAMaskHQ(layouts["CelebA"])


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        D.open_faces(tmp_path / "no")
    for f in (D.open_faces, D.FaceFolder):
        with pytest.raises(ImageError, match="no pictures|no image"):
            f(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FileNotFoundError):
        D.open_faces(tmp_path / "a.txt")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "list_attr_celeba.txt").write_text("1\nSmiling\n000001.jpg 1\n")
    with pytest.raises(ImageError):
        D.open_faces(tmp_path)


def test_a_damaged_picture_names_itself(layouts):
    ds = D.open_faces(layouts["folder"])
    (layouts["folder"] / "face2.png").write_bytes((layouts["folder"] / "face1.png").read_bytes()[:200])
    with pytest.raises(ImageError, match="face2.png"):
        ds.batch([1, 2])


def test_undecided_rows_and_other_tags():
    names = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Wearing_Hat"]
    values = np.array([[-1, -1, -1, 1], [1, 1, -1, -1], [-1, 1, -1, -1]], np.int8)
    hair = D.labels_of(names, values)
    assert hair[:, 3].tolist() == [-1, -1, 1] and (hair[:, [0, 1, 2, 4, 5]] == -1).all()
    hat = TagSet([Tag("Hat", ("without", "with"), ("Wearing_Hat",))])
    assert D.labels_of(names, values, hat).tolist() == [[1], [0], [0]]
    assert D.labels_of(names, values[:0]).shape == (0, 6)


def test_all_attributes_are_kept(layouts):
    ds = D.open_faces(layouts["CelebA"])
    assert ds.attribute_names == NAMES and ds.attributes.shape == (6, 9) and (ds.attributes[:, 0] == -1).all()


def test_reading_two_hundred_thousand_rows_is_quick(tmp_path):
    from time import process_time

    names = [f"a{i}" for i in range(39)] + ["Smiling"]
    row = " ".join(["-1", " 1"] * 20)
    (tmp_path / "a.txt").write_text(
        f"40000\n{' '.join(names)}\n" + "".join(f"{i:06d}.jpg {row}\n" for i in range(40_000))
    )
    start = process_time()
    _, files, values, promised = D.read_attributes(tmp_path / "a.txt")
    labels = D.labels_of(names, values)
    assert promised == len(files) == 40_000 and (labels[:, 0] == 1).all() and process_time() - start < 4


def test_csv_labels(layouts, tmp_path):
    sheet = tmp_path / "l.csv"
    sheet.write_text(
        "\ufefffile, Smiling ,HairColor,Male\nface0.png,with,blond,-1\nface1,without,,1\nface9.png,with,,\n",
        encoding="utf-8",
    )
    ds, notes = quietly(D.FaceFolder, layouts["folder"], 32, labels_file=sheet)
    assert CELEBA_TAGS.decode(ds.labels[0]) == {
        "Smiling": "with",
        "Eyeglasses": None,
        "Bangs": None,
        "HairColor": "blond",
        "Young": None,
        "Male": "without",
    }
    assert CELEBA_TAGS.decode(ds.labels[1])["Male"] == "with" and (ds.labels[2] == -1).all() and len(ds) == 6
    assert len(notes) == 1 and "1 rows have no picture" in notes[0] and "4 of 6 pictures have no row" in notes[0]
    sheet.rename(layouts["folder"] / "labels.csv")
    assert torch.equal(quietly(D.open_faces, layouts["folder"])[0].labels, ds.labels)


@pytest.mark.parametrize(
    "text,words",
    [
        ("file,Smiling\nface0.png,wiht\n", "line 2: value of Smiling 'wiht' is not known. Did you mean 'with'"),
        ("file,Smile\nface0.png,with\n", "none of the columns Smile is a tag"),
        ("file,Smiling\nface0.png\n", "line 2: 1 cells came for 2"),
        ("file,Black_Hair\nface0.png,yes\n", "'yes' came for Black_Hair"),
        ("", "is empty"),
    ],
)
def test_bad_csv(layouts, tmp_path, text, words):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(D.AnnotationError) as e:
        D.FaceFolder(layouts["folder"], labels_file=tmp_path / "l.csv")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_folders_below_and_names_like_grandmother_s(tmp_path):
    save_image(PICTURES[0], tmp_path / "one two/ü é.png")
    save_image(PICTURES[1], tmp_path / "one two/b.JPG")
    assert len(D.open_faces(tmp_path)) == 2 and len(D.open_faces(tmp_path / "one two")) == 2


def test_written_faces_come_back(tmp_path):
    D.write_celebamask_hq(FACES, tmp_path / "hq", 5, progress=False)
    D.write_celeba(FACES, tmp_path / "ca", 5, progress=False)
    hq, ca = D.open_faces(tmp_path / "hq", 32), D.open_faces(tmp_path / "ca", 32)
    for ds in (hq, ca):
        assert len(ds) == 5 and torch.equal(ds.labels, FACES.labels[:5])
        assert (ds.batch(range(5))["image"] - FACES.batch(range(5))["image"]).abs().mean() < 0.04
    assert all(torch.equal(hq.masks(i), FACES.masks(i)) for i in range(5))
    assert hq.attribute_names == sorted(hq.attribute_names) and set(hq.attribute_names) == {
        a for t in CELEBA_TAGS for a in t.attributes
    }
    first, second, third = (tmp_path / "ca/list_attr_celeba.txt").read_text().splitlines()[:3]
    assert (
        first == "5" and second.split()[0] == "Bangs" and third.split()[0] == "000001.jpg" and len(third.split()) == 9
    )


def test_torchvision_reads_celeba_as_written(tmp_path):
    "Another program's reader as the oracle: the attribute table of torchvision's CelebA."
    D.write_celeba(FACES, tmp_path, 4, progress=False)
    from torchvision.datasets import CelebA

    table = CelebA._load_csv(
        type("Reader", (), {"root": str(tmp_path), "base_folder": ""})(), "list_attr_celeba.txt", header=1
    )
    assert [n for n in table.header if n] == D.open_faces(tmp_path).attribute_names
    assert table.index == [f"{i:06d}.jpg" for i in range(1, 5)] and torch.equal(
        table.data, torch.from_numpy(D.open_faces(tmp_path).attributes).long()
    )


def test_a_run_cut_short_goes_on_and_writes_nothing_twice(tmp_path, monkeypatch):
    out = tmp_path / "hq"
    seen = []
    real = D._write_jpeg

    def stop(image, path, quality):
        if path.name == "3.jpg":
            raise KeyboardInterrupt
        real(image, path, quality)

    monkeypatch.setattr(D, "_write_jpeg", stop)
    with pytest.raises(KeyboardInterrupt):
        D.write_celebamask_hq(FACES, out, 6, chunk=2, progress=False)
    assert not (out / "CelebAMask-HQ-attribute-anno.txt").exists() and len(list((out / "CelebA-HQ-img").iterdir())) == 3
    monkeypatch.setattr(D, "_write_jpeg", lambda i, p, q: (seen.append(p.name), real(i, p, q)))
    D.write_celebamask_hq(FACES, out, 6, chunk=2, progress=False)
    assert seen == ["3.jpg", "4.jpg", "5.jpg"] and len(D.open_faces(out)) == 6
    D.write_celebamask_hq(SynthFaces(20, size=32, seed=3), out, 8, progress=False)  # more of the same faces
    assert len(D.open_faces(out)) == 8 and not list(out.rglob("*.part*"))


def test_folders_of_other_faces_and_of_anything_else_are_refused(tmp_path):
    D.write_celeba(FACES, tmp_path / "a", 2, progress=False)
    for other in (
        SynthFaces(8, size=32, seed=4),
        SynthFaces(8, size=48, seed=3),
        SynthFaces(8, size=32, seed=3, faces_per_person=2),
    ):
        with pytest.raises(ValueError, match="another dataset"):
            D.write_celeba(other, tmp_path / "a", 2, progress=False)
    with pytest.raises(ValueError, match="another dataset, size, seed or layout"):
        D.write_celebamask_hq(FACES, tmp_path / "a", 2, progress=False)
    fake_celeba(tmp_path / "real")
    with pytest.raises(ValueError, match="not written here"):
        D.write_celeba(FACES, tmp_path / "real", 2, progress=False)
    for n in (0, 9, -1):
        with pytest.raises(ValueError, match="the dataset has 8"):
            D.write_celeba(FACES, tmp_path / "new", n, progress=False)
    with pytest.raises(ValueError, match="unknown labels"):
        D.write_celeba(D.FaceFolder(tmp_path / "a/img_align_celeba"), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_cache_in_memory_and_in_a_file(tmp_path):
    a, b = D.cached(FACES, progress=False), D.cached(FACES, 8, tmp_path / "new/c.safetensors", progress=False, chunk=3)
    assert (
        a.images.dtype == torch.uint8
        and torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.labels, FACES.labels)
    )
    x = b.batch([6, 1])
    assert (
        set(x) == {"image", "labels", "index"}
        and (x["image"] - FACES.batch([6, 1])["image"]).abs().max() <= 1 / 255 + 1e-6
    )
    assert torch.equal(b[1]["image"], x["image"][1]) and len(list(b)) == 8 and b.tags == CELEBA_TAGS and b.size == 32
    from safetensors import safe_open

    with safe_open(tmp_path / "new/c.safetensors", "pt") as f:
        assert torch.equal(f.get_tensor("images"), a.images) and "key" in f.metadata()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["c.safetensors"]


def test_the_cache_is_used_again_only_when_nothing_changed(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    D.cached(FACES, 6, path, progress=False)
    stamp = path.stat().st_mtime_ns
    same, notes = quietly(D.cached, SynthFaces(8, size=32, seed=3), 6, path, progress=False)
    assert path.stat().st_mtime_ns == stamp and not notes
    for ds, n in (
        (SynthFaces(8, size=32, seed=4), 6),
        (SynthFaces(8, size=48, seed=3), 6),
        (FACES, 5),
        (SynthFaces(8, 32, 3, tags=TagSet(list(CELEBA_TAGS)[:3])), 6),
    ):
        out, notes = quietly(D.cached, ds, n, path, progress=False)
        assert (
            len(notes) == 1
            and "made anew" in notes[0]
            and len(out) == n
            and torch.equal(out.images, D.cached(ds, n, progress=False).images)
        )
    assert torch.equal(same.images, D.cached(FACES, 6, progress=False).images)  # a map of the old file stays whole


def test_the_cache_notices_changed_files(layouts, tmp_path):
    path = tmp_path / "c.st"
    open_ = lambda: D.open_faces(layouts["folder"], 32)
    D.cached(open_(), None, path, progress=False)
    assert not quietly(D.cached, open_(), None, path, progress=False)[1]
    save_image(PICTURES[7], layouts["folder"] / "face4.png")
    out, notes = quietly(D.cached, open_(), None, path, progress=False)
    assert "made anew" in notes[0] and torch.equal(out.images, D.cached(open_(), progress=False).images)


def test_reading_in_threads_leaves_warnings_on(layouts):
    ds, before = D.open_faces(layouts["folder"], 32), list(warnings.filters)
    for _ in range(60):
        ds.batch(range(6))
    assert warnings.filters == before, (
        "filters are the process's: threads that save and restore them each on their own leave them off"
    )


def test_damaged_caches_are_made_anew_and_foreign_files_left_alone(tmp_path):
    path = tmp_path / "c.st"
    D.cached(FACES, 6, path, progress=False)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    out, notes = quietly(D.cached, FACES, 6, path, progress=False)
    assert "damaged" in notes[0] and path.read_bytes() == data
    heads = [
        b"[" * 100_000,
        b"[]",
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"key": 1}, "images": {"data_offsets": [], "shape": 1}}',
        b'{"__metadata__": {"key": 1}, "images": {"data_offsets": [0, "x"], "shape": 1}}',
    ]
    for foreign in (b"hello", b"", b"\0" * 64, data[8:200], *(len(h).to_bytes(8, "little") + h for h in heads)):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="not a cache of faces"):
            D.cached(FACES, 6, path, progress=False)
        assert path.read_bytes() == foreign


def test_a_cache_whose_sizes_were_altered_is_made_anew(tmp_path):
    path = tmp_path / "c.st"
    D.cached(FACES, 6, path, progress=False)
    data = path.read_bytes()
    assert b"[6, 3, 32, 32]" in data
    path.write_bytes(data.replace(b"[6, 3, 32, 32]", b"[6, 3, 32, 99]"))
    assert "made anew" in quietly(D.cached, FACES, 6, path, progress=False)[1][0] and path.read_bytes() == data


def test_a_cache_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def stop(*a):
        raise KeyboardInterrupt

    ds = SynthFaces(8, size=32, seed=3)
    real = type(ds).batch
    calls = []
    monkeypatch.setattr(
        type(ds), "batch", lambda s, i: (calls.append(1), stop() if len(calls) > 3 else None, real(s, i))[2]
    )
    with pytest.raises(KeyboardInterrupt):
        D.cached(ds, 8, tmp_path / "c.st", chunk=2, progress=False)
    assert not list(tmp_path.iterdir())


@contextmanager
def little_room(n):
    "No file may grow beyond n bytes: what a full disk does to a writer."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_while_caching(tmp_path):
    with little_room(8000), pytest.raises(OSError, match="cannot write .*c.st"):
        D.cached(SynthFaces(20, size=32), path=tmp_path / "c.st", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write,n", [(D.write_celebamask_hq, 400), (D.write_celebamask_hq, 900), (D.write_celeba, 900)])
def test_a_full_disk_while_writing_faces(tmp_path, write, n):
    "Also in the middle of a JPEG, where PIL itself notices nothing."
    with little_room(n), pytest.raises(OSError, match="cannot write"):
        write(FACES, tmp_path / "f", progress=False)
    whole = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
    assert all(p.read_bytes().endswith(whole[p.suffix]) for p in (tmp_path / "f").rglob("*.??g")) and not list(
        tmp_path.rglob("*.part*")
    )
    write(FACES, tmp_path / "f", progress=False)
    assert torch.equal(D.open_faces(tmp_path / "f").labels, FACES.labels)


def test_bad_counts_and_shapes():
    for n in (0, 9):
        with pytest.raises(ValueError, match="the dataset has 8"):
            D.cached(FACES, n, progress=False)
    with pytest.raises(ValueError, match="uint8"):
        D.TensorFaces(torch.zeros(2, 3, 8, 8), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="uint8"):
        D.TensorFaces(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 6))
