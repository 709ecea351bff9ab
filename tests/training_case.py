"A tiny training, run as a program by test_training: python training_case.py OUT WHERE, with WHERE one of none, between, saving, two."

import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import Dataset

import latref_nb.training as training
from latref_nb.training import fit

HOW = dict(
    steps=12, batch_size=8, lr=1e-2, save_every=5, log_every=3, warmup=2, trackers=(), progress=False, device="cpu"
)


class Points(Dataset):
    "Numbers; `on` is called with how many batches have been asked for."

    def __init__(self, on=None):
        self.on, self.asked = on, 0

    def __len__(self):
        return 20

    def batch(self, indices):
        self.asked += 1
        if self.on:
            self.on(self.asked)
        return {"x": torch.tensor(indices).float()[:, None] / 10 - 1}


class Curve:
    "A small network with a part that rests during the first steps."

    def __init__(self, width=8, dropout=0.0, seed=0):
        torch.manual_seed(seed)
        self.modules = {
            "net": nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 1)),
            "late": nn.Linear(1, 1),
        }
        self.width = width

    def config(self):
        return {"width": self.width}

    def loss(self, batch, generator):
        out = self.modules["net"](batch["x"])
        if generator.step >= 3:
            out = out + self.modules["late"](batch["x"])
        return {"loss": (out - batch["x"].square() - 0.1 * generator.randn(1)).square().mean()}


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_second_save():
    "Die with one file of the second checkpoint half written."
    plain, calls = training.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) == 5:
            path.write_bytes(b"half")
            kill()
        plain(tensors, path)

    training.save_file = save_file


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, where = sys.argv[1:]
    if where == "saving":
        kill_in_second_save()
    two = where == "two"  # held against one process to the last digits, which bfloat16 has not
    fit(
        Curve(dropout=0.0 if two else 0.2),
        Points(lambda n: kill() if n == 9 and where == "between" else None),
        out,
        **HOW,
        precision="no" if two else "auto",
    )
