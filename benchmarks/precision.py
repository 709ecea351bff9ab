"bfloat16 autocast beside float32: rendering, and forward and backward of a training step."
from statistics import median

import torch
from common import Row, autoencoder, ratio, side_by_side

from latref_nb.sampling import render

B = 8


def run(rounds):
    model = autoencoder().eval()
    x0 = torch.rand(B, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(): z = model.encode(x0)

    def train(dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None): loss = model.denoise(x0, torch.full((B,), 500), model.encode(x0)).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    rows = []
    for label, f in ((f"rendering 4 steps of {B}", lambda dtype: render(model, x0, z, 4, dtype=dtype)), (f"forward and backward of {B}", train)):
        t = side_by_side({"bf16": lambda: f(torch.bfloat16), "float32": lambda: f(None)}, rounds)
        rows.append(Row(f"{label}: bfloat16 beside float32", 1000 * median(t["bf16"]), 1000 * median(t["float32"]), "ms", ratio(t, "bf16", "float32"),
                        note="" if torch.backends.mkldnn.is_available() else "no oneDNN here"))
    return rows
