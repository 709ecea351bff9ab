"A recipe for photographs from nothing to a card, on a small folder in the layout of CelebAMask-HQ; prices; what is refused."

from dataclasses import replace

import pytest
import torch
from latref_nb.checkpoints import load_part
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.costs import CARDS, price
from latref_nb.datasets import write_celebamask_hq
from latref_nb.faces import SynthFaces
from latref_nb.files import read_json, shipped_path
from latref_nb.pipeline import LatRefPipeline
from latref_nb.recipes import CELEBA, ONLY_RENDERED, RECIPES, share_of, varied
from latref_nb.removal import weights_key
from latref_nb.runner import Job, run_recipe
from latref_nb.shell import UsageError
from latref_nb.train_commands import train_recipe

torch.set_num_threads(1)
SMALL = replace(
    RECIPES["celebahq128"],
    size=64,
    tags={t: CELEBA[t] for t in ("Smiling", "Eyeglasses", "HairColor")},
    stages=varied(RECIPES["celebahq128"].stages, autoencoder=dict(network=dict(preset="synthfaces64"))),
)
TRIAL = dict(scale=1e-5, processes=1, progress=False)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    "Rendered faces, treated as photographs."
    folder = tmp_path_factory.mktemp("photographs") / "CelebAMask-HQ"
    write_celebamask_hq(SynthFaces(170, 64, seed=11), folder, 170, progress=False)
    return folder


def test_photographs_become_a_model_with_its_card(photographs, tmp_path):
    run_recipe(SMALL, tmp_path, data=photographs, **TRIAL)
    pipe, record = (
        LatRefPipeline.from_pretrained(tmp_path / "celebahq128"),
        read_json(tmp_path / "celebahq128/training.json"),
    )
    assert {"modulation", "extractor", "mapper", "picture_mask", "latent"} <= set(pipe.parts)
    seen = {label for stage in record["stages"].values() for label in stage["labels"]}
    assert seen == {"tags", "masks"}, "nothing that only rendered faces have"
    card = (tmp_path / "celebahq128/README.md").read_text(encoding="utf-8")
    assert "trained on photographs" in card and "--data DIR" in card and "rendered faces" not in card


def test_published_weights_take_the_place_of_the_autoencoder(photographs, tmp_path):
    given = shipped_path("synthfaces64") / "autoencoder"
    run_recipe(SMALL, tmp_path, data=photographs, autoencoder=given, until="autoencoder", **TRIAL)
    kept = load_part(DiffusionAutoencoder, tmp_path / "autoencoder" / "autoencoder")
    assert weights_key(kept) == weights_key(load_part(DiffusionAutoencoder, given))
    with pytest.raises(ValueError, match="other settings, or stands on other weights"):
        run_recipe(SMALL, tmp_path, data=photographs, until="autoencoder", **TRIAL)
    with pytest.raises(UsageError, match="makes pictures of 64 pixels, celebahq128 of 128"):
        Job(RECIPES["celebahq128"], tmp_path, data=photographs, autoencoder=given)


def test_who_measures_sees_other_photographs(photographs, tmp_path):
    job = Job(SMALL, tmp_path, data=photographs)
    paths = {s: set(job.faces(s).paths) for s in ("critic", "autoencoder", "styles", "judge", "evaluation")}
    assert len(paths["critic"]) == 119 and len(paths["judge"]) == 34 and len(paths["evaluation"]) == 17
    assert (
        not paths["judge"] & (paths["critic"] | paths["evaluation"]) and not paths["evaluation"] & paths["autoencoder"]
    )
    assert job.faces("judge").masks(0).shape == (19, 64, 64)
    assert share_of("identity") == share_of("judge") != share_of("styles")


def test_a_recipe_says_what_it_is_made_from(photographs, tmp_path):
    for recipe, data, words in (
        (SMALL, None, "say where they lie, --data DIR"),
        (RECIPES["course"], photographs, "renders its faces: leave --data out"),
    ):
        with pytest.raises(UsageError, match=words):
            run_recipe(recipe, tmp_path / "out", data=data, **TRIAL)
    with pytest.raises(UsageError, match="stage of celebahq128 'factors' is not known"):
        run_recipe(SMALL, tmp_path / "out", data=photographs, only="factors", **TRIAL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="the stages of a recipe are critic, judge, identity, autoencoder"):
        replace(SMALL, stages={"factors": {}, **SMALL.stages})


@pytest.mark.parametrize("name", ["synthfaces64", "celebahq128"])
def test_a_price_is_counted_for_every_stage(name, capsys):
    rows = {r["stage"]: r for r in price(RECIPES[name])}
    assert list(rows) == list(RECIPES[name].stages) and not (set(rows) & set(ONLY_RENDERED) and RECIPES[name].data)
    for stage in ("critic", "autoencoder", "styles", "evaluation"):
        assert rows[stage]["10¹⁵ operations"] > 0 and all(f"hours, {card}" in rows[stage] for card in CARDS)
    assert rows["autoencoder"]["10¹⁵ operations"] > rows["critic"]["10¹⁵ operations"]
    for stage in ("critic", "autoencoder", "styles"):
        assert all(rows[stage][k] > 0 for k in ("M parameters", "GFLOP a step", "GB")), stage


def test_a_dry_run_prints_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_recipe("celebahq128", dry_run=True)
    said = capsys.readouterr().out
    assert "autoencoder" in said and "H100" in said and not list(tmp_path.iterdir())
