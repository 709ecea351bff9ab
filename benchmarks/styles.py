"A styled edit beside the published loop at equal reconstruction error, sixteen edits at once beside one by one, and a training step of the style networks from the cache beside one without."

import tempfile
from statistics import median

import torch
from common import Row, ratio, side_by_side

from latref_nb.consistency import HOW, StyleTask, style_networks
from latref_nb.removal import ForwardSettings, Frozen, build_cache, forward_pass
from latref_nb.core import make_generator
from latref_nb.faces import SynthFaces
from latref_nb.edits import Edit
from latref_nb.pipeline import LatRefPipeline
from latref_nb.sampling import invert, render, round_trip
from latref_nb.resuming import StepGenerator

PUBLISHED = 100  # steps each way in the published loop
BATCH, MANY = 8, 16  # faces of a training step; edits at once


def styled_pipeline():
    "The shipped autoencoder, whose reconstruction counts, with style networks: the shipped ones, or fresh ones of their form."
    pipe = LatRefPipeline.from_pretrained("synthfaces64")
    if {"modulation", "extractor", "mapper"} <= set(pipe.parts):
        return pipe
    nets = style_networks(pipe.autoencoder, pipe.tags)
    return LatRefPipeline(
        pipe.autoencoder,
        pipe.linear,
        pipe.mlp,
        inversion="fixed_point",
        modulation=nets.modulation,
        extractor=nets.extractor,
        mapper=nets.mapper,
    )


def error(model, x, steps, method, iterations=1):
    return float(
        (round_trip(model, x, steps, method=method, iterations=iterations).rendered.images - x).square().mean()
    )


def equal_steps(model, x):
    "(steps, iterations) of fixed-point inversion with the fewest network calls that give faces back as well as the published loop does, and both errors."
    bar = error(model, x, PUBLISHED, "ddim")
    for n, k in sorted(
        ((n, k) for k in (2, 3, 4) for n in (12, 14, 16, 18, 20, 24, 30)), key=lambda o: o[0] * (1 + o[1])
    ):
        if n * (1 + k) >= 60 and (found := error(model, x, n, "fixed_point", k)) <= bar:
            return n, k, found, bar
    return PUBLISHED, 1, error(model, x, PUBLISHED, "fixed_point"), bar


def published(pipe, x, ref, edits):
    "As the published loop does: the source encoded twice, plain and styled, and the reference once, anew in every step of both ways."
    model, value = pipe.autoencoder, 1

    def again(i, t, state):
        model.encode(x)
        code = pipe.extractor(ref, "Eyeglasses", value)
        model.head(pipe.modulation(model.encode_features(x), "Eyeglasses", value, code))

    with torch.no_grad():
        z = model.encode(x)
        x_T = invert(model, x, z, PUBLISHED, callback_on_step_end=again).x_T
        return render(
            model, x_T, pipe.edit(z, edits, feats=model.encode_features(x), x=x), PUBLISHED, callback_on_step_end=again
        ).images


def edit_row(pipe, x, ref, rounds):
    "One face, one edit by reference and one by noise."
    edits = [Edit("Eyeglasses", "with", reference=ref), Edit("Smiling", "with", seed=0)]
    n, k, ours, theirs = equal_steps(pipe.autoencoder, x)
    pipe.register_to_config(inversion="fixed_point", iterations=k)
    t = side_by_side(
        {
            "ours": lambda: pipe(x[:1], edits, n, output_type="pt"),
            "published": lambda: published(pipe, x[:1], ref, edits),
        },
        rounds,
    )
    r = ratio(t, "ours", "published")
    note = f"{1 / r:.1f}×; {n} steps, {k} iterations: squared error {ours:.1e} against {theirs:.1e} in {PUBLISHED}"
    return Row(
        "an edit by reference and noise beside the published loop, at equal error",
        1000 * median(t["ours"]),
        1000 * median(t["published"]),
        "ms",
        r,
        "≤ 1/6",
        r <= 1 / 6,
        note,
    )


def batch_row(pipe, x, ref, rounds):
    "The same edits, all faces at once and one after the other."
    edit = Edit("Eyeglasses", "with", reference=ref)
    ways = {
        "batch": lambda: pipe(x, edit, 6, output_type="pt"),
        "single": lambda: [pipe(o[None], edit, 6, output_type="pt") for o in x],
    }
    t = side_by_side(ways, rounds)
    r = ratio(t, "batch", "single")
    return Row(
        f"{len(x)} edits in a batch beside {len(x)} single ones",
        1000 * median(t["batch"]),
        1000 * median(t["single"]),
        "ms",
        r,
        "< 1",
        r < 1,
    )


def training_row(pipe, rounds):
    "Forward, backward and update of the style networks; without a cache the removal comes before each step."
    frozen, faces, settings = (
        Frozen(pipe.autoencoder, pipe.linear, pipe.mlp),
        SynthFaces(4 * BATCH, 64, seed=3),
        ForwardSettings(),
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(frozen, faces, folder, settings=settings, chunk=BATCH, progress=False)
        task = StyleTask(frozen, style_networks(frozen.autoencoder, frozen.tags))
        params = [p for m in task.modules.values() for p in m.parameters()]
        opt, rows = torch.optim.AdamW(params, lr=HOW["lr"], fused=True), range(BATCH)

        def update(batch):
            task.loss(batch, StepGenerator(0, 0, BATCH))["loss"].backward()
            opt.step()
            opt.zero_grad()

        def uncached():
            b = faces.batch(rows)
            update(forward_pass(frozen, b["image"], b["labels"], settings, make_generator(0)))

        t = side_by_side({"cached": lambda: update(cache.batch(rows)), "uncached": uncached}, rounds)
    r = ratio(t, "cached", "uncached")
    return Row(
        f"training step of the style networks, {BATCH} faces, from the cache beside without",
        1000 * median(t["cached"]),
        1000 * median(t["uncached"]),
        "ms",
        r,
        "< 1",
        r < 1,
        f"{1 / r:.1f}×",
    )


def run(rounds):
    pipe = styled_pipeline()
    pipe.set_progress_bar_config(disable=True)
    faces = SynthFaces(64, 64, seed=4)
    bare, worn = ((faces.labels[:, faces.tags.index("Eyeglasses")] == k).nonzero().flatten().tolist() for k in (0, 1))
    x, ref = faces.batch(bare[:MANY])["image"], faces.batch(worn[:1])["image"]
    return [edit_row(pipe, x[:4], ref, rounds), batch_row(pipe, x, ref, rounds), training_row(pipe, rounds)]
