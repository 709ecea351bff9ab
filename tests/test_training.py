"The loop keeps its promises: the same bits after a kill, whole checkpoints, clear stops, one process or two."

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import latref_nb.training as training
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.checkpoints import CheckpointError
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.core import save_image
from latref_nb.datasets import cached, open_faces, provenance
from latref_nb.training import (
    Average,
    AutoencoderTask,
    Interrupted,
    StepGenerator,
    TrainingError,
    batch_indices,
    ema_weights,
    fit,
    linear_probe,
    lr_factor,
    train_autoencoder,
)
from repo import HANG
from training_case import HOW, Curve, Points

CASE = Path(__file__).parent / "training_case.py"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case(out, where, **env):
    "The tiny training as a process of its own."
    return subprocess.Popen(
        [sys.executable, str(CASE), str(out), where],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(out):
    return {
        f"{name}:{k}": v
        for name in ("weights", "ema", "optimizer")
        for k, v in load_file(Path(out) / f"checkpoint/{name}.safetensors").items()
    }


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def step_of(out):
    return json.loads((Path(out) / "checkpoint/state.json").read_text())["step"]


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    "The training that nothing disturbs."
    out = tmp_path_factory.mktemp("through")
    fit(Curve(dropout=0.2), Points(), out, **HOW)
    return out


# ---- stopped and gone on


def test_same_bits_after_kill(tmp_path, through):
    runs = {where: case(tmp_path / where, where) for where in ("between", "saving")}
    for where, run in runs.items():
        assert run.wait(HANG) == -signal.SIGKILL, run.stderr.read()
        out = tmp_path / where
        assert step_of(out) == 5
        assert bool(list(out.glob(".checkpoint*"))) == (where == "saving"), (
            "a half-written checkpoint lies beside the whole one"
        )
        fit(Curve(dropout=0.2), Points(), out, **HOW)
        assert same(weights(out), weights(through)), f"killed {where}"
        assert sorted(p.name for p in out.iterdir()) == ["checkpoint", "log.jsonl", "training.json"]
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows if "loss" in r] == [3, 6, 9, 12], "no line is there twice"
        clean = [json.loads(line) for line in (through / "log.jsonl").read_text().splitlines()]
        assert [r for r in rows if "loss" in r][-1]["loss"] == clean[-1]["loss"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(tmp_path, through, sign):
    data = Points(lambda n: os.kill(os.getpid(), sign) if n == 7 else None)
    before = signal.getsignal(sign)
    with pytest.raises(Interrupted, match="step 7 of 12; saved in .*resume"):
        fit(Curve(dropout=0.2), data, tmp_path, **HOW)
    assert signal.getsignal(sign) is before
    assert step_of(tmp_path) == 7
    fit(Curve(dropout=0.2), data, tmp_path, **HOW)
    assert same(weights(tmp_path), weights(through))


def test_second_ctrl_c_does_not_wait(tmp_path):
    def twice(n):
        if n == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as e:
        fit(Curve(), Points(twice), tmp_path, **HOW)
    assert not isinstance(e.value, Interrupted)


def test_length_may_change_late(tmp_path, capsys):
    fit(Curve(), Points(), tmp_path / "short", **{**HOW, "steps": 6, "decay": 0})
    fit(Curve(), Points(), tmp_path / "short", **{**HOW, "decay": 0.25})
    assert "steps 6 → 12" in capsys.readouterr().out
    assert "steps 6 → 12" in (tmp_path / "short/log.jsonl").read_text()
    fit(Curve(), Points(), tmp_path / "long", **{**HOW, "decay": 0.25})
    assert same(weights(tmp_path / "short"), weights(tmp_path / "long")), "the plateau does not depend on the length"


def test_finished_run_gives_its_result_again(tmp_path, through):
    task = Curve(dropout=0.2)
    result = fit(task, Points(), through, **HOW)
    assert result.step == 12
    assert all(
        torch.equal(v, load_file(through / "checkpoint/ema.safetensors")[f"net.{k}"])
        for k, v in task.modules["net"].state_dict().items()
    )


def test_global_randomness_is_left_alone(tmp_path):
    task = Curve()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    fit(task, Points(), tmp_path, **{**HOW, "steps": 2})
    assert torch.equal(torch.rand(3), want)


# ---- refusals


@pytest.mark.parametrize(
    "task, change, words",
    [
        (Curve(), dict(batch_size=4), "batch_size: 8 then, 4 now"),
        (Curve(), dict(seed=1), "seed: 0 then, 1 now"),
        (Curve(width=9), {}, "width: 8 then, 9 now"),
        (Curve(), dict(weight_decay=0.5), "weight_decay: 0.01 then, 0.5 now"),
    ],
)
def test_other_settings_are_refused(through, task, change, words):
    before = weights(through)
    with pytest.raises(ValueError, match=words) as e:
        fit(task, Points(), through, **{**HOW, **change})
    assert "\n" not in str(e.value) and "another folder" in str(e.value)
    assert same(weights(through), before)


def test_nothing_is_started_over_by_accident(through):
    with pytest.raises(ValueError, match="exists already"):
        fit(Curve(), Points(), through, **HOW, resume=False)


@pytest.mark.parametrize("file", ["state.json", "weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(p.read_bytes()[:-40]), lambda p: p.unlink()], ids=["cut", "gone"]
)
def test_damaged_checkpoint_is_named(tmp_path, file, damage):
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2})
    damage(tmp_path / "checkpoint" / file)
    with pytest.raises(ValueError, match="cannot be read") as e:
        fit(Curve(), Points(), tmp_path, **HOW)
    assert "\n" not in str(e.value)


def spoil(name, change):
    "A change of one file of tensors."

    def do(p):
        tensors = load_file(p / f"{name}.safetensors")
        save_file(change(dict(tensors)), p / f"{name}.safetensors")

    return do


def restate(**changes):
    return lambda p: (p / "state.json").write_text(
        json.dumps({k: v for k, v in (json.loads((p / "state.json").read_text()) | changes).items() if v != "gone"})
    )


def with_first(t, f, end=""):
    k = next(k for k in sorted(t) if k.endswith(end) and t[k].ndim)
    return t | {k: f(t[k])}


ALTERED = {
    f"{n}: {what}": spoil(n, change)
    for n in ("weights", "ema", "optimizer")
    for what, change in {
        "no tensors": lambda t: {},
        "one missing": lambda t: {k: v for k, v in t.items() if k != min(t)},
        "one more": lambda t: t | {"net.9.weight": torch.zeros(1)},
        "renamed": lambda t: {(k + "x" if k == min(t) else k): v for k, v in t.items()},
        "shape": lambda t: with_first(t, lambda v: v[None]),
        "nan": lambda t: with_first(t, lambda v: v * torch.nan),
        "infinity": lambda t: with_first(t, lambda v: v + torch.inf),
        "whole numbers": lambda t: with_first(t, lambda v: v.long()),
    }.items()
}
ALTERED |= {
    "optimizer: a weight's moments gone": spoil(
        "optimizer", lambda t: {k: v for k, v in t.items() if not k.startswith("net.0.weight/")}
    ),
    "optimizer: below 0": spoil("optimizer", lambda t: with_first(t, lambda v: v - 1, "exp_avg_sq")),
    "optimizer: foreign moments": spoil("optimizer", lambda t: t | {"net.0.weight/max": torch.zeros(1)}),
}
ALTERED |= {
    f"state: {k}={v}": restate(**{k: v})
    for k in ("step", "ema_step", "steps", "seconds", "lr", "decay", "config")
    for v in ("gone", None, "3", -1, [], float("nan"))
}
ALTERED |= {
    "state: list": lambda p: (p / "state.json").write_text("[]"),
    "state: empty": lambda p: (p / "state.json").write_text(""),
    "state: deep": lambda p: (p / "state.json").write_text("[" * 90_000),
    "state: broken step": restate(step=1.5),
    "state: step beyond": restate(step=10**9),
    "state: later average": restate(ema_step=5),
    "state: precision": restate(precision=["a"]),
    "state: no text": lambda p: (p / "state.json").write_bytes(b"\xff\xfe"),
    "file for a folder": lambda p: (shutil.rmtree(p), p.write_text("x")),
}
ALTERED |= {
    f"{file}: {what}": (lambda file, make: lambda p: ((p / file).unlink(), make(p / file)))(file, make)
    for file in ("state.json", "ema.safetensors", "optimizer.safetensors")
    for what, make in {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda f: f.symlink_to("/dev/zero"),
        "empty": Path.touch,
    }.items()
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    "Two steps, to spoil."
    out = tmp_path_factory.mktemp("short")
    fit(Curve(), Points(), out, **{**HOW, "steps": 2, "decay": 0})
    return out


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_checkpoint_is_refused_before_anything_is_copied(short, tmp_path, what):
    out, task = Path(shutil.copytree(short, tmp_path / "run")), Curve(seed=1)
    ALTERED[what](out / "checkpoint")
    before = {k: v.clone() for m in task.modules.values() for k, v in m.state_dict().items()}
    with pytest.raises(ValueError, match="cannot be read|made by another training") as e:
        fit(task, Points(), out, **{**HOW, "decay": 0})
    assert "\n" not in str(e.value) and str(out) in str(e.value) and len(str(e.value)) < 800
    assert all(torch.equal(v, before[k]) for m in task.modules.values() for k, v in m.state_dict().items())
    assert not (out / training.LOCK).exists()


@pytest.mark.parametrize(
    "what",
    [
        w
        for w in ALTERED
        if w.startswith(("weights", "ema"))
        and not w.endswith(("one missing", "one more", "renamed", "shape", "whole numbers", "weights: no tensors"))
    ],
)
def test_averages_are_read_by_the_same_checks(short, tmp_path, what):
    out = Path(shutil.copytree(short, tmp_path / "run"))
    assert ema_weights(out, "net").keys() == Curve().modules["net"].state_dict().keys()
    with pytest.raises(CheckpointError, match="holds no weights of nat; it holds those of late, net"):
        ema_weights(out, "nat")
    ALTERED[what](out / "checkpoint")
    if what == "ema: no tensors":
        return
    with pytest.raises(CheckpointError):
        ema_weights(out, "net")


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1, 2]",
        b"3",
        b"{",
        b'{"loss": 1}',
        b'{"step": "3"}',
        b'{"step": true}',
        b"\xff\xfe{}",
        b"[" * 50_000,
        b"null",
    ],
    ids=lambda b: b[:12].decode("latin"),
)
def test_lines_of_a_log_that_are_none_are_set_aside(short, tmp_path, line, capsys):
    out = Path(shutil.copytree(short, tmp_path / "run"))
    log = out / "log.jsonl"
    log.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b"\n" + log.read_bytes() + b'{"step": 2, "lo')
    fit(Curve(), Points(), out, **{**HOW, "steps": 3, "decay": 0})
    assert (
        out / "log.jsonl.damaged"
    ).read_bytes() == line + b"\n" and "1 lines are no rows of a log" in capsys.readouterr().out
    assert [r["step"] for r in map(json.loads, log.read_text().splitlines())][:2] == [1, 2]


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero")], ids=["folder", "pipe", "device"]
)
def test_a_log_that_is_no_file_is_named(short, tmp_path, make):
    out = Path(shutil.copytree(short, tmp_path / "run"))
    (out / "log.jsonl").unlink()
    make(out / "log.jsonl")
    with pytest.raises(ValueError, match="log.jsonl: is a"):
        fit(Curve(), Points(), out, **{**HOW, "decay": 0})


# ---- the user's own files, and one at a time


def test_only_what_a_run_left_is_cleared(short, tmp_path):
    out = Path(shutil.copytree(short, tmp_path / "run"))
    mine = [
        ".notes.part",
        ".notes.12345678.part.txt",
        ".checkpoint.part",
        ".checkpoint.1234567.part",
        ".log.zzzzzzzz.part.jsonl",
        ".training.12345678.part.json.bak",
        "a.checkpoint.12345678.part",
    ]
    ours = [
        ".log.12345678.part.jsonl",
        ".training.0a1b2c3d.part.json",
        ".stages.12345678.part.safetensors",
        ".net.12345678.part",
    ]
    for n in mine + ours:
        (out / n).write_text("x")
    (out / ".checkpoint.12345678.part").mkdir()
    (out / ".my.part.folder").mkdir()
    (tmp_path / "kept").mkdir()
    (out / ".late.12345678.part").symlink_to(tmp_path / "kept")
    fit(Curve(), Points(), out, **{**HOW, "steps": 3, "decay": 0})
    assert {p.name for p in out.iterdir()} == {
        "checkpoint",
        "log.jsonl",
        "training.json",
        ".my.part.folder",
        *mine,
    } and (tmp_path / "kept").is_dir()


def test_a_second_training_is_told_who_trains(tmp_path):
    def again(run):
        for out in (tmp_path, str(tmp_path) + "/", tmp_path / "x" / ".."):
            with pytest.raises(TrainingError, match=f"is in use: process {os.getpid()} on .* since 20") as e:
                fit(Curve(), Points(), out, **HOW)
            assert "\n" not in str(e.value)

    (tmp_path / "x").mkdir()
    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2, "decay": 0}, callback=again)
    assert step_of(tmp_path) == 2 and not (tmp_path / training.LOCK).exists()
    fit(Curve(), Points(), tmp_path, **{**HOW, "decay": 0})


def test_the_lock_of_a_dead_process_is_no_lock(tmp_path):
    (tmp_path / training.LOCK).write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "yesterday"}))
    assert fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}).step == 2
    run = case(tmp_path / "killed", "between")
    assert run.wait(HANG) == -signal.SIGKILL and (tmp_path / "killed" / training.LOCK).exists()
    assert (
        fit(Curve(dropout=0.2), Points(), tmp_path / "killed", **HOW).step == 12
        and not (tmp_path / "killed" / training.LOCK).exists()
    )


def test_another_process_holds_the_folder(tmp_path):
    program = "import sys, time, pathlib; from latref_nb.training import take_lock; f = take_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / training.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"process {other.pid} on"):
            fit(Curve(), Points(), tmp_path, **HOW)
        other.kill()
    assert fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}).step == 2


@pytest.mark.parametrize(
    "fault", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_the_lock_goes_with_the_run(tmp_path, fault):
    def fail(run):
        raise fault

    with pytest.raises(type(fault)):
        fit(Curve(), Points(), tmp_path, **HOW, callback=fail)
    assert not (tmp_path / training.LOCK).exists() and fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2}).step == 2


@pytest.mark.parametrize("at", [3, 5, 12])
@pytest.mark.parametrize("trackers", [(), ("tensorboard",)], ids=["plain", "tracked"])
@pytest.mark.parametrize(
    "take", [shutil.rmtree, lambda p: p.rename(p.with_name("elsewhere"))], ids=["removed", "renamed"]
)
def test_a_folder_that_goes_away_is_one_line(tmp_path, at, trackers, take):
    def gone(run):
        take(tmp_path / "run") if run.done == at else None

    with pytest.raises(TrainingError, match="run is gone: it was removed or renamed") as e:
        fit(Curve(), Points(), tmp_path / "run", **{**HOW, "trackers": trackers, "decay": 0}, callback=gone)
    assert "\n" not in str(e.value)


def pictures(folder, seed=0, n=6):
    "A folder of small pictures, all of one kind of name, with labels."
    for i, im in enumerate(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1):
        save_image(im, folder / f"{i}.png")
    (folder / "labels.csv").write_text(
        "file,Smiling\n" + "".join(f"{i}.png,{('with', 'without')[i % 2]}\n" for i in range(n))
    )
    return open_faces(folder, 16)


def test_other_pictures_of_the_same_number_are_refused(tmp_path):
    how = dict(batch_size=4, trackers=(), progress=False, device="cpu")
    a, b = pictures(tmp_path / "a"), pictures(tmp_path / "b", seed=1)

    def go(faces, steps):
        return train_autoencoder(faces, tmp_path / "run", tiny(), steps, **how)

    go(a, 1)
    before = weights(tmp_path / "run")
    for other in (b, cached(b, progress=False), cached(b, path=tmp_path / "b.faces", progress=False)):
        with pytest.raises(ValueError, match="data.pictures and labels: [0-9a-f]+ then, [0-9a-f]+ now") as e:
            go(other, 2)
        assert "\n" not in str(e.value) and same(weights(tmp_path / "run"), before)
    for steps, again in enumerate(
        (
            a,
            cached(a, progress=False),
            cached(a, path=tmp_path / "a.faces", progress=False),
            open_faces(tmp_path / "a", 16),
        ),
        2,
    ):
        go(again, steps)
    assert step_of(tmp_path / "run") == 5, "the same pictures, however they are kept"


@pytest.mark.parametrize("change", ["content", "labels", "name"])
def test_a_folder_that_changed_is_noticed(tmp_path, change):
    faces = pictures(tmp_path / "a")
    key = provenance(faces)
    assert provenance(open_faces(tmp_path / "a", 16)) == key != {}
    if change == "content":
        shutil.copyfile(tmp_path / "a/0.png", tmp_path / "a/4.png")  # none of those that are looked at
    if change == "labels":
        (tmp_path / "a/labels.csv").write_text("file,Smiling\n0.png,without\n")
    if change == "name":
        (tmp_path / "a/4.png").rename(tmp_path / "a/44.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert provenance(open_faces(tmp_path / "a", 16)) != key


# ---- numbers that are none

BAD = dict(
    lr=[float("nan"), float("inf"), 0, -1],
    weight_decay=[float("nan"), -1],
    grad_clip=[float("nan"), -1],
    ema_decay=[float("nan"), 1, 2, -0.1],
    warmup=[-1, 0.5],
    decay=[float("nan"), 2, -1],
    seed=[-1, 2**63, 0.5],
    steps=[0, 1.5],
    batch_size=[0, float("nan")],
    save_every=[0],
    log_every=[0],
)


@pytest.mark.parametrize("name, value", [(k, v) for k, vs in BAD.items() for v in vs])
def test_settings_are_held_against_their_ranges(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* came; allowed: a (finite|whole) number") as e:
        fit(Curve(), Points(), tmp_path / "run", **{**HOW, name: value})
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "how",
    [{k: v} for k in ("z_labels", "z_image", "z_features", "x0_distance") for v in (float("nan"), -1, float("inf"))]
    + [
        dict(high_noise=-1),
        dict(high_noise=2),
        dict(high_noise=float("nan")),
        dict(regions=2),
        dict(gamma=0),
        dict(warmup_z=-1),
        dict(weighting="min"),
        dict(seed=-1),
    ],
    ids=str,
)
def test_the_autoencoders_task_too(how):
    with pytest.raises(ValueError, match=f"^{list(how)[0]}=.* came; allowed: ") as e:
        AutoencoderTask(tiny(), CELEBA_TAGS, **{**RULED, **how})
    assert "\n" not in str(e.value)


def test_weights_that_are_none_are_not_saved(tmp_path):
    "A last step whose loss is a number and whose weights are none: said, and the last good checkpoint stays."
    wild = dict(HOW, weight_decay=100.0, decay=0, warmup=0)
    fit(Curve(), Points(), tmp_path, **{**wild, "steps": 2, "lr": 1e-4})
    before = weights(tmp_path)
    with pytest.raises(
        TrainingError,
        match=r"weights are not finite after step 3 \(.* of weights and \d+ more\) and are not saved. The last good checkpoint is .*\(step 2\)",
    ) as e:
        fit(Curve(), Points(), tmp_path, **{**wild, "steps": 3, "lr": 3e38})
    assert "\n" not in str(e.value) and same(weights(tmp_path), before) and step_of(tmp_path) == 2
    assert fit(Curve(), Points(), tmp_path, **{**wild, "steps": 3, "lr": 1e-4}).step == 3
    with pytest.raises(TrainingError, match="No checkpoint has been written yet"):
        fit(Curve(), Points(), tmp_path / "new", **{**wild, "steps": 1, "lr": 3e38})
    assert not (tmp_path / "new/checkpoint").exists() and not (tmp_path / "new/training.json").exists()


def test_averages_that_are_none_are_not_saved(tmp_path):
    "The average keeps what it has once seen, also where the weights have recovered."

    def spoil(run):
        if run.done == 7:
            run.ema.values[0][0] = float("nan")

    with pytest.raises(TrainingError, match=r"after step 10 .*of ema.*\(step 5\)"):
        fit(Curve(), Points(), tmp_path, **HOW, callback=spoil)
    assert step_of(tmp_path) == 5 and all(v.isfinite().all() for v in weights(tmp_path).values())


@pytest.mark.parametrize("labels", [torch.zeros(8, 5), torch.zeros(8, 7)])
def test_as_many_columns_as_tags(labels):
    task, labels = AutoencoderTask(tiny(), CELEBA_TAGS, z_labels=1.0), labels.long()
    with pytest.raises(ValueError, match=f"{labels.shape[1]} columns of labels came for 6 tags"):
        task.loss({"image": Noise.images[:8], "labels": labels}, StepGenerator(0, 0, 8))
    with pytest.raises(ValueError, match="columns of labels came for 6 tags"):
        linear_probe(torch.randn(8, 4), labels, torch.randn(8, 4), labels, CELEBA_TAGS)


def test_labels_find_their_heads_by_name(tmp_path):
    "A tag set in another order reads the same labels: the dataset's columns are found, not counted."
    few = TagSet([CELEBA_TAGS["Male"], CELEBA_TAGS["Smiling"]])
    seen = []

    class Told(AutoencoderTask):
        def loss(self, batch, generator):
            seen.append(batch["labels"])
            return super().loss(batch, generator)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(training, "AutoencoderTask", Told)
        train_autoencoder(Noise(), tmp_path, tiny(), 1, tags=few, z_labels=1.0, **AE)
    assert torch.equal(seen[0], Noise.labels[batch_indices(24, 8, 0, 0)][:, [5, 0]])
    with pytest.raises(ValueError, match="the dataset knows .* and not TagSet\\(LongHair"):
        train_autoencoder(
            Noise(), tmp_path / "no", tiny(), 1, tags=TagSet([Tag("LongHair", ("short", "long"))]), z_labels=1.0, **AE
        )


# ---- faults while running


class Breaks(Curve):
    "Not a number from step 8 on."

    def loss(self, batch, generator):
        terms = super().loss(batch, generator)
        return {"loss": terms["loss"] * (float("nan") if generator.step == 8 else 1)}


def test_nan_stops_and_names_step_and_checkpoint(tmp_path):
    task = Breaks()
    with pytest.raises(TrainingError, match=r"not finite at step 8 .*checkpoint \(step 5\)"):
        fit(task, Points(), tmp_path, **HOW)
    assert step_of(tmp_path) == 5
    assert all(p.isfinite().all() for m in task.modules.values() for p in m.parameters())


def test_exception_in_a_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    plain = training.save_file

    def save_file(tensors, path):
        if path.name == "optimizer.safetensors" and step_of(tmp_path) == 5:
            raise RuntimeError("something else")
        plain(tensors, path)

    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 5, "decay": 0})
    before = weights(tmp_path)
    monkeypatch.setattr(training, "save_file", save_file)
    with pytest.raises(RuntimeError, match="something else"):
        fit(Curve(), Points(), tmp_path, **{**HOW, "decay": 0})
    assert step_of(tmp_path) == 5 and same(weights(tmp_path), before) and not list(tmp_path.glob(".checkpoint*"))


def test_full_disk_leaves_the_last_checkpoint_and_one_line(tmp_path):
    big = dict(HOW, decay=0)
    fit(Curve(width=3000), Points(), tmp_path, **{**big, "steps": 5})
    before, handler, limit = (
        weights(tmp_path),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (30_000, limit[1])
        )  # a file that may not grow stands in for a disk that is full
        with pytest.raises(
            OSError, match=r"cannot write .*Step 10 is not saved. The last good checkpoint is .*\(step 5\)"
        ) as e:
            fit(Curve(width=3000), Points(), tmp_path, **big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(e.value)
    assert same(weights(tmp_path), before) and not list(tmp_path.glob(".checkpoint*"))
    fit(Curve(width=3000), Points(), tmp_path, **big)
    assert step_of(tmp_path) == 12


# ---- several processes


def test_two_processes_are_as_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    both = [
        case(
            tmp_path / "two",
            "two",
            RANK=str(r),
            LOCAL_RANK=str(r),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for r in range(2)
    ]
    fit(Curve(), Points(), tmp_path / "one", **HOW, precision="no")
    for p in both:
        assert p.wait(HANG) == 0, p.stderr.read()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-6
    assert json.loads((tmp_path / "two/training.json").read_text())["processes"] == 2
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_batch_that_cannot_be_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(ValueError, match="cannot be shared by 3 processes. Choose a multiple of 3"):
        fit(Curve(), Points(), tmp_path, **HOW)


# ---- parts


@pytest.mark.parametrize("n, b", [(10, 4), (7, 20), (32, 32)])
def test_every_sample_once_in_each_epoch(n, b):
    row = torch.cat([batch_indices(n, b, 3, s) for s in range(4 * n)])
    assert all(torch.equal(epoch.sort().values, torch.arange(n)) for epoch in row.split(n) if len(epoch) == n)
    assert not torch.equal(row[:n], row[n : 2 * n])


def test_shares_make_up_the_whole():
    for draw in (lambda g: g.randn(2), lambda g: g.rand(), lambda g: g.randint(10, 3)):
        whole, parts = draw(StepGenerator(1, 2, 6)), [draw(StepGenerator(1, 2, 6, slice(i, i + 2))) for i in (0, 2, 4)]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(StepGenerator(1, 2, 6).randn(2), StepGenerator(1, 3, 6).randn(2))


def test_average_is_the_formula():
    w, by_hand = nn.Parameter(torch.randn(5)), None
    average = Average([w], decay=0.8)
    for n in range(1, 100):
        w.data = torch.randn(5)
        average.update()
        d = 0 if n == 1 else min(0.8, n / (9 + n))
        by_hand = w.data if n == 1 else d * by_hand + (1 - d) * w.data
    assert torch.allclose(average.values[0], by_hand, atol=1e-6)


def test_learning_rate_in_use(tmp_path):
    rates = []
    fit(Curve(), Points(), tmp_path, **HOW, callback=lambda run: rates.append(run.opt.param_groups[0]["lr"]))
    assert rates == pytest.approx([1e-2 * lr_factor(s, 12, warmup=2) for s in range(12)])


def test_gradients_are_clipped(tmp_path):
    task, norms = Curve(), []
    task.loss, plain = lambda b, g: {"loss": 1000 * plain(b, g)["loss"]}, task.loss
    inside = training.nn.utils.clip_grad_norm_

    def clip(params, limit):
        params = list(params)
        before = inside(params, limit)
        norms.append((before.item(), torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm().item()))
        return before

    with pytest.MonkeyPatch.context() as m:
        m.setattr(training.nn.utils, "clip_grad_norm_", clip)
        fit(task, Points(), tmp_path, **{**HOW, "steps": 3})
    assert all(before > 10 and after <= 1.001 for before, after in norms)


def test_trackers_and_workers(tmp_path):
    fit(Curve(), Points(), tmp_path, **{**HOW, "trackers": ("tensorboard",), "num_workers": 1})
    assert list(tmp_path.rglob("events.out.tfevents*"))
    fit(Curve(), Points(), tmp_path / "plain", **HOW)
    assert same(weights(tmp_path), weights(tmp_path / "plain"))


# ---- the autoencoder's task


class Noise:
    "Pictures of noise with labels."

    tags = CELEBA_TAGS
    images, labels = (
        torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        torch.randint(-1, 2, (24, 6), generator=torch.Generator().manual_seed(1)),
    )

    def __len__(self):
        return len(self.images)

    def batch(self, i):
        return {"image": self.images[i], "labels": self.labels[i]}


def tiny(**changes):
    torch.manual_seed(0)
    return DiffusionAutoencoder(
        **{
            **dict(
                image_size=16,
                patch_size=2,
                model_channels=32,
                channel_mult=(1, 2),
                enc_channel_mult=(1, 2),
                num_res_blocks=1,
                attention_resolutions=(),
                num_heads=1,
                z_dim=16,
                prediction_type="v_prediction",
            ),
            **changes,
        }
    )


def means(x):
    return x.mean((2, 3))  # (B,3,H,W) -> (B,3)


RULED = dict(z_features=0.5, features=means, x0_distance=0.2, distance=lambda a, b: (a - b).abs().mean((1, 2, 3)))
AE = dict(batch_size=8, save_every=4, log_every=2, trackers=(), progress=False, device="cpu")


def test_autoencoder_goes_on_to_the_same_bits(tmp_path):
    how = dict(z_labels=0.1, z_image=1.0, **RULED, warmup_z=2, high_noise=0.3, channels_last=True, **AE)
    train_autoencoder(Noise(), tmp_path / "a", tiny(), 6, **how)
    broken = []

    def stop(run):
        if run.done == 5 and not broken:
            broken.append(1)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train_autoencoder(Noise(), tmp_path / "b", tiny(), 6, callback=stop, **how)
    model = train_autoencoder(Noise(), tmp_path / "b", tiny(), 6, **how)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    loaded = DiffusionAutoencoder.from_pretrained(tmp_path / "b/autoencoder")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in ema_weights(tmp_path / "b", "autoencoder").items())
    facts = json.loads((tmp_path / "b/training.json").read_text())
    assert (
        facts["samples"] == 48
        and facts["task"]["z_labels"] == 0.1
        and facts["task"]["z_features"] == 0.5
        and facts["task"]["x0_distance"] == 0.2
        and facts["machine"]["cpu"]
        and facts["loss"]
    )


def test_other_model_is_refused(tmp_path):
    train_autoencoder(Noise(), tmp_path, tiny(), 1, **AE)
    with pytest.raises(ValueError, match="task.model.z_dim: 16 then, 24 now"):
        train_autoencoder(Noise(), tmp_path, tiny(z_dim=24), 2, **AE)
    with pytest.raises(ValueError, match="task.weighting: plain then, p2 now"):
        train_autoencoder(Noise(), tmp_path, tiny(), 2, weighting="p2", **AE)


def test_only_the_encoder_learns_in_the_warm_up(tmp_path):
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_autoencoder(Noise(), tmp_path, model, 2, z_image=1.0, warmup_z=2, **AE)
    moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"encoder"}, moved


def test_z_comes_to_hold_the_features(tmp_path):
    train_autoencoder(Noise(), tmp_path, tiny(), 60, z_features=1.0, features=means, warmup_z=60, lr=2e-3, **AE)
    rows = [json.loads(line)["features"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1] < rows[0] / 2, rows


def test_features_are_asked_only_where_z_shall_hold_them():
    task = AutoencoderTask(tiny(), CELEBA_TAGS, **{**RULED, "z_features": 0.0})
    assert (
        set(task.loss(Noise().batch(range(8)), StepGenerator(0, 0, 8))) == {"loss", "mse", "x0_distance"}
        and "feature_head" not in task.modules
    )


def test_what_is_seen_needs_one_who_sees():
    for how, words in (
        (dict(z_features=0.1), "give features"),
        (dict(x0_distance=0.1), "give distance"),
        (dict(warmup_z=3), "z_features has nothing to learn from"),
    ):
        with pytest.raises(ValueError, match=words):
            AutoencoderTask(tiny(), CELEBA_TAGS, **how)


def test_loss_is_the_mean_of_the_shares():
    task = AutoencoderTask(tiny(), CELEBA_TAGS, weighting="min_snr", z_labels=0.5, high_noise=0.5, z_image=1.0, **RULED)
    whole = task.loss(Noise().batch(range(8)), StepGenerator(0, 0, 8))["loss"]
    halves = [
        task.loss(Noise().batch(range(i, i + 4)), StepGenerator(0, 0, 8, slice(i, i + 4)))["loss"] for i in (0, 4)
    ]
    assert torch.allclose(whole, sum(halves) / 2, atol=1e-6)


def test_probe_reads_what_is_there_and_no_more():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (400, 6), generator=g)
    z = torch.randn(400, 10, generator=g)
    z[:, 0] += 6 * labels[:, 0]
    labels[::7, 1] = -1
    found = linear_probe(z[:200], labels[:200], z[200:], labels[200:], CELEBA_TAGS)
    assert found["Smiling"] > 0.98 and all(0.3 < found[t] < 0.7 for t in ("Eyeglasses", "Bangs", "Young"))
