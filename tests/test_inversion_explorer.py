"InversionExplorer: what an inversion depends on and costs, what it spoils, slow ones only when asked for, stop and go on, code that draws the same pictures."

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from latref_nb.bases import Base
from latref_nb.control import Control, edit_under
from latref_nb.faces import SynthFaces
from latref_nb.inversion_explorer import (
    NO_EDIT,
    InversionExplorer,
    Trial,
    Watched,
    edit_again,
    look_again,
    outside_error,
    table_html,
    token_map,
    true_region,
    try_out,
)
from latref_nb.judges import Judge
from latref_nb.perceptual import PerceptualNet
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
from latref_nb.values import METHODS, drift_of, reconstruct
from latref_nb.widgets import Face

STEPS, BUDGET = 2, 14


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16), prompted_scheduler())


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(8, 64, seed=5)


@pytest.fixture(scope="module")
def eyes():
    torch.manual_seed(1)
    return Judge().eval(), PerceptualNet().eval()


@pytest.fixture
def explorer(pipe, faces, eyes):
    made = InversionExplorer(pipe, faces, *eyes, range(4), preview=1, tag="Smiling", steps=STEPS, budget=40)
    return made.wait()


def trial_of(faces, method="direct", budget=0, **how):
    said = faces.tags.decode(faces.labels[0])
    wished = "with" if said["Smiling"] == "without" else "without"
    face = Face(faces[0]["image"], "face 0", 0)
    rest = dict(guidance=2.0, steps=STEPS, control=Control()) | how
    return Trial(face, said, "Smiling", wished, method, budget=budget, **rest)


def stopping(explorer, calls):
    "Press Stop when so many network calls are done."
    tell, n = explorer.watched.tell, [0]

    def count():
        n[0] += 1
        if n[0] == calls:
            explorer.stop.click()
        tell()

    explorer.watched.tell = count
    return tell


# ---- a trial


def test_an_inversion_depends_on_half_of_a_trial(faces):
    trial = trial_of(faces)
    assert replace(trial, tag="Young", value="without", control=Control(cross=0.0)).key == trial.key
    for other in (dict(method="ddim"), dict(guidance=3.0), dict(steps=3), dict(budget=40)):
        assert replace(trial, **other).key != trial.key
    outside = replace(trial, face=Face(trial.face.image, "me.png"))
    assert outside.key == replace(outside, tag="Young").key != trial.key


def test_costs_are_known_before(faces):
    assert {m: trial_of(faces, m).slow for m in METHODS} == {m: m not in ("ddim", "direct") for m in METHODS}
    assert trial_of(faces, "direct").calls == 3 * STEPS and trial_of(faces, "value", BUDGET).calls == BUDGET
    with pytest.raises(ValueError, match="needs 8 at least"):
        trial_of(faces, "value", 4).calls
    quick = trial_of(faces, "value", BUDGET).preview(1)
    assert (quick.method, quick.steps, quick.budget) == ("direct", 1, 0)
    assert trial_of(faces, "ddim").preview(9).key == trial_of(faces, "ddim").key


# ---- looking and editing


@pytest.mark.parametrize("method", ["direct", "null", "key_value"])
def test_a_look_is_the_reconstruction_and_its_maps(pipe, faces, method):
    base, trial = Base(pipe), trial_of(faces, method, BUDGET if method != "direct" else 0)
    inverted = trial.invert(base)
    look = look_again(base, inverted)
    assert torch.allclose(look.image, reconstruct(base, inverted)[0].clamp(-1, 1), atol=1e-5)
    assert look.drift == pytest.approx(float(drift_of(base, inverted).mean()), rel=1e-3)
    for m in (look.up, look.again):
        assert m.shape == (25, 16, 16) and torch.allclose(m.sum(0), torch.ones(16, 16), atol=1e-4)


def test_an_edit_is_chapter_21s_and_looks_where_its_source_looks(pipe, faces):
    base, trial, control = Base(pipe), trial_of(faces), Control(cross=1.0)
    inverted = trial.invert(base)
    edited, looked = edit_again(base, inverted, trial.target, control)
    given = inverted.parts(base, trial.target)
    path = edit_under(base, target=base.tokens(trial.target), control=control, **given)
    assert torch.allclose(edited, base.decode(path[-1, 1])[0].clamp(-1, 1), atol=1e-5)
    assert torch.allclose(looked, look_again(base, inverted).again, atol=1e-4)
    free = edit_again(base, inverted, trial.target, Control(0.0, 0.0, 0.0))[1]
    assert not torch.allclose(looked, free, atol=1e-6)


def test_token_map_is_the_mean_of_steps_layers_and_heads():
    maps = [{"a": torch.rand(1, 2, 16, 5), "b": torch.rand(1, 2, 16, 5)} for _ in range(3)]
    whole = torch.stack([m for step in maps for m in step.values()]).mean((0, 1, 2))  # (6,1,2,16,5) → (16,5)
    assert torch.allclose(token_map(maps)[3, 1, 2], whole[6, 3])


def test_the_error_outside_sees_only_what_an_edit_spoils(faces, eyes):
    critic, face = eyes[1], faces[0]["image"]
    truth = faces.counterfactual(0, "Smiling", trial_of(faces).value)
    region = true_region(face, truth)
    assert 0 < region.float().mean() < 0.5
    inside = torch.where(region, -truth, truth)
    assert all(outside_error(critic, o, truth, region) == 0 for o in (face, truth, inside))
    small, large = (torch.where(region, truth, truth + d) for d in (0.1, 0.5))
    assert 0 < outside_error(critic, small, truth, region) < outside_error(critic, large, truth, region)


@pytest.mark.parametrize("method", ["direct", "key"])
def test_a_trial_in_figures(pipe, faces, eyes, method):
    base, trial = Base(pipe), trial_of(faces, method, BUDGET if method == "key" else 0)
    inverted = trial.invert(base)
    row = try_out(base, *eyes, trial, inverted, look_again(base, inverted), None).row()
    assert row["outside"] == "" and row["calls"] == int(inverted.calls[0])
    assert bool(row["edit"]) == (method not in NO_EDIT)
    if method == "direct":
        assert row["drawn again"] == "100.0 dB" or float(row["drawn again"].split()[0]) > 60
    assert "&lt;b&gt;" in table_html([{"name": "<b>"}]) and table_html([]) == ""


def test_every_network_call_is_told_of_and_can_end_the_work(pipe, faces):
    told = []
    watched, trial = Watched(pipe, lambda: told.append(1)), trial_of(faces)
    inverted = trial.invert(watched)
    assert len(told) == trial.calls == int(inverted.calls[0])

    def end():
        raise KeyboardInterrupt

    before = {n: type(watched.module(n).processor) for n in watched.layers}
    watched.tell = end
    with pytest.raises(KeyboardInterrupt):
        edit_again(watched, inverted, trial.target, Control())
    assert {n: type(watched.module(n).processor) for n in watched.layers} == before
    assert not any("get_attention_scores" in vars(watched.module(n)) for n in watched.layers)


# ---- the explorer


def test_quick_inversions_run_at_once_and_slow_ones_when_asked_for(explorer):
    trial, o = explorer.result
    assert trial.method == "direct" and o.trial.key == trial.key and explorer.go.disabled
    assert "6 network calls" in explorer.words and "Drawn again at" in explorer.words
    explorer.method = "value"
    explorer.wait()
    trial, o = explorer.result
    assert trial.method == "value" and o.trial.method == "direct" and trial.key not in explorer.found
    assert "press Invert" in explorer.words and not explorer.go.disabled
    titles = lambda: [box.children[0].value for box in explorer.pictures.children[1:3]]
    assert titles() == ["<b>drawn again, a preview</b>", "<b>edited, a preview</b>"]
    assert "Up to 40 network calls, about" in explorer.cost.value and explorer.budgets.layout.display == ""
    explorer.go.click()
    trial, o = explorer.wait().result
    assert o.trial.key == trial.key and o.done == STEPS and o.calls <= 40
    assert titles() == ["<b>drawn again</b>", "<b>edited</b>"]
    assert explorer.go.disabled and f"Found in {o.calls} calls." in explorer.cost.value
    assert [r["adds"] for r in explorer.compared(trial)] == ["offsets (direct)", "value tokens"]
    explorer.cross = 0.0
    assert explorer.wait().result[1].trial.method == "value", "another τ needs no other inversion"
    explorer.guidance = 3.0
    assert explorer.wait().result[1].trial.method == "direct", "another w does"


def test_a_budget_that_is_too_small_is_said(explorer):
    with explorer.quiet():
        explorer.steps, explorer.method = 20, "value"
    assert "needs 80 at least" in explorer.cost.value and explorer.go.disabled
    with explorer.quiet():
        explorer.steps = STEPS
    assert "Up to 40" in explorer.wait().cost.value


def test_stop_keeps_what_is_finished_and_go_on_finishes_it(explorer):
    explorer.method = "value"
    explorer.wait()
    trial = explorer.request()
    whole = trial.invert(explorer.base)
    tell = stopping(explorer, int(whole.inner[0, 0]) + 20)
    explorer.ask()
    o = explorer.wait().result[1]
    assert o.trial.key == trial.key and o.done < STEPS and f"Stopped after {o.done} of {STEPS}" in explorer.words
    assert explorer.go.description == "Go on" and not explorer.go.disabled and explorer.stop.disabled
    explorer.watched.tell = tell
    explorer.go.click()
    o = explorer.wait().result[1]
    assert o.done == STEPS and torch.allclose(explorer.found[trial.key][0].tokens, whole.tokens, atol=1e-6)


def test_a_newer_wish_keeps_what_was_asked_for(explorer):
    explorer.method = "null"
    explorer.wait()
    key, tell, begun = explorer.request().key, explorer.watched.tell, []

    def moved():
        if not begun and explorer.bar.value > 12:
            begun.append(1)
            explorer.tag = "Young"
        tell()

    explorer.watched.tell = moved
    explorer.ask()
    trial, o = explorer.wait().result
    explorer.watched.tell = tell
    assert trial.tag == o.trial.tag == "Young" and o.trial.method == "null"
    assert o.done == STEPS and explorer.found[key][2] is None and not explorer.asked


def test_stop_of_what_cannot_go_on_says_so(explorer):
    explorer.method = "fixed_point"
    explorer.wait()
    tell = stopping(explorer, 18)
    explorer.ask()
    explorer.wait()
    explorer.watched.tell = tell
    assert explorer.words == "Stopped." and not explorer.asked and explorer.request().key not in explorer.found
    assert not explorer.go.disabled and explorer.bar.layout.display == "none"


def test_without_an_edit_only_the_face_is_shown(explorer):
    explorer.method = "key_value"
    explorer.ask()
    o = explorer.wait().result[1]
    assert o.edited is None and "No edit stands on it" in explorer.words
    assert [b.layout.display for b in explorer.pictures.children] == [None, None, "none", ""]
    assert [b.layout.display for b in explorer.maps.children][2:] == ["none", "none"]
    with pytest.raises(ValueError, match="no edit stands on key and value tokens"):
        explorer.to_html()
    assert "edit_under(base" not in explorer.code() and explorer.take("strip")[1].startswith(b"\x89PNG")


def test_an_upload_has_no_truth(explorer, faces):
    buf = io.BytesIO()
    Image.fromarray(((faces[6]["image"].movedim(0, -1) + 1) * 127.5).byte().numpy()).save(buf, "PNG")
    assert explorer.chooser.read(buf.getvalue(), "me.png")
    o = explorer.wait().result[1]
    assert o.truth is None and o.outside is None and explorer.pictures.children[3].layout.display == "none"
    assert "load_image('me.png', pipe.size)" in explorer.code() and "was uploaded" in explorer.code()
    assert o.trial.said[o.trial.tag] != o.trial.value, "a value that the judge does not read in it"


@pytest.mark.parametrize("method", ["direct", "value"])
def test_code_draws_the_same_pictures(explorer, pipe, method, monkeypatch):
    explorer.method = method
    explorer.ask()
    o = explorer.wait().result[1]
    monkeypatch.setattr(PromptedPipeline, "from_pretrained", lambda name: pipe)
    names = {}
    exec(explorer.code(), names)
    assert max(map(len, explorer.code().splitlines())) <= 120
    assert torch.allclose(names["again"].clamp(-1, 1), o.look.image, atol=1e-4)
    assert torch.allclose(names["edited"].clamp(-1, 1), o.edited, atol=1e-4)


def test_files(explorer):
    assert explorer.take("picture") == ("inversion.png", explorer.main.png)
    assert b"invert_under_guidance" in explorer.take("code")[1]
    page = explorer.to_html(shares=(0.0, 1.0))
    assert "\\u03c4 = 1" in page and page.lower().startswith("<!doctype")
    explorer.coded = True
    assert "edit_under" in explorer.listing.value
