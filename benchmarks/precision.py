"bfloat16 beside float32 here, and what auto chooses: matrix product, forward pass, rendering, training step."

from statistics import median

import torch
from common import Row, autoencoder, ratio, side_by_side

from latref_nb.core import default_device, has_bf16, resolve_precision
from latref_nb.sampling import render

B, M = 4, 512
SLOW_ROUNDS = 2  # where bfloat16 is imitated one round takes as long as many


def run(rounds):
    device = default_device()
    model, g = autoencoder().eval().to(device), torch.Generator().manual_seed(0)
    x0, a = (torch.rand(*shape, generator=g).to(device) * 2 - 1 for shape in ((B, 3, 64, 64), (M, M)))
    with torch.no_grad():
        z = model.encode(x0)
    t = torch.full((B,), 500, device=device)

    def cast(word):
        return torch.autocast(device.type, torch.bfloat16, enabled=word == "bf16")

    @torch.no_grad()
    def product(word):
        with cast(word):
            return a @ a

    @torch.no_grad()
    def forward(word):
        with cast(word):
            return model.denoise(x0, t, z)

    def train(word):
        with cast(word):
            loss = model.denoise(x0, t, model.encode(x0)).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss

    def draw(word):
        return render(model, x0, z, 4, dtype=torch.bfloat16 if word == "bf16" else None).images

    ways = {
        f"matrix product of {M}": product,
        f"forward pass of {B}": forward,
        f"training step of {B}": train,
        f"rendering 4 steps of {B}": draw,
    }
    if not has_bf16(device):
        rounds = min(rounds, SLOW_ROUNDS)
    return [row(label, f, rounds, device) for label, f in ways.items()]


def row(label, f, rounds, device):
    "One way in both precisions; reading a number waits for the device."
    seconds = side_by_side({word: lambda word=word: f(word).sum().item() for word in ("bf16", "no")}, rounds)
    chosen = {"bf16": "bfloat16", "no": "float32"}[resolve_precision("auto", device)]
    note = f"auto: {chosen} on {device}; torch's CPU kernels: {torch.backends.cpu.get_cpu_capability()}"
    ours, peer = (1000 * median(seconds[word]) for word in ("bf16", "no"))
    return Row(f"{label}: bfloat16 beside float32", ours, peer, "ms", ratio(seconds, "bf16", "no"), note=note)
