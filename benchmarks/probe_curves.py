"""How soon z speaks: accuracy of a linear probe against samples seen, one training for each weighting.

    python benchmarks/probe_curves.py                      # writes data/probe_curves.json; about ten minutes on one core; more with --samples
    python benchmarks/probe_curves.py --samples 20000 --size 32 --out curves.json

A run that is stopped goes on when called again (folder _out/probe_curves)."""

import json
import math
from pathlib import Path

import torch
from fastcore.script import call_parse

from latref_nb.autoencoder import from_preset
from latref_nb.files import atomic_write
from latref_nb.datasets import cached
from latref_nb.faces import SynthFaces
from latref_nb.training import AutoencoderTask, fit, linear_probe

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "plain ε": dict(prediction_type="epsilon", weighting="plain"),
    "ε, min-SNR": dict(prediction_type="epsilon", weighting="min_snr"),
    "ε, P2": dict(prediction_type="epsilon", weighting="p2"),
    "v-prediction": dict(prediction_type="v_prediction", weighting="plain"),
}
LINES = {**PLAIN, "v-prediction + labels on z": dict(prediction_type="v_prediction", weighting="plain", z_labels=0.1)}
SMALL = {
    32: dict(
        image_size=32,
        patch_size=4,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(),
        enc_patch_size=2,
        enc_channels=32,
        enc_channel_mult=(1, 2, 3),
        enc_num_res_blocks=1,
        z_dim=64,
        time_embed_dim=128,
        channel_mult=(1, 2),
        num_heads=1,
    )
}


def codes(model, dataset):
    "z of every face."
    with torch.no_grad():
        return torch.cat(
            [
                model.encode(dataset.batch(range(i, min(i + 128, len(dataset))))["image"])
                for i in range(0, len(dataset), 128)
            ]
        )


def places(steps, n):
    "Steps to look at: evenly on a logarithmic axis, with the first and the last."
    return {round(math.exp(math.log(steps) * i / (n - 1))) for i in range(n)}


def one_line(name, prediction_type, how, faces, train, test, steps, batch_size, lr, seed, work, looks):
    "Train with one weighting; what the probe says at each place."
    folder, at = work / name.replace(" ", "_"), places(steps, looks)
    log = folder / "probes.jsonl"
    if not (folder / "checkpoint").exists():
        log.unlink(missing_ok=True)

    def look(run):
        if run.done not in at:
            return
        model = run.averaged("autoencoder")
        row = {
            "samples": run.done * batch_size,
            **linear_probe(codes(model, train), train.labels, codes(model, test), test.labels, train.tags),
        }
        with open(log, "a") as f:
            f.write(json.dumps(row) + "\n")

    torch.manual_seed(seed)
    model = from_preset("synthfaces64", **SMALL.get(faces.size, {}), prediction_type=prediction_type)
    fit(
        AutoencoderTask(model, faces.tags, **how),
        faces,
        folder,
        steps,
        batch_size=batch_size,
        lr=lr,
        warmup=min(100, steps // 10),
        save_every=200,
        seed=seed,
        trackers=(),
        callback=look,
    )
    rows = {r["samples"]: r for r in map(json.loads, log.read_text().splitlines())}
    return [rows[s] for s in sorted(rows)]


def add_line(path, about, name, line):
    "Put one line into the file, beside those that were measured in the same way."
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = {**(old["lines"] if old.get("about") == about else {}), name: line}
    with atomic_write(path) as tmp:
        tmp.write_text(
            json.dumps({"about": about, "lines": {k: lines[k] for k in LINES if k in lines}}, ensure_ascii=False),
            encoding="utf-8",
        )


@call_parse
def main(
    samples: int = 16_000,  # faces seen in each training
    size: int = 32,  # pixels on a side: 32 (a smaller model) or 64 (the preset)
    n: int = 10_000,  # different faces
    batch_size: int = 32,  # of a step
    lr: float = 8e-4,  # learning rate
    seed: int = 0,  # of the training; the probe's faces have others
    looks: int = 12,  # how often the probe asks
    only: str = "",  # names of lines, with semicolons; the others stay as they are in the file
    work: str = "_out/probe_curves",  # folder for the trainings
    out: str = "data/probe_curves.json",
):  # where the curves go
    "Train once for each weighting and write what a linear probe reads off z on the way."
    faces = cached(SynthFaces(n, size=size, seed=seed))
    train, test = (
        cached(SynthFaces(k, size=size, seed=s), progress=False) for k, s in ((2000, seed + 101), (1000, seed + 102))
    )
    steps = samples // batch_size
    about = {
        "size": size,
        "samples": samples,
        "faces": n,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "probe": "linear, 2000 faces to fit, 1000 others to score, averaged weights",
    }
    for name in only.split(";") if only else LINES:
        how = dict(LINES[name])
        print(name)
        rows = one_line(
            name, how.pop("prediction_type"), how, faces, train, test, steps, batch_size, lr, seed, ROOT / work, looks
        )
        tags = {t: [round(r[t], 4) for r in rows] for t in faces.tags.names}
        mean = [round(sum(v) / len(v), 4) for v in zip(*tags.values())]
        print("  mean over tags:", *mean)
        add_line(ROOT / out, about, name, {"samples": [r["samples"] for r in rows], "mean": mean, "tags": tags})
