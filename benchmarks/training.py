"A training step by our trainer beside the same step written out."

import tempfile
from statistics import median

import torch
from common import Row, autoencoder, ratio, side_by_side
from diffusers.training_utils import EMAModel

from latref_nb.autoencoder_training import AutoencoderTask
from latref_nb.core import autocast_dtype
from latref_nb.cache import cached
from latref_nb.faces import SynthFaces
from latref_nb.resuming import StepGenerator, batch_indices, batches
from latref_nb.training import Run, Settings

BATCH = 16


def run(rounds):
    faces = cached(SynthFaces(n=256, size=64, seed=0))
    settings, dtype = Settings(steps=rounds + 2, batch_size=BATCH), autocast_dtype("auto", "cpu")
    with tempfile.TemporaryDirectory() as out:
        ours = Run(AutoencoderTask(autoencoder()), faces, out, settings, device="cpu")
        ours.begin(False)
        stream = iter(batches(faces, BATCH, 0, 0, settings.steps))

        def by_trainer():
            ours.record(ours.step(next(stream)))

        task = AutoencoderTask(autoencoder())
        params = [p for p in task.model.train().parameters()]
        opt, ema, at = (
            torch.optim.AdamW(params, lr=2e-4, weight_decay=0.01, fused=True),
            EMAModel(params, decay=0.999, foreach=True),
            [0],
        )

        def written_out():
            batch = faces.batch(batch_indices(len(faces), BATCH, 0, at[0]).tolist())
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = task.loss(batch, StepGenerator(0, at[0], BATCH))["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            opt.zero_grad()
            ema.step(params)
            at[0] += 1

        t = side_by_side({"trainer": by_trainer, "bare": written_out}, rounds)
        ours.acc.end_training()
    r = ratio(t, "trainer", "bare")
    return [
        Row(
            f"training step of {BATCH} beside the same step without the trainer",
            1000 * median(t["trainer"]),
            1000 * median(t["bare"]),
            "ms",
            r,
            "≤ 1.05",
            r <= 1.05,
        )
    ]
