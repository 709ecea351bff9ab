"Precision belongs to the machine: what auto comes to, what is said of bfloat16 that is imitated, and where the word that was used is noted."

import inspect
import json
import os
import platform
import subprocess
import sys
import warnings

import pytest
import torch

from latref_nb import (
    batch,
    commands,
    consistency,
    core,
    masks,
    metrics,
    parts,
    pipeline,
    removal,
    runner,
    shell,
    train_commands,
    training,
)
from latref_nb.core import PRECISIONS, PrecisionWarning, autocast_dtype, bf16_factor, has_bf16, resolve_precision
from latref_nb.sampling import invert, render
from latref_nb.training import fit
from test_pipeline import tiny_pipeline
from training_case import HOW, Curve, Points

torch.set_num_threads(1)
bf16_factor()  # oneDNN reads its variable once, at its first work: what a test says in it must not slow the tests after it
x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="these variables are for x86")
SLOW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # a processor without instructions for bfloat16


@pytest.fixture
def slow(monkeypatch):
    "This process as on such a processor, as far as it looks at variables after its start."
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    core._warn_of_bf16.cache_clear()
    yield
    core._warn_of_bf16.cache_clear()


# ---- what auto comes to


@x86
@pytest.mark.parametrize(
    "isa, allowed",
    [
        ("AVX2", False),
        ("AVX2_VNNI", False),
        ("AVX512_CORE", False),
        ("AVX512_CORE_VNNI", False),
        ("SSE41", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_FP16", True),
        ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX", True),
        ("ALL", True),
        ("default", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_onednn_must_be_allowed_to(monkeypatch, isa, allowed, name):
    for known in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(known, raising=False)
    free = has_bf16("cpu")
    monkeypatch.setenv(name, isa)
    assert has_bf16("cpu") is (free and allowed)


@x86
@pytest.mark.parametrize(
    "env", [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, SLOW], ids=["torch", "onednn", "both"]
)
def test_either_variable_makes_a_slow_machine(env):
    ask = "from latref_nb.core import has_bf16, resolve_precision as r; print(has_bf16(), r('auto'), r('no'))"
    done = subprocess.run([sys.executable, "-c", ask], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "no", "no"], done.stderr[-500:]


def test_without_torchs_own_probes_the_flags_decide(monkeypatch):
    by_probe = has_bf16("cpu")
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert has_bf16("cpu") is by_probe
    monkeypatch.setattr(core, "_cpu_flags", lambda: frozenset())
    assert has_bf16("cpu") is False, "where nobody knows, float32"


def test_words(monkeypatch):
    assert (
        resolve_precision("no") == "no"
        and resolve_precision() == ("bf16" if has_bf16() else "no")
        and not has_bf16("mps")
    )
    assert autocast_dtype("no") is None is autocast_dtype(None) and autocast_dtype(torch.float16) is torch.float16
    for bad in ("fp16", "BF16", "", True):
        with pytest.raises(ValueError, match="allowed: auto, no, bf16") as e:
            resolve_precision(bad)
        assert "\n" not in str(e.value)


@x86
def test_auto_is_silent_and_bf16_is_noted_once_with_its_factor(slow):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert resolve_precision("auto") == "no" and autocast_dtype("auto") is None and not said
        assert [resolve_precision("bf16") for _ in range(3)] == ["bf16"] * 3 and autocast_dtype(
            "bf16"
        ) is torch.bfloat16
    assert [o.category for o in said] == [PrecisionWarning] and "times as long as in float32, measured just now" in str(
        said[0].message
    )


@x86
def test_the_factor_is_a_measurement():
    "Imitated, bfloat16 costs many times float32; the limit is far below what is seen."
    ask = "from latref_nb.core import bf16_factor; import torch; torch.set_num_threads(1); print(bf16_factor())"
    done = subprocess.run([sys.executable, "-c", ask], env={**os.environ, **SLOW}, capture_output=True, text=True)
    assert float(done.stdout) > 2, done.stderr[-500:]


@x86
def test_random_numbers_are_left_alone(slow):
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    with pytest.warns(PrecisionWarning):
        resolve_precision("bf16")
    assert torch.equal(torch.rand(2), want)


# ---- the default everywhere


def takers():
    "Every function and class of the package that takes a precision."
    known = (
        batch,
        commands,
        consistency,
        core,
        masks,
        metrics,
        parts,
        pipeline,
        removal,
        runner,
        train_commands,
        training,
    )
    for module in known:
        for name, o in vars(module).items():
            if callable(o) and getattr(o, "__module__", "") == module.__name__ and name[0] != "_":
                try:
                    parameters = inspect.signature(o).parameters
                except (TypeError, ValueError):
                    continue
                if "precision" in parameters:
                    yield f"{module.__name__}.{name}", parameters["precision"].default


def test_nobody_chooses_another_default():
    found = {
        name: default for name, default in takers() if name.split(".")[-1] not in ("autocast_dtype", "check_precision")
    }
    assert {n.split(".")[-1] for n in found} >= {
        "Settings",
        "fit",
        "ForwardSettings",
        "evaluate",
        "gather_sources",
        "edit_files",
        "train_autoencoder",
        "train_classifiers",
        "train_styles",
        "train_mask",
        "eval_ablations",
        "latref_eval",
        "latref_edit",
        "calibrate_pipeline",
    }
    assert set(found.values()) == {"auto"}, found


def parsers():
    for prog, f in (
        ("latref_edit", commands.latref_edit),
        ("latref_eval", commands.latref_eval),
        ("latref_eval ablations", train_commands.eval_ablations),
    ):
        yield prog, f
    for name, (f, _) in train_commands.latref_train.commands.items():
        if name != "recipe":  # there it stands in the recipe, as everything does
            yield f"latref_train {name}", f


@pytest.mark.parametrize("prog, f", list(parsers()), ids=lambda o: o if isinstance(o, str) else "")
def test_commands_take_it_under_both_names(prog, f):
    parser = shell.make_parser(f, prog)
    option = parser._option_string_actions["--precision"]
    assert tuple(option.choices) == PRECISIONS and option.default == "auto" and "--mixed" not in parser.format_help()
    assert all(parser._option_string_actions[old] is option for old in ("--mixed-precision", "--mixed_precision")), (
        "as older cards have it"
    )


def test_pages_leave_it_to_the_machine():
    from repo import ROOT

    pages = [
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "data/README.md",
        ROOT / "benchmarks/README.md",
    ]
    assert not [p.name for p in pages if "--mixed-precision" in p.read_text(encoding="utf-8")]


# ---- used, and noted


def test_loops_take_a_word():
    pipe = tiny_pipeline()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z, plain = pipe.encode(x), dict(num_inference_steps=2)
    for word in PRECISIONS[:2]:
        dtype = autocast_dtype(word)
        x_T = invert(pipe.autoencoder, x, z, dtype=dtype, **plain).x_T
        assert torch.equal(invert(pipe.autoencoder, x, z, dtype=word, **plain).x_T, x_T)
        assert torch.equal(
            render(pipe.autoencoder, x_T, z, dtype=word, **plain).images,
            render(pipe.autoencoder, x_T, z, dtype=dtype, **plain).images,
        )
    assert torch.equal(pipe(x, (), 1, output_type="pt", dtype="no").images, pipe(x, (), 1, output_type="pt").images)
    with pytest.raises(ValueError, match="allowed: auto, no, bf16"):
        pipe(x, (), 1, dtype="half")


@pytest.mark.filterwarnings("ignore::latref_nb.core.PrecisionWarning")
@pytest.mark.parametrize("word", PRECISIONS)
def test_a_training_notes_the_word_that_was_used(tmp_path, word):
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}, precision=word)
    used = word if word != "auto" else resolve_precision("auto")
    assert (
        json.loads((tmp_path / "training.json").read_text())["settings"]["precision"]
        == used
        == json.loads((tmp_path / "checkpoint/state.json").read_text())["precision"]
    )


@pytest.mark.filterwarnings("ignore::latref_nb.core.PrecisionWarning")
def test_a_training_goes_on_in_another_precision_and_says_so(tmp_path, capsys):
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}, precision="bf16")
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 4}, precision="no")
    assert (
        "precision bf16 → no" in capsys.readouterr().out
        and "precision bf16 → no" in (tmp_path / "log.jsonl").read_text()
    )
    assert json.loads((tmp_path / "training.json").read_text())["settings"]["precision"] == "no"


@pytest.mark.parametrize("word", ["no", "bf16"])
def test_older_checkpoints_go_on(tmp_path, capsys, word):
    "Their config says mixed_precision, and nothing of the data."
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}, precision="no")
    path = tmp_path / "checkpoint/state.json"
    state = json.loads(path.read_text())
    del state["precision"], state["config"]["data"]
    state["config"]["mixed_precision"] = word
    path.write_text(json.dumps(state))
    capsys.readouterr()
    assert fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 3}, precision="no").step == 3
    assert ("precision bf16 → no" in capsys.readouterr().out) == (word == "bf16")
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "config": {**state["config"], "width": 1, "batch_size": 4}})
    )
    with pytest.raises(ValueError, match="batch_size: 4 then, 8 now"):
        fit(Curve(), Points(), tmp_path, **HOW)
