"Published weights: every name and shape, the same numbers, and clear words for files that are not what they should be."

import json, os, pickle, shutil, zipfile
from collections import OrderedDict
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file, save_file
from latref_nb.autoencoder import PRESETS, DiffusionAutoencoder
from latref_nb.official import (
    bare_weights,
    diffae_from_state_dict,
    fill_by_rule,
    latref_from_state_dict,
    latref_networks,
    load_diffae,
    load_latref,
    preset_of,
    published_names,
    read_checkpoint,
    released_tensors,
)
from latref_nb.checkpoints import CheckpointError
from latref_nb.edits import Edit
from latref_nb.pipeline import LatRefPipeline
from latref_nb.sampling import invert, render

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = json.loads((FIXTURES / "diffae_small.json").read_text())


@pytest.fixture(scope="module")
def truth():
    return load_file(FIXTURES / "diffae_small.safetensors")


@pytest.fixture(scope="module")
def weights():
    return fill_by_rule(SMALL["keys"])


@pytest.fixture(scope="module")
def model(weights):
    return diffae_from_state_dict(weights, **SMALL["config"])


@pytest.fixture(scope="module")
def ckpt(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "last.ckpt"
    torch.save(
        {
            "state_dict": {f"ema_model.{k}": v for k, v in weights.items()}
            | {f"model.{k}": -v for k, v in weights.items()}
            | {"x_T": torch.zeros(2)},
            "epoch": 1,
        },
        path,
    )
    return path


def off(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_code(model, truth):
    with torch.no_grad():
        assert off(model.encode(truth["x"]), truth["z_sem"]) <= 1e-4


@pytest.mark.parametrize("t", [0, 500, 999])
def test_noise(model, truth, t):
    with torch.no_grad():
        assert off(model.denoise(truth["x_t"], t, truth["z_sem"]), truth[f"eps_t{t}"]) <= 1e-4


def test_inversion_and_rendering(model, truth):
    with torch.no_grad():
        z = model.encode(truth["x"])
    up = invert(model, truth["x"], z, SMALL["ddim_steps"])
    assert up.timesteps[:-1] == SMALL["timesteps"]
    assert off(up.x_T, truth["x_T"]) <= 1e-3
    assert off(render(model, up.x_T, z, SMALL["ddim_steps"]).images, truth["reconstruction"]) <= 1e-3


@pytest.mark.parametrize("name", ["ffhq128_autoenc", "ffhq256_autoenc"])
def test_published_names_one_to_one(name):
    theirs = json.loads((FIXTURES / f"{name}.keys.json").read_text())["keys"]
    with torch.device("meta"):
        state = DiffusionAutoencoder(**PRESETS[name]).state_dict()
    names = published_names(state)
    assert len(set(names.values())) == len(names) == len(theirs)
    assert {names[k]: list(v.shape) for k, v in state.items()} == theirs


@pytest.mark.parametrize("name", ["ffhq128_autoenc", "ffhq256_autoenc"])
def test_presets_are_recognised(name):
    theirs = json.loads((FIXTURES / f"{name}.keys.json").read_text())["keys"]
    assert preset_of({k: torch.empty(s, device="meta") for k, s in theirs.items()}) == name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w},
        lambda w: {f"model.{k}": v for k, v in w.items()},
        lambda w: {f"ema_model.{k}": v for k, v in w.items()},
        lambda w: {
            "state_dict": {f"ema_model.{k}": v for k, v in w.items()} | {f"model.{k}": v + 1 for k, v in w.items()},
            "epoch": 3,
        },
    ],
)
def test_prefixes(wrap, weights):
    assert bare_weights(wrap(weights)).keys() == weights.keys() and torch.equal(
        bare_weights(wrap(weights))["out.2.bias"], weights["out.2.bias"]
    )


def test_weights_as_trained(weights, ckpt):
    m = load_diffae(ckpt, "model", **SMALL["config"])
    assert torch.equal(m.unet.conv_out.bias, -weights["out.2.bias"])


def test_tensors_are_copied_as_float32(weights, model):
    half = {k: v.half() for k, v in weights.items()}
    m = diffae_from_state_dict(half, **SMALL["config"])
    assert m.dtype == torch.float32 and not m.training
    m.unet.conv_out.bias.data += 1
    assert torch.equal(half["out.2.bias"], weights["out.2.bias"].half())


def test_config_by_our_names(weights):
    config = {**SMALL["config"]}
    config["z_dim"] = config.pop("embed_channels")
    assert diffae_from_state_dict(weights, **config).config.z_dim == 512


def test_trained_further(model, truth):
    m = diffae_from_state_dict(fill_by_rule(SMALL["keys"]), **SMALL["config"])
    m(truth["x_t"], 5, m.encode(truth["x"])).square().mean().backward()
    assert all(p.grad is not None for p in m.parameters())


def test_saves_like_our_own(model, truth, tmp_path):
    model.save_pretrained(tmp_path)
    again = DiffusionAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.encode(truth["x"]), model.encode(truth["x"]))


def changed(weights, drop=(), **new):
    return {k: v for k, v in weights.items() if k not in drop} | new


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(drop=("out.2.bias",)), "1 missing: out.2.bias. Give the config"),
        (dict(extra=torch.zeros(1)), "1 unexpected: extra"),
        (dict(**{"out.2.bias": torch.zeros(4)}), r"1 of another shape: out.2.bias \(4,\) for \(3,\)"),
        (
            dict(drop=("out.2.bias",), extra=torch.zeros(1), **{"out.0.bias": torch.zeros(1)}),
            "1 missing: .*; 1 unexpected: .*; 1 of another shape: ",
        ),
    ],
)
def test_weights_that_do_not_fit(change, said, weights):
    with pytest.raises(CheckpointError, match=said) as e:
        diffae_from_state_dict(changed(weights, **change), **SMALL["config"])
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_another_config(weights):
    with pytest.raises(CheckpointError, match="missing: .* and [0-9]+ more"):
        diffae_from_state_dict(weights, **{**SMALL["config"], "num_res_blocks": 3})


@pytest.mark.parametrize("tensors", [{}, {"fc.weight": torch.zeros(2)}, {"state_dict": {}}])
def test_foreign_weights(tensors):
    with pytest.raises(CheckpointError, match="None of the [01] tensors has a name of this network"):
        diffae_from_state_dict(tensors, **SMALL["config"])


def test_no_config_and_no_preset(weights):
    with pytest.raises(CheckpointError, match="fit none of the presets"):
        diffae_from_state_dict(weights)


def test_unknown_choice_of_weights(weights):
    with pytest.raises(ValueError, match="choose 'ema'"):
        bare_weights(weights, "best")


def test_file(ckpt, model, truth):
    with torch.no_grad():
        assert torch.equal(load_diffae(ckpt, **SMALL["config"]).encode(truth["x"]), model.encode(truth["x"]))


def test_safetensors_file(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    assert read_checkpoint(tmp_path / "w.safetensors").keys() == weights.keys()


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.999])
def test_truncated(share, ckpt, tmp_path):
    whole = ckpt.read_bytes()
    for name in ("cut.ckpt", "cut.safetensors"):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match="cut short") as e:
            load_diffae(tmp_path / name, **SMALL["config"])
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(100), pickle.dumps({"a": 1})]
)
def test_files_of_another_kind(content, tmp_path):
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError) as e:
        load_diffae(tmp_path / "other.ckpt")
    assert "\n" not in str(e.value) and "other.ckpt" in str(e.value)


@pytest.mark.parametrize("data", [[1, 2], {"epoch": 1}, torch.zeros(3)])
def test_files_without_named_tensors(data, tmp_path):
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        load_diffae(tmp_path / "x.pt")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        load_diffae(tmp_path / "no.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_diffae(tmp_path)


@pytest.mark.parametrize("name", ["last.ckpt", "last.pth", "last.safetensors"])
def test_the_format_before_1_6(weights, tmp_path, name):
    "Files that are no zip: read by the same rules, classes of other packages passed over, nothing run."
    torch.save(
        {
            "state_dict": {f"model.{k}": v for k, v in weights.items()},
            "callbacks": {Callback: Callback()},
            "path": Path("x"),
        },
        tmp_path / name,
        _use_new_zipfile_serialization=False,
    )
    m = load_diffae(tmp_path / name, "model", **SMALL["config"])
    assert torch.equal(m.unet.conv_out.bias, weights["out.2.bias"])


def test_no_code_of_an_old_file_is_run(weights, tmp_path):
    for protocol in (2, 4):
        torch.save(
            {"state_dict": weights, "x": Evil(str(tmp_path / "ran"))},
            tmp_path / "evil.pt",
            _use_new_zipfile_serialization=False,
            pickle_protocol=protocol,
        )
        try:
            read_checkpoint(tmp_path / "evil.pt")
        except CheckpointError as e:
            assert "\n" not in str(e)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_old_files_that_are_cut(weights, tmp_path, share):
    torch.save(dict(weights), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: max(40, int(share * len(whole)))])
    with pytest.raises(CheckpointError, match="damaged, cut short") as e:
        read_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(e.value)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as f:
        for n, t in files.items():
            f.writestr(n, t)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: p.write_bytes(b""), "empty, so cut short"),
        (lambda p: p.write_text("<html>404</html>"), "not understood"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "not understood"),
        (lambda p: zipped(p, a="text"), "not understood"),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), p), "not understood"),
        (lambda p: p.write_bytes(b"PK" + bytes(99)), "damaged"),
        (os.mkfifo, "is needed"),
        (lambda p: p.symlink_to("/dev/zero"), "is needed"),
        (Path.mkdir, "is a folder"),
        (lambda p: p.symlink_to("nowhere"), "is not there"),
        (lambda p: (torch.save({f"a{i}": torch.rand(99) for i in range(9)}, p), flipped(p)), "damaged"),
    ],
)
def test_damaged_is_told_from_not_understood(tmp_path, make, words):
    make(tmp_path / "x.ckpt")
    for load in (load_diffae, load_latref):
        with pytest.raises(CheckpointError, match=words) as e:
            load(tmp_path / "x.ckpt")
        assert "\n" not in str(e.value) and "x.ckpt" in str(e.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w},
        lambda w: {"ema": w, "model": {k: v + 1 for k, v in w.items()}},
        lambda w: {"state_dict": {"model": w}},
        lambda w: {"model": {"state_dict": w}, "optimizer": {"state": {0: {"a": torch.zeros(1)}}}},
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"module._orig_mod.ema_model.{k}": v for k, v in w.items()}},
        lambda w: {"model": {f"model.module.{k}": v for k, v in w.items()}},
        lambda w: {"model_state_dict": w, "epoch": torch.tensor(3)},
        lambda w: {"state_dict": OrderedDict(w)},
        lambda w: w | {3: torch.zeros(1), "epoch": 7},
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_wrappings_are_taken_off(weights, tmp_path, wrap, old):
    torch.save(wrap(dict(weights)), tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    assert torch.equal(load_diffae(tmp_path / "a.pt", **SMALL["config"]).unet.conv_out.bias, weights["out.2.bias"])


def test_as_trained_where_both_are_wrapped(weights):
    both = {"ema": {k: v + 1 for k, v in weights.items()}, "model": dict(weights)}
    assert torch.equal(bare_weights(both, "model")["out.2.bias"], weights["out.2.bias"]) and torch.equal(
        bare_weights(both)["out.2.bias"], weights["out.2.bias"] + 1
    )


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "words",
        [],
        [1, torch.zeros(2)],
        {"state_dict": None},
        {"state_dict": [1]},
        {"state_dict": 3},
        {"model": {"model": {"model": None}}},
        {"state_dict": {"a": "b"}},
        {1: torch.zeros(2)},
        (1, 2),
    ],
    ids=str,
)
def test_files_that_hold_something_else(data, tmp_path):
    torch.save(data, tmp_path / "x.pt")
    for load in (load_diffae, load_latref):
        with pytest.raises(CheckpointError, match="holds no named tensors") as e:
            load(tmp_path / "x.pt")
        assert "\n" not in str(e.value)
    for f in (diffae_from_state_dict, latref_from_state_dict):
        with pytest.raises(CheckpointError):
            f(data)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda v: v.long(), "torch.int64"),
        (lambda v: v.bool(), "torch.bool"),
        (lambda v: v.to(torch.complex64), "torch.complex64"),
        (lambda v: v.to_sparse(), "torch.sparse_coo"),
        (lambda v: v * torch.nan, "NaN or infinity"),
        (lambda v: v + torch.inf, "NaN or infinity"),
        (lambda v: v.to("meta"), "no numbers"),
    ],
)
def test_tensors_that_are_no_weights(weights, make, words):
    with pytest.raises(CheckpointError, match="1 tensors are no finite floating-point numbers: out.2.bias") as e:
        diffae_from_state_dict(weights | {"out.2.bias": make(weights["out.2.bias"])}, **SMALL["config"])
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_half_checkpoints_come_back_as_saved(weights, tmp_path, kind):
    torch.save({k: v.to(kind) for k, v in weights.items()}, tmp_path / "a.pt")
    save_file({k: v.to(kind) for k, v in weights.items()}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert (
            load_diffae(tmp_path / name, **SMALL["config"]).dtype == kind
            and load_diffae(tmp_path / name, dtype=None, **SMALL["config"]).dtype == torch.float32
        )


@pytest.mark.parametrize(
    "config, words",
    [
        ({"nonsense": 3}, "'nonsense' is not known"),
        ({"image_sise": 64}, "Did you mean 'image_size'?"),
        ({"image_size": "abc"}, "image_size='abc'"),
        ({"channel_mult": "wide"}, "channel_mult='wide'"),
        ({"time_embed_dim": -4}, "time_embed_dim=-4"),
        ({"num_res_blocks": 10**6}, "num_res_blocks=1000000"),
        ({"model_channels": 10**9}, "model_channels"),
        ({"num_heads": 7}, "num_heads=7"),
        ({"image_size": 33}, "image_size=33"),
        ({"schedule": "line"}, "Did you mean 'linear'?"),
    ],
)
def test_settings_that_are_none(weights, config, words):
    for f in (
        lambda: diffae_from_state_dict(weights, **SMALL["config"] | config),
        lambda: latref_from_state_dict(
            {"model.a": torch.zeros(1), "extractors.a": torch.zeros(1)}, **LATREF["config"] | config
        ),
    ):
        with pytest.raises(ValueError) as e:
            f()
        assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"tags": "Male"}, "tags='Male'"),
        ({"tags": 3}, "tags=3"),
        ({"tags": [3]}, "tags=[3]"),
        ({"tags": []}, "tags"),
        ({"tags": ["A", "A"]}, "different names"),
        ({"values": "two"}, "values='two'"),
        ({"values": 1}, "values=1"),
        ({"values": 10**9}, "values"),
        ({"preset": "paper265"}, "paper256"),
    ],
)
def test_tags_and_presets_that_are_none(config, words):
    with pytest.raises(ValueError) as e:
        latref_from_state_dict({"model.a": torch.zeros(1), "extractors.a": torch.zeros(1)}, **LATREF["config"] | config)
    assert words in str(e.value) and "\n" not in str(e.value)


class Callback:
    def __init__(self):
        self.best = 0.5


class Reduced:
    "Pickles as a call of a class with arguments."

    def __reduce__(self):
        return Reduced, (), {"a": 1}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_classes_of_a_training_framework_are_ignored(weights, tmp_path):
    torch.save(
        {"state_dict": weights, "callbacks": {Callback: Callback(), "other": Reduced()}, "path": Path("x")},
        tmp_path / "f.ckpt",
    )
    assert read_checkpoint(tmp_path / "f.ckpt").keys() == weights.keys()


def test_no_code_of_a_file_is_run(weights, tmp_path):
    mark = tmp_path / "ran"
    torch.save({"state_dict": weights, "x": Evil(str(mark))}, tmp_path / "evil.ckpt")
    try:
        read_checkpoint(tmp_path / "evil.ckpt")
    except CheckpointError:
        pass
    assert not mark.exists()


# ---- LatRef-Diff
LATREF = json.loads((FIXTURES / "latref_small.json").read_text())


@pytest.fixture(scope="module")
def released():
    return fill_by_rule(LATREF["keys"])


@pytest.fixture(scope="module")
def numbers():
    return load_file(FIXTURES / "latref_small.safetensors")


@pytest.fixture(scope="module")
def nets(released):
    return latref_from_state_dict(released, **LATREF["config"])


def test_latref_names_one_to_one():
    with torch.device("meta"):
        want = released_tensors(latref_networks(**LATREF["config"]))
    theirs = [k for o in want.values() for k in o]
    assert (
        len(theirs) == len(set(theirs)) and {k: list(s) for o in want.values() for k, s in o.items()} == LATREF["keys"]
    )


@torch.no_grad()
@pytest.mark.parametrize("tag, value", LATREF["cases"])
def test_latref_numbers(nets, numbers, tag, value):
    case, n = f"_{tag}_{value}", numbers
    feats, z = nets.autoencoder.encode_features(n["source"]), nets.autoencoder.encode(n["source"])
    assert off(feats, n["source_features"]) <= 1e-4 and off(z, n["z_source"]) <= 1e-4
    assert (
        off(nets.extractor.features(n["reference"]), n["reference_features"]) <= 1e-4
        and off(nets.mapper.prior(n["source"]), n["image_prior"][:, 0]) <= 1e-4
    )
    for kind, code in (
        ("ref", nets.extractor(n["reference"], tag, value)),
        ("lat", nets.mapper(n["source"], tag, value, n["noise"])),
    ):
        assert (
            off(code.vector, n[f"{kind}_style{case}"]) <= 1e-4 and off(code.tokens, n[f"{kind}_tokens{case}"]) <= 1e-4
        )
        made = nets.modulation(feats, tag, value, code)
        z_new = nets.autoencoder.head(made)
        assert off(z_new, n[f"{kind}_z{case}"]) <= 1e-4
        if kind == "ref":
            assert (
                off(made, n[f"ref_modulated{case}"]) <= 1e-4
                and off(z + 0.9 * (z_new - z), n[f"ref_z_gain0.9{case}"]) <= 1e-4
            )


def test_latref_file_to_pipeline(released, numbers, tmp_path):
    config = LATREF["config"] | {"tags": LATREF["config"]["tags"][:1]}  # one tag: half of the bytes
    with torch.device("meta"):
        want = {k: shape for o in released_tensors(latref_networks(**config)).values() for k, shape in o.items()}
    one = {
        k: released[k][tuple(slice(n) for n in shape)].clone() for k, shape in want.items()
    }  # the learnable tokens of the first tag come first
    torch.save(
        {"state_dict": one | {"ema_model.x": torch.zeros(1)}, "epoch": 1, "hyper_parameters": {"seed": 0}},
        tmp_path / "LatRef.ckpt",
    )
    load_latref(tmp_path / "LatRef.ckpt", **config).pipeline().save_pretrained(tmp_path / "out")
    pipe = LatRefPipeline.from_pretrained(tmp_path / "out")
    assert (
        pipe.tags.names == config["tags"]
        and off(pipe.reference_style(numbers["reference"], "Male", "with").vector, numbers["ref_style_0_1"]) <= 1e-4
    )
    shutil.rmtree(tmp_path)  # 1 GB that pytest would keep


@pytest.mark.parametrize(
    "change, config, says",
    [
        (
            lambda w: {k: v for k, v in w.items() if k.startswith("model.") and "encoder2" not in k},
            {},
            "use load_diffae",
        ),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("mappers.1")}, {}, "47 missing: mappers.1"),
        (lambda w: w | {"mappers.3.pos_emb": torch.zeros(1, 5, 256)}, {}, "unexpected: mappers.3.pos_emb"),
        (lambda w: w | {"mappers.0.pos_emb": torch.zeros(1, 9, 256)}, {}, "of another shape"),
        (lambda w: w, {"tags": ["Male", "Young"]}, "unexpected"),
        (lambda w: {"fc.weight": torch.zeros(3)}, {}, "Give a LatRef-Diff checkpoint"),
    ],
)
def test_latref_foreign_weights(released, change, config, says):
    with pytest.raises(CheckpointError, match=says):
        latref_from_state_dict(change(released), **{**LATREF["config"], **config})


def test_latref_cut_file(tmp_path, released):
    torch.save({"state_dict": {k: v for k, v in released.items() if v.numel() < 9}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged, cut short"):
        load_latref(tmp_path / "b.ckpt")


def test_paper256_sizes():
    with torch.device("meta"):
        paper = latref_networks("paper256")
    want = {k: list(s) for o in released_tensors(paper).values() for k, s in o.items()}
    same = [k for k in LATREF["keys"] if not k.startswith("model.")]
    assert {k: want[k] for k in same} == {
        k: LATREF["keys"][k] for k in same
    }  # the style networks do not depend on the image size
    assert paper.autoencoder.config.image_size == 256 and sum(
        m.num_parameters() for m in paper.parts().values()
    ) == pytest.approx(465e6, rel=0.01)
    with pytest.raises(ValueError, match="paper256"):
        latref_networks("paper265")


def test_a_small_paper_model_edits_end_to_end(nets, numbers):
    pipe = nets.pipeline()
    edits = [Edit("Smiling", "with", reference=numbers["reference"]), Edit("Male", "without", seed=3, gain=0.9)]
    out = pipe(numbers["source"], edits, num_inference_steps=2, output_type="pt")
    assert out.images.shape == (2, 3, 32, 32) and not torch.allclose(out.z, out.z_edit, atol=1e-3)
    assert torch.equal(
        pipe(
            numbers["source"], [Edit("Smiling", "with", seed=1, gain=0)], num_inference_steps=2, output_type="pt"
        ).z_edit,
        out.z,
    )
