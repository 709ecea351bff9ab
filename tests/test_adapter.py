"The W+ adapter: the published layers, losses and disturbed codes; going in and out of a U-Net; files; drawing; training."

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latref_nb import adapter_training as T
from latref_nb.adapter import (
    PUBLISHED_GROUPS,
    Adapter,
    AddedAttention,
    CodeTokens,
    ResidualCross,
    TokenMapper,
    cross_layers,
    draw_person,
    load_published,
    make_adapter,
    published_names,
    steps_without_code,
)
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.bases import Base, attention_layers
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import make_generator
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.official import fill_by_rule
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
from latref_nb.training import fit

from diffusers import UNet2DConditionModel  # after latref_nb, which repairs torchvision
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

FIXTURES = Path(__file__).parent / "fixtures"
WPLUS = json.loads((FIXTURES / "wplus_adapter.json").read_text())
SD15 = WPLUS["stable_diffusion_1_5"]
FIT = dict(batch_size=4, progress=False, trackers=(), device="cpu", precision="no", log_every=2, lr=1e-3)


def off(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def theirs():
    return load_file(FIXTURES / "wplus_adapter.safetensors")


@pytest.fixture(scope="module")
def weights():
    return fill_by_rule(WPLUS["keys"])


def tiny_base():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16), prompted_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return Base(pipe)


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def tiny_adapter(base, seed=1, **how):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_adapter(base.unet, **{"groups": [[0], [1], [0, 1]], "code_dim": 5, **how}).eval()


@pytest.fixture(scope="module")
def adapter(base):
    return tiny_adapter(base).requires_grad_(False)


@pytest.fixture(scope="module")
def case(base):
    "Latents, a timestep, tokens and codes of two."
    g = make_generator(3)
    x, codes = torch.randn(2, 48, 16, 16, generator=g), torch.randn(2, 2, 5, generator=g)
    return x, 500, base.tokens("Smiling=with", 2), codes


# ---- the published layers


@pytest.fixture(scope="module")
def code_tokens(weights):
    c = WPLUS["config"]
    net = CodeTokens(PUBLISHED_GROUPS, c["w_dim"], c["cross_attention_dim"])
    ours = {k: f"w_proj.{k.replace('proj.', 'proj_')}" for k in net.state_dict()}
    net.load_state_dict({k: weights[theirs] for k, theirs in ours.items()})
    return net.requires_grad_(False)


def test_published_tokens(code_tokens, theirs):
    assert off(code_tokens(theirs["w"]), theirs["tokens"]) <= 1e-4
    silent = code_tokens(torch.zeros_like(theirs["w"]))
    assert off(silent, theirs["tokens_zero_w"]) <= 1e-4
    assert torch.equal(silent, code_tokens.norm.bias.expand_as(silent)), "a code of zeros is the norm's bias"


class Heard:
    "What one layer hears."

    def __init__(self, tokens, scale):
        self.tokens, self.scales, self.kept = tokens, {"one": scale}, {}

    def rows(self, n):
        return self.tokens


@pytest.mark.parametrize("inner", [AttnProcessor, AttnProcessor2_0])
def test_published_layer(weights, theirs, inner):
    c = WPLUS["config"]
    attn = Attention(c["query_dim"], c["cross_attention_dim"], heads=c["heads"], dim_head=c["dim_head"])
    attn.load_state_dict({k.removeprefix("layer."): v for k, v in weights.items() if k.startswith("layer.")})
    cross = ResidualCross(c["query_dim"], c["cross_attention_dim"], c["heads"])
    cross.load_state_dict({f"{q}.weight": weights[f"wplus_adapter.1.{q}_wplus.weight"] for q in ("to_q", "to_k", "to_v")})
    cases = {"output_s0": (0.0, "tokens"), "output_s0.5": (0.5, "tokens"), "output_s1": (1.0, "tokens")}
    cases["output_zero_w_s1"] = (1.0, "tokens_zero_w")
    for name, (scale, tokens) in cases.items():
        heard = Heard(theirs[tokens], scale)
        attn.set_processor(AddedAttention(inner(), cross, "one", heard))
        with torch.no_grad():
            out = attn(theirs["hidden"], encoder_hidden_states=theirs["text"])
        assert off(out, theirs[name]) <= 1e-4, name
        if scale:
            assert heard.kept["one"].shape == (2, 4, 16, 4)
    with torch.no_grad():
        added, _ = cross(theirs["text_attention"], theirs["tokens"])
        assert off(added, theirs["added_attention"]) <= 1e-4
        assert off(cross.to_q(theirs["text_attention"]), theirs["added_query"]) <= 1e-4
        assert off(theirs["text_attention"] + added, theirs["before_out_s1"]) <= 1e-4
    assert not attn.to_out[0]._forward_pre_hooks


# ---- a published file


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )


def test_names_of_the_published_file(sd15):
    with torch.device("meta"):
        ours = Adapter(cross_layers(sd15), 768, PUBLISHED_GROUPS, 512)
    shapes = {published_names(ours)[k]: list(v.shape) for k, v in ours.state_dict().items()}
    want = {f"{part}.{k}": s for part in ("w_proj", "wplus_adapter") for k, s in SD15[part].items()}
    assert shapes == want
    paths = [o.path for o in attention_layers(sd15).values() if o.kind == "cross"]
    assert {str(2 * i + 1): f"{p}.processor" for i, p in enumerate(paths)} == SD15["layer_of_index"]
    assert ours.num_parameters() == sum(SD15["parameters"].values())


def published_file(unet, path):
    "A file of the published form for a U-Net, filled by rule."
    with torch.device("meta"):
        ours = Adapter(cross_layers(unet), unet.config.cross_attention_dim, PUBLISHED_GROUPS, 512)
    flat = fill_by_rule({published_names(ours)[k]: v.shape for k, v in ours.state_dict().items()})
    if path.suffix == ".safetensors":
        save_file(flat, path)
    else:
        nested = {"w_proj": {}, "wplus_adapter": {}}
        for k, v in flat.items():
            part, _, name = k.partition(".")
            nested[part][name] = v
        torch.save(nested, path)
    return flat


@pytest.mark.parametrize("name", ["wplus.safetensors", "wplus_adapter.bin"])
def test_a_published_file_loads(base, tmp_path, name):
    flat = published_file(base.unet, tmp_path / name)
    adapter = load_published(tmp_path / name, base.unet)
    assert all(torch.equal(v, flat[published_names(adapter)[k]]) for k, v in adapter.state_dict().items())
    assert adapter(torch.randn(2, 18, 512)).shape == (2, 4, 16)


def test_what_is_no_published_file(base, tmp_path):
    flat = published_file(base.unet, tmp_path / "a.safetensors")
    flat.pop("w_proj.norm.bias")
    save_file(flat, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        load_published(tmp_path / "b.safetensors", base.unet)
    with pytest.raises(CheckpointError, match="cannot be read as an adapter"):
        (tmp_path / "c.bin").write_bytes(b"nothing")
        load_published(tmp_path / "c.bin", base.unet)

    torch.save({"w_proj": FIXTURES}, tmp_path / "d.bin")  # a class: never built
    with pytest.raises(CheckpointError, match="cannot be read as an adapter"):
        load_published(tmp_path / "d.bin", base.unet)


# ---- going in and out


def test_it_begins_with_the_layers_own_weights(base, adapter):
    layers = [o for o in attention_layers(base.unet).values() if o.kind == "cross"]
    assert [a[0] for a in adapter.config.attentions] == [o.name for o in layers]
    for layer, cross in zip(layers, adapter.cross):
        attn = base.unet.get_submodule(layer.path)
        for q in ("to_q", "to_k", "to_v"):
            assert torch.equal(getattr(cross, q).weight, getattr(attn, q).weight)


@torch.no_grad()
def test_detached_all_is_as_it_was(base, adapter, case):
    x, t, tokens, codes = case
    before, former, keys = base.predict(x, t, tokens), dict(base.unet.attn_processors), list(base.unet.state_dict())
    with adapter.attach(base.pipe) as on:
        assert torch.equal(base.predict(x, t, tokens), before), "nothing is heard before `hear`"
        on.hear(codes)
        assert not torch.allclose(base.predict(x, t, tokens), before)
        on.hear(codes, 0)
        assert torch.equal(base.predict(x, t, tokens), before)
        assert list(base.unet.state_dict()) == keys, "the base's weights stay its own"
    assert base.unet.attn_processors == former and torch.equal(base.predict(x, t, tokens), before)
    with pytest.raises(RuntimeError), adapter.attach(base.unet) as on:
        on.hear(codes)
        base.predict(x, t, tokens[..., :3])
    assert base.unet.attn_processors == former and torch.equal(base.predict(x, t, tokens), before)
    assert not any(m._forward_pre_hooks for m in base.unet.modules())
    on = adapter.attach(base)
    on.detach()
    on.detach()
    assert base.unet.attn_processors == former


@torch.no_grad()
def test_a_batch_and_each_alone(base, adapter, case):
    x, t, tokens, codes = case
    both = adapter.predict(base, x, t, tokens, codes)
    for i in (0, 1):
        alone = adapter.predict(base, x[i : i + 1], t, tokens[i : i + 1], codes[i : i + 1])
        assert torch.allclose(alone[0], both[i], atol=1e-5)
    with adapter.attach(base) as on:  # as guidance asks: nothing and all in one batch
        on.hear(codes)
        halves = base.predict(torch.cat([x, x]), t, torch.cat([tokens, tokens]))
        with pytest.raises(ValueError, match="2 codes came for a batch of 3"):
            base.predict(torch.cat([x, x[:1]]), t, torch.cat([tokens, tokens[:1]]))
    silent = adapter.predict(base, x, t, tokens, torch.zeros_like(codes))
    assert torch.allclose(halves, torch.cat([silent, both]), atol=1e-5)


@torch.no_grad()
def test_layers_have_scales_of_their_own(base, adapter, case):
    x, t, tokens, codes = case
    plain = base.predict(x, t, tokens)
    say = lambda scale: adapter.predict(base, x, t, tokens, codes, scale)
    assert torch.equal(say({"*": 0.7}), say(0.7)) and torch.equal(say({"unet.up*": 0, "*": 0}), plain)
    up = say({"unet.up*": 1})
    assert not torch.allclose(up, plain) and not torch.allclose(up, say(1))
    with adapter.attach(base) as on:
        kept = on.hear(codes, {"unet.up*": 1}, keep=True)
        base.predict(x, t, tokens)
    assert kept and all(n.startswith("unet.up") for n in kept)
    sums = torch.stack([w.sum(-1).mean() for w in kept.values()])
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def test_the_query_reads_the_texts_attention(base, case):
    x, t, tokens, codes = case
    one, other = tiny_adapter(base), tiny_adapter(base, query="input")
    assert torch.equal(one(codes), other(codes))
    with torch.no_grad():
        a, b = (o.predict(base, x, t, tokens, codes) for o in (one, other))
    assert not torch.allclose(a, b, atol=1e-4)
    a = one.predict(base, x, t, tokens, codes)
    a.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.parameters())
    assert all(p.grad is None for p in base.unet.parameters())


def test_saved_and_loaded_it_is_the_same(adapter, base, case, tmp_path):
    x, t, tokens, codes = case
    adapter.save_pretrained(tmp_path)
    back = Adapter.from_pretrained(tmp_path)
    assert [list(a) for a in back.config.attentions] == [list(a) for a in adapter.config.attentions]
    with torch.no_grad():
        ours, again = (o.predict(base, x, t, tokens, codes) for o in (adapter, back))
    assert torch.equal(ours, again)


def test_what_an_adapter_refuses(base, adapter, case):
    x, t, tokens, codes = case
    with pytest.raises(ValueError, match=r"Needed: \(B,2,5\)"):
        adapter(codes[:, :1])
    with pytest.raises(ValueError, match="attention layer 'unet.upp' is not known"):
        adapter.predict(base, x, t, tokens, codes, {"unet.upp": 1})
    with pytest.raises(ValueError, match="scale=-1"):
        adapter.predict(base, x, t, tokens, codes, -1)
    with pytest.raises(ValueError, match="Give the U-Net that it was made for"):
        adapter.attach(prompted_unet((16, 24, 40), dim=16))
    with pytest.raises(ValueError, match="groups="):
        make_adapter(base.unet, [[0], []])
    with pytest.raises(ValueError, match="query 'x' is not known"):
        make_adapter(base.unet, query="x")
    assert not any(isinstance(p, AddedAttention) for p in base.unet.attn_processors.values())


# ---- drawing


def test_drawing(base, adapter, case):
    x, _, _, codes = case
    how = dict(num_inference_steps=5, latents=x)
    pictures = draw_person(base, adapter, codes, "Smiling=with", **how)
    assert pictures.shape == (2, 3, 64, 64)
    assert torch.equal(pictures, draw_person(base, adapter, codes, "Smiling=with", **how))
    alone = draw_person(base, adapter, codes[1:], "Smiling=with", num_inference_steps=5, latents=x[1:])
    assert torch.allclose(alone[0], pictures[1], atol=1e-4)
    seeds = draw_person(base, adapter, codes, generator=make_generator([1, 2]), num_inference_steps=2)
    one = draw_person(base, adapter, codes[1:], generator=make_generator([2]), num_inference_steps=2)
    assert torch.allclose(one[0], seeds[1], atol=1e-4)


def test_at_scale_zero_it_is_the_pipeline(base, adapter, case):
    x, _, _, codes = case
    ours = draw_person(base, adapter, codes, "Male=with", num_inference_steps=5, latents=x, scale=0)
    theirs = base.pipe("Male=with", num_images_per_prompt=2, num_inference_steps=5, latents=x, output_type="pt").images
    assert torch.allclose(ours / 2 + 0.5, theirs, atol=1e-4)


def test_when_the_code_is_heard(base, adapter, case):
    s = WPLUS["sampling"]
    assert steps_without_code(s["steps"], s["start_percent"] / 100) == 7 and steps_without_code(30, 0) == 0
    x, _, _, codes = case
    say = lambda **how: draw_person(base, adapter, codes, num_inference_steps=5, latents=x, **how)
    late = say(delay=0.2)
    assert torch.equal(late, say(delay=0, scale=[0, 0, 1, 1, 1])) and not torch.equal(late, say(delay=0))
    assert torch.equal(say(delay=1), say(scale=0, delay=0))
    with pytest.raises(ValueError, match="4 scales came for 5 steps"):
        say(scale=[1] * 4)
    with pytest.raises(ValueError, match="delay=2"):
        say(delay=2)


def test_a_base_with_the_mask_beside_the_picture_is_refused(adapter):
    pipe = PromptedPipeline(
        prompted_unet((16, 24, 32), 16, "both"), PromptEncoder(dim=16), prompted_scheduler(), mask_by="both"
    )
    with pytest.raises(ValueError, match="mask_by='both' came"):
        draw_person(Base(pipe), adapter, torch.zeros(1, 2, 5))


# ---- words of the prompt


def test_the_mapper(base, case, tmp_path):
    x, t, tokens, codes = case
    torch.manual_seed(0)
    timed, plain = (TokenMapper(16, 2, 5, width=16, timed=o).eval().requires_grad_(False) for o in (True, False))
    assert timed(codes, 3).shape == (2, 2, 16)
    assert not torch.allclose(timed(codes, 3), timed(codes, 900)) and torch.equal(plain(codes, 3), plain(codes, 900))
    assert torch.allclose(timed(codes, torch.tensor([3, 900]))[1], timed(codes, 900)[1], atol=1e-5)
    out = timed.predict(base, x, t, tokens, codes)
    assert torch.allclose(timed.predict(base, x[1:], t, tokens[1:], codes[1:])[0], out[1], atol=1e-5)
    assert torch.equal(timed.predict(base, x, t, tokens, codes, 0), base.predict(x, t, tokens))
    assert draw_person(base, timed, codes, num_inference_steps=2, latents=x).shape == (2, 3, 64, 64)
    timed.save_pretrained(tmp_path)
    assert torch.allclose(TokenMapper.from_pretrained(tmp_path)(codes, 3), timed(codes, 3), atol=1e-5)
    with pytest.raises(ValueError, match="read by every layer"):
        timed.predict(base, x, t, tokens, codes, {"*": 1})


# ---- the published losses and disturbed codes


def test_published_losses(theirs):
    pictures = {k: theirs[f"loss_{k}_x32"].float() / 32 for k in ("noise", "noise_pred")}
    disturbed, silent = (theirs[f"loss_noise_pred_{k}_x32"].float() / 32 for k in ("augmentation", "now"))
    predicted = pictures["noise_pred"].requires_grad_(True)
    m = T.outside(theirs["loss_mask_u8"].float() / 255, 64)
    assert off(m, theirs["loss_mask_region"]) <= 1e-5
    terms = T.stage_two_terms(predicted, pictures["noise"], disturbed, silent, m)
    total = terms["rec"] + WPLUS["loss"]["lambda_disen"] * terms["disentangle"]
    total = total + WPLUS["loss"]["lambda_preserve"] * terms["preserve"]
    assert off(torch.stack([*terms.values(), total]), theirs["losses"]) <= 1e-5
    total.backward()
    assert off(predicted.grad[0, 0], theirs["loss_gradient_item0_channel0"]) <= 1e-4


@pytest.fixture(scope="module")
def directions(theirs):
    spans = [(o["component"], o["first_layer"], o["end_layer"]) for o in WPLUS["disturbance"]["component_config"].values()]
    c = theirs["component_directions"][:, 0]
    return T.CodeDirections(theirs["stored_directions"], theirs["component_mean"][0], c, theirs["component_std"], spans)


def test_published_disturbed_codes(theirs, directions):
    w, f = theirs["codes"], WPLUS["disturbance"]["factors"]
    others = w.roll(-1, 0)
    assert off(T.extrapolated(w, others, f["extrapolate"]), theirs["disturbed_extrapolate"]) <= 1e-4
    added = T.other_plus(w, others, f["other"])
    assert off(added, theirs["disturbed_other"]) <= 1e-4
    kept = 1 - torch.tensor(WPLUS["disturbance"]["dropped"]).float()[:, None, None]
    assert off(added * kept, theirs["disturbed_other_after_drop"]) <= 1e-4
    noisy = T.other_plus_noise(w, others, f["gaussian"], theirs["gaussian_draw"])
    assert off(noisy, theirs["disturbed_gaussian"]) <= 1e-4

    def step(said):
        number = lambda o: o["index"] if o["kind"] == "stored" else "ab".index(o["name"])
        choices = [(o["kind"] == "stored", number(o)) for o in said]
        return T.direction_step(w, directions, choices, torch.tensor([o["strength"] for o in said]))

    one, two = step(WPLUS["disturbance"]["direction"]), step(WPLUS["disturbance"]["second_direction"])
    assert off(w + one, theirs["disturbed_direction"]) <= 1e-4
    a = f["alpha"]
    assert off(w + a * one + (1 - a) * two, theirs["disturbed_two_directions"]) <= 1e-4


def test_published_mixture(theirs, directions):
    names = dict(extrapolate="extrapolated", gaussian="noise")
    shares = {names.get(k, k): v for k, v in WPLUS["disturbance"]["shares"].items()}
    m = T.Mixture()
    assert {k: getattr(m, k) for k in m.kinds} == shares and m.stored == WPLUS["disturbance"]["ranges"]["stored_share"]
    w, g = theirs["codes"], make_generator(0)
    drawn = [T.disturbed_codes(w, directions, g) for _ in range(2000)]
    for kind, share in shares.items():
        assert abs(sum(k == kind for _, k in drawn) / 2000 - share) < 0.04, kind
    assert all(bool(torch.isfinite(o).all()) and o.shape == w.shape for o, _ in drawn)
    again = T.disturbed_codes(w, directions, make_generator(7))
    assert again[1] == T.disturbed_codes(w, directions, make_generator(7))[1]
    assert torch.equal(again[0], T.disturbed_codes(w, directions, make_generator(7))[0])
    with pytest.raises(ValueError, match="add up to"):
        replace(m, noise=0.5)


def test_directions_of_codes():
    g = make_generator(0)
    labels = torch.randint(2, (400, 1), generator=g)
    codes = torch.randn(400, 1, 6, generator=g) + 3 * labels[:, :, None] * torch.eye(6)[0]
    d = T.code_directions(codes, labels, 4)
    assert d.stored.shape == (1, 1, 6) and torch.allclose(d.stored[0, 0], 3 * torch.eye(6)[0], atol=0.3)
    assert d.components[0, 0].abs() > 0.9 and torch.allclose(d.components @ d.components.T, torch.eye(4), atol=1e-5)
    moved = codes + T.towards_component(codes, d, 0, torch.full((400,), 2.5))
    assert torch.allclose((moved[:, 0] - d.mean) @ d.components[0] / d.std[0], torch.full((400,), 2.5), atol=1e-4)


# ---- pairs of faces, and training


@pytest.fixture(scope="module")
def autoencoder():
    small = dict(image_size=64, patch_size=4, model_channels=16, channel_mult=(1, 1), num_res_blocks=1, z_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        enc = dict(enc_channel_mult=(1, 1, 1), enc_patch_size=4, attention_resolutions=(), enc_channels=16)
        return DiffusionAutoencoder(**small, **enc).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def source():
    return SynthFaces(12, 64, seed=3, faces_per_person=3)


def test_references_are_the_same_person(source):
    f, others = source.factors(range(3)), source.factors([1, 2, 0])
    told = torch.tensor([[True] * 3 + [False] * 3] * 3)
    ref = T.reference_factors(f, others, told)
    assert torch.equal(ref.identity, f.identity) and torch.equal(ref.nuisance, torch.full((3, 10), 0.5))
    assert torch.equal(ref.labels[:, :3], others.labels[:, :3]) and torch.equal(ref.labels[:, 3:], f.labels[:, 3:])
    names = source.tags.names
    assert torch.equal(ref.style[names[0]], others.style[names[0]]) and torch.equal(ref.style[names[5]], f.style[names[5]])


def test_pairs(source, autoencoder):
    pairs = T.PersonPairs(source, autoencoder, chunk=5)
    whole = T.PersonPairs(source, autoencoder)
    b = pairs.batch([4, 7])
    assert b["image"].shape == (2, 3, 64, 64) and b["codes"].shape == (2, 1, 12) and b["mask"].shape == (2, 1, 64, 64)
    assert torch.allclose(pairs.codes, whole.codes, atol=1e-5) and torch.equal(pairs.images, whole.images)
    assert torch.allclose(b["image"], source.batch([4, 7])["image"], atol=1 / 120)
    said = pairs.labels >= 0
    assert torch.equal(pairs.labels[said], source.labels[said]) and 0.2 < said.float().mean() < 0.8
    assert torch.equal(pairs.shown[~said], source.labels[~said]), "what is not said the code must tell"
    truth = source.masks(4)
    assert torch.equal(pairs.masks[4, 0], ~(truth[0] | truth[CLASSES.index("cloth")]))
    assert torch.equal(T.PersonPairs(source, autoencoder, said=1.0).labels, source.labels)
    still = T.PersonPairs(source, autoencoder, free=False)
    assert not torch.equal(still.images, pairs.images) and torch.equal(still.codes, whole.codes)
    for bad, words in ((SynthFaces(4, 64), "two of each"), (SynthFaces(5, 64, faces_per_person=2), "whole persons")):
        with pytest.raises(ValueError, match=words):
            T.PersonPairs(bad, autoencoder)


def test_the_background_of_a_reference_cannot_be_seen(source, autoencoder):
    x, masks = source.batch(range(2))["image"], source.masks(range(2))
    other = torch.where(masks[:, :1], torch.rand(2, 3, 64, 64), x)
    assert torch.equal(T.person_codes(autoencoder, x, masks), T.person_codes(autoencoder, other, masks))
    assert not torch.equal(T.person_codes(autoencoder, x), T.person_codes(autoencoder, other))


@pytest.fixture(scope="module")
def pairs(source, autoencoder):
    return T.PersonPairs(source, autoencoder)


@pytest.fixture(scope="module")
def ways(pairs):
    return T.code_directions(pairs.codes, pairs.shown, 4)


def fresh(base, kind="adapter"):
    torch.manual_seed(0)
    if kind == "mapper":
        return TokenMapper(16, 1, 12, width=16)
    return make_adapter(base.unet, code_dim=12)


@pytest.mark.parametrize("kind", ["adapter", "mapper"])
def test_two_stages_of_a_training(base, pairs, ways, tmp_path, kind):
    net, weights = fresh(base, kind), {k: v.clone() for k, v in base.unet.state_dict().items()}
    first = fit(T.AdapterTask(base, net), pairs, tmp_path / "1", 4, **FIT)
    assert set(first.history[-1]) >= {"loss", "rec"} and "preserve" not in first.history[-1]
    if kind == "mapper":
        return
    before = {k: v.clone() for k, v in net.state_dict().items()}
    second = fit(T.AdapterTask(base, net, 2, directions=ways), pairs, tmp_path / "2", 4, **FIT)
    assert set(second.history[-1]) >= {"loss", "rec", "disentangle", "preserve"}
    same = {k: torch.equal(v, before[k]) for k, v in net.state_dict().items()}
    assert all(o == k.startswith("tokens.") for k, o in same.items()), "the projection is frozen, all else is not"
    assert all(torch.equal(v, weights[k]) for k, v in base.unet.state_dict().items()), "the base stays"
    assert not any(isinstance(p, AddedAttention) for p in base.unet.attn_processors.values())
    back = Adapter.from_pretrained(tmp_path / "2" / "adapter")
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_stopped_training_goes_on_to_the_same_numbers(base, pairs, ways, tmp_path):
    def run(out, *ends):
        net = fresh(base)
        for n in ends:
            net = fresh(base)
            fit(T.AdapterTask(base, net, 2, directions=ways), pairs, out, n, decay=0, **FIT)
        return net.state_dict()

    once, twice = run(tmp_path / "a", 4), run(tmp_path / "b", 2, 4)
    assert all(torch.equal(v, twice[k]) for k, v in once.items())


def test_what_a_step_leaves_out(base, pairs):
    task = T.AdapterTask(base, fresh(base))
    batch = pairs.batch(list(range(12)) * 2)

    class Fixed:
        rand = staticmethod(lambda: torch.linspace(0, 0.23, 24))

    tokens, kept = task.heard(batch, Fixed)
    u, nothing = Fixed.rand(), base.null(1)[0]
    silent = torch.tensor([torch.allclose(t, nothing, atol=1e-6) for t in tokens])
    no_code = (u < 0.05) | ((u >= 0.1) & (u < 0.15))
    assert torch.equal(kept.flatten() == 0, no_code)
    must = (u >= 0.05) & (u < 0.15)
    assert bool(silent[must].all()) and not bool(silent[(u >= 0.15) & (batch["labels"] >= 0).any(1)].any())


def test_what_a_training_refuses(base, ways):
    net = fresh(base)
    for how, words in (
        (dict(stage=3), "stage=3"),
        (dict(stage=2), "Give code_directions"),
        (dict(stage=2, directions=ways, preserve=-1), "preserve=-1"),
        (dict(dropping=None, stage=0), "Allowed: 1, and then 2"),
    ):
        with pytest.raises(ValueError, match=words):
            T.AdapterTask(base, net, **how)
    with pytest.raises(ValueError, match="code \\+ text \\+ both"):
        T.CodeDropping(0.5, 0.5, 0.5)
