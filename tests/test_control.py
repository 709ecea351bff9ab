"Attention exchanged between two branches: equal to the published operations, and what may not happen around them."

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from latref_nb.bases import Base
from latref_nb.control import (
    Control,
    LocalBlend,
    Refine,
    Replace,
    Reweight,
    Sentence,
    changed_maps,
    edit_under,
    equalizer,
    layers_like,
    refine_mapper,
    replace_mapper,
    seen_maps,
    sentence,
    tokens_of,
    value_tokens,
    word_exchange,
)
from latref_nb.core import make_generator
from latref_nb.official import fill_by_rule
from latref_nb.prompted import PromptedPipeline, ddim_between, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
from toys import ToyBase, off, published
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

RECORD, THEIRS = published("stylediffusion")
C, N = RECORD["config"], RECORD["config"]["n_txt"]
SENTENCES = [Sentence(p["prompt_words"], p["pieces"]) for p in RECORD["prompts"]]
RED_DOG, RED_TIGER, BIG_DOG = SENTENCES
SHARES = dict(cross=C["tau_c"], self_=C["tau_s"], self_null=C["tau_u"], values=C["tau_v"])
HEADS, NO = C["heads"], Control(0, 0, 0, 0)


def replace_():
    return Replace(replace_mapper(RED_DOG, RED_TIGER, N))


def refine_():
    return Refine(*refine_mapper(RED_DOG, BIG_DOG, N))


def reweighted(kind):
    word = RECORD["controllers"][f"{kind}_reweight_word"]
    spoken = RED_TIGER if kind == "replace" else BIG_DOG
    factor = RECORD["controllers"][f"{kind}_reweight_value"]
    after = replace_() if kind == "replace" else refine_()
    return Reweight(equalizer(N, spoken.places[spoken.words.index(word)], factor), after)


EXCHANGES = {
    "replace": replace_,
    "refine": refine_,
    "replace_reweight": lambda: reweighted("replace"),
    "refine_reweight": lambda: reweighted("refine"),
}


@pytest.fixture
def toy():
    return ToyBase(RECORD)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    pipe = PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16), prompted_scheduler())
    return Base(pipe)


def noise(base, n, seed=0):
    return torch.randn(n, base.unet.config.out_channels, 16, 16, generator=make_generator(seed))


def run(base, control, source="Smiling=with", target="Smiling=without", n=2, steps=4, guidance=3.0, x_T=None, **how):
    x_T = noise(base, n) if x_T is None else x_T
    tokens = (base.tokens(source), base.tokens(target), base.null())
    return edit_under(base, x_T, *tokens, guidance, steps, control, **how)


# ---- the published operations


def test_the_toy_is_the_published_one(toy):
    record, theirs = published("null_text_direct")
    base = ToyBase(record)
    for t in (800, 200):
        assert off(base.predict(theirs["z0"], t, theirs["source"]), theirs[f"eps_source_t{t}"]) < 1e-4
    steps = [t for t, _ in base.steps(record["config"]["steps"])]
    assert steps == record["timesteps"]
    assert [float(base.level(t)) for t in steps] == record["alphas_cumprod"]
    assert float(base.level(-200)) == record["scheduler"]["final_alpha_cumprod"]


def test_mappers():
    assert torch.equal(replace_mapper(RED_DOG, RED_TIGER, N), THEIRS["replace_mapper"][0])
    mapper, shared = refine_mapper(RED_DOG, BIG_DOG, N)
    assert torch.equal(mapper, THEIRS["refine_mapper"][0].long()) and torch.equal(shared, THEIRS["refine_alphas"][0])
    for kind in ("replace", "refine"):
        assert torch.equal(reweighted(kind).weights, THEIRS[f"{kind}_reweight_equalizer"][0])


@pytest.mark.parametrize("kind", EXCHANGES)
@pytest.mark.parametrize("step", [0, 2, 3])
def test_maps_to_tokens(kind, step):
    control = Control(**SHARES, exchange=EXCHANGES[kind]())
    maps = THEIRS["cross_maps"].unflatten(0, (2, HEADS))
    ours = control.exchanged(maps, "cross", step, C["steps"])
    assert off(ours.flatten(0, 1), THEIRS[f"{kind}_cross_step{step}"]) < 1e-5


@pytest.mark.parametrize("name, step", [("self", 3), ("self", 4), ("uncond_self", 1), ("uncond_self", 2)])
def test_maps_to_places(name, step):
    kind = {"self": "self", "uncond_self": "self_null"}[name]
    maps = THEIRS["self_maps"].unflatten(0, (2, HEADS))
    ours = Control(**SHARES).exchanged(maps, kind, step, C["steps"])
    assert torch.equal(ours.flatten(0, 1), THEIRS[f"{name}_step{step}"])


def test_cuts():
    theirs = RECORD["controllers"]["thresholds"]
    cuts = Control(**SHARES).cuts(theirs["steps"])
    assert [cuts[k] for k in ("cross", "self", "self_null")] == [theirs[k] for k in ("cross", "self", "uncond_self")]
    for tau, counts in RECORD["schedules"]["thresholds_30"].items():
        tau = float(tau)
        assert Control(tau, tau, tau, tau).cuts(30) == {
            "cross": counts["c"],
            "self": counts["s"],
            "self_null": counts["u"],
            "values": counts["v"],
        }


@pytest.mark.parametrize("subtract", [False, True])
def test_local_blend(subtract):
    end = "_substract" if subtract else ""
    tokens = lambda name: [tuple(row.nonzero().flatten().tolist()) for row in THEIRS[name]]
    blend = LocalBlend(*tokens("blend_words"))
    if subtract:
        blend = LocalBlend(*tokens("blend_words"), 0.3, *tokens("blend_words_substract"))
    maps = [m.unflatten(0, (2, -1)) for m in THEIRS["blend_maps"]]
    inside = blend.mask(maps, (64, 64))
    assert torch.equal(inside[1].float(), THEIRS[f"blend_mask{end}"].float())
    assert off(blend(THEIRS["blend_latents"], maps), THEIRS[f"blend_out{end}"]) < 1e-5


def test_value_tokens_of_a_layer(toy):
    layer, x = toy.module("unet.down.cross"), THEIRS["layer_input"]
    assert off(layer(x, encoder_hidden_states=THEIRS["source"]), THEIRS["layer_plain"]) < 1e-4
    with value_tokens(toy, THEIRS["value_tokens_first"], "unet.down.*"), seen_maps(toy, "unet.down.*", "cross") as maps:
        ours = layer(x, encoder_hidden_states=THEIRS["source"])
    assert off(ours, THEIRS["layer_value_only"]) < 1e-4
    assert off(maps["unet.down.cross"][0], THEIRS["layer_map"]) < 1e-4


class Mapping(nn.Module):
    "The published mapping network: tokens of an image → a factor and a shift for each number of the prompt's tokens."

    def __init__(self):
        super().__init__()
        self.conv_start, self.conv_end = nn.Conv1d(C["n_img"], 2 * N, 1), nn.Conv1d(2 * N, 2 * N, 1)
        self.conv_block = nn.Sequential(
            nn.Sequential(nn.Conv1d(2 * N, 2 * N, 1), nn.BatchNorm1d(2 * N), nn.LeakyReLU(0.01))
        )
        keys = {k: shape for k, shape in RECORD["keys"].items() if k.startswith("mapping.")}
        filled = {k.removeprefix("mapping."): v for k, v in fill_by_rule(keys).items()}
        self.load_state_dict(filled, strict=False)

    def forward(self, text):
        h = self.conv_start(THEIRS["image_tokens"])
        factor, shift = self.conv_end(self.conv_block(h)).chunk(2, 1)
        return text * factor + shift


@pytest.fixture(scope="module")
def mapped():
    "Value tokens of source and target at each step, by the published optimisation: the fixture has the source's alone."
    toy, mapping, T = ToyBase(RECORD), Mapping(), C["steps"]
    source, target, null = (THEIRS[k] for k in ("source", "target", "uncond"))
    levels, ladder, kept = THEIRS["inverted"], toy.steps(T), []
    for k, (t, _) in enumerate(reversed(ladder)):
        with torch.no_grad(), seen_maps(toy, ["unet.down.*", "unet.up.*"], "cross") as maps:
            toy.predict(levels[k : k + 1], t, source)
        kept.append(maps)
    kept, x, found = [*kept, kept[-1]], levels[-1:], []

    def step(i):
        t, below = ladder[i]
        with seen_maps(toy, ["unet.down.*", "unet.up.*"], "cross") as maps, value_tokens(toy, mapping(source)):
            told = toy.predict(x, t, source)
        nothing = toy.predict(x, t, null)
        y = ddim_between(toy.scheduler, nothing + C["guidance"] * (told - nothing), x, t, t, below)
        drift = sum((maps[name] - kept[T - i][name]).square().mean() for name in maps)
        return y, (y[0] - levels[T - i - 1]).square().mean() + drift

    for i in range(T):
        adam = torch.optim.Adam(mapping.parameters(), lr=RECORD["learning_rates"][i])
        for _ in range(RECORD["inner_steps_per_step"][i]):
            adam.zero_grad()
            step(i)[1].backward()
            adam.step()
        with torch.no_grad():
            found.append(torch.stack([mapping(source), mapping(target)]))
            x = step(i)[0]
    return torch.stack(found).unbind(1)


@pytest.mark.parametrize("kind", ["replace", "refine", "replace_reweight"])
def test_whole_edits(toy, kind, mapped):
    control = Control(**SHARES, exchange=EXCHANGES[kind]())
    x_T, values = THEIRS["inverted"][-1:], THEIRS["value_tokens_per_step"][:, None]
    assert off(mapped[0], values) < 1e-3
    how = dict(values=values, target_values=mapped[1])
    tokens = [THEIRS[k] for k in ("source", "target", "uncond")]
    path = edit_under(toy, x_T, *tokens, C["guidance"], C["steps"], control, **how)
    assert off(path[:, :, 0], THEIRS[f"edit_path_{kind}"]) < 1e-3
    assert off(path[:, 0, 0], THEIRS["optimised_path"]) < 1e-3


def test_tokens_of_nothing_and_offsets_by_step():
    record, theirs = published("null_text_direct")
    base, c = ToyBase(record), record["config"]
    said = [theirs[k] for k in ("source", "target", "uncond")]
    x_T = theirs["inverted"][-1:]
    how = (c["guidance"], c["steps"], NO)
    null = edit_under(base, x_T, *said[:2], theirs["null_list"][:, None], *how)
    assert off(null[:, 0, 0], theirs["null_path"]) < 1e-3
    direct = edit_under(base, x_T, *said, *how, offsets=theirs["direct_offsets"][:, :1])
    assert off(direct[:, :, 0], theirs["direct_path"]) < 1e-3
    assert off(direct[-1, 0], theirs["z0"]) < 1e-3


# ---- what an exchange leaves alone


def test_many_images_are_as_one_by_one(small):
    control = Control(0.6, 0.6, 0.6, blend=LocalBlend((1,), (1,), 0.6))
    x_T = noise(small, 3)
    together = run(small, control, x_T=x_T)
    assert together.shape == (5, 2, 3, 48, 16, 16)
    for k in range(3):
        assert torch.allclose(run(small, control, x_T=x_T[k : k + 1])[:, :, 0], together[:, :, k], atol=1e-4)
    assert torch.equal(run(small, control, x_T=x_T), together)


def test_the_source_is_as_if_it_were_alone(small):
    x_T = noise(small, 2)
    alone = small.pipe(
        "Smiling=with", latents=x_T, num_images_per_prompt=2, num_inference_steps=4, guidance_scale=3.0, output_type="pt"
    ).latents
    for control in (NO, Control(1, 1, 1), Control(1, 1, 1, blend=LocalBlend((1,), (1,)))):
        assert torch.allclose(run(small, control, x_T=x_T)[-1, 0], alone, atol=1e-4)


def test_the_same_prompt_gives_the_same_picture(small):
    path = run(small, Control(0.6, 0.6, 0.5), target="Smiling=with")
    assert torch.allclose(path[:, 0], path[:, 1], atol=1e-5)


@pytest.mark.parametrize("control", [Control(1, 0, 0), Control(0, 1, 0), Control(0, 0, 1)])
def test_every_exchange_does_something(small, control):
    plain, under = run(small, NO), run(small, control)
    assert torch.allclose(plain[:, 0], under[:, 0], atol=1e-4)
    assert (plain[-1, 1] - under[-1, 1]).abs().max() > 1e-4


def test_layers_are_chosen_by_name(small):
    nowhere = run(small, Control(1, 1, 1, layers=["unet.down.0.*"]))
    assert not torch.allclose(nowhere, run(small, Control(1, 1, 1)))
    names = {layer.name for layer in layers_like(small, ("unet.mid.*", "unet.up.2.*"), "cross")}
    assert names == {"unet.mid.0.cross", "unet.up.2.0.cross", "unet.up.2.1.cross"}
    with pytest.raises(ValueError, match="'unet.midd.*' is not known.*unet.mid.0.self"):
        run(small, Control(layers="unet.midd.*", cross=0))


def test_without_guidance_nothing_unsaid_is_asked(small, monkeypatch):
    calls = []
    ask = small.predict
    monkeypatch.setattr(small, "predict", lambda *a: calls.append(a[1]) or ask(*a))
    run(small, Control(), guidance=1)
    assert len(calls) == 4
    run(small, Control(), guidance=2)
    assert len(calls) == 12


def test_values_last_for_the_target_as_long_as_their_share(small):
    shape = (4, 1, *small.tokens("Smiling=with").shape[1:])
    values = torch.randn(shape, generator=make_generator(3))
    paths = {tau: run(small, Control(0, 0, 0, tau), values=values, n=1) for tau in (0, 0.5, 1)}
    for path in paths.values():
        assert torch.allclose(path[:, 0], paths[0][:, 0], atol=1e-5)
    same = [i for i in range(5) if torch.allclose(paths[0.5][i, 1], paths[1][i, 1], atol=1e-6)]
    assert same == [0, 1, 2]


def test_the_blend_starts_late_and_keeps_the_outside(small):
    masks = {}
    blend = LocalBlend((1,), (1,), 0.999, start=0.5)
    sums = {}

    def see(i, t, state):
        for name, m in state["maps"].items():
            if m.shape[2] == 256:
                sums[name] = sums.get(name, 0) + m
        masks[i] = blend.mask(list(sums.values()), (16, 16))[2:]

    path = run(small, Control(0.5, 0, 0, blend=blend), callback_on_step_end=see)
    assert torch.equal(path[1], run(small, Control(0.5, 0, 0))[1])
    outside = ~masks[3].expand(-1, 48, -1, -1)
    assert outside.any() and torch.equal(path[-1, 0][outside], path[-1, 1][outside])
    assert not torch.equal(path[1, 0], path[1, 1])


def test_a_callback_sees_maps_and_may_put_latents(small):
    seen = []

    def put(i, t, state):
        seen.append((i, t, {m.shape for m in state["maps"].values()}))
        return {"latents": torch.zeros_like(state["latents"])} if i == 3 else None

    path = run(small, Control(), callback_on_step_end=put)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(t for t, _ in small.steps(4)))
    assert all(shape[0] == 4 and shape[3] == 25 for _, _, shapes in seen for shape in shapes)
    assert not path[-1].any() and path[-2].any()


def test_progress_is_shown_where_it_is_asked_for(small, capfd):
    run(small, NO, steps=2)
    assert capfd.readouterr().err == ""
    run(small, NO, steps=2, progress=True)
    assert "/2" in capfd.readouterr().err


# ---- around it


def untouched(base):
    layers = [base.module(name) for name in base.layers]
    hooks = sum(len(m._forward_pre_hooks) for m in base.unet.modules())
    return not hooks and not any("get_attention_scores" in vars(m) for m in layers)


def test_everything_is_put_back_also_after_an_error(small):
    before = [small.module(name).processor for name in small.layers]

    def stop(i, t, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, Control(), callback_on_step_end=stop)

    def fail(layer, maps):
        raise KeyError(layer.name)

    x, tokens = noise(small, 1), small.tokens("Smiling=with")
    with pytest.raises(KeyError), changed_maps(small, fail, "unet.mid.*"), value_tokens(small, tokens):
        small.predict(x, 500, tokens)
    assert untouched(small) and all(a is small.module(n).processor for a, n in zip(before, small.layers))


def test_contexts_lie_in_each_other(small):
    x, tokens = noise(small, 1), small.tokens("Smiling=with")
    with torch.no_grad(), seen_maps(small, "unet.mid.*", "cross") as outer:
        with changed_maps(small, lambda layer, m: m * 0, "unet.mid.*", "cross"):
            with seen_maps(small, "unet.mid.*", "cross") as inner:
                small.predict(x, 500, tokens)
        (name,) = outer
        assert outer[name].any() and not inner[name].any()
        small.predict(x, 500, tokens)
        assert "get_attention_scores" in vars(small.module(name))
    assert untouched(small)


def test_a_processor_of_ones_own_stays_and_a_strange_one_is_refused(toy):
    class Own(AttnProcessor):
        pass

    class Strange:
        def __call__(self, attn, hidden_states, **how):
            return hidden_states

    layer = toy.module("unet.mid.cross")
    assert isinstance(layer.processor, AttnProcessor2_0)
    layer.set_processor(own := Own())
    with seen_maps(toy):
        assert layer.processor is own and type(toy.module("unet.mid.self").processor) is AttnProcessor
    layer.set_processor(Strange())
    with pytest.raises(ValueError, match="unet.mid.cross is worked by Strange"), seen_maps(toy):
        pass
    assert isinstance(toy.module("unet.mid.self").processor, AttnProcessor2_0) and untouched(toy)


def test_maps_have_gradients(toy):
    tokens = THEIRS["source"].clone().requires_grad_()
    with seen_maps(toy, kind="cross") as maps:
        toy.predict(THEIRS["z0"], 400, tokens)
    sum(m.square().sum() for m in maps.values()).backward()
    assert tokens.grad.abs().sum() > 0


def test_values_have_gradients_and_keys_stay(toy):
    values = THEIRS["source"].clone().requires_grad_()
    with value_tokens(toy, values):
        toy.predict(THEIRS["z0"], 400, THEIRS["source"]).square().sum().backward()
    assert values.grad.abs().sum() > 0
    with value_tokens(toy, THEIRS["target"]), value_tokens(toy, THEIRS["target"], of="to_k"):
        both = toy.predict(THEIRS["z0"], 400, THEIRS["source"])
    assert torch.allclose(both, toy.predict(THEIRS["z0"], 400, THEIRS["target"]), atol=1e-5)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: Control(cross=60), "cross=60 came"),
        (lambda: Control(self_null=-0.1), "self_null=-0.1"),
        (lambda: LocalBlend((), ()), "source=\\(\\) and target=\\(\\) came"),
        (lambda: LocalBlend((-1,), ()), "from 0 on"),
        (lambda: LocalBlend((1,), (1,), threshold=30), "threshold=30"),
        (lambda: replace_mapper(RED_DOG, BIG_DOG, N), "4 and 5 words.*refine_mapper"),
    ],
)
def test_bad_data_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


def test_bad_calls_are_named(small):
    tokens = small.tokens("Smiling=with")
    with pytest.raises(ValueError, match=r"values: shape \(3, 1, 25, 16\) came for 4 steps"):
        run(small, NO, values=tokens[None].expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="offsets: shape"):
        run(small, NO, offsets=torch.zeros(4, 3, 48, 16, 16))
    with pytest.raises(ValueError, match=r"no cross-attention of 256 places fits 'unet.mid.\*'"):
        run(small, Control(blend=LocalBlend((1,), (1,), layers="unet.mid.*")))
    with pytest.raises(ValueError, match="one row for each"), value_tokens(small, tokens):
        small.predict(noise(small, 2), 10, tokens.expand(2, -1, -1))
    with pytest.raises(ValueError, match="token 'Glasses' is not known. Did you mean 'Eyeglasses'"):
        tokens_of(small, "Smiling=with", "Glasses")


# ---- words


class Cutter:
    "A tokenizer that cuts words into pieces of four letters."

    bos_token, eos_token, model_max_length = "<begin>", "<end>", 8

    def tokenize(self, text):
        cut = [[w[i : i + 4] for i in range(0, len(w), 4)] for w in text.split()]
        return [p + "</w>" * (p is c[-1]) for c in cut for p in c]


@pytest.fixture
def words():
    return SimpleNamespace(ours=False, pipe=SimpleNamespace(tokenizer=Cutter()))


def test_words_and_their_pieces(words):
    said = sentence(words, "red tiger sits here")
    assert said.places == [(1,), (2, 3), (4,), (5,)] == RED_TIGER.places
    assert tokens_of(words, "red tiger sits here", "tiger") == (2, 3)
    assert tokens_of(words, "red tiger sits here", ["red", "here"]) == (1, 5)
    with pytest.raises(ValueError, match="token 'lion' is not known"):
        tokens_of(words, "red tiger sits here", "lion")


def test_the_exchange_that_fits_two_prompts(words):
    replaced = word_exchange(words, "red dog sits here", "red tiger sits here")
    assert torch.equal(replaced.mapper, THEIRS["replace_mapper"][0])
    refined = word_exchange(words, "red dog sits here", "red big dog sits here")
    assert torch.equal(refined.mapper, THEIRS["refine_mapper"][0].long())


def test_a_prompt_longer_than_the_model_reads(words):
    said = sentence(words, "one two three four five six seven eight nine")
    assert len(said.pieces) == 8 and said.places[-1] == ()


@pytest.mark.parametrize("pieces", [("a", "b"), ("ab", "c")])
def test_a_mapper_for_every_image(pieces):
    source, own = torch.rand(2, 2, 3, 4, 5, generator=make_generator(0))
    one = torch.rand(2, 5, 5, generator=make_generator(1))
    both = Replace(one)(source, own)
    for k in range(2):
        assert torch.allclose(both[k], Replace(one[k])(source[k : k + 1], own[k : k + 1])[0], atol=1e-6)


def test_a_network_laid_out_as_stable_diffusions():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    base = Base(SimpleNamespace(unet=unet, scheduler=ToyBase(RECORD).scheduler, device=torch.device("cpu")))
    x_T = torch.randn(2, 4, 32, 32, generator=make_generator(0))
    source, target, null = torch.randn(3, 1, 8, 12, generator=make_generator(1))
    said = (x_T, source, target, null, 7.5, 3)
    plain = edit_under(base, *said, NO)
    control = Control(exchange=replace_(), blend=LocalBlend(RED_DOG.places[1], RED_TIGER.places[1], 0.5))
    under = edit_under(base, *said, control)
    assert torch.allclose(plain[:, 0], under[:, 0], atol=1e-3) and untouched(base)
    assert (plain[-1, 1] - under[-1, 1]).abs().max() > 1e-3
