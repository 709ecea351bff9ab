"Five points, the square they give, the crop, and the way back."

import json
import numpy as np
import pytest
from PIL import Image
from photo_case import HOPPER, POINTS, psnr

from latref_nb.alignment import (
    Aligned,
    FaceError,
    align_face,
    check_landmarks,
    face_square,
    landmarks_of,
    put_back,
    quarter,
    read_landmarks,
    seam,
    unwarp,
)
from latref_nb.files import FileError
from latref_nb.images import ImageError, read_rgb


@pytest.fixture(scope="module")
def hopper():
    return read_rgb(HOPPER)


def turned(photo, points, degrees):
    "A photograph turned about its middle, against the clock, and its points."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = np.array(photo.size) / 2 - 0.5
    return photo.rotate(degrees, Image.Resampling.BICUBIC), (points - middle) @ np.array([[c, -s], [s, c]]) + middle


def smooth(size=(400, 300)):
    "A photograph without anything finer than a crop can hold."
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    a = np.stack([128 + 60 * np.sin(x / 40 + k) + 50 * np.cos(y / 50 - k) for k in range(3)], -1)
    return Image.fromarray(a.round().astype(np.uint8))


# ---- the square


@pytest.mark.parametrize("degrees", [0, 25, -70, 180])
@pytest.mark.parametrize("align", ["ffhq", "celebahq"])
def test_the_square_turns_with_the_face(degrees, align):
    turn = np.radians(degrees)
    to = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    (c, half), (c2, half2) = face_square(POINTS, align), face_square(POINTS @ to.T, align)
    shift = 0.5 if align == "celebahq" else 0
    np.testing.assert_allclose(half2, to @ half, atol=1e-9)
    np.testing.assert_allclose(c2 - shift, to @ (c - shift), atol=1e-9)


def test_the_square_is_the_published_one():
    "CelebA-HQ's and FFHQ's scripts, written out; their corners are in places counted from edges."
    p, out = POINTS, {}
    for align, add in (("ffhq", 0.0), ("celebahq", 0.5)):
        eyes, mouth, e = (p[0] + p[1]) * 0.5 + add, (p[3] + p[4]) * 0.5 + add, p[1] - p[0]
        m = mouth - eyes
        x = e - np.array([-m[1], m[0]])
        x = x / np.hypot(*x) * max(np.hypot(*e) * 2.0, np.hypot(*m) * 1.8)
        y, c = np.array([-x[1], x[0]]), eyes + m * 0.1
        out[align] = np.stack([c - x - y, c + x - y, c + x + y, c - x + y])
        centre, half = face_square(p, align)
        ours = [centre - half - quarter(half), centre + half - quarter(half), centre + half + quarter(half)]
        np.testing.assert_allclose(ours, out[align][:3], atol=1e-9)
    np.testing.assert_allclose(out["celebahq"] - out["ffhq"], 0.5, atol=1e-9)


@pytest.mark.parametrize(
    "points, words",
    [
        (POINTS[:4], "shape (4, 2)"),
        ("here", "no numbers"),
        ([[1, 2], [3, 4], [5], [7, 8], [9, 1]], "no numbers"),
        (POINTS * np.nan, "not finite"),
        (POINTS[[1, 0, 2, 4, 3]], "exchanged"),
        (np.zeros((5, 2)), "exchanged"),
    ],
)
def test_points_that_are_no_face_are_told_in_a_line(points, words):
    with pytest.raises(FaceError, match="landmarks") as e:
        check_landmarks(points)
    assert words in str(e.value) and "\n" not in str(e.value) and isinstance(e.value, ImageError)


def test_ten_numbers_are_five_points():
    np.testing.assert_array_equal(check_landmarks(POINTS.ravel().tolist()), POINTS)


# ---- the crop


def test_the_crop_is_the_published_one_to_a_grey_level(hopper):
    face, size = align_face(hopper, POINTS, 128), 128
    corners = face.corners[[0, 3, 2, 1]] + 0.5
    dense = hopper.transform((4 * size,) * 2, Image.Transform.QUAD, corners.ravel(), Image.Resampling.BILINEAR)
    theirs = np.asarray(dense.resize((size, size), Image.Resampling.LANCZOS), int)
    assert np.abs(theirs - np.asarray(face.crop, int)).max() <= 1


def test_points_come_back(hopper):
    face = align_face(hopper, POINTS, 64)
    np.testing.assert_allclose(face.to_photo(face.to_crop(POINTS)), POINTS, atol=1e-9)
    eyes = face.to_crop(POINTS[:2])
    assert (eyes > 0).all() and (eyes < 64).all() and abs(eyes[0, 1] - eyes[1, 1]) < 1
    l, t, r, b = face.box
    assert (face.corners.min(0) >= (l - 0.5, t - 0.5)).all() and (face.corners.max(0) <= (r - 0.5, b - 0.5)).all()


@pytest.mark.parametrize("degrees", [15, -40, 90, 170])
def test_a_turned_photograph_gives_the_same_crop(hopper, degrees):
    photo, points = turned(hopper, POINTS, degrees)
    one, other = align_face(hopper, POINTS, 64), align_face(photo, points, 64)
    assert psnr(np.asarray(one.crop)[6:-6, 12:-12], np.asarray(other.crop)[6:-6, 12:-12]) > 30


def test_a_large_photograph_gives_the_same_crop(hopper):
    large = hopper.resize((hopper.width * 5, hopper.height * 5), Image.Resampling.BICUBIC)
    one, other = align_face(hopper, POINTS, 64), align_face(large, POINTS * 5 + 2, 64)
    assert psnr(one.crop, other.crop) > 30 and abs(other.side - 5 * one.side) < 1e-6


@pytest.mark.parametrize("cut", [(0, 170, 512, 600), (170, 0, 512, 600), (0, 0, 330, 600), (0, 0, 512, 300), (200, 170, 340, 300)])
def test_a_face_at_the_border_is_padded(hopper, cut):
    whole, part = align_face(hopper, POINTS, 64), align_face(hopper.crop(cut), POINTS - cut[:2], 64)
    np.testing.assert_allclose(part.corners + cut[:2], whole.corners, atol=1e-9)
    eyes = part.to_crop(POINTS[:2] - cut[:2]).mean(0).round().astype(int)
    a, b = (np.asarray(o.crop, float)[eyes[1] - 2 : eyes[1] + 3, eyes[0] - 4 : eyes[0] + 5] for o in (whole, part))
    assert np.abs(a - b).mean() < 30
    assert np.asarray(part.crop).std() > 10  # no black corner, no single colour


@pytest.mark.parametrize(
    "points, words",
    [
        (POINTS + 900, "another picture's"),
        (POINTS / 12, "too small"),
        ([(226, 195), (246, 190), (273, 241), (206, 281), (250, 278)], "profile (its nose is not between the eyes)"),
        ([(226, 195), (246, 195), (236, 241), (226, 281), (246, 278)], "profile (its eyes are too close together)"),
    ],
)
def test_what_cannot_be_edited_is_told(hopper, points, words):
    with pytest.raises(FaceError) as e:
        align_face(hopper, points, 64, what="me.jpg")
    assert words in str(e.value) and str(e.value).startswith("me.jpg: ") and "\n" not in str(e.value)


def test_alignment_has_three_names(hopper):
    with pytest.raises(ValueError, match="Did you mean 'ffhq'"):
        align_face(hopper, POINTS, align="ffhq2")


def test_without_alignment_the_centre_square_is_cut(hopper):
    flat = align_face(hopper, size=64, align="none")
    assert flat.box == (0, 44, 512, 556) and flat.landmarks is None and flat.side == 512
    assert psnr(flat.crop, hopper.crop(flat.box).resize((64, 64), Image.Resampling.LANCZOS)) > 50


# ---- the way back


def test_the_pair_of_warps_is_plain_resampling():
    "At least 40 dB, straight and turned, where neither filter meets the border."
    photo = smooth()
    flat = align_face(photo, size=64, align="none")
    plain = photo.crop(flat.box).resize((64, 64), Image.Resampling.LANCZOS).resize((300, 300), Image.Resampling.BICUBIC)
    back = unwarp(flat, np.asarray(flat.crop, np.float32), flat.box)
    assert psnr(back[15:-15, 15:-15], np.asarray(plain)[15:-15, 15:-15]) > 45
    points = POINTS * 0.4 + (60, 40)
    for degrees in (0, 33, -80):
        turn = np.radians(degrees)
        to = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        face = align_face(photo, (points - (170, 150)) @ to.T + (200, 150), 64)
        box = (0, 0, *photo.size)
        inner = seam(face, box)[..., 0] == 1
        assert inner.sum() > 3000
        assert psnr(unwarp(face, np.asarray(face.crop, np.float32), box)[inner], np.asarray(photo)[inner]) > 40


def test_a_photograph_with_hair_and_cloth_loses_what_any_resampling_loses(hopper):
    flat = align_face(hopper, size=64, align="none")
    plain = hopper.crop(flat.box).resize((64, 64), Image.Resampling.LANCZOS).resize((512, 512), Image.Resampling.BICUBIC)
    back = unwarp(flat, np.asarray(flat.crop, np.float32), flat.box)
    assert psnr(back[25:-25, 25:-25], np.asarray(plain)[25:-25, 25:-25]) > 40


def test_a_crop_finer_than_the_photograph_goes_back_as_well():
    photo = smooth((160, 160))
    face = align_face(photo, POINTS * 0.25 + (20, 20), 128)
    assert face.side < 100
    box, inner = (0, 0, 160, 160), seam(face, (0, 0, 160, 160))[..., 0] == 1
    assert psnr(unwarp(face, np.asarray(face.crop, np.float32), box)[inner], np.asarray(photo)[inner]) > 40


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_no_change_is_no_change_and_outside_nothing_is_touched(hopper, mode):
    photo = hopper.convert(mode)
    if mode in ("RGBA", "LA"):
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    face = align_face(hopper, POINTS, 64)
    assert put_back(photo.copy(), face, np.zeros((64, 64, 3))).tobytes() == photo.tobytes()
    out = put_back(photo.copy(), face, np.full((64, 64, 3), 40.0))
    a, b = (np.atleast_3d(np.asarray(o)) for o in (photo, out))
    outside = seam(face, (0, 0, *photo.size))[..., 0] == 0
    assert out.mode == mode and (a == b)[outside].all() and (a != b)[..., 0].mean() > 0.2
    if mode in ("RGBA", "LA"):
        assert (a[..., -1] == b[..., -1]).all()


def test_a_change_lands_where_it_was_made(hopper):
    photo, points = turned(hopper, POINTS, 30)
    face = align_face(photo, points, 64)
    change = np.zeros((64, 64, 3))
    x, y = (int(v) for v in face.to_crop([points[2]])[0].round())
    change[y - 2 : y + 3, x - 2 : x + 3] = 80
    moved = np.abs(np.asarray(put_back(photo.copy(), face, change), int) - np.asarray(photo, int)).sum(-1)
    rows, columns = np.nonzero(moved > moved.max() / 2)
    assert np.hypot(columns.mean() - points[2, 0], rows.mean() - points[2, 1]) < face.side / 64


def test_strips_join_without_a_seam(hopper, monkeypatch):
    face, change = align_face(hopper, POINTS, 64), np.random.default_rng(0).normal(0, 30, (64, 64, 3))
    whole = put_back(hopper.copy(), face, change)
    monkeypatch.setattr("latref_nb.alignment.STRIP", 1000)
    strips = np.asarray(put_back(hopper.copy(), face, change), int)
    assert np.abs(strips - np.asarray(whole, int)).max() <= 1  # a sum in another order


def test_a_square_mostly_outside_changes_only_what_is_there():
    photo, matrix = smooth((100, 80)), np.array([[3.0, 0, -90], [0, 3.0, -70], [0, 0, 1]])
    out = put_back(photo.copy(), Aligned(Image.new("RGB", (64, 64)), matrix), np.full((64, 64, 3), 30.0))
    assert out.size == photo.size and np.asarray(out, int).mean() > np.asarray(photo, int).mean() + 10


# ---- files


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


NUMBERS = " ".join(f"{v:g}" for v in POINTS.ravel())


@pytest.mark.parametrize(
    "name, text, keys",
    [
        ("five.txt", "\n".join(f"{x:g} {y:g}" for x, y in POINTS), [None]),
        ("ten.txt", NUMBERS, [None]),
        ("two.txt", f"{NUMBERS}\n{NUMBERS}\n", [None]),
        ("celeba.txt", f"1\nlefteye_x lefteye_y righteye_x\na photo.jpg  {NUMBERS}\nb.jpg {NUMBERS}\n", ["a photo.jpg", "b.jpg"]),
        ("named.csv", f"file,x1,y1\na.jpg,{NUMBERS.replace(' ', ',')}\n", ["a.jpg"]),
        ("bom.csv", f"\ufeffa.jpg;{NUMBERS.replace(' ', ';')}\n", ["a.jpg"]),
        ("one.json", json.dumps(POINTS.tolist()), [None]),
        ("flat.json", json.dumps(POINTS.ravel().tolist()), [None]),
        ("several.json", json.dumps([POINTS.tolist()] * 2), [None]),
        ("words.json", json.dumps({"landmarks": POINTS.tolist()}), [None]),
        ("named.json", json.dumps({"a.jpg": POINTS.tolist(), "b.jpg": [POINTS.tolist()]}), ["a.jpg", "b.jpg"]),
        ("edits.json", json.dumps({"files": [{"file": "x/a.jpg", "faces": [{"landmarks": POINTS.tolist()}]}, {"file": "b.jpg", "error": "no"}]}), ["a.jpg"]),
    ],
)  # fmt: skip
def test_landmarks_are_read_from_files(name, text, keys, tmp_path):
    found = read_landmarks(write(tmp_path / name, text))
    assert list(found) == keys
    for faces in found.values():
        assert len(faces) == (2 if name in ("two.txt", "several.json") else 1)
        np.testing.assert_allclose(faces[0], POINTS)
    named = next((k for k in keys if k), "any.jpg")
    np.testing.assert_allclose(landmarks_of(found, f"some/{named}")[0], POINTS)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("four.txt", "1 2\n3 4\n5 6\n7 8\n", "4 points, and a face has five"),
        ("words.txt", "Dear reader,\nhow are you?\nI am fine.\n", "line 3"),
        ("empty.txt", "", "holds no face"),
        ("short.csv", f"a.jpg,{NUMBERS.replace(' ', ',')}\nb.jpg,1,2,3\n", "line 2"),
        ("mirrored.csv", "a.jpg,313,190,226,195,273,241,310,278,236,281", "landmarks of line 1 are exchanged"),
        ("broken.json", "[[1, 2]", "is not JSON"),
        ("none.json", "[]", "holds no face"),
        ("number.json", "7", "came as landmarks"),
        ("deep.json", json.dumps({"a.jpg": {"eyes": 1}}), "came as landmarks"),
        ("four.json", "[[1,2],[3,4],[5,6],[7,8]]", "shape (2,)"),
    ],
)
def test_files_that_hold_no_landmarks_are_told_in_a_line(name, text, words, tmp_path):
    with pytest.raises((FileError, FaceError)) as e:
        read_landmarks(write(tmp_path / name, text))
    assert words in str(e.value) and "\n" not in str(e.value) and name in str(e.value)


def test_other_places_for_landmarks(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FileError, match="is no text"):
        read_landmarks(tmp_path / "bytes.txt")
    with pytest.raises(FileError, match="no such file"):
        read_landmarks(tmp_path / "nowhere.txt")
    with pytest.raises(FaceError, match=r"c.jpg: the landmarks are of other files \(a.jpg\)"):
        landmarks_of({"a.jpg": [POINTS]}, "c.jpg")
