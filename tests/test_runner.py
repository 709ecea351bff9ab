"From nothing to a model: a whole recipe, killed and taken up again; what is finished is skipped, what has changed is refused."

import json, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from recipe_case import SCALE
from repo import HANG, ROOT
from latref_nb import cards, commands, runner, train_commands
from latref_nb.removal import weights_key
from latref_nb.pipeline import LatRefPipeline
from latref_nb.recipes import RECIPES, TEACHES, scaled, varied
from latref_nb.runner import run_recipe

torch.set_num_threads(1)
CASE = Path(__file__).with_name("recipe_case.py")
TRIAL = dict(scale=SCALE, processes=1, progress=False)


def killed(out, stage, step):
    "A trial of the recipe in a process of its own, which dies in a step of a stage."
    done = subprocess.run([sys.executable, CASE, out, stage, str(step)], cwd=ROOT, capture_output=True, timeout=HANG)
    return done.returncode == -9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The trial without a stop."
    out = tmp_path_factory.mktemp("recipe") / "whole"
    run_recipe(RECIPES["course"], out, **TRIAL)
    return out


def keys(out):
    "{stage: key of the weights it has left}."
    return {s: runner.read_stage(out / s)["weights"] for s in TEACHES if s not in ("evaluation", "card")}


def test_killed_in_the_middle_of_a_stage_it_ends_as_if_nothing_had_happened(whole, tmp_path, capsys):
    before = ("critic", "judge", "identity", "factors")
    for stage in before:  # as made by the first: each stage has a folder of its own
        shutil.copytree(whole / stage, tmp_path / "killed" / stage)
    for stage, step in (("autoencoder", 3), ("styles", 2)):
        assert killed(tmp_path / "killed", stage, step)
        assert not runner.read_stage(tmp_path / "killed" / stage)["finished"]
    run_recipe(RECIPES["course"], tmp_path / "killed", **TRIAL)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said if line.endswith("done already")] == [
        f"{s}:" for s in (*before, "autoencoder", "classifiers")
    ]
    assert any(line.startswith("[7/11] styles, goes on: ") for line in said)
    assert keys(tmp_path / "killed") == keys(whole)
    a, b = (LatRefPipeline.from_pretrained(o / "course") for o in (whole, tmp_path / "killed"))
    assert list(a.parts) == list(b.parts) and len(a.parts) == 8
    for x, y in zip(a.parts.values(), b.parts.values()):
        for name, tensor in x.state_dict().items():
            assert torch.equal(tensor, y.state_dict()[name]), name


def test_the_record_is_one_and_says_all(whole):
    record = json.loads((whole / "course" / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(runner.plain(scaled(RECIPES["course"], SCALE))))
    assert list(record["stages"]) == [s for s in TEACHES if s != "card"]
    for stage, facts in record["stages"].items():
        assert facts["seconds"] >= 0 and facts["machine"]["cpu"] and facts["precision"] in ("bf16", "no")
        assert facts["uses"] == {u: keys(whole)[u] for u in facts["uses"]} and len(facts["data"]) == 16
        if stage in ("critic", "autoencoder", "styles", "mask", "latent"):
            assert facts["losses"]["loss"] > 0 and facts["steps"] == record["recipe"]["stages"][stage]["steps"]
    pipe = LatRefPipeline.from_pretrained(whole / "course")
    assert record["stages"]["latent"]["weights"] == weights_key(*pipe.parts.values())
    assert record["stages"]["latent"]["labels"] == [] and "latent" not in record["stages"]["evaluation"]["uses"]


def test_the_card_is_printed_from_the_record(whole):
    card = (whole / "course" / "README.md").read_text(encoding="utf-8")
    assert "Labels seen by the model: tags, masks." in card
    assert f"latref_train recipe course --out runs --scale {SCALE}" in card and "| styles | tags |" in card
    assert cards.card_folder(str(whole / "course")) == whole / "course"


def test_what_is_finished_is_skipped_and_what_has_changed_is_refused(whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "copy")
    run_recipe(RECIPES["course"], out, until="factors", **TRIAL)
    assert capsys.readouterr().out.count("done already") == 4
    recipe = RECIPES["course"]
    other = replace(recipe, stages=varied(recipe.stages, mask=dict(groups={"": dict(area=3.0)})))
    with pytest.raises(ValueError, match="mask was made with other settings"):
        run_recipe(other, out, only="mask", **TRIAL)
    shutil.rmtree(out / "mask")
    run_recipe(other, out, only="mask", **TRIAL)
    with pytest.raises(ValueError, match="evaluation was made with other settings, or stands on other weights"):
        run_recipe(other, out, only="evaluation", **TRIAL)


def test_a_stage_waits_for_those_it_stands_on(tmp_path):
    with pytest.raises(ValueError, match="styles stands on classifiers, critic, not finished"):
        run_recipe(RECIPES["course"], tmp_path / "new", only="styles", **TRIAL)
    with pytest.raises(SystemExit):
        train_commands.latref_train.run(["recipe", "--help"])


def test_ctrl_c_says_how_to_go_on(whole, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(out / "mask")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "train_mask", stopped)
    line = ["recipe", "course", "--out", str(out), "--scale", str(SCALE), "--processes", "1", "--until", "mask"]
    monkeypatch.setattr(sys, "argv", ["latref_train", *line])
    assert train_commands.latref_train.run(line) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stopped in mask; what was done is kept. To go on: latref_train recipe course --out" in said
    assert runner.read_stage(out / "mask")["finished"] is False


def test_the_time_that_is_left_follows_this_machine():
    r = RECIPES["course"]
    slow = {"critic": 60.0 * 2 * r.minutes["critic"]}
    assert runner.time_left(r, slow, ["styles"]) == pytest.approx(2 * r.minutes["styles"])
    assert runner.time_left(r, {}, ["styles"]) == r.minutes["styles"]
