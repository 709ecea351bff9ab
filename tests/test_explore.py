"The explorers without a browser: every control is a trait, and what is shown is what the pipeline says."

import io, re, threading
from datetime import datetime
import numpy as np
import pytest
import torch
from PIL import Image
from repo import HANG, wait_for
from latref_nb.attention import overlay, record_attention
from latref_nb.ablations import Stages, save_stages
from latref_nb.explore import Bench, EditExplorer, guidances, having, strangeness, true_face, walk_noise, without_styles
from latref_nb.explore import Wish
from latref_nb.faces import SynthFaces
from latref_nb.inside import (
    COMPARE,
    AttentionExplorer,
    ConsistencyExplorer,
    TrajectoryPlayer,
    attention_view,
    bars_html,
    nearest_moment,
    term_curve,
)
from latref_nb.judges import load_judges
from latref_nb.edits import Edit
from latref_nb.pipeline import LatRefPipeline
from latref_nb.studio import DirectionVsStyle, StyleExplorer, compare_guidances, comparison_rows, plane
from latref_nb.widgets import fit
from latref_nb.widgets import ClickPicture, Downloads, Face, FaceChooser, Worker, pictured, png_bytes, sheet
from style_case import style_pipeline

STEPS = (1, 2)


@pytest.fixture(scope="module")
def pipe():
    return style_pipeline()


@pytest.fixture(scope="module")
def plain(pipe):
    p = LatRefPipeline(pipe.autoencoder, pipe.linear, pipe.mlp, inversion="fixed_point")
    p.set_progress_bar_config(disable=True)
    return p


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(60, 64, seed=5)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def alike(a, b):
    "The same picture, up to rounding: sums run in another order where a tensor lies elsewhere in memory, and a level of 255 turns."
    return int(np.abs(pixels(a).astype(int) - pixels(b)).max()) <= 2


def lacking(faces, tag="Eyeglasses"):
    return having(faces, tag, "without")[0]


# ---- the worker


def test_newest_request_wins_and_each_begins_with_a_preview():
    seen, gate = [], threading.Event()

    def work(n):
        yield ("preview", n)
        gate.wait(HANG)
        yield ("full", n)

    worker = Worker(work, seen.append, seen.append)
    worker.ask(0)
    wait_for(lambda: seen)
    for n in range(1, 9):
        worker.ask(n)
    gate.set()
    assert (
        worker.wait(HANG) and seen == [("preview", 0), ("full", 0), ("preview", 8), ("full", 8)] and worker.dropped == 7
    )


def test_a_request_that_is_overtaken_after_its_preview_is_not_finished():
    seen = []

    def work(n):
        yield ("preview", n)
        if n == 0:
            worker.ask(1)
        yield ("full", n)

    def show(r):
        seen.append(r)
        if r == ("preview", 0):
            worker.ask(1)

    worker = Worker(work, show, seen.append)
    worker.ask(0)
    assert worker.wait(HANG) and seen == [("preview", 0), ("preview", 1), ("full", 1)]


def test_long_work_gives_way_to_a_newer_request():
    seen, failed, steps = [], [], []

    def work(n):
        yield ("preview", n)
        for _ in range(5):
            steps.append(n)
            if n == 0 and len(steps) == 2:
                worker.ask(1)
            worker.give_way()
        yield ("full", n)

    worker = Worker(work, seen.append, failed.append)
    worker.ask(0)
    assert (
        worker.wait(HANG)
        and seen == [("preview", 0), ("preview", 1), ("full", 1)]
        and steps == [0, 0, 1, 1, 1, 1, 1]
        and not failed
    )


def test_errors_are_told_and_the_worker_goes_on():
    seen, failed = [], []

    def work(n):
        if n < 0:
            raise ValueError("below zero")
        yield n

    worker = Worker(work, seen.append, failed.append)
    worker.ask(-1)
    worker.wait(HANG)
    worker.ask(3)
    worker.wait(HANG)
    assert seen == [3] and "below zero" in str(failed[0])


def test_asking_does_not_wait():
    seen, gate = [], threading.Event()

    def work(n):
        gate.wait(HANG)
        yield n

    worker = Worker(work, seen.append, seen.append)
    worker.ask(1)
    worker.ask(2)
    assert not seen
    gate.set()
    assert worker.wait(HANG) and seen[-1] == 2


# ---- choosing


def test_sheet_and_click(faces):
    c = FaceChooser(faces, range(2, 10), columns=4)
    assert c.face.index == 2 and (c.sheet.rows, c.sheet.columns) == (2, 4)
    c.sheet.row, c.sheet.column = 1, 3
    assert c.face.index == 9 and torch.equal(c.face.image, faces[9]["image"])
    assert np.array_equal(pixels(c.sheet.png)[64:, 192:], pixels(png_bytes(faces[9]["image"])))
    c.choose(30)
    assert c.face.index == 30 and c.sheet.row == -1


def test_upload_and_path(faces, tmp_path):
    c = FaceChooser(faces, range(6))
    png = png_bytes(faces[7]["image"])
    assert c.read(png, "me.png") and c.face.index is None and torch.allclose(c.face.image, faces[7]["image"], atol=0.01)
    (tmp_path / "her.png").write_bytes(png)
    c.path.value = str(tmp_path / "her.png")
    assert c.face.name == "her.png" and c.face.path == str(tmp_path / "her.png") and not c.message
    c.upload.value = (
        {
            "name": "up.png",
            "type": "image/png",
            "size": len(png),
            "content": memoryview(png),
            "last_modified": datetime(2026, 1, 1),
        },
    )
    assert c.face.name == "up.png"


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut short"])
def test_a_bad_upload_is_said_and_the_face_stays(faces, content):
    c = FaceChooser(faces, range(6))
    assert (
        not c.read(content, "bad.png") and c.face.index == 0 and "bad.png" in c.message and "bad.png" in c.words.value
    )
    c.choose(3)
    assert not c.message and "face 3" in c.words.value


def test_a_path_that_is_not_there(faces):
    c = FaceChooser(faces, range(6))
    c.path.value = "nowhere/at/all.png"
    assert "nowhere" in c.message and c.face.index == 0


def test_click_picture_is_reachable_by_keyboard():
    js = ClickPicture._esm if isinstance(ClickPicture._esm, str) else str(ClickPicture._esm)
    assert "tabIndex" in js and "ArrowLeft" in js and "aria-label" in js and "http" not in js


# ---- wishes and truth


def test_truth_of_several_edits(faces):
    i = lacking(faces)
    ref = Face(faces[having(faces, "Eyeglasses", "with")[0]]["image"], "r", having(faces, "Eyeglasses", "with")[0])
    one, two = Wish("Eyeglasses", "with", "reference", reference=ref), Wish("HairColor", "blond", "global direction")
    assert torch.equal(true_face(faces, i, [one]), faces.counterfactual(i, "Eyeglasses", "with", style_from=ref.index))
    assert torch.equal(true_face(faces, i, []), faces[i]["image"])
    both = true_face(faces, i, [one, two])
    assert torch.equal(both, true_face(faces, i, [two, one])) and not torch.equal(both, true_face(faces, i, [one]))
    assert true_face(faces, i, [Wish("Eyeglasses", "with", "reference", reference=Face(ref.image, "upload"))]) is None


def test_walk_through_noise(pipe):
    a, b, half = (walk_noise(pipe, 3, w) for w in (0.0, 1.0, 0.5))
    assert (
        torch.allclose(a, pipe.mapper.draw_noise(1, torch.Generator().manual_seed(3)), atol=1e-6)
        and torch.allclose(b, walk_noise(pipe, 4, 0.0), atol=1e-5)
        and abs(float(half.std()) - 1) < 0.25
    )


def test_only_what_the_checkpoint_can_do_is_offered(pipe, plain):
    assert guidances(pipe) == ["reference", "noise", "global direction", "image-specific direction"] and guidances(
        plain
    ) == ["global direction", "image-specific direction"]


# ---- EditExplorer


@pytest.fixture(scope="module")
def explorer(pipe, faces):
    return EditExplorer(pipe, faces, range(6), STEPS)


def test_what_is_shown_is_what_the_pipeline_makes(explorer, pipe, faces):
    explorer.start_over()
    explorer.tag, explorer.value, explorer.guidance, explorer.gain = "Smiling", "with", "global direction", 1.3
    explorer.chooser.choose(lacking(faces, "Smiling"))
    explorer.wait()
    want = pipe(
        explorer.chooser.face.image,
        Edit("Smiling", "with", method="global_direction", gain=1.3),
        STEPS[-1],
        output_type="pt",
    ).images[0]
    assert torch.allclose(explorer.result[2].image, want, atol=1e-4)
    assert (
        np.abs(pixels(explorer.edited.png).astype(int) - pixels(png_bytes(want)).astype(int)).max() <= 1
        and "gain 1.3" in explorer.words
    )
    assert np.array_equal(
        pixels(explorer.truth.png),
        pixels(png_bytes(faces.counterfactual(explorer.chooser.face.index, "Smiling", "with"))),
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(gain=0.4),
        dict(value="without", guidance="image-specific direction"),
        dict(guidance="noise", seed=4),
        dict(guidance="noise", seed=4, walk=0.5),
        dict(guidance="reference"),
        dict(tag="HairColor", value="blond", gain=1.5),
    ],
)
def test_each_control_moves_the_picture(explorer, faces, change):
    explorer.start_over()
    explorer.tag, explorer.value, explorer.guidance, explorer.gain, explorer.seed, explorer.walk = (
        "Eyeglasses",
        "with",
        "global direction",
        1.0,
        0,
        0.0,
    )
    explorer.chooser.choose(lacking(faces))
    before = explorer.wait().edited.png
    for k, v in change.items():
        setattr(explorer, k, v)
    if change.get("value") == "without":
        explorer.chooser.choose(having(faces, "Eyeglasses", "with")[0])
    assert explorer.wait().edited.png != before and not explorer.bad


def test_controls_and_traits_are_one(explorer):
    explorer.gains.value = 0.75
    assert explorer.gain == 0.75
    explorer.tag = "HairColor"
    assert explorer.tags.value == "HairColor" and explorer.values.options == ("black", "blond", "brown")
    explorer.guidance = "noise"
    assert explorer.noise.layout.display == "" and explorer.references.layout.display == "none"
    explorer.wait()


@pytest.mark.parametrize(
    "guidance, walk",
    [("reference", 0.0), ("noise", 0.0), ("noise", 0.25), ("global direction", 0.0), ("image-specific direction", 0.0)],
)
def test_printed_code_makes_the_picture(explorer, pipe, faces, guidance, walk):
    explorer.start_over()
    explorer.tag, explorer.value, explorer.guidance, explorer.gain, explorer.walk = (
        "Eyeglasses",
        "with",
        guidance,
        0.9,
        walk,
    )
    explorer.chooser.choose(lacking(faces))
    explorer.keep()
    explorer.tag = "Smiling"
    explorer.wait()
    scope, lines = (
        {"pipe": pipe},
        [l for l in explorer.code().split("\n") if not l.startswith("pipe =") and not l.startswith("out.")],
    )
    exec("\n".join(lines).replace("num_inference_steps", 'output_type="pt", num_inference_steps'), scope)
    assert torch.allclose(scope["out"].images[0], explorer.result[2].image, atol=1e-4)
    explorer.show_code()
    assert "num_inference_steps" in explorer.listing.value


def test_another_tag_of_the_same_values_is_another_edit(explorer, faces):
    explorer.start_over()
    explorer.tag, explorer.value, explorer.guidance = "Eyeglasses", "with", "reference"
    explorer.wait()
    explorer.tag = "Smiling"
    explorer.wait()
    assert explorer.result[1][-1].tag == "Smiling" and explorer.references.face.index in having(
        faces, "Smiling", explorer.value, 60
    )


def test_a_reference_without_the_value_is_warned_of_in_words(explorer, faces):
    explorer.start_over()
    explorer.tag, explorer.guidance = "Eyeglasses", "reference"
    explorer.value = "with"
    explorer.references.choose(lacking(faces))
    explorer.wait()
    assert "does not look like Eyeglasses=with" in explorer.words
    explorer.references.choose(having(faces, "Eyeglasses", "with")[1])
    explorer.wait()
    assert "does not look like" not in explorer.words


def test_edits_are_stacked(explorer, pipe, faces):
    explorer.start_over()
    explorer.walk = 0.0
    explorer.tag, explorer.value, explorer.guidance, explorer.gain, explorer.seed = (
        "Eyeglasses",
        "with",
        "noise",
        1.0,
        2,
    )
    explorer.chooser.choose(lacking(faces))
    explorer.keep()
    explorer.tag, explorer.guidance = "HairColor", "global direction"
    explorer.value = "blond"
    explorer.wait()
    want = pipe(
        explorer.chooser.face.image,
        [Edit("Eyeglasses", "with", seed=2), Edit("HairColor", "blond", method="global_direction")],
        STEPS[-1],
        output_type="pt",
    ).images[0]
    assert torch.allclose(explorer.result[2].image, want, atol=1e-4) and "Eyeglasses" in explorer.stack.value
    explorer.clear.click()
    assert not explorer.wishes and explorer.wait().stack.value == ""


def test_a_burst_of_changes_ends_at_the_last(explorer, faces):
    explorer.start_over()
    explorer.tag, explorer.guidance = "Smiling", "global direction"
    explorer.chooser.choose(lacking(faces, "Smiling"))
    explorer.wait()
    for g in np.linspace(0, 2, 30):
        explorer.gain = round(float(g), 2)
    explorer.wait()
    assert explorer.result[1][-1].gain == 2.0 and explorer.result[2].steps == STEPS[-1] and explorer.worker.dropped > 0


def test_an_upload_is_edited_without_truth(explorer, faces):
    assert explorer.chooser.read(png_bytes(faces[11]["image"]), "me.png")
    explorer.wait()
    r = explorer.result
    assert r[2].truth is None and explorer.truth_box.layout.display == "none" and "me.png" in explorer.words
    assert len(explorer.still().axes) == 2 + (r[1][-1].guidance == "reference")
    explorer.chooser.choose(0)
    assert explorer.wait().result[2].truth is not None and explorer.truth_box.layout.display == ""


@pytest.mark.parametrize("kind, strange", [("a new face", False), ("a ramp", True), ("empty", True)])
def test_a_picture_that_is_no_face_is_said(pipe, faces, kind, strange):
    new = faces[50]["image"]
    x = {"a new face": new, "a ramp": torch.linspace(-1, 1, 64).expand(3, 64, 64), "empty": torch.ones(3, 64, 64)}[kind]
    words = strangeness(pipe.known_faces, pipe.distances(pipe.encode(x)), ["me.png"])[0]
    assert bool(words) == strange and (not strange or "me.png does not look like the faces" in words)


def test_an_upload_without_a_face_is_edited_with_a_warning(explorer, faces, tmp_path):
    Image.fromarray(np.full((90, 90, 3), 200, np.uint8)).save(tmp_path / "wall.png")
    explorer.wait()
    explorer.chooser.path.value = str(tmp_path / "wall.png")
    explorer.wait()
    assert (
        "wall.png does not look like the faces" in explorer.words
        and not explorer.bad
        and explorer.result[2].image.shape == (3, 64, 64)
    )
    explorer.chooser.path.value = ""
    explorer.chooser.choose(lacking(faces))
    explorer.wait()
    assert "faces this model knows" not in explorer.words


def test_an_error_leaves_the_widget_usable(explorer, faces, monkeypatch):
    explorer.wait()
    render = Bench.render

    def broken(self, z, n, **how):
        raise ValueError("the network is gone")

    monkeypatch.setattr(Bench, "render", broken)
    explorer.gain = 0.3
    explorer.wait()
    assert explorer.bad and "the network is gone" in explorer.status.value
    monkeypatch.setattr(Bench, "render", render)
    explorer.gain = 0.35
    explorer.wait()
    assert not explorer.bad


def test_without_style_networks_directions_remain(plain, pipe, faces):
    e = EditExplorer(plain, faces, range(4), STEPS).wait()
    assert e.ways_menu.options == ("global direction", "image-specific direction") and e.result[2].image.shape == (
        3,
        64,
        64,
    )
    assert "no style networks" in e.children[-1].value and without_styles(pipe) == ""


def fresh(explorer, faces, **state):
    "The shared explorer as it opens: a face without glasses, nothing kept."
    explorer.start_over()
    explorer.coded = False
    explorer.tag, explorer.value, explorer.guidance, explorer.gain = "Eyeglasses", "with", "global direction", 1.0
    explorer.chooser.choose(lacking(faces))
    for k, v in state.items():
        setattr(explorer, k, v)
    return explorer.wait()


def test_keeping_leaves_the_picture_until_the_next_wish(explorer, faces):
    before = fresh(explorer, faces, gain=0.8).edited.png
    explorer.keep()
    explorer.wait()
    assert alike(explorer.edited.png, before) and "Kept" in explorer.words and explorer.code().count("Edit(") == 1
    explorer.tag = "HairColor"
    explorer.wait()
    assert explorer.gain == 1.0 and not alike(explorer.edited.png, before) and explorer.code().count("Edit(") == 2


@pytest.mark.parametrize(
    "wished",
    [
        dict(guidance="reference", gain=0.6),
        dict(guidance="noise", seed=7, walk=0.5),
        dict(tag="HairColor", value="blond", gain=1.4),
    ],
)
def test_a_keep_is_undone(explorer, faces, wished):
    fresh(explorer, faces, **wished)
    before, shown, face = explorer.wish(), explorer.wait().edited.png, explorer.references.face.index
    assert explorer.back.disabled
    explorer.add.click()
    explorer.tag, explorer.gain, explorer.guidance = "Smiling", 1.7, "image-specific direction"
    explorer.wait()
    assert not explorer.back.disabled
    explorer.back.click()
    after = explorer.wait().wish()
    for name in ("tag", "value", "guidance", "gain", "seed", "walk"):
        assert getattr(after, name) == getattr(before, name), name
    assert explorer.references.face.index == face and not explorer.wishes and alike(explorer.edited.png, shown)
    explorer.undo()
    assert explorer.wish().tag == before.tag, "with nothing kept there is nothing to undo"


def test_an_uploaded_reference_comes_back_too(explorer, faces):
    fresh(explorer, faces, guidance="reference")
    assert explorer.references.read(png_bytes(faces[having(faces, "Eyeglasses", "with")[2]]["image"]), "hers.png")
    explorer.keep()
    explorer.tag = "Smiling"
    explorer.undo()
    assert explorer.wait().references.face.name == "hers.png" and explorer.truth_box.layout.display == "none"


@pytest.mark.parametrize("tag", ["Eyeglasses", "Smiling", "HairColor", "Young"])
def test_what_the_face_has_is_said_and_not_wished(explorer, faces, tag):
    fresh(explorer, faces)
    for i in (0, 3, 5, 20):
        explorer.chooser.choose(i)
        explorer.tag = "Bangs"
        explorer.tag = tag
        has = faces.tags[tag].values[int(faces.labels[i, faces.tags.index(tag)])]
        assert (
            explorer.has_now() == has != explorer.value
            and f"<b>{has}</b>" in explorer.has.value
            and "already" not in explorer.has.value
        )
        explorer.value = has
        assert "already" in explorer.has.value and explorer.value == has, "asked for, it is done"
        explorer.chooser.choose(having(faces, tag, has)[1])
        assert explorer.value != has, "another face that has it: not wished again"
    explorer.wait()


def test_what_an_upload_has_is_read_by_the_classifier(explorer, faces):
    fresh(explorer, faces)
    worn = having(faces, "Eyeglasses", "with")[0]
    assert explorer.chooser.read(png_bytes(faces[worn]["image"]), "me.png")
    assert explorer.has_now() == "with" and explorer.value == "without" and "classifier" in explorer.has.value
    explorer.wait()


def test_the_gain_is_back_at_1_for_another_tag(explorer, pipe, faces):
    duel = DirectionVsStyle(pipe, faces, load_judges(), range(4), (1,))
    for e in (explorer, duel):
        e.gain = 1.6
        e.tag = "Young" if e.tag == "Bangs" else "Bangs"
        assert e.gain == 1.0 and e.gains.value == 1.0


def test_code_follows_the_state(explorer, faces):
    fresh(explorer, faces)
    assert explorer.listing.value == ""
    explorer.print.value = True
    assert "gain=1)" in explorer.listing.value
    explorer.gain = 0.45
    assert "gain=0.45)" in explorer.wait().listing.value
    explorer.tag = "Smiling"
    assert "Smiling" in explorer.wait().listing.value
    assert explorer.chooser.read(png_bytes(faces[11]["image"]), "me.png")
    text = explorer.wait().listing.value
    assert "me.png was uploaded" in text and "face = &#x27;me.png&#x27;" in text
    explorer.print.value = False
    assert explorer.listing.value == ""
    explorer.chooser.choose(0)
    explorer.wait()


def test_the_reference_is_shown_at_full_size_where_one_lends(explorer, faces):
    fresh(explorer, faces, guidance="reference")
    assert explorer.lent_box.layout.display == "" and explorer.lent.width == explorer.edited.width
    assert np.array_equal(pixels(explorer.lent.png), pixels(png_bytes(explorer.references.face.image)))
    explorer.guidance = "noise"
    assert explorer.lent_box.layout.display == "none"
    explorer.wait()


# ---- AttentionExplorer


@pytest.fixture(scope="module")
def looker(pipe, faces):
    return AttentionExplorer(pipe, faces, range(6), steps=2)


def test_a_click_shows_the_recorded_attention(looker, pipe, faces):
    looker.compare, looker.tag, looker.layer, looker.mask = (
        "nothing",
        "Eyeglasses",
        "modulation.Eyeglasses.cross",
        False,
    )
    looker.wait()
    looker.row, looker.column, looker.token, looker.head = 2, 1, 3, 1
    face, ref = looker.chooser.face, looker.reference.face
    with record_attention(pipe, "modulation.Eyeglasses.*") as maps:
        pipe.edit(pipe.encode(face.image), Edit("Eyeglasses", "with", reference=ref.image), x=face.image)
    m = maps["modulation.Eyeglasses.cross"]
    picture, at, _ = looker.views()[0]
    assert torch.allclose(at, m.place(2, 1, 0, None, 1), atol=1e-6) and np.array_equal(
        picture, overlay(face.image, m.spread(3, 0, None, 1))
    )
    assert "row 3, column 2" in looker.words and looker.bars[0].value.count("token") == 4
    looker.mask = True
    assert (
        np.array_equal(looker.views()[0][0], overlay(face.image, maps["modulation.Eyeglasses.mask"].key(0), vmax=1.0))
        and "mask" in looker.words
    )


@pytest.mark.parametrize("change", [dict(row=3), dict(token=2), dict(head=0), dict(mask=True)])
def test_each_control_moves_the_view(looker, change):
    looker.compare, looker.tag, looker.layer = "nothing", "Smiling", "modulation.Smiling.cross"
    looker.wait()
    looker.row, looker.column, looker.token, looker.head, looker.step, looker.mask = 0, 0, 0, -1, -1, False
    before = looker.sides[0].png, looker.bars[0].value
    for k, v in change.items():
        setattr(looker, k, v)
    assert (looker.sides[0].png, looker.bars[0].value) != before


def test_layers_of_the_unet_both_ways(looker):
    for layer in ("unet.up.2.attn", "invert.unet.middle.attn", "modulation.Eyeglasses.self"):
        looker.mask = False
        looker.tag = "Eyeglasses"
        looker.layer = layer
        looker.wait()
        assert not looker.bad, looker.words
        m = looker.result[1][0].maps[layer]
        assert looker.sides[0].rows == m.side and len(looker.walked.options) == 1 + len(m.steps)
        before = looker.sides[0].png
        looker.row = (looker.row + 2) % m.side
        assert looker.sides[0].png != before and layer in looker.words


@pytest.mark.parametrize("compare", COMPARE[1:])
def test_two_sides(looker, compare):
    looker.tag = "Eyeglasses"
    looker.layer = "modulation.Eyeglasses.cross"
    looker.compare = compare
    looker.wait()
    a, b = looker.views()
    assert not np.array_equal(a[0], b[0]) and looker.right.layout.display == "" and len(looker.still().axes) == 4
    looker.sides[1].row = 3
    assert looker.row == 3 and looker.sides[0].row == 3, "both sides show the same place"
    looker.compare = "nothing"
    looker.wait()
    assert looker.right.layout.display == "none" and len(looker.views()) == 1


def test_a_click_needs_no_network(looker, pipe, monkeypatch):
    looker.wait()
    calls = []
    handle = pipe.autoencoder.unet.register_forward_pre_hook(lambda *a: calls.append(a))
    done = looker.worker.done
    looker.row, looker.column = 0, 3
    looker.column = 2
    handle.remove()
    assert not calls and looker.worker.done == done


def test_attention_without_style_networks(plain, faces):
    a = AttentionExplorer(plain, faces, range(4), steps=2).wait()
    assert (
        not a.bad
        and a.layer.startswith("invert.unet")
        and not [o for o in a.layers.options if "modulation" in o]
        and a.still()
    )


def test_recording_in_the_worker_does_not_hear_the_reader(looker, pipe, faces):
    looker.layer = "unet.up.2.attn"
    looker.wait()
    looker.chooser.choose(4)
    pipe(faces.batch([0, 1, 2])["image"], (), 2, output_type="pt")
    looker.wait()
    assert not looker.bad and len(looker.result[1][0].maps["unet.up.2.attn"].weights) == 1


# ---- the studio


def test_film_of_an_edit(pipe, faces):
    film = TrajectoryPlayer(pipe, faces[0]["image"], Edit("Smiling", "with", method="global_direction"), 3)
    assert len(film) == 6 and film.index == 5 and "down" in film.caption.value
    assert (
        np.abs(film.pictures[-1][:, :64].astype(int) - pixels(png_bytes(film.output.images[0])).astype(int)).max() <= 1
    )
    film.index = 0
    assert "up" in film.caption.value and film.still() and "<html" in film.to_html(page=True)


def test_ways_side_by_side(pipe, faces):
    judges = load_judges()
    d = DirectionVsStyle(pipe, faces, judges, range(6), STEPS).wait()
    assert [c.guidance for c in d.result[2]] == guidances(pipe) and not d.bad
    d.equal = "length"
    found = d.wait().result[2]
    lengths = [c.length for c in found]
    assert max(lengths) - min(lengths) < 1e-3 * max(lengths)
    d.equal, d.gain = "gain", 0.0
    found = d.wait().result[2]
    assert all(c.length < 1e-5 and not c.target and c.drift == found[0].drift for c in found)
    assert d.pictures["noise"].png and "same person" in d.table.value and len(d.still().axes) == 5


def test_comparison_says_what_the_judges_say(pipe, faces):
    judges, i = load_judges(), lacking(faces, "Smiling")
    bench = Bench(pipe, Face(faces[i]["image"], "f", i), STEPS)
    c = compare_guidances(bench, [Wish("Smiling", "with", "global direction")], judges, 1.0, "gain", 4)[0]
    want = pipe(faces[i]["image"], Edit("Smiling", "with", method="global_direction"), 4, output_type="pt").images
    assert torch.allclose(c.image, want[0], atol=1e-4) and c.target == bool(
        judges.judge.predict(want)[0, pipe.tags.index("Smiling")] == 1
    )
    assert (
        abs(c.identity - float(judges.identity(want)[0] @ judges.identity(faces[i]["image"][None])[0])) < 1e-4
        and comparison_rows([c])[0]["edited by"] == "global direction"
    )


@pytest.fixture(scope="module")
def styler(pipe, faces):
    return StyleExplorer(pipe, faces, range(6), n=5, steps=STEPS)


def test_styles_are_the_networks(styler, pipe, faces):
    styler.tag = "Eyeglasses"
    styler.wait()
    numbers = having(faces, "Eyeglasses", "with", 5)
    assert torch.allclose(
        styler.points[1].code.flat(),
        pipe.reference_style(faces[numbers[1]]["image"], "Eyeglasses", "with").flat(),
        atol=1e-5,
    )
    want = pipe.latent_style(
        styler.chooser.face.image, "Eyeglasses", "with", generator=torch.Generator().manual_seed(2)
    )
    assert torch.allclose(styler.points[7].code.flat(), want.flat(), atol=1e-5) and styler.points[7].name == "seed 2"
    styler.chosen = 7
    face = styler.wait().chooser.face
    assert torch.allclose(
        styler.result[3],
        pipe(face.image, Edit("Eyeglasses", "with", seed=2), STEPS[-1], output_type="pt").images[0],
        atol=1e-3,
    )


def test_click_chooses_the_nearest_style_and_colour_follows_the_factor(styler):
    styler.tag = "Eyeglasses"
    styler.wait()
    target = 3
    x, y = styler.at[target].tolist()
    before = styler.map.png
    styler.map.row, styler.map.column = min(31, int((1 - y) * 32)), min(31, int(x * 32))
    styler.wait()
    near = (styler.at - styler.at[target]).norm(dim=1)
    assert near[styler.chosen] < 0.05
    styler.factor = styler.factors.options[-1]
    assert styler.map.png != before


def test_other_styles_are_drawn(styler, pipe):
    styler.tag, styler.drawn = "Eyeglasses", 0
    before, n = styler.points[-1].code.flat(), len(styler.points)
    styler.draw_others()
    styler.wait()
    assert (
        styler.drawn == styler.n
        and len(styler.points) == n
        and styler.points[-1].name == f"seed {2 * styler.n - 1}"
        and not torch.equal(styler.points[-1].code.flat(), before)
    )
    styler.chosen = 0
    ringed = styler.map.png
    styler.chosen = n - 1
    assert styler.map.png != ringed
    styler.drawn = 0
    styler.wait()


def test_keep_mix_save_and_load(styler, tmp_path):
    styler.tag = "Eyeglasses"
    styler.kept.clear()
    styler.chosen = 0
    styler.keep("a")
    assert styler.mixer.layout.display == "none", "one style cannot be mixed"
    styler.chosen = 6
    styler.keep("b")
    assert styler.mixer.layout.display == "", "two are kept: they can be mixed"
    styler.first, styler.second, styler.mix = "a", "b", 0.25
    styler.wait()
    a, b = (styler.kept[n][2].flat() for n in "ab")
    assert torch.allclose(styler.result[2].flat(), 0.75 * a + 0.25 * b, atol=1e-5) and "0.25 b" in styler.words
    styler.save_to(tmp_path / "s.safetensors")
    styler.kept.clear()
    styler.load_from(tmp_path / "s.safetensors")
    assert list(styler.kept) == ["a", "b"] and torch.allclose(styler.kept["b"][2].flat(), b)
    for wrong, words in (
        (lambda: styler.keep(""), "no name"),
        (lambda: styler.load_from(tmp_path / "none.safetensors"), "no such file"),
        (lambda: styler.save_to(""), "no file"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
    styler.first = styler.second = ""
    styler.wait()


def test_buttons_say_what_is_wrong(styler):
    styler.name.value = ""
    next(
        b for row in styler.keeper.children[0].children for b in row.children if getattr(b, "description", "") == "Keep"
    ).click()
    assert styler.bad and "no name came" in styler.status.value


def test_swap_wears_each_others_style(styler, pipe):
    styler.tag = "Eyeglasses"
    styler.wait()
    face, other = styler.chooser.face, styler.references.face
    with pytest.warns(UserWarning, match="does not look like"):
        want = pipe(other.image, Edit("Eyeglasses", "with", reference=face.image), STEPS[-1], output_type="pt").images[
            0
        ]
    assert torch.allclose(styler.result[4][1], want, atol=1e-3)


def test_layers_of_another_face(styler, pipe):
    styler.wait()
    bench = [styler.benches[id(o.face)] for o in (styler.chooser, styler.references)]
    whole = bench[0].render(bench[1].z, STEPS[-1], [])
    assert torch.allclose(styler.result[4][2], bench[0].render(bench[0].z, STEPS[-1], []), atol=1e-4), "its own"
    styler.borrowed = tuple(styler.layers)
    assert all(b.value for b in styler.layers.values()) and len(styler.layers) > 1
    assert torch.allclose(styler.wait().result[4][2], whole, atol=1e-4), "all layers of the other: its code"
    first, *others = styler.layers.values()
    first.value = False
    assert styler.borrowed == tuple(styler.layers)[1:] and all(b.value for b in others)
    styler.wait()
    assert not torch.allclose(styler.result[4][2], whole, atol=1e-4)
    assert f"{styler.borrowed[0]}×{styler.borrowed[0]}" in styler.named[3].value
    with pytest.raises(ValueError, match="no block works on maps of side 5"):
        styler.borrowed = (5,)
    styler.borrowed = ()
    styler.wait()


def test_style_explorer_needs_style_networks(plain, faces):
    with pytest.raises(ValueError, match="style explorer"):
        StyleExplorer(plain, faces)


def test_plane_of_a_line_shows_all():
    at, share = plane(torch.linspace(0, 1, 9)[:, None] * torch.randn(1, 7) + 3)
    assert at.shape == (9, 2) and abs(share - 1) < 1e-4


def stages():
    g = torch.Generator().manual_seed(0)
    pictures = lambda *s: torch.randint(0, 256, (*s, 3, 16, 16), generator=g, dtype=torch.uint8)
    make = lambda steps: Stages(
        original,
        removed,
        pictures(len(steps), 2),
        pictures(len(steps), 2),
        torch.rand(len(steps), 2),
        steps,
        ["perceptual", "class"],
        [4, 9],
        ["Smiling", "Bangs"],
        ["with", "with"],
        [9, 4],
    )
    original, removed = pictures(2), pictures(2)
    whole = make([0, 10, 50])
    whole.ablations["no mask"] = make([0, 45])
    return whole


def test_stages_of_training(tmp_path):
    save_stages(tmp_path / "stages.safetensors", stages())
    c = ConsistencyExplorer(tmp_path / "stages.safetensors").wait()
    c.moment, c.face = 2, 1
    c.wait()
    for p, x in zip(c.rows[0], (c.stages.original, c.stages.removed, c.stages.restored[2], c.stages.swapped[2])):
        assert np.array_equal(pixels(p.png), x[1].movedim(0, -1).numpy())
    assert c.below.layout.display == "none" and "Step 50" in c.words and c.chart.png[:4] == b"\x89PNG"
    c.without = "no mask"
    c.wait()
    assert (
        c.below.layout.display == ""
        and np.array_equal(
            pixels(c.rows[1][2].png), c.stages.ablations["no mask"].restored[1][1].movedim(0, -1).numpy()
        )
        and "no mask" in c.words
    )
    assert len(c.still().axes) == 8 and nearest_moment(c.stages, 29) == 1


@pytest.mark.parametrize("term", ["perceptual", "class"])
def test_one_term_is_drawn_at_a_time_for_both_runs(term):
    s = stages()
    s.losses[0, 1] = float("nan")
    s.losses[:, 0] *= 1e-4
    ax = term_curve({"full training": s, "no mask": s.ablations["no mask"]}, term, 10).axes[0]
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [3 - (term == "class"), 2] and ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert all(low < v < high for line in ax.lines[:2] for v in line.get_ydata())
    c = ConsistencyExplorer(s).wait()
    before = c.chart.png
    c.term = "class"
    assert c.wait().chart.png != before and "class" in c.words and "perceptual" not in c.words


def test_a_term_that_a_run_lacks():
    s = stages()
    s.ablations["no mask"].terms = ["perceptual", "other"]
    c = ConsistencyExplorer(s, without="no mask", term="class").wait()
    assert not c.bad and "it has no class" in c.words


def test_a_file_without_stages(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no stages"):
        ConsistencyExplorer(tmp_path / "x.safetensors")


# ---- stills, pages, two views


def test_every_explorer_is_a_figure_and_a_page(explorer, looker, styler, pipe, faces, tmp_path):
    duel = DirectionVsStyle(pipe, faces, load_judges(), range(4), (1,))
    looker.layer = f"modulation.{looker.tag}.cross"
    for i, (e, how) in enumerate(
        [
            (explorer, dict(gains=(0, 1))),
            (looker, {}),
            (styler, dict(n=2)),
            (duel, dict(gains=(0, 1.0))),
            (ConsistencyExplorer(stages()), {}),
        ]
    ):
        bundle = e._repr_mimebundle_()
        assert bundle["image/png"] and "application/vnd.jupyter.widget-view+json" in bundle, type(e).__name__
        path = e.to_html(tmp_path / f"{i}.html", **how)
        text = path.read_text(encoding="utf-8")
        assert (
            text.startswith("<!doctype html>")
            and text.count("data:image/png;base64,") >= 2
            and not re.search(r"(?:src|href)=.?https?:", text)
            and e.to_html(**how) == text
        )


KINDS = {"picture": b"\x89PNG", "strip": b"\x89PNG", "page": b"<!doctype html>", "code": b"from latref_nb"}


def test_every_button_gives_its_file(explorer, looker, styler, pipe, faces):
    duel = DirectionVsStyle(pipe, faces, load_judges(), range(4), (1,))
    film = TrajectoryPlayer(pipe, faces[0]["image"], "Smiling=with", 2)
    for e in (explorer, looker, styler, duel, ConsistencyExplorer(stages()), film):
        names = [e.take(kind)[0] for kind in e.downloads.kinds]
        assert len(set(names)) == len(names) >= 2
        for kind in e.downloads.kinds:
            assert e.take(kind)[1].startswith(KINDS[kind]), (type(e).__name__, kind)
    assert "code" in explorer.downloads.kinds and explorer.take("picture")[1] == explorer.edited.png


def test_a_file_is_handed_to_the_view_that_asked():
    sent, failed = [], []
    d = Downloads(["a", "b"], lambda kind: (f"{kind}.txt", {"a": b"1"}[kind]), failed.append)
    d.send = lambda content, buffers=None: sent.append((content, buffers))
    d._handle_custom_msg({"kind": "a", "view": "7"}, [])
    d._handle_custom_msg({"kind": "b", "view": "8"}, [])
    assert sent == [
        ({"kind": "a", "view": "7", "name": "a.txt"}, [b"1"]),
        ({"kind": "b", "view": "8"}, None),
    ] and isinstance(failed[0], KeyError)


def test_what_cannot_be_saved_is_said(explorer, monkeypatch):
    explorer.wait()
    monkeypatch.setattr(EditExplorer, "code", lambda self: 1 / 0)
    explorer.downloads.hand_over("code")
    assert explorer.bad and "division" in explorer.words


def test_two_views_of_one_pipeline_do_not_disturb_each_other(pipe, faces):
    a, b, c = (
        EditExplorer(pipe, faces, range(4), STEPS),
        AttentionExplorer(pipe, faces, range(4), steps=2),
        EditExplorer(pipe, faces, range(4), STEPS),
    )
    for g in (0.2, 0.9, 1.4):
        a.gain = g
        b.layer = "unet.up.2.attn"
        c.tag = "Smiling"
        b.chooser.choose(2)
    for e in (a, b, c):
        e.wait()
        assert not e.bad, e.words
    assert (
        a.gain == 1.4
        and c.gain == 1.0
        and a.tag != c.tag
        and torch.allclose(
            a.result[2].image,
            pipe(a.chooser.face.image, [w.edit(pipe, None) for w in a.result[1]], STEPS[-1], output_type="pt").images[
                0
            ],
            atol=1e-4,
        )
    )


def test_bars_are_words():
    text = bars_html([0.25, 0.75], ["token 0", "token 1"], 1)
    assert "25 %" in text and "75 %" in text and text.count("◂") == 1


def test_view_of_a_mask_and_of_places(looker):
    looker.layer = f"modulation.{looker.tag}.self"
    looker.wait()
    maps = looker.result[1][0].maps
    heat, at = attention_view(maps[looker.layer], 1, 1, 0)
    assert heat.shape == (4, 4) and at.shape == (16,)
    heat, at = attention_view(next(m for n, m in maps.items() if n.endswith("mask")), 1, 1, 0)
    assert heat.shape == (4, 4) and at.shape == (1,)


def test_sheet_fills_the_last_row():
    assert sheet(torch.zeros(5, 3, 8, 8), 3).shape == (16, 24, 3)


# ---- where things are found


@pytest.mark.parametrize("old", ["explore", "studio"])
def test_what_has_moved_is_found_where_it_was(old):
    import latref_nb.explore, latref_nb.inside, latref_nb.studio, latref_nb.widgets

    module = getattr(latref_nb, old)
    before = {
        "explore": "ClickPicture Downloads Explorer Face FaceChooser Live Overtaken Worker columns labelled menu page"
        " pictured png_bytes sheet titled wrapped COMPARE AttentionExplorer Recording attention_view bars_html"
        " record_edit",
        "studio": "ConsistencyExplorer TrajectoryPlayer nearest_moment stage_pictures term_curve trajectory_frames",
    }[old].split()
    for name in before:
        homes = [m for m in (latref_nb.widgets, latref_nb.inside) if name in m.__all__]
        assert len(homes) == 1 and getattr(module, name) is getattr(homes[0], name), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing


def test_a_row_is_as_wide_as_the_pictures_that_are_seen():
    row = pictured(a=ClickPicture(width=100), b=ClickPicture(width=200))
    assert row.layout.max_width == "316px"
    row.children[1].layout.display = "none"
    assert fit(row).layout.max_width == "108px"
