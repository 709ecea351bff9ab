"What training an autoencoder costs, counted from its shape and not timed: operations, memory, hours and disk. Prints Markdown; docs/train.md shows it."

import argparse

import torch

from latref_nb.autoencoder import PRESETS, from_preset
from latref_nb.costs import BYTES_PER_WEIGHT, autoencoder_cost, card_rows

FACES, TAGS = 30_000, 6  # of CelebAMask-HQ; tags whose removal the training of styles keeps on disk


def rows(steps, batch):
    "A line of Markdown for each preset."
    for name in PRESETS:
        c = autoencoder_cost(name)
        fixed, face = c.weights * BYTES_PER_WEIGHT / 1e9, c.kept / 1e9
        yield (
            f"| `{name}` | {c.forward / 1e9:.1f} | {c.step / 1e9:.1f} | {c.weights / 1e6:.0f} "
            f"| {fixed:.1f} GB + {face:.2f} GB a face | {c.step * steps * batch / 1e18:.2f} |"
        )


def hours(preset, steps, batch):
    "A line of Markdown for each class of card: the hours, and how many faces fit at once."
    for r in card_rows(autoencoder_cost(preset), steps * batch):
        yield f"| {r['card']} | {r['TFLOP/s']} | {r['hours']:.0f} | {r['faces at once']} |"


def disk(preset):
    "Lines of Markdown: gigabytes that a training on all faces writes beside the data set itself."
    config, weights = PRESETS[preset], autoencoder_cost(preset).weights
    with torch.device("meta"):
        model = from_preset(preset)
    size = config["image_size"]
    feats = model.encode_features(torch.empty(1, 3, size, size, device="meta")).numel() * 4
    picture, trained = 3 * size**2, weights * 4 / 1e9
    removed = FACES * (1 + TAGS) * (picture + feats) / 1e9
    parts = {
        "pictures, decoded once (`--cache`)": FACES * picture / 1e9,
        "checkpoint of the autoencoder, twice while the next one is written": 2 * 4 * trained,
        "the trained autoencoder, and a copy in each pipeline (classifiers, styles, mask)": 4 * trained,
        f"removed faces for the styles, with their features, all {FACES:,}": removed,
    }
    for name, size in parts.items():
        yield f"| {name} | {size:.1f} |"
    yield f"| **together** | **{sum(parts.values()):.0f}** |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000, help="updates of the autoencoder")
    parser.add_argument("--batch-size", type=int, default=32, help="faces in each")
    parser.add_argument("--preset", default="ffhq128_autoenc", choices=list(PRESETS), help="whose hours")
    a = parser.parse_args(argv)
    columns = "preset | forward, GFLOP a face | training step, GFLOP a face | million parameters | memory, float32"
    print(f"| {columns} | whole training, 10¹⁸ FLOP |\n|---|---|---|---|---|---|")
    print("\n".join(rows(a.steps, a.batch_size)))
    print(f"\n{a.preset}, {a.steps:,} steps of {a.batch_size} faces:\n")
    print("| class of card | assumed rate, TFLOP/s | hours | faces that fit at once, float32 |\n|---|---|---|---|")
    print("\n".join(hours(a.preset, a.steps, a.batch_size)))
    print(f"\n{a.preset}, {FACES:,} faces:\n")
    print("| on disk, beside the data set itself | GB |\n|---|---|")
    print("\n".join(disk(a.preset)))


if __name__ == "__main__":
    main()
