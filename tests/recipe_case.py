"A trial of a recipe, run as a program by test_runner: python recipe_case.py OUT STAGE STEP, which dies in that step of that stage."

import os
import signal
import sys

import torch

from latref_nb import training
from latref_nb.recipes import RECIPES
from latref_nb.runner import run_recipe

SCALE = 0.002


def die_in(stage, step):
    "Die before a step of a stage, as a kill or a power cut would have it."
    plain = training.Run.step

    def dying(self, batch):
        if self.out.name == stage and self.done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch)

    training.Run.step = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, stage, step = sys.argv[1:]
    die_in(stage, int(step))
    run_recipe(RECIPES["course"], out, scale=SCALE, processes=1, progress=False)
