"The W+ adapter: the published layers; going in and out of a U-Net; files; drawing."

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from latref_nb.bases import Base, attention_layers
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import make_generator
from latref_nb.official import fill_by_rule
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder

from diffusers import UNet2DConditionModel  # after latref_nb, which repairs torchvision
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

FIXTURES = Path(__file__).parent / "fixtures"
WPLUS = json.loads((FIXTURES / "wplus_adapter.json").read_text())
SD15 = WPLUS["stable_diffusion_1_5"]


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
