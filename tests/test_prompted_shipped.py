"The prompted model that ships: its size, its record, its card, and whether it obeys."

import json

import pytest
import torch

from latref_nb.files import shipped_path
from latref_nb.judges import load_network
from latref_nb.obeyed import asked, draw_asked
from latref_nb.prompted import PromptedPipeline
from latref_nb.recipes import RECIPES, plain

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe():
    pipe = PromptedPipeline.from_pretrained("prompted64")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small():
    files = [p for p in shipped_path("prompted64").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 12.5e6


def test_the_record_is_the_recipe():
    record = json.loads((shipped_path("prompted64") / "training.json").read_text(encoding="utf-8"))
    assert record["recipe"] == plain(RECIPES["prompted64"])
    assert record["stages"]["prompted"]["steps"] == RECIPES["prompted64"].stages["prompted"]["steps"]


def test_the_card_says_which_labels_were_seen_and_how_to_measure_again():
    card = (shipped_path("prompted64") / "README.md").read_text(encoding="utf-8")
    assert "Labels seen by the model: masks, tags." in card and "latref_eval prompted --n 512" in card
    assert "tags obeyed at guidance 1, mean" in card


def test_it_obeys(pipe):
    held_out = asked(24, seed=31_024)
    read = load_network("judge").predict(draw_asked(pipe, held_out.prompt, steps=8))
    assert (read == held_out.prompt.labels).float().mean() > 0.9


def test_half_precision_on_the_disk_full_in_memory(pipe):
    assert pipe.unet.dtype == torch.float32
    assert PromptedPipeline.from_pretrained("prompted64", torch_dtype="auto").unet.dtype == torch.float16
