"What training an autoencoder costs, counted from its shape and not timed: operations, memory, hours and disk. Prints Markdown; docs/train.md shows it."

import argparse

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from latref_nb.autoencoder import PRESETS, from_preset

# Sustained rates in TFLOP/s with --mixed-precision bf16: assumptions, not measurements: a quarter to a third of what the makers state for dense matrices.
CLASSES = {
    "12 GB consumer card": (12, 15),
    "24 GB consumer card": (24, 40),
    "A100, 40 GB": (40, 100),
    "H100, 80 GB": (80, 250),
}
BYTES_PER_WEIGHT = 20  # float32: weight, gradient, two moments of Adam, running average
FACES, TAGS = 30_000, 6  # of CelebAMask-HQ; tags whose removal the training of styles keeps on disk


def counted(preset, batch=2):
    "Operations of a forward pass and of a whole training step, for one face; parameters; and bytes that one face keeps for the backward pass."
    with torch.device("meta"):
        model = from_preset(preset)
    size, kept = model.config.image_size, {}

    def keep(t):
        kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    x, weights = torch.empty(batch, 3, size, size, device="meta"), sum(p.numel() for p in model.parameters())
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda t: t):
        loss = model(x, torch.zeros(batch, device="meta"), model.encode(x)).square().mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    ahead = forward.get_total_flops() / batch
    return (
        ahead,
        ahead + backward.get_total_flops() / batch,
        weights,
        sum(n for k, n in kept.items() if k not in own) / batch,
    )


def rows(steps, batch):
    "A line of Markdown for each preset."
    for name in PRESETS:
        ahead, step, weights, kept = counted(name)
        fixed, face = weights * BYTES_PER_WEIGHT / 1e9, kept / 1e9
        yield f"| `{name}` | {ahead / 1e9:.1f} | {step / 1e9:.1f} | {weights / 1e6:.0f} | {fixed:.1f} GB + {face:.2f} GB a face | {step * steps * batch / 1e18:.2f} |"


def hours(preset, steps, batch):
    "A line of Markdown for each class of card: the hours, and how many faces fit at once."
    _, step, weights, kept = counted(preset)
    for name, (memory, rate) in CLASSES.items():
        fit = int((0.9 * memory * 1e9 - weights * BYTES_PER_WEIGHT) / kept)
        yield f"| {name} | {rate} | {step * steps * batch / rate / 1e12 / 3600:.0f} | {max(fit, 0)} |"


def disk(preset):
    "Lines of Markdown: gigabytes that a training on all faces writes beside the data set itself."
    config, weights = PRESETS[preset], counted(preset)[2]
    with torch.device("meta"):
        model = from_preset(preset)
    size = config["image_size"]
    feats = model.encode_features(torch.empty(1, 3, size, size, device="meta")).numel() * 4
    picture, trained = 3 * size**2, weights * 4 / 1e9
    parts = {
        "pictures, decoded once (`--cache`)": FACES * picture / 1e9,
        "checkpoint of the autoencoder, twice while the next one is written": 2 * 4 * trained,
        "the trained autoencoder, and a copy in each pipeline (classifiers, styles, mask)": 4 * trained,
        f"removed faces for the styles, with their features, all {FACES:,}": FACES
        * (1 + TAGS)
        * (picture + feats)
        / 1e9,
    }
    for name, size in parts.items():
        yield f"| {name} | {size:.1f} |"
    yield f"| **together** | **{sum(parts.values()):.0f}** |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000, help="updates of the autoencoder")
    parser.add_argument("--batch-size", type=int, default=32, help="faces in each")
    parser.add_argument(
        "--preset", default="ffhq128_autoenc", choices=list(PRESETS), help="which one the hours are for"
    )
    a = parser.parse_args(argv)
    print(
        "| preset | forward, GFLOP a face | training step, GFLOP a face | million parameters | memory, float32 | whole training, 10¹⁸ FLOP |\n|---|---|---|---|---|---|"
    )
    print("\n".join(rows(a.steps, a.batch_size)))
    print(f"\n{a.preset}, {a.steps:,} steps of {a.batch_size} faces:\n")
    print("| class of card | assumed rate, TFLOP/s | hours | faces that fit at once, float32 |\n|---|---|---|---|")
    print("\n".join(hours(a.preset, a.steps, a.batch_size)))
    print(f"\n{a.preset}, {FACES:,} faces:\n")
    print("| on disk, beside the data set itself | GB |\n|---|---|")
    print("\n".join(disk(a.preset)))


if __name__ == "__main__":
    main()
