"Ways to tell a mask, and P2 over latents: one door at a time, runs that resume, what the claims say."

import shutil

import pytest
import torch

from latref_nb import latents, ways
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import make_generator
from latref_nb.faces import SynthFaces
from latref_nb.latents import (
    ARMS,
    FirstStageTask,
    LatentCodec,
    LatentFaces,
    arm_claims,
    decode_all,
    draw_latents,
    encode_all,
    first_stage,
    new_arm,
    scaled_schedule,
    verdicts,
)
from latref_nb.prompted import MASK_BY, PatchCodec
from latref_nb.prompts import FacePrompt, PromptEncoder
from latref_nb.resuming import StepGenerator
from latref_nb.schedule import loss_weight, make_schedule, snr, velocity
from latref_nb.training import fit
from latref_nb.ways import TagEncoder, n_learned, new_way, over_seeds, paired, short_faces, short_run, way_claims

torch.set_num_threads(1)
SMALL = dict(widths=(16, 24, 32), dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return short_faces(tmp_path_factory.mktemp("faces"), 16, progress=False)


@pytest.fixture(scope="module")
def prompt():
    return FacePrompt.of_faces(SynthFaces(4, 64, seed=31_020), range(4))


def test_concat_hides_the_mask_from_the_tokens(prompt):
    torch.manual_seed(0)
    tags, whole = TagEncoder(dim=16), PromptEncoder(dim=16)
    whole.load_state_dict(tags.state_dict())
    assert torch.equal(tags(prompt), tags(prompt.without(mask=True)))
    assert torch.equal(tags(prompt), whole(prompt.without(mask=True)))
    assert not torch.equal(tags(prompt), tags(prompt.without(tags=True)))


@pytest.mark.parametrize("way", MASK_BY)
def test_each_way_hears_the_mask_by_its_doors_alone(way, data):
    task = new_way(way, PatchCodec(), 0, **SMALL)
    assert isinstance(task.modules["prompt_encoder"], TagEncoder) == (way == "concat")
    task.loss(data.batch(range(8)), StepGenerator(0, 0, 8))["loss"].backward()
    place, channels = task.modules["prompt_encoder"].place.weight, task.modules["unet"].conv_in.weight
    assert (place.grad is None) == (way == "concat")
    assert channels.shape[1] == 48 + 12 + (0 if way == "cross" else 19)


def test_parameters_are_counted_where_they_are_learned():
    concat, cross, both = (n_learned(new_way(w, PatchCodec(), **SMALL)) for w in ("concat", "cross", "both"))
    assert both - cross == 19 * 16 * 9 and both - concat == 16 * 16 * 16 + 16


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="way for the mask"):
        new_way("conct", PatchCodec())


def test_a_run_is_kept_and_one_of_other_settings_is_refused(data, tmp_path):
    made, calls = lambda: new_way("concat", PatchCodec(), 0, **SMALL), []
    look = lambda task: calls.append(1) or {"figure": 1.0}
    how = dict(batch_size=4)
    row = short_run(made(), data, tmp_path / "r", 2, 0, look, **how)
    assert short_run(made(), data, tmp_path / "r", 2, 0, look, **how) == row and len(calls) == 1
    assert not (tmp_path / "r" / "checkpoint").exists()
    for changed in (dict(steps=3), dict(seed=1), dict(about=[1])):
        asked = dict(steps=2, seed=0, about=None) | changed
        with pytest.raises(CheckpointError, match="of other settings"):
            short_run(made(), data, tmp_path / "r", asked["steps"], asked["seed"], look, asked["about"], **how)


def test_a_killed_run_goes_on_to_the_same_weights(data, tmp_path):
    def run(folder, steps_first=None):
        found = {}
        look = lambda task: found.update(task.modules["unet"].state_dict()) or {"figure": 1.0}

        def stop(run):
            if run.done == steps_first:
                run.save()
                raise KeyboardInterrupt

        how = dict(batch_size=4, save_every=50)
        if steps_first:
            with pytest.raises(KeyboardInterrupt):
                short_run(new_way("both", PatchCodec(), 0, **SMALL), data, folder, 4, 0, look, callback=stop, **how)
        short_run(new_way("both", PatchCodec(), 0, **SMALL), data, folder, 4, 0, look, **how)
        return found

    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", 2)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def rows_of(by, **arms):
    return [{by: a, "seed": s, "figure": v} for a, vs in arms.items() for s, v in enumerate(vs)]


def test_seeds_are_paired_by_number():
    rows = rows_of("way", a=(1.0, 2.0), b=(3.0, 5.0))
    a, b = paired(rows[::-1], "figure", "a", "b")
    assert (b - a).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="same seeds"):
        paired(rows[:-1], "figure", "a", "b")
    assert over_seeds(rows)[1] == {"way": "b", "seeds": 2, "figure": "4.000 ± 1.414"}


def test_claims_of_ways_take_the_better_of_each_seed():
    rows = [
        {"way": w, "seed": s, "mIoU": v}
        for w, vs in dict(concat=(0.5, 0.7), cross=(0.6, 0.5), both=(0.6, 0.7)).items()
        for s, v in enumerate(vs)
    ]
    first, second = way_claims(rows)
    assert first.value == pytest.approx(0.05) and (first.low, first.high) == pytest.approx((-0.1, 0.2))
    assert second.value == pytest.approx(0.0) and second.holds


@pytest.mark.parametrize("scale", (0.5, 1.0, 5.49))
def test_scale_and_k_are_one_knob(scale):
    schedule, t = make_schedule("linear"), torch.arange(1000)
    true = scaled_schedule(schedule, scale)
    torch.testing.assert_close(snr(true, t), scale**2 * snr(schedule, t), rtol=1e-4, atol=0)
    for k, g in ((1.0, 1.0), (3.0, 0.5)):
        ours = loss_weight(schedule, t, "p2", p2_k=k, p2_gamma=g)
        same = loss_weight(true, t, "p2", p2_k=k * scale**2, p2_gamma=g) * scale ** (2 * g)
        torch.testing.assert_close(ours, same, rtol=1e-4, atol=0)


@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_over_latents_is_that_of_v(arm, data):
    task = new_arm(arm, **SMALL)
    x0 = torch.randn(8, 4, 16, 16, generator=make_generator(0))
    batch, g = data.batch(range(8)) | {"image": x0}, StepGenerator(0, 0, 8)
    ours = task.loss(batch, StepGenerator(0, 0, 8))["loss"]
    prompt = task.said(batch, g)
    t, noise = g.randint(1000), g.randn(4, 16, 16)
    xt = latents.beside(make_noised(task, x0, noise, t), prompt)
    v = task.modules["unet"](xt, t, task.modules["prompt_encoder"](prompt)).sample
    error = (v - velocity(x0, noise, t, task.schedule)).square().flatten(1).mean(1)
    how = dict(kind=task.weighting, prediction_type="v_prediction", p2_gamma=task.p2_gamma)
    torch.testing.assert_close(ours, (loss_weight(task.schedule, t, **how) * error).mean(), rtol=1e-3, atol=1e-5)


def make_noised(task, x0, noise, t):
    a = task.schedule.alphas_cumprod[t][:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def test_latents_are_scaled_once_and_decoded_back(data, tmp_path):
    vae = first_stage((8, 8, 8)).eval()
    faces = LatentFaces(data, vae)
    assert faces.latents.std().item() == pytest.approx(1.0, abs=1e-2)
    assert vae.config.scaling_factor == pytest.approx(1 / encode_all(vae, data).std().item(), rel=1e-3)
    assert faces.provenance["first stage"] and faces.provenance != data.provenance
    raw = vae.decode(encode_all(vae, data, 4)).sample.clamp(-1, 1)
    torch.testing.assert_close(decode_all(vae, faces.latents, 5), raw, rtol=1e-3, atol=1e-3)
    vae.save_pretrained(tmp_path / "vae")
    assert latents.AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor == vae.config.scaling_factor


def test_a_first_stage_learns(data, tmp_path):
    task = FirstStageTask(first_stage((8, 8, 8)))
    done = fit(task, data, tmp_path, 12, batch_size=8, lr=5e-3, log_every=4, progress=False, trackers=())
    losses = [r["error"] for r in done.history if "error" in r]
    assert losses[-1] < losses[0]


def test_drawing_in_batches_or_one_by_one_is_the_same(prompt):
    task = new_arm("plain", **SMALL)
    together, parts = (draw_latents(task, prompt, 2, batch_size=b) for b in (4, 3))
    torch.testing.assert_close(together, parts, rtol=1e-4, atol=1e-4)
    assert together.shape == (4, 4, 16, 16)


def test_the_codec_is_exact_for_a_true_v():
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=make_generator(0))
    a = torch.tensor([0.999, 0.5, 1e-4])
    b = a[:, None, None, None]
    v = b.sqrt() * noise - (1 - b).sqrt() * x0
    torch.testing.assert_close(LatentCodec().picture(v, b.sqrt() * x0 + (1 - b).sqrt() * noise, a), x0)


@pytest.mark.parametrize(
    "p2, words",
    [((8.0, 16.0), "helps at this size"), ((9.5, 19.0), "not reproduced"), ((5.0, 21.0), "not reproduced")],
)
def test_p2_is_called_helpful_only_if_every_seed_says_so(p2, words):
    rows = [{"weighting": "plain", "seed": s, "frechet": v} for s, v in enumerate((10.0, 20.0))]
    rows += [{"weighting": "P2, γ = 1", "seed": s, "frechet": v} for s, v in enumerate(p2)]
    claims = arm_claims(rows)
    assert words in verdicts(claims)[0]
    assert claims[0].value == pytest.approx((p2[0] / 10 + p2[1] / 20) / 2)


class Stub:
    "A comparison without a training."

    def __init__(self, figure):
        self.figure = figure

    def __call__(self, task, data, folder, steps, seed, look, about=None, **how):
        return {"steps": steps, self.figure: 0.1 + seed, "seconds": 1.0, "mIoU, tags too": 0.2, "tags": 0.5}


def test_the_command_prints_and_writes_its_claims(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ways, "short_run", Stub("mIoU"))
    ways.eval_ways(str(tmp_path / "o"), faces=4, steps=1, seeds=2, n=4, json=str(tmp_path / "t.json"), device="cpu")
    said = capsys.readouterr().out
    assert "mIoU of concat, minus cross" in said and "the faces themselves" in said
    kept = ways.read_json(tmp_path / "t.json")
    assert len(kept["rows"]) == 3 * 2 + 2 and {c["claim"] for c in kept["claims"]} == {
        c.claim for c in way_claims([r for r in kept["rows"] if r["seed"] is not None])
    }
    shutil.rmtree(tmp_path / "o")
