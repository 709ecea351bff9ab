"How long the explorer keeps a reader waiting: an edit's preview, an attention view and a face drawn from tags and a mask, from the change of a trait to the picture's bytes."

import threading
import time
from statistics import quantiles

import torch
from common import Row

from latref_nb.tags import tag_list
from latref_nb.explore import EditExplorer
from latref_nb.faces import SynthFaces
from latref_nb.inside import AttentionExplorer
from latref_nb.modulation import StyleModulation
from latref_nb.pipeline import LatRefPipeline
from latref_nb.prompt_explorer import PromptExplorer
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
from latref_nb.styles import LatentMapper, ReferenceExtractor

FACES, DRAWS = 8, 5  # faces in the chooser; changes for each round


def styled():
    "The shipped pipeline; where it ships without style networks, with ones of the default size and random weights: a clock does not mind."
    pipe = LatRefPipeline.from_pretrained("synthfaces64")
    pipe.set_progress_bar_config(disable=True)
    if pipe.modulation is not None:
        return pipe
    tags, c = tag_list(pipe.tags), pipe.autoencoder.config
    encoder = dict(
        image_size=c.image_size,
        patch_size=c.enc_patch_size,
        model_channels=c.enc_channels,
        channel_mult=c.enc_channel_mult,
        num_res_blocks=c.enc_num_res_blocks,
        attention_resolutions=c.enc_attention_resolutions,
        num_heads=c.num_heads,
        z_dim=c.z_dim,
    )
    pipe = LatRefPipeline(
        pipe.autoencoder,
        pipe.linear,
        pipe.mlp,
        StyleModulation(tags, 96),
        ReferenceExtractor(tags, encoder),
        LatentMapper(tags, c.image_size),
        inversion="fixed_point",
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_shown(explorer, change):
    "Seconds from a change of state to the first picture on the page."
    arrived, shown = threading.Event(), explorer.worker.show

    def show(result):
        shown(result)
        arrived.set()

    explorer.worker.show = show
    start = time.perf_counter()
    change()
    arrived.wait(60)
    seconds = time.perf_counter() - start
    explorer.worker.show = shown
    explorer.wait()
    return seconds


def p95(seconds):
    return 1000 * (quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0])


def edits(explorer, guidance, rounds):
    "Times of one way of editing: a new gain each time, and for noise a new seed."
    explorer.guidance = guidance
    explorer.wait()
    out = []
    for i in range(rounds * DRAWS):

        def change(i=i):
            if guidance == "noise":
                explorer.seed = 1 + i % 50
            else:
                explorer.gain = 0.5 + 0.01 * (1 + i % 100)

        out.append(first_shown(explorer, change))
    return out


def prompted(rounds):
    "The row of a face from tags and a mask; random weights of the default size: a clock does not mind."
    pipe = PromptedPipeline(prompted_unet(mask_by="both"), PromptEncoder(), prompted_scheduler(), mask_by="both")
    explorer = PromptExplorer(pipe, said={"Smiling": "with"}, mask_weight=3.0).wait()
    explorer.lend(0)
    explorer.wait()
    seconds = [first_shown(explorer, lambda i=i: setattr(explorer, "seed", 1 + i % 50)) for i in range(rounds * DRAWS)]
    ms = p95(seconds)
    return Row("first picture from tags and a mask, 95th percentile", ms, None, "ms", None, "≤ 300", ms <= 300)


def run(rounds):
    pipe, faces = styled(), SynthFaces(60, 64, seed=0)
    with torch.no_grad():
        explorer = EditExplorer(pipe, faces, range(FACES)).wait()
        rows = []
        for way in explorer.ways:
            ms = p95(edits(explorer, way, rounds))
            rows.append(
                Row(f"first picture of an edit by {way}, 95th percentile", ms, None, "ms", None, "≤ 300", ms <= 300)
            )
        looker = AttentionExplorer(pipe, faces, range(FACES)).wait()
        for layer in (looker.layer, "unet.up.2.attn"):
            looker.layer = layer
            looker.wait()
            seconds = []
            for i in range(rounds * DRAWS):
                start = time.perf_counter()
                looker.row, looker.column = divmod((i * 5 + 1) % looker.sides[0].rows ** 2, looker.sides[0].rows)
                seconds.append((time.perf_counter() - start) / 2)
            ms = p95(seconds)
            rows.append(
                Row(f"attention view of a click, {layer}, 95th percentile", ms, None, "ms", None, "≤ 100", ms <= 100)
            )
    return [*rows, prompted(rounds)]
