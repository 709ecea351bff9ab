"Rows, and two or more things timed side by side."

import time
from dataclasses import asdict, dataclass
from statistics import median

import torch

import latref_nb  # noqa: F401  before diffusers: it mends torchvision beside a CPU build of torch


@dataclass
class Row:
    "One measured claim."

    what: str  # what is measured
    ours: float  # in `unit`
    peer: float | None  # the same for what it is held against
    unit: str
    ratio: float | None  # ours to peer, median over the rounds
    bar: str = ""  # what the ratio (or ours) has to be
    met: bool | None = None  # None: no bar
    note: str = ""

    def as_dict(self):
        return asdict(self)


def side_by_side(ways, rounds):
    "Time each function once in every round, in turn; {name: [seconds]} after a warm-up of one round."
    for f in ways.values():
        f()
    seconds = {name: [] for name in ways}
    for i in range(rounds):
        names = list(ways)[i % len(ways) :] + list(ways)[: i % len(ways)]  # so that nobody is always first
        for name in names:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, a, b):
    "Median over the rounds of a's time to b's in the same round."
    return median(x / y for x, y in zip(seconds[a], seconds[b]))


def autoencoder(seed=0):
    "The shipped architecture with random weights: what it computes does not matter to a clock."
    from latref_nb.autoencoder import from_preset

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return from_preset("synthfaces64")
