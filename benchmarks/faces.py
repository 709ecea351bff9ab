"How many faces a second SynthFaces renders at 64×64, beside one face at a time and beside PIL drawing ellipses."

import time
from statistics import median

import numpy as np
from common import Row, ratio, side_by_side
from PIL import Image, ImageDraw

from latref_nb.faces import SynthFaces

N, FEW = 256, 16  # faces in one batch; one by one


def drawn_face(rng, size=64, supersample=4):
    "A bare face of a dozen shapes drawn by PIL at four times the size and scaled down: far less in it, but what one would write first."
    s = size * supersample
    image = Image.new("RGB", (s, s), tuple(rng.integers(90, 200, 3).tolist()))
    draw, skin, hair = (
        ImageDraw.Draw(image),
        tuple(rng.integers(120, 240, 3).tolist()),
        tuple(rng.integers(20, 120, 3).tolist()),
    )

    def disc(x, y, rx, ry, fill):
        draw.ellipse([s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry)], fill=fill)

    disc(0.5, 0.42, 0.36, 0.40, hair)
    disc(0.5, 0.52, 0.30, 0.38, skin)
    for x in (0.38, 0.62):
        disc(x, 0.46, 0.06, 0.03, (250, 250, 250))
        disc(x, 0.46, 0.025, 0.028, (40, 30, 30))
        draw.line([s * (x - 0.07), s * 0.38, s * (x + 0.07), s * 0.37], fill=hair, width=s // 60)
    disc(0.5, 0.6, 0.03, 0.05, tuple(int(0.85 * c) for c in skin))
    disc(0.5, 0.74, 0.12, 0.035, (170, 60, 60))
    return np.asarray(image.resize((size, size), Image.LANCZOS))


def run(rounds):
    ds, rng = SynthFaces(n=N, size=64, seed=1), np.random.default_rng(0)
    ways = {
        "batch": lambda: ds.batch(range(N)),
        "one by one": lambda: [ds[i] for i in range(FEW)],
        "drawn": lambda: [drawn_face(rng) for _ in range(FEW)],
    }
    t = side_by_side(ways, rounds)
    rate = {name: (N if name == "batch" else FEW) / median(s) for name, s in t.items()}
    start = time.process_time()
    ways["batch"]()
    note = f"{N / (time.process_time() - start):.0f} for each second of processor time"
    return [
        Row(
            "SynthFaces 64×64, in one batch beside one by one",
            rate["batch"],
            rate["one by one"],
            "faces/s",
            ratio(t, "one by one", "batch") * N / FEW,
            "≥ 300 faces/s",
            rate["batch"] >= 300,
            note,
        ),
        Row(
            "SynthFaces 64×64 beside a dozen shapes drawn by PIL",
            rate["batch"],
            rate["drawn"],
            "faces/s",
            ratio(t, "drawn", "batch") * N / FEW,
            note="a far poorer picture, shown for scale",
        ),
    ]
