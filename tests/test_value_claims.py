"Inversion by values held to its claims: truth, columns, what is kept, cost, the table and the command."

import json
import math

import pytest
import torch
import torch.nn.functional as F

from latref_nb.bases import Base
from latref_nb.core import make_generator
from latref_nb.drawing import CLASSES
from latref_nb.judges import load_network
from latref_nb.obeyed import asked
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
from latref_nb.value_claims import (
    EDITS,
    GUIDANCES,
    INVERSIONS,
    ONE_WORD,
    PART_OF,
    Bench,
    Measured,
    changed_region,
    cost_line,
    eval_values,
    heat_of,
    not_reproduced,
    object_iou,
    outside_error,
    passes_of,
    true_edits,
    turned,
    weakest_guidance,
)
from latref_nb.values import joined_inversions

torch.set_num_threads(1)
SEED, STEPS, CALLS = 3021, 2, 8


def made(dim=16):
    torch.manual_seed(0)
    pipe = PromptedPipeline(prompted_unet((16, 24, 32), dim=dim), PromptEncoder(dim=dim), prompted_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Small:
    "In the place of a frozen encoder: colours at 4×4 places, repeated."

    def features(self, x):
        return x

    def middle_features(self, x):  # (b,3,S,S) → (b,16,4,4)
        return F.adaptive_avg_pool2d(x, 4).repeat(1, 6, 1, 1)[:, :16]


@pytest.fixture(scope="module")
def looking():
    return load_network("judge"), load_network("perceptual")


def bench_with(looking, n=3, **how):
    how = dict(guidance=2.0, steps=STEPS, calls=CALLS, batch_size=2) | how
    return Bench(Base(made()), asked(n, SEED), *looking, Small(), **how)


@pytest.fixture(scope="module")
def measured(looking):
    return bench_with(looking).measure(progress=False)


def test_what_an_edit_asks_for_and_what_it_has_to_change():
    few = asked(3, SEED)
    faces, x = few.faces, few.x
    for tag in faces.tags.names:
        j, labels = faces.tags.index(tag), turned(faces.labels, faces.tags, tag)
        assert (labels[:, j] == (faces.labels[:, j] + 1) % len(faces.tags[tag])).all()
        assert (labels != faces.labels).sum() == 3 and (faces.labels == asked(3, SEED).faces.labels).all()
        truth = true_edits(faces, [0, 2], tag)
        region = changed_region(x[[0, 2]], truth)
        assert torch.equal(torch.where(region, x[[0, 2]], truth), x[[0, 2]]) and region.any()
        value = faces.tags[tag].values[int(labels[2, j])]
        assert torch.equal(truth[1], faces.counterfactual(2, tag, value))
    one = torch.zeros(1, 3, 8, 8)
    other = one.clone()
    other[0, 1, 4, 4] = 1e-6
    assert changed_region(one, other).sum() == 9 and changed_region(one, other, wider=0).sum() == 1


def test_only_what_lies_outside_counts(looking):
    few = asked(2, SEED)
    truth = true_edits(few.faces, [0, 1], "Eyeglasses")
    region = changed_region(few.x, truth)
    assert (outside_error(looking[1], truth, few.x, region) == 0).all()
    noise = torch.rand(few.x.shape, generator=make_generator(0)) * 2 - 1
    assert (outside_error(looking[1], torch.where(region, noise, few.x), few.x, region) == 0).all()
    assert (outside_error(looking[1], torch.where(region, few.x, noise), few.x, region) > 0.01).all()


def test_a_map_that_is_the_part_is_an_object():
    few, tags = asked(24, SEED), asked(1, SEED).faces.tags
    heat = torch.zeros(24, len(tags), 64, 64)
    for tag, classes in PART_OF.items():
        heat[:, tags.index(tag)] = torch.isin(few.parts, torch.tensor([CLASSES.index(c) for c in classes])).float()
    iou = object_iou(heat, few.parts, tags)
    glasses = few.faces.labels[:, tags.index("Eyeglasses")] == tags["Eyeglasses"].index("with")
    assert iou.shape == (24, len(PART_OF)) and (iou[~iou.isnan()] == 1).all()
    assert torch.equal(~iou[:, list(PART_OF).index("Eyeglasses")].isnan(), glasses) and 0 < glasses.sum() < 24
    assert object_iou(1 - heat, few.parts, tags).nanmean() == 0
    maps = {"a": torch.rand(2, 4, 9, 5), "b": torch.rand(2, 4, 9, 5)}
    mean = (maps["a"].mean(1) + maps["b"].mean(1)) / 2
    assert torch.allclose(heat_of(maps)[1, 3, 2, 0], mean[1, 6, 3])


def test_every_row_has_its_columns(measured):
    n, k = 3, 6
    assert set(measured.kept) == {*INVERSIONS, "up"} and set(measured.edited) == set(EDITS)
    assert set(measured.word) == set(ONE_WORD) and len(measured.tags) == k
    for row, c in measured.edited.items():
        assert {o.shape for o in c.values()} == {(n, k)}, row
        assert all(bool(o.isfinite().all()) for o in c.values()) and set(c["target"].unique().tolist()) <= {0.0, 1.0}
    assert {o.shape for c in measured.word.values() for o in c.values()} == {(n,)}
    assert measured.kept["direct"]["psnr"].min() > 60 and measured.kept["ddim"]["calls"].tolist() == [STEPS] * n
    for row in ("null", "value", "key", "key_value", "value, mapped"):
        assert measured.kept[row]["calls"].tolist() == [CALLS] * n, "equal network calls"


def test_a_face_does_not_depend_on_its_batch(measured, looking):
    alone = bench_with(looking, batch_size=1).measure(["value", "null"], {"null": EDITS["null"]}, progress=False)
    for row in ("value", "null"):
        assert torch.allclose(alone.kept[row]["psnr"], measured.kept[row]["psnr"], atol=1e-2)
        assert torch.allclose(alone.kept[row]["drift"], measured.kept[row]["drift"], rtol=1e-2, atol=1e-9)
    assert torch.allclose(alone.edited["null"]["outside"], measured.edited["null"]["outside"], atol=1e-3)
    assert torch.equal(alone.word["value, mapped"]["target"], measured.word["value, mapped"]["target"])


def test_a_stopped_run_goes_on(measured, looking, tmp_path, monkeypatch):
    some = dict(inversions=["null", "value, mapped"], edits={"value": EDITS["value"]}, tags=["Smiling"], progress=False)
    bench = bench_with(looking, folder=tmp_path)
    asked_for, true_drawn = [], Bench.drawn

    def stop(self, *args):
        asked_for.append(1)
        if len(asked_for) > 3:
            raise KeyboardInterrupt
        return true_drawn(self, *args)

    monkeypatch.setattr(Bench, "drawn", stop)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(**some)
    monkeypatch.setattr(Bench, "drawn", true_drawn)
    there = {p.name for p in tmp_path.iterdir()}
    assert any(n.startswith("inverted-own-value_mapped") for n in there) and not any(".tmp" in n for n in there)
    whole = bench_with(looking, folder=tmp_path).measure(**some)
    for row in ("null", "value, mapped"):
        assert torch.allclose(whole.kept[row]["psnr"], measured.kept[row]["psnr"], atol=1e-4)
    again = bench_with(looking, folder=tmp_path)
    monkeypatch.setattr(again.base, "predict", None)  # nothing is left to do but DDIM's way up
    with pytest.raises(TypeError):
        again.kept_columns([0, 1], some["inversions"])
    again = again.edit_columns([0, 1], some["edits"], some["tags"])
    assert torch.equal(again["value"]["outside"], whole.edited["value"]["outside"][:2])


def test_the_cost_is_said_before_it_is_paid(looking):
    bench, paid, learned = bench_with(looking, n=2), [], []
    true = bench.base.pipe.predict

    def counting(latents, t, prompt=None, tokens=None):
        (learned if torch.is_grad_enabled() else paid).append(len(latents))
        return true(latents, t, prompt, tokens)

    bench.base.pipe.predict = counting
    bench.measure(progress=False)
    assert (sum(paid), sum(learned)) == passes_of(bench)
    assert "2 faces" in cost_line(bench) and "with gradients" in cost_line(bench)


def test_the_claims_read_the_columns(measured):
    found = measured.claims()
    by = {c.claim: c for c in found.claims}
    assert len(by) == len(found.claims) == 14 and all(c.low is not None for c in found.claims)
    value, null = (measured.kept[row]["psnr"] for row in ("value", "null"))
    assert by["value: dB, minus null tokens"].value == pytest.approx(float(value.mean() - null.mean()), abs=1e-4)
    outside = [measured.edited[row]["outside"].mean() for row in ("value", "null")]
    share = by["edits: error outside, share of null tokens'"]
    assert share.value == pytest.approx(float(outside[0] / outside[1]), rel=1e-4) and not share.up
    failed = [c for c in found.claims if not c.holds]
    assert not_reproduced(found).count("not reproduced") == len(failed)
    assert all(f"{c.claim}: {c.value:.3f}" in not_reproduced(found) for c in failed)


def test_tags_that_gain_by_both_branches(measured):
    ones, n = torch.ones(20, 6), 20
    column = lambda shares: (torch.arange(n)[:, None] < n * torch.tensor(shares)).float()
    edited = {row: dict(target=ones, others=ones, outside=ones, truth=ones) for row in EDITS}
    edited["value"] = edited["value"] | dict(target=column([0.5] * 6))
    edited["value, both branches"] = edited["value"] | dict(target=column([0.5, 0.55, 0.6, 1.0, 0.4, 0.5]))
    word = {row: dict(others=torch.ones(n)) for row in ONE_WORD}
    kept = {row: dict(psnr=ones[:, 0], drift=ones[:, 0], iou=ones) for row in [*INVERSIONS, "up"]}

    def gaining():
        return Measured(2.0, list("abcdef"), kept, edited, word).edit_claims()[-1].value

    assert gaining() == 3
    edited["value, both branches"]["outside"] = torch.tensor([1, 1, 1.2, 1, 1, 1.0]).expand(n, 6)
    assert gaining() == 2


def test_the_weakest_guidance(looking):
    pipe, few = made(), asked(2, SEED)
    calls = []

    class Judge:
        def predict(self, x):
            calls.append(len(x))
            return few.prompt.labels if len(calls) == 2 else torch.full_like(few.prompt.labels, -1)

    assert weakest_guidance(pipe, few, Judge(), steps=1) == (GUIDANCES[1], 1.0) and len(calls) == 2
    assert weakest_guidance(pipe, few, Judge(), steps=1)[1] == 0.0 and len(calls) == 5


def test_the_command(tmp_path, capsys):
    made(128).save_pretrained(tmp_path / "model")
    how = dict(n=10, brief=True, steps=STEPS, calls=CALLS, guidance=2.0, threads=1, device="cpu")
    how |= dict(cache=str(tmp_path / "kept"), json=str(tmp_path / "claims.json"))
    eval_values(str(tmp_path / "model"), **how)
    said = capsys.readouterr().out
    assert "1 faces: " in said and "not reproduced: " in said and "one word" in said
    record = json.loads((tmp_path / "claims.json").read_text())
    assert set(record) == {"claims", "rows"} and len(record["claims"]) == 14
    assert {"claim", "value", "bar", "up", "holds", "floor", "ceiling", "low", "high"} == set(record["claims"][0])
    assert {r["what"] for r in record["rows"]} == {"inversion", "edit", "one word"}
    (folder,) = (tmp_path / "kept").iterdir()
    assert len(list(folder.glob("inverted-*"))) == len(INVERSIONS) + len(ONE_WORD)
    eval_values(str(tmp_path / "model"), **how)
    assert capsys.readouterr().out.split("\n\n")[1:] == said.split("\n\n")[1:], "the same from what was kept"


def test_inversions_of_batches_join(looking):
    bench = bench_with(looking)
    parts = [bench.inverted("null", [0, 1]), bench.inverted("null", [2])]
    assert len(joined_inversions(parts)) == 3 and math.isfinite(float(parts[0].losses.sum()))
