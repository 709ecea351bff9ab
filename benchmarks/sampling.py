"The sampling loop beside the bare sum of its network calls, and beside encoding the source again in every step."

from statistics import median

import torch
from common import Row, autoencoder, ratio, side_by_side

from latref_nb.sampling import invert, render

B, STEPS = 4, 8  # images, steps


def run(rounds):
    model = autoencoder().eval()
    x0 = torch.rand(B, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = model.encode(x0)

    def bare():
        with torch.no_grad():
            for t in range(STEPS):
                model.denoise(x0, torch.full((B,), t), z)

    def encoding_in_every_step():
        "As the published loop does: source and edited code are made anew at each step."

        def again(i, t, state):
            return {"z": [model.encode(x0), model.encode(x0)][0]}

        return render(model, x0, z, STEPS, callback_on_step_end=again)

    ways = {
        "bare": bare,
        "render": lambda: render(model, x0, z, STEPS),
        "invert": lambda: invert(model, x0, z, STEPS),
        "fixed": lambda: invert(model, x0, z, STEPS // 2, method="fixed_point", iterations=2),
        "again": encoding_in_every_step,
    }
    t = side_by_side(ways, rounds)
    ms = {name: 1000 * median(s) / STEPS for name, s in t.items()}
    rows = []
    for name, label in (("render", "rendering"), ("invert", "DDIM inversion"), ("fixed", "fixed-point inversion")):
        r = ratio(t, name, "bare")
        rows.append(
            Row(
                f"{label}, a step of {B} images, beside its bare network call",
                ms[name],
                ms["bare"],
                "ms",
                r,
                "≤ 1.05",
                r <= 1.05,
            )
        )
    rows.append(
        Row(
            "rendering beside encoding source and edit in every step",
            ms["render"],
            ms["again"],
            "ms",
            ratio(t, "render", "again"),
            "< 1",
            ratio(t, "render", "again") < 1,
        )
    )
    return rows
