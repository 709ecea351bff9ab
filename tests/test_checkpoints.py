"What may be in a file that somebody gave you: every network and every reader says in one line what is wrong, before memory is taken."

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from repo import HANG
from latref_nb.pipeline import LatRefPipeline
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.checkpoints import LIMITS, WEIGHTS, CheckpointError, check_settings, load_part, read_tensors
from latref_nb.ablations import DirectionStyles, Stages, load_stages, save_stages
from latref_nb.tags import CELEBA_TAGS, TagSet
from latref_nb.tags import CELEBA_TAGS, TagSet
from latref_nb.directions import ValueClassifier
from latref_nb.latent import LatentPrior
from latref_nb.masks import PictureMask
from latref_nb.judges import FactorNet, IdentityNet, Judge, load_network
from latref_nb.modulation import StyleModulation
from latref_nb.perceptual import PerceptualNet, load_perceptual
from latref_nb.styles import LatentMapper, ReferenceExtractor, StyleCode, load_styles, save_styles

TAGS, SMALL = TagSet(CELEBA_TAGS.tags[1:3]), dict(size=16, widths=[8, 8, 8, 8])
ENCODER = dict(
    image_size=16, model_channels=16, channel_mult=[1, 1], num_res_blocks=1, attention_resolutions=[8], z_dim=8
)
STYLE = dict(style_dim=4, n_tokens=2, token_dim=8)
MAKE = {
    "autoencoder": lambda: DiffusionAutoencoder(
        **ENCODER, patch_size=2, enc_channel_mult=[1, 1], enc_attention_resolutions=[]
    ),
    "classifier": lambda: ValueClassifier(8, TAGS, "mlp", 4, {"image_specific": {"Bangs=with": 1.5}}),
    "perceptual": lambda: PerceptualNet(TAGS, n_factors=3, **SMALL),
    "judge": lambda: Judge(TAGS, **SMALL),
    "identity": lambda: IdentityNet(dim=4, n_factors=2, n_context=2, **SMALL),
    "factors": lambda: FactorNet(TAGS, shown={f"{t}={v}": ["length", "size"] for t, v in TAGS.pairs}, **SMALL),
    "mask": lambda: PictureMask(TAGS, 8, 16, grid=4, width=8),
    "prior": lambda: LatentPrior(8, 8, 2),
    "modulation": lambda: StyleModulation(TAGS, 16, width=8, blocks=1, style_dim=4, token_dim=8, vector_dim=4, heads=2),
    "extractor": lambda: ReferenceExtractor(
        TAGS, ENCODER, side=8, width=8, heads=2, layers=1, bottleneck=4, whole=True, **STYLE
    ),
    "mapper": lambda: LatentMapper(
        TAGS, 16, prior_widths=[4], noise_tokens=2, noise_dim=4, width=8, heads=2, layers=1, **STYLE
    ),
    "directions": lambda: DirectionStyles(TAGS, 8, **STYLE),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    "A folder of each network."
    out = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, make in MAKE.items():
        make().save_pretrained(out / name)
    return out


@pytest.fixture
def copies(saved, tmp_path):
    "Networks to spoil."
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


def refused(f, *words, exc=CheckpointError):
    "One line of a clear error that has these words in it."
    with pytest.raises(exc) as e:
        f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 700, said
    for w in words:
        assert w in said, said


@cache
def cls_of(name):
    return type(MAKE[name]())


def reconfigure(folder, drop=(), **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in drop} | changes))


def reweigh(folder, change):
    path = folder / WEIGHTS
    tensors = load_file(path)
    save_file(change(dict(tensors)), path)


# ---- what is whole comes back


@pytest.mark.parametrize("name", MAKE)
def test_every_network_comes_back(saved, name):
    want = load_file(saved / name / WEIGHTS)
    for part in (
        load_part(cls_of(name), saved / name),
        cls_of(name).from_pretrained(saved / name, low_cpu_mem_usage=False),
    ):
        have = part.state_dict()
        assert (
            have.keys() == want.keys() and all(torch.equal(have[k], v) for k, v in want.items()) and not part.training
        )
        assert all(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_half_is_read_as_asked(copies, name):
    folder = copies(name)
    reweigh(folder, lambda t: {k: v.half() for k, v in t.items()})
    kinds = {
        dtype: {v.dtype for v in load_part(cls_of(name), folder, dtype).state_dict().values()}
        for dtype in (None, "auto", "float64", torch.float16)
    }
    assert kinds == {
        None: {torch.float32},
        "auto": {torch.float16},
        "float64": {torch.float64},
        torch.float16: {torch.float16},
    }


def test_weights_have_memory_of_their_own(copies):
    folder = copies("mask")
    part = load_part(PictureMask, folder, "auto")
    before = {k: v.clone() for k, v in part.state_dict().items()}
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())


def test_loading_leaves_randomness_alone(saved):
    for name in MAKE:
        cls_of(name)
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    for name in MAKE:
        load_part(cls_of(name), saved / name)
    assert torch.equal(torch.rand(2), want)


def test_links_to_files_are_files(copies, tmp_path):
    folder = copies("mask")
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert load_part(PictureMask, folder).config.grid == 4


# ---- weights that are none


def first(t):
    return next(k for k, v in t.items() if v.ndim)


def altered(f):
    return lambda p: reweigh(p, f)


def swapped(p, make):
    (p / WEIGHTS).unlink()
    make(p / WEIGHTS)


SPOILED = {
    "missing": lambda p: (p / WEIGHTS).unlink(),
    "empty": lambda p: (p / WEIGHTS).write_bytes(b""),
    "cut": lambda p: os.truncate(p / WEIGHTS, 300),
    "one byte short": lambda p: os.truncate(p / WEIGHTS, (p / WEIGHTS).stat().st_size - 1),
    "zeros": lambda p: (p / WEIGHTS).write_bytes(bytes(4000)),
    "page": lambda p: (p / WEIGHTS).write_text("<html>404</html>" * 20),
    "huge head": lambda p: (p / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + bytes(99)),
    "deep head": lambda p: (p / WEIGHTS).write_bytes((90_000).to_bytes(8, "little") + b"[" * 90_000),
    "no tensors": altered(lambda t: {}),
    "one missing": altered(lambda t: {k: v for k, v in t.items() if k != first(t)}),
    "one more": altered(lambda t: t | {"extra": torch.zeros(2)}),
    "renamed": altered(lambda t: {("x" if k == first(t) else k): v for k, v in t.items()}),
    "line in a name": altered(lambda t: t | {"a\nb": torch.zeros(2)}),
    "other shape": altered(lambda t: t | {first(t): torch.zeros(2, *t[first(t)].shape)}),
    "flat": altered(lambda t: t | {first(t): t[first(t)].flatten()[None]}),
    "whole numbers": altered(lambda t: t | {first(t): t[first(t)].long()}),
    "bytes": altered(lambda t: {k: v.to(torch.uint8) for k, v in t.items()}),
    "nan": altered(lambda t: t | {first(t): t[first(t)] * torch.nan}),
    "infinity": altered(lambda t: t | {first(t): torch.full_like(t[first(t)], -torch.inf)}),
    "folder": lambda p: swapped(p, Path.mkdir),
    "pipe": lambda p: swapped(p, os.mkfifo),
    "device": lambda p: swapped(p, lambda w: w.symlink_to("/dev/zero")),
    "link to nothing": lambda p: swapped(p, lambda w: w.symlink_to("nowhere")),
    "pickle": lambda p: swapped(p, lambda w: torch.save({"a": torch.zeros(1)}, w)),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_weights(copies, name, spoil):
    folder = copies(name)
    SPOILED[spoil](folder)
    refused(lambda: load_part(cls_of(name), folder), str(folder))


@pytest.mark.parametrize("spoil", ["missing", "cut", "nan", "one missing", "renamed", "pipe"])
@pytest.mark.parametrize("kind", ["judge", "identity", "perceptual", "factors"])
def test_networks_that_measure_are_loaded_by_the_same_checks(copies, kind, spoil):
    folder = copies(kind)
    assert load_network(kind, folder).config.size == 16
    SPOILED[spoil](folder)
    refused(lambda: load_network(kind, folder), str(folder))
    if kind == "perceptual":
        refused(lambda: load_perceptual(folder), str(folder))
    refused(lambda: cls_of(kind).from_pretrained(folder), str(folder))


def test_a_network_of_another_class(copies):
    for kind in ("identity", "perceptual", "factors"):
        refused(lambda: load_network("judge", copies(kind)), "describes a", "a Judge is needed")


# ---- configs


def config_text(text):
    return lambda p: (p / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def config_swapped(make):
    def spoil(p):
        (p / "config.json").unlink()
        make(p / "config.json")

    return spoil


CONFIGS = {
    "missing": lambda p: (p / "config.json").unlink(),
    "empty": config_text(""),
    "cut": lambda p: os.truncate(p / "config.json", 30),
    "list": config_text("[]"),
    "number": config_text("3"),
    "null": config_text("null"),
    "deep": config_text("[" * 50_000),
    "deep dict": config_text('{"a":' * 50_000),
    "long number": config_text('{"a": ' + "9" * 9000 + "}"),
    "no text": config_text(b"\xff\xfe\x00{"),
    "too long": config_text(" " * 2_000_000 + "{}"),
    "folder": config_swapped(Path.mkdir),
    "pipe": config_swapped(os.mkfifo),
    "device": config_swapped(lambda c: c.symlink_to("/dev/zero")),
    "link to nothing": config_swapped(lambda c: c.symlink_to("nowhere")),
    "no class": lambda p: reconfigure(p, drop=["_class_name"]),
    "other class": lambda p: reconfigure(p, _class_name="UNet2DModel"),
    "class of a type": lambda p: reconfigure(p, _class_name=["a\nb"]),
    "unknown setting": lambda p: reconfigure(p, bogus=1),
    "two lines": lambda p: reconfigure(p, **{"a\nb": 1}),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("spoil", CONFIGS)
def test_spoiled_configs(copies, name, spoil):
    folder = copies(name)
    CONFIGS[spoil](folder)
    refused(lambda: load_part(cls_of(name), folder), str(folder))


def settings_of(name):
    return {k: v for k, v in MAKE[name]().config.items() if not k.startswith("_")}


STRANGE = ["words", {"a": 1}, [[[1]]], -1, 1e10, 10**9, True, float("nan"), [10**9], [2] * 100_000, ["a"], [None]]


@pytest.mark.parametrize("name", MAKE)
def test_settings_of_another_world(copies, name):
    "Any value in any setting: loaded where it is the same network, else one line; never anything else, and never for long."
    folder, cls = copies(name), cls_of(name)
    whole = (folder / "config.json").read_text()
    for setting in settings_of(name):
        for value in STRANGE:
            (folder / "config.json").write_text(whole)
            reconfigure(folder, **{setting: value})
            try:
                load_part(cls, folder)
            except CheckpointError as e:
                assert "\n" not in str(e) and str(folder) in str(e), (setting, value, e)
            else:
                check_settings(**{setting: value})


@pytest.mark.parametrize(
    "tags",
    [
        [],
        [{}],
        [3],
        [{"name": "A"}],
        [{"name": "A", "values": ["x"]}],
        [{"name": "A", "values": "xy", "attributes": 3}],
        [{"name": ["A"], "values": ["x", "y"]}],
        [{"name": "A", "values": ["x", "y"]}] * 2,
        {"A": ["x", "y"]},
        [["A", ["x", "y"]]],
        [{"name": f"t{i}", "values": ["x", "y"]} for i in range(5000)],
    ],
    ids=lambda t: str(t)[:30],
)
@pytest.mark.parametrize("name", ["classifier", "judge", "modulation", "extractor", "mapper", "factors"])
def test_tags_that_are_none(copies, name, tags):
    folder = copies(name)
    reconfigure(folder, tags=tags)
    refused(lambda: load_part(cls_of(name), folder), str(folder))


@pytest.mark.parametrize("name", ["autoencoder", "modulation", "mapper", "extractor"])
def test_settings_that_are_missing(copies, name):
    folder = copies(name)
    reconfigure(folder, drop=[k for k in settings_of(name) if k not in ("z_dim",)])
    refused(lambda: load_part(cls_of(name), folder), str(folder))


@pytest.mark.parametrize(
    "strengths", [{"a": {"b": float("nan")}}, {"a": {"b": "c"}}, {"a": 3}, {"a": {"b": True}}, {"a": {"b": [1]}}]
)
def test_strengths_that_are_none(copies, strengths):
    folder = copies("classifier")
    reconfigure(folder, strengths=strengths)
    refused(lambda: load_part(ValueClassifier, folder), "strengths") if strengths != {"a": 3} else load_part(
        ValueClassifier, folder
    )


@pytest.mark.parametrize(
    "how",
    [
        {"encoder": {**ENCODER, "num_res_blocks": 10**5}},
        {"encoder": {**ENCODER, "bogus": 1}},
        {"encoder": {}},
        {"encoder": {**ENCODER, "channel_mult": "wide"}},
        {"encoder": 3},
        {"encoder": {**ENCODER, "model_channels": 8000}},
        {"encoder": {**ENCODER, "image_size": 10**9}},
    ],
)
def test_the_extractors_encoder_is_bounded_too(copies, how):
    folder = copies("extractor")
    reconfigure(folder, **how)
    refused(lambda: load_part(ReferenceExtractor, folder), str(folder))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffusionAutoencoder(**{**ENCODER, "model_channels": 10**6}),
        lambda: DiffusionAutoencoder(**{**ENCODER, "num_train_timesteps": 1e10}),
        lambda: Judge(TAGS, size=10**6),
        lambda: StyleModulation(TAGS, 16, blocks=10**6),
        lambda: LatentMapper(TAGS, layers=0),
        lambda: PictureMask(TAGS, 8, 16, grid=10**5),
    ],
)
def test_constructors_have_the_same_bounds(make):
    refused(make, "Allowed:", exc=ValueError)


@pytest.mark.parametrize("name", LIMITS)
def test_every_bound_holds(name):
    low, high = LIMITS[name]
    check_settings(**{name: low})
    check_settings(**{name: [high, low]})
    check_settings(**{name: None})
    for bad in (low - 1, high + 1, "1", [low, None], float("inf"), True):
        refused(lambda: check_settings(**{name: bad}), name, exc=ValueError)


# ---- memory and time

HOSTILE = [
    ("autoencoder", c)
    for c in (
        dict(model_channels=4096),
        dict(model_channels=8192, channel_mult=[64, 64]),
        dict(num_res_blocks=100_000),
        dict(num_res_blocks=64),
        dict(z_dim=16_000, time_embed_dim=16_000),
        dict(num_train_timesteps=10**10),
        dict(channel_mult=[1] * 16, image_size=4096),
        dict(attention_resolutions=list(range(10**5))),
    )
]
HOSTILE += [
    ("classifier", dict(z_dim=16_000, hidden=8000)),
    ("modulation", dict(width=8192, blocks=64)),
    ("modulation", dict(vector_dim=16_000)),
    ("mapper", dict(layers=64, width=8192)),
    ("mapper", dict(n_tokens=4096, token_dim=16_000)),
    ("extractor", dict(encoder=ENCODER | dict(num_res_blocks=64, model_channels=8192))),
    ("mask", dict(grid=512, width=8192)),
    ("prior", dict(width=8192, layers=64)),
    ("judge", dict(size=4096, widths=[65_536] * 4)),
    ("perceptual", dict(n_factors=4096, size=4096)),
    ("modulation", dict(tags=[{"name": f"t{i}", "values": ["x", "y"]} for i in range(9000)])),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_config_does_not_decide_how_much_memory_is_taken(copies, tmp_path):
    "The most that was ever resident grows by little more than the configs' own text."
    folders = []
    for i, (name, changes) in enumerate(HOSTILE):
        folder = copies(name).rename(tmp_path / f"hostile{i}")
        reconfigure(folder, **changes)
        folders.append((cls_of(name).__module__, cls_of(name).__name__, str(folder)))
    program = """
import importlib, json, resource, sys
from latref_nb.checkpoints import CheckpointError, load_part
cases = [(getattr(importlib.import_module(m), c), f) for m, c, f in json.loads(sys.argv[1])]
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = most()
for cls, folder in cases:
    try: load_part(cls, folder)
    except CheckpointError: continue
    sys.exit(f"{folder} was loaded")
print((most() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(folders)], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert int(done.stdout) < 100, f"{done.stdout} MB more"


# ---- saving


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_saved(copies, name, bad):
    folder = copies(name)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    part = load_part(cls_of(name), folder)
    next(v for v in part.state_dict().values() if v.ndim).view(-1)[0] = bad
    refused(lambda: part.save_pretrained(folder), "is not saved", exc=ValueError)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(safe_serialization=False), "only safetensors"),
        (dict(max_shard_size="1KB"), "max_shard_size"),
        (dict(max_shard_size=10**12), "max_shard_size"),
        (dict(use_flashpack=True), "only safetensors"),
        (dict(variant="../x"), "a short word"),
        (dict(variant=3), "a short word"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, how, words):
    refused(lambda: MAKE["mask"]().save_pretrained(tmp_path / "m", **how), words, exc=ValueError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["fp16", "ema", "non-ema"])
def test_variants(tmp_path, variant):
    part = MAKE["mask"]()
    part.save_pretrained(tmp_path, variant=variant)
    assert torch.equal(load_part(PictureMask, tmp_path, variant=variant).net[0].weight, part.net[0].weight)
    refused(lambda: load_part(PictureMask, tmp_path), f"Give variant='{variant}'")
    refused(lambda: load_part(PictureMask, tmp_path, variant="other"), "diffusion_pytorch_model.other.safetensors")


def test_weights_that_lie_there_in_another_form_are_named(copies):
    folder = copies("mask")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    refused(lambda: load_part(PictureMask, folder), "there is diffusion_pytorch_model.bin")


# ---- places


@pytest.mark.parametrize("place", ["gone", "a file", "a\0b", "x" * 300, ""])
def test_places_where_no_network_is(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("x")
    refused(lambda: load_part(PictureMask, place))


def test_dot_is_a_place(copies, monkeypatch):
    monkeypatch.chdir(copies("mask"))
    assert load_part(PictureMask, ".").config.grid == 4


# ---- styles


def code(n=1):
    return StyleCode(torch.randn(n, 4), torch.randn(n, 2, 8))


@pytest.fixture
def styles(tmp_path):
    return save_styles(tmp_path / "s.safetensors", {"a": ("Bangs", "with", code()), "b": code(2)}, "me")


def restyle(path, change=lambda t: t, about=lambda a: a, raw=None):
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        told = json.loads(f.metadata()["styles"])
    save_file(change(load_file(path)), path, {"styles": raw or json.dumps(about(told))} if raw != "" else None)


@pytest.mark.parametrize(
    "spoil",
    [
        dict(change=lambda t: {k: v for k, v in t.items() if k != "a/vector"}),
        dict(change=lambda t: t | {"a/vector": torch.zeros(4)}),
        dict(change=lambda t: t | {"a/tokens": torch.zeros(3, 2, 8)}),
        dict(change=lambda t: t | {"b/vector": t["b/vector"] * torch.nan}),
        dict(raw="[]"),
        dict(raw="3"),
        dict(raw="{"),
        dict(raw="[" * 9000),
        dict(raw=""),
        dict(raw='{"a": 3}'),
        dict(raw='{"c": {}}'),
        dict(about=lambda a: a | {"a": {"tag": 3, "value": None, "model": ""}}),
        dict(about=lambda a: a | {"a": {"tag": "x", "value": ["y"], "model": ""}}),
        dict(about=lambda a: a | {"a": None}),
    ],
)
def test_files_of_styles_that_are_none(styles, spoil):
    restyle(styles, **spoil)
    refused(lambda: load_styles(styles), "s.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [
        k
        for k in SPOILED
        if k
        not in (
            "one more",
            "line in a name",
            "whole numbers",
            "bytes",
            "no tensors",
            "one missing",
            "renamed",
            "other shape",
            "flat",
            "nan",
            "infinity",
        )
    ],
)
@pytest.mark.parametrize("read", [load_styles, load_stages, read_tensors], ids=lambda f: f.__name__)
def test_files_that_are_no_safetensors(tmp_path, read, spoil):
    save_file({"a": torch.zeros(300)}, tmp_path / WEIGHTS)
    SPOILED[spoil](tmp_path)
    refused(lambda: read(tmp_path / WEIGHTS), str(tmp_path))


# ---- stages


def stages(**changes):
    u8 = lambda *shape: torch.zeros(*shape, 3, 8, 8, dtype=torch.uint8)
    return Stages(
        **(
            dict(
                original=u8(2),
                removed=u8(2),
                restored=u8(3, 2),
                swapped=u8(3, 2),
                losses=torch.full((3, 1), torch.nan),
                steps=[0, 1, 2],
                terms=["x"],
                faces=[4, 5],
                tags=["a", "b"],
                values=["c", "d"],
                references=[6, 7],
            )
            | changes
        )
    )


def test_stages_come_back(tmp_path):
    main = stages()
    main.ablations["flat"] = stages(steps=[0, 4, 8])
    back = load_stages(save_stages(tmp_path / "s.safetensors", main))
    assert (
        back.steps == [0, 1, 2]
        and back.ablations["flat"].steps == [0, 4, 8]
        and torch.equal(back.restored, main.restored)
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(steps=[0, 1]),
        dict(steps=["a", 1, 2]),
        dict(steps=3),
        dict(faces=[1]),
        dict(tags=[1, 2]),
        dict(values=["c"]),
        dict(references=[6.5, 7]),
        dict(terms=[]),
        dict(terms=[True]),
        dict(faces={"a": 1}),
        dict(original=torch.zeros(2, 3, 8, 8)),
        dict(restored=torch.zeros(3, 2, 3, 9, 8, dtype=torch.uint8)),
        dict(losses=torch.zeros(3)),
        dict(losses=torch.zeros(3, 1, dtype=torch.uint8)),
        dict(removed=torch.zeros(2, dtype=torch.uint8)),
    ],
)
@pytest.mark.parametrize("where", ["main", "ablation"])
def test_stages_that_do_not_go_together(tmp_path, changes, where):
    bad = stages(**changes)
    if where == "ablation":
        if not changes.keys() & {"steps", "terms", "restored", "losses"}:
            return
        main = stages()
        main.ablations["flat"] = bad
        bad = main
    save_stages(tmp_path / "s.safetensors", bad)
    refused(lambda: load_stages(tmp_path / "s.safetensors"), "s.safetensors", "holds no stages")


def test_what_is_saved_does_not_say_where_it_was_loaded_from(tmp_path):
    pipe = LatRefPipeline.from_pretrained("synthfaces64")
    pipe.save_pretrained(tmp_path / "one")
    again = LatRefPipeline.from_pretrained(tmp_path / "one")
    assert again.config["_name_or_path"] == str(tmp_path / "one")  # while it is in use, it is known
    again.save_pretrained(tmp_path / "two")
    again.linear.save_pretrained(tmp_path / "three")
    assert not [p for p in tmp_path.rglob("*.json") if "_name_or_path" in p.read_text(encoding="utf-8")]
