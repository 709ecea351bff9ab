"Faces as bytes: a cache in memory and in a file, what it notices, and labels and weights beside the pictures."

import pytest, torch
from latref_nb import cache as C
from latref_nb import datasets as D
from latref_nb.core import save_image
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.faces import SynthFaces
from test_datasets import FACES, PICTURES, layouts, little_room, quietly  # noqa: F401 (a fixture)


def test_cache_in_memory_and_in_a_file(tmp_path):
    a, b = C.cached(FACES, progress=False), C.cached(FACES, 8, tmp_path / "new/c.safetensors", progress=False, chunk=3)
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
    C.cached(FACES, 6, path, progress=False)
    stamp = path.stat().st_mtime_ns
    same, notes = quietly(C.cached, SynthFaces(8, size=32, seed=3), 6, path, progress=False)
    assert path.stat().st_mtime_ns == stamp and not notes
    for ds, n in (
        (SynthFaces(8, size=32, seed=4), 6),
        (SynthFaces(8, size=48, seed=3), 6),
        (FACES, 5),
        (SynthFaces(8, 32, 3, tags=TagSet(list(CELEBA_TAGS)[:3])), 6),
    ):
        out, notes = quietly(C.cached, ds, n, path, progress=False)
        assert (
            len(notes) == 1
            and "made anew" in notes[0]
            and len(out) == n
            and torch.equal(out.images, C.cached(ds, n, progress=False).images)
        )
    assert torch.equal(same.images, C.cached(FACES, 6, progress=False).images)  # a map of the old file stays whole


def test_the_cache_notices_changed_files(layouts, tmp_path):
    path = tmp_path / "c.st"
    open_ = lambda: D.open_faces(layouts["folder"], 32)
    C.cached(open_(), None, path, progress=False)
    assert not quietly(C.cached, open_(), None, path, progress=False)[1]
    save_image(PICTURES[7], layouts["folder"] / "face4.png")
    out, notes = quietly(C.cached, open_(), None, path, progress=False)
    assert "made anew" in notes[0] and torch.equal(out.images, C.cached(open_(), progress=False).images)


def test_damaged_caches_are_made_anew_and_foreign_files_left_alone(tmp_path):
    path = tmp_path / "c.st"
    C.cached(FACES, 6, path, progress=False)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    out, notes = quietly(C.cached, FACES, 6, path, progress=False)
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
            C.cached(FACES, 6, path, progress=False)
        assert path.read_bytes() == foreign


def test_a_cache_whose_sizes_were_altered_is_made_anew(tmp_path):
    path = tmp_path / "c.st"
    C.cached(FACES, 6, path, progress=False)
    data = path.read_bytes()
    assert b"[6, 3, 32, 32]" in data
    path.write_bytes(data.replace(b"[6, 3, 32, 32]", b"[6, 3, 32, 99]"))
    assert "made anew" in quietly(C.cached, FACES, 6, path, progress=False)[1][0] and path.read_bytes() == data


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
        C.cached(ds, 8, tmp_path / "c.st", chunk=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_caching(tmp_path):
    with little_room(8000), pytest.raises(OSError, match="cannot write .*c.st"):
        C.cached(SynthFaces(20, size=32), path=tmp_path / "c.st", progress=False)
    assert not list(tmp_path.iterdir())


def test_bad_counts_and_shapes():
    for n in (0, 9):
        with pytest.raises(ValueError, match="the dataset has 8"):
            C.cached(FACES, n, progress=False)
    with pytest.raises(ValueError, match="uint8"):
        C.TensorFaces(torch.zeros(2, 3, 8, 8), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="uint8"):
        C.TensorFaces(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 6))


def test_a_cache_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    C.cached(FACES, path="~/c.st", progress=False)
    assert (tmp_path / "c.st").is_file()


# ---- what a training notes, labels by name, weights of pixels


def test_a_cache_brings_the_key_of_what_it_was_taken_from(tmp_path):
    key = C.provenance(FACES)
    assert key and C.provenance(SynthFaces(8, size=32, seed=4)) != key
    for kept in (C.cached(FACES, progress=False), C.cached(FACES, path=tmp_path / "c.st", progress=False)):
        assert C.provenance(kept) == key
    assert C.provenance([1, 2]) == {}


def test_labels_in_other_columns_are_found_by_name():
    few = TagSet([CELEBA_TAGS["Male"], CELEBA_TAGS["Smiling"]])
    ds = C.labelled_as(FACES, few)
    assert torch.equal(ds.labels, FACES.labels[:, [5, 0]]) and len(ds) == 8 and ds.size == 32
    assert torch.equal(ds.batch([2, 4])["labels"], ds.labels[[2, 4]]) and torch.equal(ds[3]["labels"], ds.labels[3])
    assert C.labelled_as(FACES, CELEBA_TAGS) is FACES
    with pytest.raises(ValueError, match="the dataset knows"):
        C.labelled_as(FACES, TagSet([Tag("LongHair", ("short", "long"))]))


def test_weights_of_regions_have_mean_one_and_favour_small_ones():
    masks = FACES.masks(range(8))
    for power in (0, 0.5, 1):
        w = C.region_weights(masks, power)
        assert w.shape == (8, 1, 32, 32) and torch.allclose(w.mean((1, 2, 3)), torch.ones(8), atol=1e-5)
    areas = [(w[0, 0][m].sum(), m.sum()) for m in masks[0] if m.any()]  # with power 1 every region counts alike
    assert max(a for a, _ in areas) - min(a for a, _ in areas) < 1e-3 * max(a for a, _ in areas)
    kept = C.cached(FACES, progress=False).weigh(FACES, 0.5)
    assert torch.equal(kept.batch([1])["weight"][0], kept[1]["weight"]) and kept.regions == 0.5
    with pytest.raises(ValueError, match="has no masks"):
        C.cached(FACES, progress=False).weigh(kept)


# ---- persons


@pytest.fixture
def album(tmp_path):
    for i, face in enumerate(SynthFaces(5, 32, seed=3).batch(range(5))["image"]):
        save_image(face, tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "name, text",
    [
        ("identity_CelebA.txt", "0.png 2880\n1.png 7\n2.png 2880\n4.png 7\n9.png 1\n"),
        ("identities.csv", "file,person\n0.png,Ada\n1.png,Grace\n2.png,Ada\n\n4.png,Grace\n9.png,Mary\n"),
        ("identities.csv", "0;Ada\n1;Grace\n2;Ada\n4;Grace\n4;Grace\n"),
    ],
)
def test_persons_are_read_from_lists_of_either_form(album, name, text):
    (album / name).write_text(text, encoding="utf-8")
    assert C.read_identities(D.FaceFolder(album, 32)).tolist() == [0, 1, 0, -1, 1]
    (album / name).rename(album / "mine.txt")
    assert C.read_identities(D.FaceFolder(album, 32), album / "mine.txt").tolist() == [0, 1, 0, -1, 1]


@pytest.mark.parametrize(
    "text, words",
    [
        ("0.png Ada\n0.png Grace\n", "line 2: another person"),
        ("0.png\n", "line 1: '0.png' came. Needed: a file and a person"),
        ("8.png Ada\n9.png Ada\n", "none of its files"),
        ("", "is empty"),
        (None, "holds none of identity_CelebA.txt"),
    ],
)
def test_a_list_of_persons_that_says_nothing_is_refused(album, text, words):
    if text is not None:
        (album / "identity_CelebA.txt").write_text(text)
    with pytest.raises(D.AnnotationError, match=words) as e:
        C.read_identities(D.FaceFolder(album, 32))
    assert "\n" not in str(e.value)
