"Inversion under guidance: the published numbers on the toy, batches, stops, files, and what is refused."

import pytest
import torch
from torch import nn

from latref_nb.bases import Base
from latref_nb.checkpoints import CheckpointError
from latref_nb.control import value_tokens
from latref_nb.official import fill_by_rule
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder, face_prompt
from latref_nb.tags import Tag, TagSet
from latref_nb.values import (
    LEARNED,
    METHODS,
    FreeTokens,
    Learner,
    MappedTokens,
    MappingNetwork,
    Stopped,
    ddim_up,
    direct_offsets,
    drift_of,
    fixed_point,
    inner_steps,
    invert_under_guidance,
    joined_inversions,
    learning_rate,
    load_inverted,
    map_drift,
    network_calls,
    read_mappings,
    reconstruct,
    replay,
    stop_below,
)
from toys import ToyBase, off, published

STYLE, NULL = published("stylediffusion"), published("null_text_direct")


def toy(kind):
    "The toy, its numbers, and a base whose null tokens are those of the numbers."
    record, theirs = kind
    base = ToyBase(record)
    base.null = lambda n=1: theirs["uncond"].expand(n, -1, -1)
    return base, record["config"], theirs


def filled(prefix, n_image, n_tokens):
    "A mapping network with the published names, filled by the rule."
    keys = STYLE[0]["keys"] | STYLE[0]["mapping_full_keys"]
    mine = {k: shape for k, shape in keys.items() if k.startswith(prefix + ".")}
    network = MappingNetwork(n_image, n_tokens)
    state = {k.removeprefix(prefix + "."): v + k.endswith("running_var") for k, v in fill_by_rule(mine).items()}
    missing = network.load_state_dict(state, strict=False).missing_keys
    assert all(k.endswith("num_batches_tracked") for k in missing)
    return network


def learner(plan, network=None, **changes):
    "StyleDiffusion's inversion of the toy, ready to run."
    base, config, theirs = toy(STYLE)
    trajectory, maps = ddim_up(base, theirs["z0"], theirs["source"], config["steps"])
    owners = [MappedTokens(network or filled("mapping", 10, 8), theirs["image_tokens"], theirs["source"])]
    how = dict(attention=1.0) | changes
    return Learner(
        base, "value", 7.5, plan, trajectory, maps, theirs["source"], theirs["uncond"], owners, **how
    ), base, theirs


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Base(PromptedPipeline(prompted_unet((8, 16), dim=8, heads=2), PromptEncoder(dim=8), prompted_scheduler()))


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


PROMPT = "Smiling=with, Male=without"
SHORT = dict(guidance=3.0, steps=3)


# ── published numbers ──


@torch.no_grad()
def test_mapping_network_with_the_published_token_counts():
    network, theirs = filled("mapping_full", 197, 77), STYLE[1]
    e, text = theirs["full_image_tokens"], theirs["full_text"]
    shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
    published_shapes = STYLE[0]["mapping_full_keys"]
    assert {f"mapping_full.{k}": v for k, v in shapes.items() if "num_batches" not in k} == published_shapes
    assert off(network.film(e), theirs["full_mapped_train"]) < 1e-4
    assert off(network(e, text), theirs["full_film_train"]) < 1e-4
    assert off(network(e[:1], text[:1]), theirs["full_film_train_batch1"]) < 1e-4
    fresh = filled("mapping_full", 197, 77).eval()
    assert off(fresh(e, text), theirs["full_film_eval"]) < 1e-4


@torch.no_grad()
def test_only_values_change_in_a_layer():
    base, _, theirs = toy(STYLE)
    tokens = filled("mapping", 10, 8)(theirs["image_tokens"], theirs["source"])
    assert off(tokens, theirs["value_tokens_first"]) < 1e-4
    layer = base.module("unet.down.cross")
    assert off(layer(theirs["layer_input"], theirs["source"]), theirs["layer_plain"]) < 1e-4
    with value_tokens(base, tokens):
        assert off(layer(theirs["layer_input"], theirs["source"]), theirs["layer_value_only"]) < 1e-4


def test_loss_terms():
    theirs = STYLE[1]
    latent = (theirs["loss_latent"] - theirs["loss_latent_target"]).square().flatten(1).mean(1)
    layers = [{str(i): m[None] for i, m in enumerate(theirs[k])} for k in ("loss_maps", "loss_maps_target")]
    assert off(torch.cat([latent, map_drift(*layers)]), theirs["loss_terms"]) < 1e-4


def test_ddim_inversion_and_its_maps():
    base, config, theirs = toy(STYLE)
    trajectory, maps = ddim_up(base, theirs["z0"], theirs["source"], config["steps"])
    assert off(trajectory[:, 0], theirs["inverted"]) < 1e-3
    assert off(maps[1]["unet.down.cross"][0, :, :8], theirs["inversion_map_down_first"]) < 1e-4
    assert list(maps[0]) == ["unet.down.cross", "unet.up.cross"] and maps[-1] is maps[-2] and len(maps) == 6


def test_first_gradient_and_update():
    network = filled("mapping", 10, 8)
    made, _, theirs = learner([1] * 5, network)
    own = made.owners[0].network
    before = own.conv_end.weight.clone()
    made.step(0)
    for name in ("conv_start.weight", "conv_block.0.0.weight", "conv_block.0.1.weight", "conv_block.0.1.bias",
                 "conv_end.weight", "conv_end.bias"):
        assert off(own.get_parameter(name).grad, theirs[f"first_gradient.{name}"]) < 1e-3, name
    assert off(own.conv_end.weight, theirs["conv_end_weight_after_first_update"]) < 1e-4
    assert torch.equal(network.conv_end.weight, before)  # the network that came is copied


def test_whole_value_inversion():
    plan = STYLE[0]["inner_steps_per_step"]
    assert plan == inner_steps("value", 5, network_calls("value", [3] * 5))
    made, base, theirs = learner(plan)
    got = made.run()
    assert off(got.losses.flatten().double(), theirs["latent_losses"]) < 1e-3
    assert off(got.drifts.flatten().double(), theirs["attention_losses"]) < 1e-3
    assert off(got.tokens[:, 0], theirs["value_tokens_per_step"]) < 1e-3
    path = replay(base, got)
    assert off(path[:, 0], theirs["optimised_path"]) < 1e-3
    assert off(path[1:].flip(0)[0], made.x) < 1e-6


def null_learner(plan, stop=None, guidance=7.5):
    base, config, theirs = toy(NULL)
    trajectory, _ = ddim_up(base, theirs["z0"], theirs["source"], config["steps"], [])
    owners = [FreeTokens(theirs["uncond"])]
    parts = (trajectory, [{}] * 6, theirs["source"], theirs["uncond"], owners)
    return Learner(base, "null", guidance, plan, *parts), base, theirs


def test_null_text():
    made, base, theirs = null_learner([4] * 5)
    first, gradients, updates = made._inner(0, 0, base.predict(made.x, 800, theirs["source"]), [0]), [], []
    assert off(first, theirs["null_first_loss"]) < 1e-4
    assert off(made.owners[0].tokens.grad, theirs["null_first_gradient"]) < 1e-4
    made, base, theirs = null_learner([4] * 5)
    inner = made._inner

    def seen(*args):
        total = inner(*args)
        gradients.append(made.owners[0].tokens.grad[0].clone())
        return total

    made._inner = seen
    got = made.run()
    assert off(torch.stack(gradients), theirs["null_inner_gradients"]) < 1e-3
    assert off(got.tokens[:, 0], theirs["null_list"]) < 1e-3
    path = replay(base, got)
    assert off(path[:, 0], theirs["null_path"]) < 1e-3
    final = (path[1:] - got.trajectory.flip(0)[1:]).square().flatten(2).mean(2)[:, 0]
    assert off(final, theirs["null_final_loss_per_step"]) < 1e-3
    assert got.inner.sum() == NULL[0]["inner_steps_taken"] and off(got.trajectory[:, 0], theirs["inverted"]) < 1e-3
    one, _, theirs = null_learner([1] * 5)
    one.step(0)
    assert off(one.tokens[0], theirs["null_after_one_inner_step"]) < 1e-4


def test_null_text_stops_early(monkeypatch):
    early = NULL[0]["config"]["early"]
    monkeypatch.setattr("latref_nb.values.stop_below", lambda i: early["epsilon"] + 2e-5 * i)
    made, _, theirs = null_learner([early["inner"]] * 5, guidance=early["guidance"])
    got = made.run()
    assert got.inner[:, 0].tolist() == NULL[0]["early_steps_taken"]
    assert off(got.tokens[:, 0], theirs["early_list"]) < 1e-3
    assert (got.losses[0, got.inner[0, 0]:] == 0).all()


def test_direct_inversion():
    base, config, theirs = toy(NULL)
    trajectory, _ = ddim_up(base, theirs["z0"], theirs["source"], config["steps"], [])
    both, null = torch.cat([theirs["source"], theirs["target"]]), theirs["uncond"].expand(2, -1, -1)
    offsets = direct_offsets(base, trajectory.expand(-1, 2, -1, -1, -1), both, null, 7.5)
    assert off(offsets, theirs["direct_offsets"]) < 1e-3


@pytest.mark.parametrize("T", ["30", "50"])
def test_schedules(T):
    told, steps = STYLE[0]["schedules"][T], int(T)
    for n, wanted in told["inner_steps"].items():
        assert inner_steps("value", steps, 3 * steps + sum(wanted)) == wanted, n
    assert inner_steps("value", steps) == told["inner_steps"]["100"]
    assert [learning_rate(i) for i in range(steps)] == pytest.approx(told["learning_rate"])
    assert [stop_below(i) for i in range(steps)] == pytest.approx(told["early_stop"])


# ── our own promises ──


def test_every_method_keeps_to_a_budget():
    for method in METHODS:
        for calls in (80, 131, 300):
            plan = inner_steps(method, 20, calls)
            spent = network_calls(method, plan)
            assert spent <= calls and len(plan) == 20
            if METHODS[method].each == 1:
                assert spent == calls
    assert max(inner_steps("null", 20, 131)) - min(inner_steps("null", 20, 131)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one(base, images, method, monkeypatch):
    how = dict(SHORT, calls=18)
    full = invert_under_guidance(base, images, PROMPT, method, **how)
    if method in LEARNED:  # a threshold at which one image stops earlier than the others
        level = float(full.losses[1, 1].sort().values[:2].mean() + full.drifts[1, 1].mean())
        monkeypatch.setattr("latref_nb.values.stop_below", lambda i: level)
        full = invert_under_guidance(base, images, PROMPT, method, **how)
        assert len(set(full.inner.sum(0).tolist())) > 1
    one = joined_inversions([invert_under_guidance(base, o[None], PROMPT, method, **how) for o in images])
    assert torch.equal(one.inner, full.inner) and torch.equal(one.calls, full.calls)
    for name in ("trajectory", "tokens", "offsets", "losses"):
        a, b = getattr(one, name), getattr(full, name)
        assert (a is None) == (b is None) and (a is None or not a.numel() or off(a, b) < 1e-3), name
    assert torch.equal(full[1].x_T, full.x_T[1:2]) and len(full[[0, 2]]) == 2


def test_a_mapping_network_runs_in_a_batch(base, images):
    g = torch.Generator().manual_seed(2)
    e = torch.randn(3, 16, 8, generator=g)
    torch.manual_seed(5)
    network = MappingNetwork(16, base.null().shape[1])
    how = dict(SHORT, calls=15, image_tokens=e, mapping=network)
    full = invert_under_guidance(base, images, PROMPT, **how)
    assert off(network(e, full.source), full.source) < 1e-6  # begins as the prompt
    one = invert_under_guidance(base, images[1:2], PROMPT, **how | dict(image_tokens=e[1:2]))
    assert off(one.tokens, full[1].tokens) < 1e-3
    other = base.tokens("Smiling=without", 3)
    n = other.shape[1]
    given = full.parts(base, "Smiling=without")
    assert off(given["target_values"], other * full.film[:, :, :n] + full.film[:, :, n:]) < 1e-6
    assert off(full.source * full.film[:, :, :n] + full.film[:, :, n:], full.tokens) < 1e-5
    again = invert_under_guidance(base, images, PROMPT, **how)
    assert torch.equal(again.tokens, full.tokens)


def test_what_learning_is_for(base, images):
    how = dict(guidance=7.5, steps=3, calls=24)
    error = {}
    for method in ("ddim", "null", "value", "key_value", "direct"):
        got = invert_under_guidance(base, images[:2], PROMPT, method, **how)
        error[method] = float((reconstruct(base, got) - images[:2]).square().mean())
        assert error[method] >= 0 and int(got.calls.max()) == network_calls(method, inner_steps(method, 3, 24))
    assert error["direct"] < 1e-8  # exact by construction, so no evidence of anything
    assert error["value"] < error["ddim"] and error["key_value"] < error["ddim"] and error["null"] < error["ddim"]


def test_the_drift_counts(base, images):
    how = dict(SHORT, calls=24)
    free = invert_under_guidance(base, images[:1], PROMPT, attention=0, **how)
    held = invert_under_guidance(base, images[:1], PROMPT, attention=1e4, **how)
    assert (free.drifts == 0).all() and (held.drifts[:, 1:] > 0).any() and not torch.equal(free.tokens, held.tokens)
    assert float(drift_of(base, held).mean()) < 1.05 * float(drift_of(base, free).mean())
    own = invert_under_guidance(base, images[:1], PROMPT, "direct", **how)
    assert float(drift_of(base, own)[1:].max()) < 1e-1 and drift_of(base, own).shape == (3, 1)


def test_fixed_point_inverts_guided_drawing(base, images):
    plan = [8] * 3
    null, key = base.null(2), base.tokens(PROMPT, 2)
    trajectory, errors = fixed_point(base, base.encode(images[:2]), key, null, 2.0, plan)
    got = invert_under_guidance(base, images[:2], PROMPT, "fixed_point", guidance=2.0, steps=3, calls=48)
    assert torch.equal(got.trajectory, trajectory) and torch.equal(got.losses, errors)
    assert (errors[:, -1] < errors[:, 0]).all() and torch.isfinite(trajectory).all()


def test_layers_hooks_and_gradients_are_as_before(base, images):
    names = [(n, type(base.module(n).processor), len(base.module(n).to_v._forward_pre_hooks)) for n in base.layers]

    def stop(*_):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        invert_under_guidance(base, images[:1], PROMPT, callback=stop, calls=12, **SHORT)
    for n, kind, hooks in names:
        m = base.module(n)
        assert (type(m.processor), len(m.to_v._forward_pre_hooks)) == (kind, hooks)
        assert "get_attention_scores" not in vars(m)
    assert all(p.grad is None for p in base.unet.parameters())


def test_a_stop_loses_nothing(base, images, monkeypatch):
    how, seen = dict(SHORT, calls=15), []
    whole = invert_under_guidance(base, images, PROMPT, **how)

    def stop(i, T, losses):
        seen.append((i, T, tuple(losses.shape)))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match="2 of 3 steps") as e:
        invert_under_guidance(base, images, PROMPT, callback=stop, **how)
    part = e.value.inverted
    assert part.done == 2 and torch.equal(part.tokens[:2], whole.tokens[:2])
    assert torch.equal(part.tokens[2], whole.tokens[1]) and torch.isfinite(reconstruct(base, part)).all()
    inner, count = Learner._inner, []

    def stop_inside(*args):  # Ctrl-C in the middle of a step
        count.append(args[2])
        if len(count) == 2:
            raise KeyboardInterrupt
        return inner(*args)

    monkeypatch.setattr(Learner, "_inner", stop_inside)
    with pytest.raises(Stopped) as again:
        e.value.go_on()
    monkeypatch.undo()
    rest = again.value.go_on()
    assert torch.equal(rest.tokens, whole.tokens) and seen[-1] == (2, 3, (3,)) and rest.done == 3


@pytest.mark.parametrize("method", ["value", "direct", "ddim"])
def test_files(base, images, method, tmp_path):
    got = invert_under_guidance(base, images[:2], PROMPT, method, calls=12, **SHORT)
    path = got.save(tmp_path / "two.safetensors")
    back = load_inverted(path)
    assert (back.method, back.guidance, back.timesteps, back.done) == (method, 3.0, got.timesteps, 3)
    assert torch.equal(reconstruct(base, back), reconstruct(base, got)) and torch.equal(back.calls, got.calls)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", whole.replace(b'"source"', b'"sourze"')):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError) as e:
            load_inverted(path)
        assert "two.safetensors" in str(e.value) and "\n" not in str(e.value)
    got.timesteps = got.timesteps[:-1]
    with pytest.raises(CheckpointError, match="holds no inversion"):
        load_inverted(got.save(path))


def test_no_file_with_nan_is_written(base, images, tmp_path):
    got = invert_under_guidance(base, images[:1], PROMPT, "ddim", **SHORT)
    got.trajectory[0] = float("nan")
    with pytest.raises(ValueError, match="trajectory holds NaN"):
        got.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def published_form(network):
    "The same network as StyleDiffusion pickles it: a dictionary of modules."
    return nn.ModuleDict({k: getattr(network, k) for k in ("conv_start", "conv_block", "conv_end")})


def test_published_mapping_files(tmp_path):
    networks = [MappingNetwork(10, 8) for _ in range(3)]
    torch.save([published_form(m) for m in networks], tmp_path / "modules.pt")
    torch.save([m.state_dict() for m in networks], tmp_path / "states.pt")
    for name in ("modules.pt", "states.pt"):
        for ours, theirs in zip(read_mappings(tmp_path / name), networks, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    torch.save([nn.Linear(2, 2)], tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "modules.pt").read_bytes()[:999])
    for name in ("other.pt", "cut.pt", "none.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_mappings(tmp_path / name)


def test_what_is_refused(base, images):
    def wrong(words, given=images, prompt=PROMPT, **how):
        with pytest.raises(ValueError, match=words) as e:
            invert_under_guidance(base, given, prompt, **dict(SHORT, calls=15) | how)
        assert "\n" not in str(e.value)

    wrong("Did you mean 'value'", method="values")
    wrong("guidance=nan", guidance=float("nan"))
    wrong("needs 12 at least", calls=11)
    wrong("steps=101 came", steps=101)
    wrong(r"\(B,3,64,64\) is needed", given=images[:, :, :32])
    wrong("2 prompts came for 3 images", prompt=torch.zeros(2, 6).long())
    wrong("not known", prompt="Smile=with")
    wrong("does not move maps", method="null", attention=1.0)
    wrong("use method='value'", method="key", image_tokens=torch.zeros(3, 16, 8))
    wrong("Needed: ", image_tokens=torch.zeros(3, 16, 7))
    wrong("attention=-1", attention=-1)
    got = invert_under_guidance(base, images[:2], PROMPT, "ddim", **SHORT)
    with pytest.raises(ValueError, match="guidance=inf"):
        reconstruct(base, got, guidance=float("inf"))
    got.timesteps = [o + 1 for o in got.timesteps]
    with pytest.raises(ValueError, match="Use the base that it was made with"):
        reconstruct(base, got)
    other = TagSet([Tag("Hat", ("no", "yes"))])
    with pytest.raises(ValueError, match="Make it with the model's tags"):
        invert_under_guidance(base, images, face_prompt("Hat=yes", tagset=other), "ddim", **SHORT)


def test_edits_get_their_parts(base, images):
    for method, named in {"value": "values", "direct": "offsets"}.items():
        got = invert_under_guidance(base, images[:2], PROMPT, method, calls=12, **SHORT)
        given = got.parts(base)
        assert given[named] is (got.tokens if method == "value" else got.offsets) and given["steps"] == 3
    null = invert_under_guidance(base, images[:2], PROMPT, "null", calls=12, **SHORT)
    assert null.parts(base)["null"] is null.tokens and null.parts(base)["values"] is None
    key = invert_under_guidance(base, images[:2], PROMPT, "key", calls=12, **SHORT)
    with pytest.raises(ValueError, match="row to compare"):
        key.parts(base)


def test_half_precision_is_refused(base, images):
    base.unet.half()
    try:
        with pytest.raises(ValueError, match="optimised in float32"):
            invert_under_guidance(base, images[:1], PROMPT, **SHORT)
    finally:
        base.unet.float()
