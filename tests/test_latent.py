"The prior over codes: DiffAE's numbers, training by the one loop, drawing; the pipeline that draws with it; published files of it and of the classifiers."

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latref_nb.checkpoints import CheckpointError, load_part
from latref_nb.core import make_generator
from latref_nb.edits import Edit
from latref_nb.latent import Codes, LatentPrior, PriorTask, latent_schedule, train_latent
from latref_nb.official import (
    CELEBA_40,
    classifiers_from_state_dict,
    code_statistics,
    diffae_pipeline,
    fill_by_rule,
    load_classifiers,
    load_diffae,
    load_prior,
    prior_from_state_dict,
    prior_name,
)
from latref_nb.pipeline import LatRefPipeline, on_arc
from latref_nb.resuming import StepGenerator
from latref_nb.schedule import add_noise
from test_official import SMALL

FIXTURES = Path(__file__).parent / "fixtures"
LATENT, CLS = (json.loads((FIXTURES / f"diffae_{k}.json").read_text()) for k in ("latent", "cls"))
FIT = dict(batch_size=16, progress=False, trackers=(), device="cpu", precision="no", log_every=5)


def off(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def some_codes(n=64, d=6):
    "Codes on two humps, numbers of different spread."
    g = make_generator(0)
    side = torch.randint(2, (n, 1), generator=g) * 2.0 - 1
    return side * torch.linspace(1, 9, d) + 0.1 * torch.randn(n, d, generator=g) + 3


@pytest.fixture(scope="module")
def theirs():
    return load_file(FIXTURES / "diffae_latent.safetensors")


@pytest.fixture(scope="module")
def prior(theirs):
    stats = {k: theirs[k] for k in ("conds_mean", "conds_std")}
    return prior_from_state_dict(fill_by_rule(LATENT["keys"]), stats)


@pytest.fixture(scope="module")
def cls():
    return load_file(FIXTURES / "diffae_cls.safetensors")


@pytest.fixture(scope="module")
def linear(cls):
    stats = {k: cls[k] for k in ("conds_mean", "conds_std")}
    return classifiers_from_state_dict(fill_by_rule(CLS["keys"]) | stats)


# ---- DiffAE's numbers


@torch.no_grad()
def test_published_numbers_of_one_call(prior, theirs):
    for t in LATENT["eps_at"]:
        assert off(prior(theirs["z_t"], t), theirs[f"eps_t{t}"]) <= 1e-4
    assert off(prior(theirs["z_t"], theirs["mixed_t"]), theirs["eps_mixed_t"]) <= 1e-4


def test_published_numbers_of_drawing(prior, theirs):
    way = prior.from_noise(theirs["noise"], LATENT["config"]["steps"])
    for ours, name in (
        (way.us[1], "after_first_step"),
        (way.u0s[0], "pred_z0_first_step"),
        (way.us[-1], "sample_normalised"),
        (way.z, "sample"),
        (prior.from_noise(theirs["noise"].clamp(-1, 1), 20).z, "sample_clipped_noise"),
    ):
        assert off(ours, theirs[name]) <= 1e-3, name


@torch.no_grad()
def test_published_loss(prior, theirs):
    u, t, s = prior.normalise(theirs["z0"]), theirs["loss_t"].long(), prior.schedule
    ut = add_noise(u, theirs["noise"], t, s)
    per_item = (prior(ut, t) - theirs["noise"]).abs().mean(1)
    assert off(ut, theirs["loss_z_t"]) <= 1e-5 and off(per_item, theirs["loss_per_item"]) <= 1e-4

    class Fixed:  # a generator that gives the published draws
        rand = staticmethod(lambda: ((t + 0.5) / 1000).sqrt())
        randn = staticmethod(lambda d: theirs["noise"])

    loss = PriorTask(prior).loss({"z": theirs["z0"]}, Fixed)["loss"]
    assert off(loss, theirs["loss_per_item"].mean()) <= 1e-4


def test_published_schedule_and_size():
    bar = latent_schedule().alphas_cumprod
    assert torch.allclose(bar[LATENT["timesteps"]], torch.tensor(LATENT["alphas_cumprod"]), rtol=1e-5)
    with torch.device("meta"):
        big = LatentPrior(512, 2048, 10)
    assert big.num_parameters() == LATENT["published"]["parameters"]
    ours = {prior_name(k): list(v.shape) for k, v in big.state_dict().items() if k not in ("z_mean", "z_std")}
    assert ours == {k: s for k, s in LATENT["published"]["keys"].items() if "linear_emb" not in k}


@torch.no_grad()
def test_published_classifiers(linear, cls):
    logits = torch.stack([o[:, 1] - o[:, 0] for o in linear(cls["z"]).values()], 1)
    assert linear.tags.names == CLS["classes"] == CELEBA_40.names
    assert off(linear.normalise(cls["z"]), cls["z_normalised"]) <= 1e-5 and off(logits, cls["logits"]) <= 1e-4
    labels = (cls["labels"] > 0).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert off(bce, cls["bce"]) <= 1e-4
    chance = linear.probabilities(cls["z"])["Smiling"][:, 1]
    assert torch.allclose(chance, cls["logits"][:, CLS["classes"].index("Smiling")].sigmoid(), atol=1e-5)


@pytest.fixture(scope="module")
def published_pipe(linear):
    from latref_nb.autoencoder import DiffusionAutoencoder

    small = dict(image_size=32, patch_size=4, model_channels=32, channel_mult=(1, 1), enc_channel_mult=(1, 1, 1))
    return diffae_pipeline(DiffusionAutoencoder(**small, attention_resolutions=()), linear)


def test_published_edits(published_pipe, cls, tmp_path):
    "One step length for everybody, in both directions; saved and loaded they are the same."
    published_pipe.save_pretrained(tmp_path)
    for pipe in (published_pipe, LatRefPipeline.from_pretrained(tmp_path)):
        z = cls["z"]
        for name in CLS["moved"]:
            assert off(pipe.edit(z, f"{name}=with"), cls[f"moved_{name}"]) <= 1e-4
        back = pipe.edit(z, "Wavy_Hair=without")
        assert off(back, cls["moved_minus_Wavy_Hair"]) <= 1e-4
        half = pipe.edit(z, Edit("Male", "with", gain=0.5))
        assert torch.allclose(half, (z + cls["moved_Male"]) / 2, atol=1e-4)


# ---- published files


def file_of(tmp_path, tensors, name="last.ckpt"):
    torch.save({"state_dict": tensors, "epoch": 3, "hyper_parameters": {"seed": 0}}, tmp_path / name)
    return tmp_path / name


@pytest.fixture
def latent_file(tmp_path, theirs):
    "A latent checkpoint as its framework writes it: the autoencoder beside the prior, both twice."
    net = fill_by_rule(SMALL["keys"]) | fill_by_rule(LATENT["keys"])
    both = {f"ema_model.{k}": v for k, v in net.items()} | {f"model.{k}": -v for k, v in net.items()}
    more = {"x_T": torch.zeros(2), **{k: theirs[k] for k in ("conds_mean", "conds_std")}}
    return file_of(tmp_path, both | more)


@torch.no_grad()
def test_a_latent_file_holds_prior_and_autoencoder(latent_file, theirs):
    prior = load_prior(latent_file)
    assert off(prior(theirs["z_t"], 50), theirs["eps_t50"]) <= 1e-4
    assert off(load_prior(latent_file, weights="model")(theirs["z_t"], 50), theirs["eps_t50"]) > 0.1
    assert load_diffae(latent_file, **SMALL["config"]).config.image_size == SMALL["config"]["image_size"]


def test_statistics_from_a_file_of_their_own(tmp_path, theirs, cls):
    pkl = {"conds": torch.zeros(4, 16), "conds_mean": theirs["conds_mean"][0], "conds_std": theirs["conds_std"][0]}
    torch.save(pkl, tmp_path / "latent.pkl")
    bare = file_of(tmp_path, {f"ema_model.{k}": v for k, v in fill_by_rule(LATENT["keys"]).items()})
    with pytest.raises(CheckpointError, match=r"last.ckpt: conds_mean is not there.*latent.pkl"):
        load_prior(bare)
    assert torch.equal(load_prior(bare, tmp_path / "latent.pkl").z_std, theirs["conds_std"][0])
    rows = file_of(tmp_path, fill_by_rule(CLS["keys"]), "cls.ckpt")
    with pytest.raises(CheckpointError, match="16 numbers for codes of 512"):
        load_classifiers(rows, tmp_path / "latent.pkl")


def no_std(t):
    return t | {"conds_std": torch.zeros(1, 512)}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {"fc.weight": torch.zeros(3)}, r"No classifier.*\*_cls"),
        (lambda t: {k: v for k, v in t.items() if k != "classifier.bias"}, "1 missing: classifier.bias"),
        (lambda t: t | {"classifier.weight": torch.ones(7, 512)}, "of another shape: classifier.weight"),
        (lambda t: t | {"classifier.weight": torch.zeros(40, 512)}, "rows of zeros"),
        (lambda t: t | {"classifier.bias": torch.full((40,), float("nan"))}, "NaN or infinity"),
        (lambda t: {k: v for k, v in t.items() if k != "conds_std"}, "conds_std is not there"),
        (no_std, "not above 0"),
        (lambda t: t | {"conds_mean": torch.zeros(3)}, "3 numbers for codes of 512"),
    ],
)
def test_classifiers_that_are_none(cls, change, words):
    whole = fill_by_rule(CLS["keys"]) | {k: cls[k] for k in ("conds_mean", "conds_std")}
    with pytest.raises(CheckpointError, match=words) as e:
        classifiers_from_state_dict(change(whole))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {"fc.weight": torch.zeros(3)}, r"No latent network.*\*_latent"),
        (lambda t: {k: v for k, v in t.items() if "layers.2.norm" not in k}, "2 missing: layers.2.norm"),
        (lambda t: t | {"latent_net.extra": torch.zeros(2)}, "1 unexpected: extra"),
        (lambda t: t | {"latent_net.layers.0.linear.weight": torch.zeros(40, 15)}, "of another shape"),
        (lambda t: t | {"latent_net.layers.1.norm.bias": torch.full((40,), float("inf"))}, "NaN or infinity"),
        (lambda t: {k: v for k, v in t.items() if "layers.0" in k or "time" in k}, "No latent network"),
    ],
)
def test_priors_that_are_none(theirs, change, words):
    stats = {k: theirs[k] for k in ("conds_mean", "conds_std")}
    with pytest.raises(CheckpointError, match=words) as e:
        prior_from_state_dict(change(fill_by_rule(LATENT["keys"])) | stats)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("load", [load_prior, load_classifiers])
def test_files_that_are_cut_or_missing(load, latent_file):
    cut = latent_file.with_name("cut.ckpt")
    cut.write_bytes(latent_file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut.ckpt.*damaged, cut short"):
        load(cut)
    with pytest.raises(CheckpointError, match="is not there"):
        load(latent_file.with_name("nowhere.ckpt"))


def test_no_code_of_a_statistics_file_is_run(tmp_path, latent_file):
    mark = tmp_path / "mark"

    class Bad:
        def __reduce__(self):
            return (Path.touch, (mark,))

    torch.save({"conds_mean": torch.zeros(16), "conds_std": Bad()}, tmp_path / "latent.pkl")
    with pytest.raises(CheckpointError):
        load_prior(latent_file, tmp_path / "latent.pkl")
    assert not mark.exists()


def test_statistics_are_copied(theirs):
    mean, std = code_statistics(theirs, 16)
    assert mean.shape == std.shape == (16,) and mean.data_ptr() != theirs["conds_mean"].data_ptr()


# ---- training


def test_training_is_the_same_for_a_seed_and_goes_on_after_a_stop(tmp_path):
    z = some_codes()
    go = lambda out, steps=12, **how: train_latent(z, tmp_path / out, steps, width=16, layers=3, **{**FIT, **how})
    whole, other = go("whole"), go("other", seed=1)

    def stop(run):
        if run.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go("cut", save_every=5, callback=stop)
    with pytest.raises(KeyboardInterrupt):
        go("cut", save_every=4, callback=stop)
    cut = go("cut", save_every=4)
    same = lambda a, b: all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert same(whole, cut) and not same(whole, other)
    back = load_part(LatentPrior, tmp_path / "whole" / "latent")
    assert same(back, whole) and torch.allclose(back.z_mean, z.mean(0)) and torch.allclose(back.z_std, z.std(0))


def test_other_codes_are_another_training(tmp_path):
    go = lambda made_from: train_latent(some_codes(), tmp_path, 4, width=8, layers=2, made_from=made_from, **FIT)
    go({"faces": "a"})
    with pytest.raises(ValueError, match="another training: data.faces: a then, b now"):
        go({"faces": "b"})


def test_a_prior_learns_two_humps(tmp_path):
    "Codes of two kinds come out as two kinds, each of about its own share, and none between."
    z = some_codes(512)
    prior = train_latent(z, tmp_path, 400, width=64, layers=4, lr=3e-3, **{**FIT, "batch_size": 128})
    drawn = prior.draw(400, 40, make_generator(1))
    side = (drawn[:, -1] - 3) / 9  # −1 or 1
    assert (side.abs() - 1).abs().median() < 0.15 and 0.3 < (side > 0).float().mean() < 0.7
    assert ((drawn - 3).sign() == side.sign()[:, None]).float().mean() > 0.95, "all numbers of a code agree"


def test_codes_are_a_dataset():
    z = some_codes(10)
    ds = Codes(z, {"faces": 10})
    assert len(ds) == 10 and torch.equal(ds.batch([3, 1])["z"], z[[3, 1]]) and ds.provenance == {"faces": 10}
    task = PriorTask(LatentPrior(6, 8, 2).set_statistics(z))
    first, again = (task.loss(ds.batch(range(4)), StepGenerator(0, 3, 4))["loss"] for _ in range(2))
    assert torch.equal(first, again) and first.requires_grad


# ---- drawing


def test_a_code_does_not_depend_on_its_neighbours(prior):
    both = prior.draw(3, 10, make_generator([1, 2, 3]))
    assert torch.allclose(prior.draw(1, 10, make_generator([2]))[0], both[1], atol=1e-4)
    assert torch.equal(prior.draw(3, 10, make_generator(7)), prior.draw(3, 10, make_generator(7)))
    assert not torch.equal(prior.draw(3, 10, make_generator(7)), prior.draw(3, 10, make_generator(8)))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p: p(torch.zeros(2, 5), 3), r"\(2, 5\); allowed: a tensor \(B, 16\)"),
        (lambda p: p([1.0], 3), "list"),
        (lambda p: p.draw(2, 0), "1 to 1000"),
        (lambda p: p.draw(2, 10, make_generator([1])), "1 generators came for a batch of 2"),
        (lambda p: LatentPrior(4, layers=1), "at least 2"),
        (lambda p: LatentPrior(0), "z_dim=0"),
        (lambda p: LatentPrior(16).set_statistics(torch.zeros(5, 4)), r"\(5, 4\) came"),
        (lambda p: LatentPrior(2).set_statistics(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])), "finite"),
    ],
)
def test_what_a_prior_refuses(prior, call, words):
    with pytest.raises(ValueError, match=words):
        call(prior)


# ---- the pipeline


@pytest.fixture(scope="module")
def drawer():
    base = LatRefPipeline.from_pretrained("synthfaces64")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = LatentPrior(128, 16, 2)
    pipe = LatRefPipeline(**{**base.parts, "latent": own})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_faces_are_drawn_as_other_verbs_give_theirs(drawer):
    go = lambda n, seeds, **how: drawer.sample(n, 2, latent_steps=3, generator=make_generator(seeds), **how)
    out = go(3, [1, 2, 3], output_type="pt")
    assert out.images.shape == (3, 3, 64, 64) and out.source is None and out.edits == [] and out.mask is None
    assert torch.equal(out.z, out.z_edit) and out.zs.shape == (1, 3, 128)
    assert set(out.probabilities) == set(drawer.tags.names)
    assert torch.allclose(drawer.render(out.x_T, out.z, 2), out.images, atol=1e-5)
    alone = go(1, [2], output_type="pt")
    assert torch.allclose(alone.images[0], out.images[1], atol=1e-3)
    assert torch.equal(go(2, 5, output_type="pt").images, go(2, 5, output_type="pt").images)
    assert torch.equal(go(2, 5, output_type="latent").images, go(2, 5, output_type="pt").z)
    assert go(1, 5).images[0].size == (64, 64) and go(1, 5, output_type="np").images.shape == (1, 64, 64, 3)
    edited = drawer(out.images, "Smiling=with", 2, output_type="pt")
    assert edited.images.shape == (3, 3, 64, 64)


def test_what_drawing_refuses(drawer):
    bare = LatRefPipeline(drawer.autoencoder, drawer.linear)
    with pytest.raises(ValueError, match="latref_train latent"):
        bare.sample(2)
    for how, words in (
        (dict(n=0), "n=0"),
        (dict(n=1, latent_steps=0), "1 to 1000"),
        (dict(n=1, num_inference_steps=0), "1 to 1000"),
        (dict(n=1, output_type="jpeg"), "output_type"),
        (dict(n=1, scheduler="euler"), "scheduler 'euler'"),
    ):
        with pytest.raises(ValueError, match=words):
            drawer.sample(**{"latent_steps": 2, "num_inference_steps": 1, **how})


def test_a_pipeline_with_a_prior_comes_back_whole(drawer, tmp_path):
    drawer.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    assert set(back.parts) == set(drawer.parts)
    draw = lambda p: p.latent.draw(2, 4, make_generator(0))
    assert torch.equal(draw(back), draw(drawer))
    assert LatRefPipeline.from_pretrained(tmp_path / "m", latent=None).latent is None


def test_an_autoencoder_and_its_prior_draw_and_edit_nothing(drawer, tmp_path):
    pipe = LatRefPipeline(drawer.autoencoder, latent=drawer.latent)
    pipe.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    back.set_progress_bar_config(disable=True)
    assert list(back.parts) == ["autoencoder", "latent"]
    out = back.sample(1, 1, latent_steps=1, output_type="pt")
    assert back(out.images, num_inference_steps=1, output_type="pt").images.shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="edits none"):
        back(out.images, "Smiling=with")
    with pytest.raises(ValueError, match="draws codes of 7 numbers, the autoencoder reads 128"):
        LatRefPipeline(drawer.autoencoder, latent=LatentPrior(7))


def test_a_way_from_face_to_face(drawer):
    from latref_nb.faces import SynthFaces

    x = SynthFaces(4, 64, seed=5).batch(range(4))["image"]
    out = drawer.morph(x[:2], x[2:], 3, 2, output_type="pt")
    assert out.images.shape == (6, 3, 64, 64) and torch.equal(out.source[0], x[0])
    z, x_T = drawer.encode(x), drawer.invert(x, num_inference_steps=2)
    assert torch.allclose(out.z_edit[[0, 2, 3, 5]], z[[0, 2, 1, 3]], atol=1e-4)
    assert torch.allclose(out.z_edit[1], (z[0] + z[2]) / 2, atol=1e-4)
    assert torch.allclose(out.x_T[[0, 2, 3, 5]], x_T[[0, 2, 1, 3]], atol=1e-2)
    one = drawer.morph(x[1:2], x[3:], 3, 2, output_type="pt")
    assert torch.allclose(one.images, out.images[3:], atol=1e-3)
    with pytest.raises(ValueError, match="2 and 1 images"):
        drawer.morph(x[:2], x[2:3])
    with pytest.raises(ValueError, match="n=1"):
        drawer.morph(x[:1], x[1:2], n=1)


def test_noise_keeps_its_length_on_the_arc():
    a, b = torch.randn(2, 2, 3, 32, 32, generator=make_generator(0))
    for w in (0.0, 0.3, 0.5, 1.0):
        lengths = on_arc(a, b, w).flatten(1).norm(dim=1)
        assert torch.allclose(lengths, a.flatten(1).norm(dim=1), rtol=0.03)
    assert torch.allclose(on_arc(a, b, 0.0), a, atol=1e-4) and torch.allclose(on_arc(a, b, 1.0), b, atol=1e-4)
    assert torch.allclose(on_arc(a, a, 0.5), a, atol=1e-2), "two ends in one place"
