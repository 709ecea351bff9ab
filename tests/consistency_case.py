"Small frozen parts and a cache of noise for the tests of removal, consistency training, ablations and masks."

import pytest
import torch

from latref_nb.ablations import ablated_task
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import make_generator
from latref_nb.tags import CELEBA_TAGS
from latref_nb.cache import TensorFaces
from latref_nb.directions import fit_classifiers
from latref_nb.tags import tag_list
from latref_nb.perceptual import PerceptualNet
from latref_nb.removal import ForwardSettings, Frozen, StyleCache, build_cache
from latref_nb.resuming import StepGenerator


torch.set_num_threads(1)
N = 14
SHAPE = dict(style_dim=6, n_tokens=2, token_dim=8)
NETS = dict(
    shape=SHAPE,
    modulation=dict(width=16, blocks=1, vector_dim=8, heads=2),
    extractor=dict(side=2, width=16, heads=2, layers=1, bottleneck=5),
    mapper=dict(prior_widths=(8,), width=16, heads=2, layers=1),
)
QUICK = ForwardSettings(steps=2, precision="no")
FIT = dict(batch_size=6, trackers=(), progress=False, device="cpu", log_every=1, warmup=0, save_every=2, lr=3e-3)


class Faces(TensorFaces):
    "Noise with labels, of which every combination that is needed occurs."

    def __init__(self, n=N, seed=0):
        g = torch.Generator().manual_seed(seed)
        labels = torch.stack([torch.arange(n) * (c + 3) // (c + 2) % len(t) for c, t in enumerate(CELEBA_TAGS)], 1)
        super().__init__(torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8), labels, CELEBA_TAGS)


@pytest.fixture(scope="module")
def frozen():
    torch.manual_seed(0)
    model = DiffusionAutoencoder(
        image_size=16,
        patch_size=2,
        model_channels=32,
        channel_mult=(1, 2),
        enc_channel_mult=(1, 2, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        num_heads=1,
        z_dim=16,
        prediction_type="v_prediction",
    )
    for p in model.unet.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.05)  # a fresh U-Net says nothing; this one says something
    faces = Faces(60)
    with torch.no_grad():
        z = model.encode(faces.batch(range(60))["image"])
    heads = [
        fit_classifiers(z, faces.labels, CELEBA_TAGS, kind, hidden=8, steps=30, generator=make_generator(0))
        for kind in ("linear", "mlp")
    ]
    return Frozen(model, *heads, PerceptualNet(tag_list(CELEBA_TAGS), size=16, widths=(8, 8, 8, 8)))


@pytest.fixture(scope="module")
def cache(frozen, tmp_path_factory):
    return build_cache(frozen, Faces(), tmp_path_factory.mktemp("cache"), settings=QUICK, chunk=5, progress=False)


def flipped(cache, key=""):
    "The same cache, as if every removal had removed."
    parts = [{**p, "flipped": torch.ones_like(p["flipped"])} for p in cache.parts]
    return StyleCache(parts, cache.tags, key, cache.provenance)


def batch_of(cache, n=6):
    return cache.batch(range(n))


def numbers(n=6):
    return StepGenerator(0, 0, n)


def task_of(frozen, name="whole", **how):
    return ablated_task(frozen, name, **{**NETS, **how})


def whole(cache):
    return {k: cache.column(k) for k in cache.parts[0]}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def classifiers(frozen):
    return frozen.linear, frozen.mlp
