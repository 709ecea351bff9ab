"The prompted model: drawing, guidance, inversion, training, its folder, and what wrong input says."

import json
import pytest
import torch
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import make_generator
from latref_nb.faces import SynthFaces
from latref_nb.cache import cached
from latref_nb.prompted import (
    N_PLACES,
    Dropping,
    PatchCodec,
    PromptedPipeline,
    PromptedTask,
    PromptFaces,
    beside,
    guided,
    heard,
    places,
    prompted_scheduler,
    prompted_unet,
)
from latref_nb.prompts import FacePrompt, PromptEncoder, face_prompt
from latref_nb.training import fit

torch.set_num_threads(1)


def made(mask_by="cross"):
    torch.manual_seed(0)
    unet = prompted_unet((16, 24, 32), dim=16, mask_by=mask_by)
    pipe = PromptedPipeline(unet, PromptEncoder(dim=16), prompted_scheduler(), mask_by)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return made()


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(6, 64, seed=31_021)


@pytest.fixture(scope="module")
def prompt(faces):
    return FacePrompt.of_faces(faces, range(3))


def seeds(*numbers):
    return [make_generator(s) for s in numbers]


def drawn(pipe, prompt, **how):
    return pipe(prompt, output_type="pt", **{"num_inference_steps": 3, **how}).images


def test_the_codec_loses_nothing(faces):
    x = faces.batch(range(2))["image"]
    codec = PatchCodec(4)
    assert codec.encode(x).shape == (2, 48, 16, 16) and torch.equal(codec.decode(codec.encode(x)), x)


def noised(x, levels):
    "Latents as at these levels, and the noise in them."
    a = levels.reshape(-1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=make_generator(5))
    return a.sqrt() * x + (1 - a).sqrt() * noise, noise


def test_a_codec_that_knows_nothing_makes_a_prediction_of_v(faces):
    codec, levels = PatchCodec(), torch.tensor([0.9, 0.5, 0.01])
    x = codec.encode(faces.batch(range(3))["image"])
    xt, noise = noised(x, levels)
    a = levels.reshape(-1, 1, 1, 1)
    v = a.sqrt() * noise - (1 - a).sqrt() * x
    assert torch.allclose(codec.picture(-v, xt, levels), x, atol=1e-5)


def test_a_fitted_codec_guesses_better_without_a_network(faces):
    fitted = PatchCodec().fit(SynthFaces(100, 64, seed=31_022).batch(range(100))["image"])
    assert torch.allclose(fitted.basis @ fitted.basis.T, torch.eye(48), atol=1e-4)
    x, levels = fitted.encode(faces.batch(range(3))["image"]), torch.tensor([0.9, 0.5, 0.1])
    xt, _ = noised(x, levels)
    silent = torch.zeros_like(xt)
    errors = [(c.picture(silent, xt, levels) - x).square().mean((1, 2, 3)) for c in (fitted, PatchCodec())]
    assert (errors[0] < 0.5 * errors[1]).all()
    one = fitted.picture(silent[:1], xt[:1], levels[0])  # one level for all, as a pipeline asks
    assert torch.allclose(one, fitted.picture(silent, xt, levels)[:1], atol=1e-6)


def test_the_codec_is_kept_with_the_pipeline(prompt, tmp_path):
    one = made()
    one.codec.fit(SynthFaces(20, 64, seed=31_023).batch(range(20))["image"])
    before = drawn(one, prompt, generator=seeds(1, 2, 3))
    one.save_pretrained(tmp_path / "p")
    again = PromptedPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again.codec.spread, one.codec.spread)
    assert torch.equal(drawn(again, prompt, generator=seeds(1, 2, 3)), before)



def test_a_batch_is_as_one_by_one_and_a_seed_gives_the_same(pipe, prompt):
    a = drawn(pipe, prompt, generator=seeds(1, 2, 3))
    assert torch.equal(a, drawn(pipe, prompt, generator=seeds(1, 2, 3)))
    one = torch.cat([drawn(pipe, prompt[i], generator=seeds(i + 1)) for i in range(3)])
    assert torch.allclose(a, one, atol=1e-5) and not torch.allclose(a[0], a[1], atol=0.1)


def test_forms_of_output(pipe, prompt):
    how = dict(num_inference_steps=2, generator=make_generator(0))
    pil = pipe(prompt, **how).images
    assert len(pil) == 3 and pil[0].size == (64, 64)
    array, latents = pipe(prompt, output_type="np", return_dict=False, num_inference_steps=2, generator=make_generator(0))
    assert array.shape == (3, 64, 64, 3) and array.min() >= 0 and array.max() <= 1
    assert torch.equal(pipe(prompt, output_type="latent", num_inference_steps=2, generator=make_generator(0)).images, latents)


def test_several_of_each_prompt(pipe, prompt):
    x = drawn(pipe, prompt[slice(0, 2)], num_images_per_prompt=2, generator=seeds(1, 2, 3, 4))
    assert torch.allclose(x[1:2], drawn(pipe, prompt[0], generator=seeds(2)), atol=1e-5)


def test_guidance_with_one_weight_is_the_formula(prompt):
    at = {"all": torch.tensor(3.0), "mask": torch.tensor(2.0), "none": torch.tensor(1.0)}

    def predict(p):
        return at["none" if not p.told.any() and (p.labels < 0).all() else "mask" if (p.labels < 0).all() else "all"]

    assert guided(predict, prompt, 1.0) == 3
    assert guided(predict, prompt, 2.0) == 1 + 2 * (3 - 1)
    assert guided(predict, prompt, 2.0, 1.5) == 1 + 1.5 * (2 - 1) + 2.0 * (3 - 2)
    assert guided(predict, prompt, 2.0, 2.0) == guided(predict, prompt, 2.0)


def test_the_step_is_diffusers_own_and_the_callback_may_change_it(pipe, prompt):
    seen = []

    def look(p, i, t, given):
        seen.append((i, int(t)))
        return {"latents": torch.zeros_like(given["latents"])} if i == 2 else {}

    x = drawn(pipe, prompt, generator=make_generator(0), callback_on_step_end=look)
    assert [i for i, _ in seen] == [0, 1, 2] and seen[0][1] == 999 and torch.allclose(x, torch.full_like(x, 0.5))


def test_inversion_leads_back(pipe, faces, prompt):
    x = faces.batch(range(3))["image"]
    noise = pipe.invert(x, prompt, num_inference_steps=60)
    back = drawn(pipe, prompt, latents=noise, num_inference_steps=60, guidance_scale=1) * 2 - 1
    assert (back - x).square().mean() < 0.02


@pytest.mark.parametrize("by", ["concat", "both"])
def test_the_mask_as_channels(by, prompt, tmp_path):
    pipe = made(by)
    assert pipe.unet.config.in_channels == 48 + N_PLACES + 19
    pipe.save_pretrained(tmp_path / "p")
    again = PromptedPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    a, b = (drawn(p, prompt, generator=seeds(1, 2, 3)) for p in (pipe, again))
    assert torch.allclose(a, b, atol=1e-6)
    quiet = beside(torch.zeros(3, 48, 16, 16), prompt.without(mask=True), by)
    assert not quiet[:, 48 + N_PLACES :].any() and torch.equal(quiet[0, 48 : 48 + N_PLACES], places(16))


def test_where_the_mask_comes_as_channels_alone_no_token_tells_it(prompt):
    said = prompt.without(mask=True)
    for by, same in (("concat", True), ("both", False), ("cross", False)):
        encode = made(by).prompt_encoder
        assert torch.equal(encode(heard(prompt, by)), encode(heard(said, by))) == same


def test_every_place_is_told_apart():
    where = places(16).flatten(1).T  # (256,12)
    assert torch.cdist(where, where).add(torch.eye(256) * 9).min() > 0.1


def test_the_folder_keeps_the_whole(pipe, prompt, tmp_path):
    pipe.save_pretrained(tmp_path / "p")
    again = PromptedPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(pipe, prompt, generator=make_generator(0)), drawn(again, prompt, generator=make_generator(0)))
    assert again.tags.alike(pipe.tags) and again.size == 64
    config = json.loads((tmp_path / "p/model_index.json").read_text())
    (tmp_path / "p/model_index.json").write_text(json.dumps(config | {"mask_by": "both"}))
    with pytest.raises(CheckpointError, match="must take"):
        PromptedPipeline.from_pretrained(tmp_path / "p")
    weights = tmp_path / "p/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        PromptedPipeline.from_pretrained(tmp_path / "p")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    pipe = made()
    pipe.unet.conv_in.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="unet"):
        pipe.save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(guidance_scale=float("nan")), "guidance_scale"),
        (dict(guidance_scale=-1), "guidance_scale"),
        (dict(guidance_scale=None), "guidance_scale"),
        (dict(mask_guidance_scale=float("inf")), "mask_guidance_scale"),
        (dict(num_inference_steps=0), "num_inference_steps"),
        (dict(num_images_per_prompt=0), "num_images_per_prompt"),
        (dict(output_type="jpeg"), "output_type"),
        (dict(latents=torch.zeros(1, 48, 16, 16)), "for 3 pictures"),
    ],
)
def test_calls_that_nothing_could_be_drawn_from(pipe, prompt, wrong, said):
    with pytest.raises(ValueError, match=said):
        pipe(prompt, **wrong)


@pytest.mark.parametrize("wrong", [dict(guidance_scale=float("nan")), dict(num_inference_steps=0)])
def test_inversions_that_lead_nowhere(pipe, prompt, faces, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pipe.invert(faces.batch(range(len(prompt)))["image"], prompt, **wrong)


def test_a_prompt_with_a_mask_of_its_own(pipe, prompt, faces):
    with pytest.raises(ValueError, match="Put the mask into the prompt"):
        pipe(prompt, mask=faces.masks(0))


def test_networks_that_were_not_made_for_each_other():
    with pytest.raises(ValueError, match="trained together"):
        PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=24), prompted_scheduler())
    with pytest.raises(ValueError, match="must take"):
        PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16), prompted_scheduler(), "concat")
    with pytest.raises(ValueError, match="cross, concat, both"):
        prompted_unet(mask_by="tokens")


def test_dropping_leaves_out_what_it_says():
    ds = SynthFaces(4, 64, seed=31_022)
    task = PromptedTask(None, PromptEncoder(dim=16), dropping=Dropping(mask=0.3, tags=0.2, both=0.1))
    data = PromptFaces(cached(ds, progress=False), ds)
    batch = {k: v.repeat_interleave(500, 0) for k, v in data.batch(range(4)).items()}

    class Rows:
        def rand(self):
            return torch.rand(2000, generator=make_generator(0))

    prompt = task.said(batch, Rows())
    tags, masks = (prompt.labels >= 0).all(1), prompt.told.all(1)
    share = lambda rows: float(rows.float().mean())
    assert abs(share(tags & masks) - 0.4) < 0.04 and abs(share(tags & ~masks) - 0.3) < 0.04
    assert abs(share(~tags & masks) - 0.2) < 0.03 and abs(share(~tags & ~masks) - 0.1) < 0.03
    with pytest.raises(ValueError):
        Dropping(mask=0.6, tags=0.6)


def test_a_training_goes_on_to_the_same_weights(tmp_path):
    ds = SynthFaces(16, 64, seed=31_023)
    data = PromptFaces(cached(ds, progress=False), ds)
    how = dict(batch_size=4, save_every=2, progress=False, trackers=(), device="cpu", precision="no")

    def run(out, steps):
        torch.manual_seed(0)
        unet, encoder = prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16)
        fit(PromptedTask(unet, encoder), data, tmp_path / out, steps, decay=0.0, **how)
        return unet

    whole = run("whole", 4)
    run("cut", 2)
    again = run("cut", 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_nothing_said_is_a_prompt_too(pipe):
    x = drawn(pipe, None, generator=make_generator(0), guidance_scale=3)
    assert torch.allclose(x, drawn(pipe, face_prompt(), generator=make_generator(0), guidance_scale=1), atol=1e-5)
