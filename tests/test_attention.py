"Recording attention: by name, nothing changed by it, nothing left behind, and within its memory."

import json, math, os
from itertools import permutations
from pathlib import Path
import numpy as np
import pytest
import torch
from latref_nb.attention import (
    AXES,
    AttentionMap,
    attention_grid,
    attention_plan,
    attention_table,
    load_attention,
    overlay,
    part_cover,
    part_shares,
    part_table,
    record_attention,
    recordable_layers,
    save_attention,
)
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.edits import Edit
from latref_nb.pipeline import LatRefPipeline
from latref_nb.unet import attend, attend_and_keep, use_processor
from latref_nb.modulation import style_attention_layers
from style_case import style_pipeline

EDITS = [Edit("Eyeglasses", "with", seed=1), Edit("Smiling", "with", seed=2)]


@pytest.fixture(scope="module")
def pipe():
    return style_pipeline()


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(60, 64, seed=5)


@pytest.fixture(scope="module")
def x(faces):
    return faces.batch([1, 2])["image"]


def processors(pipe):
    return [r.module.processor for r in recordable_layers(pipe).values() if r.kind != "mask"]


def run(pipe, x, edits=EDITS, n=3, **how):
    return pipe(x, edits, n, output_type="pt", **how).images


# ---- names


def test_names_of_layers(pipe):
    names = list(recordable_layers(pipe))
    assert {
        "modulation.Eyeglasses.cross",
        "modulation.Eyeglasses.self",
        "modulation.Eyeglasses.mask",
        "modulation.Male.cross",
        "unet.middle.attn",
        "invert.unet.middle.attn",
        "unet.down.2.attn",
        "encoder.middle.attn",
    } <= set(names)
    assert list(recordable_layers(pipe, "modulation.*.cross")) == [f"modulation.{t}.cross" for t in pipe.tags.names]
    assert set(recordable_layers(pipe, ["*.mask", "unet.middle*"])) == {
        *(f"modulation.{t}.mask" for t in pipe.tags.names),
        "unet.middle.attn",
    }


def test_a_pattern_that_fits_nothing_lists_the_names(pipe):
    with pytest.raises(ValueError, match="modulation.Eyeglasses.cross"):
        recordable_layers(pipe, "modulation.Glasses*")
    plain = LatRefPipeline(pipe.autoencoder, pipe.linear, pipe.mlp)
    with pytest.raises(ValueError, match="no style modulation.*unet.middle.attn"):
        with record_attention(plain):
            pass


# ---- what is recorded


def test_arrays_and_axes(pipe, x):
    with record_attention(pipe, ["modulation.*", "unet.up.2*", "invert.unet.up.2*"], device="cpu") as maps:
        run(pipe, x)
    assert AXES == ("batch", "step", "head", "query", "key")
    assert set(maps) == {
        f"modulation.{t}.{k}" for t in ("Eyeglasses", "Smiling") for k in ("self", "cross", "mask")
    } | {"unet.up.2.attn", "invert.unet.up.2.attn"}
    shapes = {n: tuple(m.weights.shape) for n, m in maps.items()}
    assert (
        shapes["modulation.Smiling.cross"] == (2, 1, 4, 16, 4)
        and shapes["modulation.Smiling.self"] == (2, 1, 4, 16, 16)
        and shapes["modulation.Smiling.mask"] == (2, 1, 1, 16, 1)
    )
    assert shapes["unet.up.2.attn"] == shapes["invert.unet.up.2.attn"] == (2, 3, 4, 64, 64)
    for n, m in maps.items():
        assert m.weights.isfinite().all() and (m.weights >= 0).all() and (m.weights <= 1).all()
        if m.kind != "mask":
            assert torch.allclose(m.weights.sum(-1), torch.ones(()), atol=1e-5), n
    assert maps["unet.up.2.attn"].steps == sorted(maps["unet.up.2.attn"].steps, reverse=True) and maps[
        "invert.unet.up.2.attn"
    ].steps == sorted(maps["invert.unet.up.2.attn"].steps)


def test_weights_are_those_of_the_kept_processor(pipe, x):
    from latref_nb.modulation import use_style_processor

    with record_attention(pipe, ["modulation.Smiling.*", "unet.middle*"]) as maps:
        run(pipe, x)
    with (
        use_processor(pipe.autoencoder.unet, attend_and_keep, "middle*") as unet,
        use_style_processor(pipe.modulation, attend_and_keep, "modulation.Smiling.*") as style,
    ):
        run(pipe, x)
    for n, block in style.items():
        assert torch.allclose(maps[n].weights[:, 0], block.last_weights, atol=1e-6)
    assert torch.allclose(maps["unet.middle.attn"].weights[:, -1], unet["middle.attn"].last_weights, atol=1e-6)


def test_mask_is_the_modulations_own(pipe, x):
    code, feats = (
        pipe.latent_style(x, "Bangs", "with", generator=torch.Generator().manual_seed(0)),
        pipe.autoencoder.encode_features(x),
    )
    with record_attention(pipe, "modulation.Bangs.mask") as maps:
        pipe.modulate(x, "Bangs", "with", code)
    want = pipe.modulation.mask(feats, "Bangs", "with", code).mean(1)
    assert torch.allclose(torch.stack([maps["modulation.Bangs.mask"].key(0, b) for b in range(2)]), want, atol=1e-6)


def test_heads_and_steps_are_a_part_of_the_whole(pipe, x):
    layers = ["unet.up.2*", "modulation.*.cross", "*.mask"]
    with record_attention(pipe, layers) as whole:
        run(pipe, x)
    with record_attention(pipe, layers, heads=[2, 0], steps=[0, 2]) as part:
        run(pipe, x)
    a, b = whole["unet.up.2.attn"], part["unet.up.2.attn"]
    assert (
        torch.allclose(a.weights[:, [0, 2]][:, :, [2, 0]], b.weights, atol=1e-6)
        and b.steps == [a.steps[0], a.steps[2]]
        and b.heads == [2, 0]
    )
    assert (
        part["modulation.Smiling.cross"].weights.shape[2] == 2 and part["modulation.Smiling.mask"].weights.shape[2] == 1
    )
    assert part.bytes < whole.bytes and part.bytes == sum(m.weights.nbytes for m in part.values())


@pytest.mark.parametrize("inversion, iterations", [("ddim", 1), ("fixed_point", 3)])
def test_one_entry_a_step_whatever_the_inversion_asks(pipe, x, inversion, iterations):
    p = LatRefPipeline(pipe.autoencoder, pipe.linear, pipe.mlp, inversion=inversion, iterations=iterations)
    p.set_progress_bar_config(disable=True)
    with record_attention(p, ["*unet.middle*"]) as maps:
        run(p, x, (), 4)
    assert [m.weights.shape[1] for m in maps.values()] == [4, 4]


def test_generated_face_has_no_way_up(pipe, x):
    with record_attention(pipe, "*unet.middle*") as maps:
        run(pipe, x, (), x_T="random", generator=torch.Generator().manual_seed(0))
    assert list(maps) == ["unet.middle.attn"]


def test_verbs_alone_are_recorded_too(pipe, x):
    z = pipe.encode(x)
    with record_attention(pipe, ["*unet.middle*", "encoder*"]) as maps:
        x_T = pipe.invert(x, z, 3)
        pipe.render(x_T, z, 2)
    assert (
        maps["invert.unet.middle.attn"].weights.shape[1] == 3
        and maps["unet.middle.attn"].weights.shape[1] == 2
        and "encoder.middle.attn" not in maps
    )


def test_calls_follow_each_other_and_batches_must_agree(pipe, x):
    with record_attention(pipe, ["unet.middle*"], steps=0) as maps:
        run(pipe, x)
        run(pipe, x, n=2)
    assert maps["unet.middle.attn"].weights.shape[1] == 2, "the first step of each of two calls"
    with record_attention(pipe, ["unet.middle*"]) as maps:
        run(pipe, x)
        run(pipe, x[:1])
    with pytest.raises(ValueError, match="batches of"):
        maps["unet.middle.attn"]


# ---- nothing changed, nothing left behind


def test_recording_changes_no_output(pipe, x):
    before = run(pipe, x)
    with record_attention(pipe, "*"):
        during = run(pipe, x)
    assert (before - during).abs().max() <= 1e-6 and (run(pipe, x) - before).abs().max() <= 1e-6


def test_everything_is_restored_even_after_an_error(pipe, x):
    def stop(pipe, i, t, state):
        raise RuntimeError("stopped on the way")

    before = processors(pipe)
    with pytest.raises(RuntimeError, match="stopped on the way"):
        with record_attention(pipe, "*"):
            run(pipe, x, callback_on_step_end=stop)
    assert processors(pipe) == before and set(before) == {attend}
    assert (
        not pipe.autoencoder.unet._forward_pre_hooks
        and "_invert" not in vars(pipe)
        and not any("mask" in vars(t) for t in pipe.modulation.translators)
    )


def test_two_recordings_inside_each_other(pipe, x):
    with record_attention(pipe, "unet.middle*") as outer:
        with record_attention(pipe, ["*unet.middle*", "modulation.*"]) as inner:
            run(pipe, x)
        run(pipe, x)
    assert (
        torch.equal(outer["unet.middle.attn"].weights[:, :3], inner["unet.middle.attn"].weights)
        and outer["unet.middle.attn"].weights.shape[1] == 6
    )
    assert set(processors(pipe)) == {attend} and "_invert" not in vars(pipe)


LAYERS = {
    "a": ["*unet.middle*", "modulation.*"],
    "b": ["unet.*", "modulation.Smiling.*"],
    "c": ["encoder*", "unet.middle*", "modulation.*.mask"],
}


def untouched(pipe, before):
    return (
        processors(pipe) == before
        and not pipe.autoencoder.unet._forward_pre_hooks
        and "_invert" not in vars(pipe)
        and not any("mask" in vars(t) for t in pipe.modulation.translators)
    )


@pytest.mark.parametrize("order", list(permutations("abc")), ids="".join)
def test_recordings_that_overlap_close_in_any_order(pipe, x, order):
    "Each has what ran while it was open, and the last to close leaves the pipeline as it was."
    before, open_, maps, runs = processors(pipe), {}, {}, dict.fromkeys("abc", 0)
    for name in "abc":
        open_[name] = record_attention(pipe, LAYERS[name])
        maps[name] = open_[name].__enter__()
        run(pipe, x, n=2)
        runs = {k: n + (k in open_) for k, n in runs.items()}
    for name in order:
        open_.pop(name).__exit__(None, None, None)
        run(pipe, x, n=2)
        runs = {k: n + (k in open_) for k, n in runs.items()}
    assert untouched(pipe, before) and set(before) == {attend}
    for name, m in maps.items():
        assert m["unet.middle.attn"].weights.shape[1] == 2 * runs[name], (name, runs)
    assert torch.equal(maps["a"]["unet.middle.attn"].weights[:, -2:], maps["a"]["unet.middle.attn"].weights[:, :2])


@pytest.mark.parametrize("fails", ["a", "b"])
def test_an_error_in_one_recording_leaves_the_other(pipe, x, fails):
    before, a, b = processors(pipe), record_attention(pipe, LAYERS["a"]), record_attention(pipe, LAYERS["b"])
    maps = {"a": a.__enter__(), "b": b.__enter__()}
    open_ = {"a": a, "b": b}
    error = RuntimeError("on the way")
    with pytest.raises(RuntimeError):
        open_.pop(fails).__exit__(RuntimeError, error, None)
        raise error
    run(pipe, x, n=2)
    ((left, context),) = open_.items()
    context.__exit__(None, None, None)
    assert (
        untouched(pipe, before)
        and maps[left]["unet.middle.attn"].weights.shape[1] == 2
        and "unet.middle.attn" not in maps[fails]
    )


def test_the_same_layer_by_other_processors_inside_a_recording(pipe, x):
    before = processors(pipe)
    with record_attention(pipe, "unet.middle*") as maps:
        with use_processor(pipe.autoencoder.unet, attend_and_keep, "middle*"):
            run(pipe, x, n=2)
        run(pipe, x, n=2)
    assert untouched(pipe, before) and maps["unet.middle.attn"].weights.shape[1] == 2


@pytest.mark.parametrize(
    "layers, steps, words",
    [
        ("unet.middle*", [0, 7], "steps 7 came, and the steps walked were 0 to 2"),
        ("*unet.middle*", [3, 99], "steps 3, 99 came"),
        ("modulation.*", 1, "the steps walked were 0 to 0"),
        (["modulation.*", "unet.up.2*"], [0, 2, 5], "steps 5 came"),
    ],
)
def test_steps_that_do_not_exist_are_named(pipe, x, layers, steps, words):
    before = processors(pipe)
    with pytest.raises(ValueError, match=words):
        with record_attention(pipe, layers, steps=steps):
            run(pipe, x)
    with pytest.raises(ValueError, match=words):
        with record_attention(pipe, layers, steps=steps, batch_size=2, num_inference_steps=3):
            raise AssertionError("the work has begun")
    assert untouched(pipe, before)


# ---- memory


@pytest.mark.parametrize("how", [{}, {"heads": [1]}, {"steps": [0, 2]}, {"heads": 0, "steps": 1}])
def test_the_plan_is_what_is_held(pipe, x, how):
    layers = ["modulation.Smiling.*", "encoder*", "*unet*"]
    with record_attention(pipe, layers, **how) as maps:
        run(pipe, x, EDITS[1])
    plan = {r["layer"]: r for r in attention_plan(pipe, layers, batch_size=2, num_inference_steps=3, **how)}
    for n, m in maps.items():
        if not n.startswith("encoder"):
            assert plan[n]["shape"] == tuple(m.weights.shape) and plan[n]["bytes"] == m.weights.nbytes, n
    assert plan["all"]["bytes"] == sum(r["bytes"] for n, r in plan.items() if n != "all")


def test_too_much_is_refused(pipe, x):
    before = processors(pipe)
    with pytest.raises(ValueError, match="would take .* MiB.*the largest is unet"):
        with record_attention(pipe, "unet*", limit=10_000, batch_size=2, num_inference_steps=3):
            run(pipe, x)
    with pytest.raises(ValueError, match="Choose fewer layers, heads or steps"):
        with record_attention(pipe, "unet*", limit=10_000) as maps:
            run(pipe, x)
    assert maps.bytes <= 10_000 and processors(pipe) == before


@pytest.mark.parametrize(
    "how, words",
    [
        ({"heads": 7}, "heads 0 to 3"),
        ({"heads": []}, "counted from 0"),
        ({"steps": -1}, "counted from 0"),
        ({"steps": ["a"]}, "counted from 0"),
    ],
)
def test_wrong_heads_and_steps(pipe, x, how, words):
    with pytest.raises(ValueError, match=words):
        with record_attention(pipe, "modulation.*", **how):
            run(pipe, x)


def test_nothing_recorded_and_unknown_names_say_so(pipe, x):
    with record_attention(pipe) as maps:
        pass
    with pytest.raises(KeyError, match="nothing was recorded"):
        maps["unet.middle.attn"]
    with record_attention(pipe) as maps:
        run(pipe, x)
    with pytest.raises(KeyError, match="modulation.Smiling.cross"):
        maps["modulation.Smilling.cross"]


# ---- reading, files, pictures


def toy():
    return AttentionMap(
        "toy",
        "cross",
        torch.rand(2, 3, 4, 16, 5, generator=torch.Generator().manual_seed(0)).softmax(-1),
        [9, 5, 1],
        [0, 1, 2, 3],
    )


def test_reading_by_place_and_by_key():
    m = toy()
    assert torch.allclose(m.place(2, 1, 1, 0, 3), m.weights[1, 0, 3, 9]) and torch.allclose(
        m.place(0, 3), m.weights[0, :, :, 3].mean((0, 1))
    )
    assert torch.allclose(m.key(4, 1, 2, 0), m.weights[1, 2, 0, :, 4].reshape(4, 4)) and torch.allclose(
        m.spread(2).sum(), torch.ones(())
    )
    assert torch.allclose(m.broadness(), (-(m.weights * m.weights.log2()).sum(-1)).exp2().mean(-1))
    for wrong in (
        lambda: m.place(4, 0),
        lambda: m.key(5),
        lambda: m.key(0, batch=2),
        lambda: m.key(0, step=3),
        lambda: m.key(0, head=9),
    ):
        with pytest.raises(ValueError, match="came; what was recorded has"):
            wrong()


def test_file_and_table(tmp_path):
    m = toy()
    again = load_attention(save_attention(tmp_path / "maps.npz", {"toy": m}))["toy"]
    assert torch.equal(again.weights, m.weights) and (again.kind, again.steps, again.heads) == (
        m.kind,
        m.steps,
        m.heads,
    )
    assert np.load(tmp_path / "maps.npz")["toy"].shape == (2, 3, 4, 16, 5)
    row = attention_table({"toy": m})[0]
    assert row["keys"] == 5 and 1 <= row["keys in use"] <= 5 and row["queries"] == 16


def kept(path, about=None, **arrays):
    "A file with one thing changed."
    m, told = toy(), {"toy": {"kind": "cross", "steps": [9, 5, 1], "heads": [0, 1, 2, 3], "axes": AXES}}
    with open(path, "wb") as f:
        np.savez_compressed(
            f, **({"about": np.array(json.dumps(told) if about is None else about), "toy": m.weights.numpy()} | arrays)
        )
    return path


def told(**changes):
    return json.dumps({"toy": {"kind": "cross", "steps": [9, 5, 1], "heads": [0, 1, 2, 3]} | changes})


@pytest.mark.parametrize(
    "how",
    [
        dict(about="["),
        dict(about="3"),
        dict(about="[" * 50_000),
        dict(about="[1]"),
        dict(about='{"toy": 3}'),
        dict(about='{"other": {}}'),
        dict(about=told(kind="magic")),
        dict(about=told(kind=["self"])),
        dict(about=told(steps=[1])),
        dict(about=told(steps="abc")),
        dict(about=told(steps=[1, 2, "a"])),
        dict(about=told(heads=[0.5, 1, 2, 3])),
        dict(about=told(heads=None)),
        dict(toy=np.zeros(3)),
        dict(toy=np.zeros((2, 3, 4, 16, 5), int)),
        dict(toy=np.full((2, 3, 4, 16, 5), np.nan)),
        dict(toy=np.array(["a"])),
        dict(toy=np.array([None], object)),
    ],
    ids=lambda h: str(h)[:40],
)
def test_files_of_other_content(tmp_path, how):
    with pytest.raises(ValueError, match="maps.npz holds no recorded attention") as e:
        load_attention(kept(tmp_path / "maps.npz", **how))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: None,
        Path.touch,
        Path.mkdir,
        os.mkfifo,
        lambda p: p.symlink_to("/dev/zero"),
        lambda p: p.write_text("<html>"),
        lambda p: np.save(p.open("wb"), np.zeros(3)),
        lambda p: p.write_bytes(kept(p).read_bytes()[:300]),
        lambda p: torch.save({"a": 1}, p),
    ],
)
def test_files_that_are_none(tmp_path, make):
    make(tmp_path / "maps.npz")
    with pytest.raises(ValueError, match="maps.npz") as e:
        load_attention(tmp_path / "maps.npz")
    assert "\n" not in str(e.value)


def test_a_file_does_not_decide_how_much_memory_is_taken(tmp_path):
    path = kept(tmp_path / "maps.npz", toy=np.zeros((1, 3, 4, 1000, 1000), np.float32))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="its arrays take 45.8 MiB, more than 9.5 MiB"):
        load_attention(path, limit=10**7)


def test_overlay_and_grid():
    image, heat = torch.ones(3, 64, 64), torch.zeros(4, 4)
    heat[1, 2] = 1
    sharp = overlay(image, heat, smooth=False, alpha=1.0).astype(int).sum(-1)
    assert sharp.shape == (64, 64) and (sharp == sharp.max()).sum() == 256 and sharp[24, 40] == sharp.max(), (
        "the place of row 1, column 2"
    )
    assert (
        overlay(image, heat).dtype == np.uint8
        and overlay(image, torch.zeros(4, 4), smooth=False).std((0, 1)).max() == 0
    )
    assert len(attention_grid(image, torch.rand(2, 3, 4, 4)).axes) == 6


# ---- parts of the face


def test_shares_of_parts_sum_to_one_and_even_attention_gives_the_area(faces):
    masks = faces.masks([0, 1, 2])
    cover = part_cover(masks, 4)
    assert torch.allclose(cover.sum(1), torch.ones(()))
    shares = part_shares(torch.rand(3, 16, 6), cover)
    assert torch.allclose(shares.sum(1), torch.ones(()), atol=1e-5)
    even = part_shares(torch.full((3, 16, 6), 1 / 6), cover)
    assert torch.allclose(even, cover.mean(2)[..., None].expand_as(even), atol=1e-6)


def test_a_token_at_one_place_gets_that_places_parts(faces):
    masks, w = faces.masks([0]), torch.zeros(1, 16, 2)
    w[0, 5, 0] = 1
    w[0, :, 1] = 1
    got = part_shares(w, part_cover(masks, 4, {c: (c,) for c in CLASSES}))[0, :, 0]
    assert torch.allclose(got, masks[0, :, 16:32, 16:32].float().mean((1, 2)), atol=1e-6)


def test_part_table(pipe, x, faces):
    with record_attention(pipe, "modulation.Smiling.*") as maps:
        run(pipe, x)
    rows = part_table(maps["modulation.Smiling.cross"], faces.masks([1, 2]))
    assert [r["token"] for r in rows] == ["0", "1", "2", "3", "area"] and all(
        math.isclose(sum(v for k, v in r.items() if k != "token"), 1, abs_tol=1e-5) for r in rows
    )
    with pytest.raises(ValueError, match="masks of 1 faces"):
        part_table(maps["modulation.Smiling.cross"], faces.masks([1]))


def test_every_layer_of_the_modulation_can_be_recorded(pipe):
    assert set(style_attention_layers(pipe.modulation)) <= set(recordable_layers(pipe, "modulation.*"))
