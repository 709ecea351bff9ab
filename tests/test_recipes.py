"Recipes are data: what they name exists, and a help page needs no torch."

import dataclasses, inspect, json, subprocess, sys
import pytest
from repo import HANG, ROOT
from latref_nb import (
    ablations,
    autoencoder,
    consistency,
    core,
    directions,
    faces,
    latent,
    masks,
    metrics,
    modulation,
    official,
    pipeline,
    recipes,
    removal,
    runner,
    sampling,
    schedule,
    shell,
    styles,
    train_commands,
    training,
)
from latref_nb.recipes import ONLY_RENDERED, RECIPES, TEACHES, USES, scaled, stage_key, varied

# ---- names


@pytest.mark.parametrize(
    "names, known",
    [
        (recipes.PRECISIONS, core.PRECISIONS),
        (recipes.AUTOENCODERS, autoencoder.PRESETS),
        (recipes.INVERSIONS, sampling.INVERSIONS),
        (recipes.WEIGHTINGS, schedule.WEIGHTINGS),
        (recipes.DIRECTIONS, directions.METHODS),
        (recipes.PUBLISHED, official.LATREF_PRESETS),
        (recipes.ROWS, metrics.METHODS),
        (recipes.ABLATED, ablations.ABLATIONS),
        (recipes.CELEBA, core.CELEBA_TAGS.names),
    ],
)
def test_names_are_those_of_the_chapters(names, known):
    assert tuple(names) == tuple(known)


def test_the_other_names_too():
    assert {t.name: t.values for t in core.CELEBA_TAGS} == recipes.CELEBA
    assert recipes.HELD_OUT_SEED == metrics.HELD_OUT_SEED and shell.MOST_SEED == pipeline.MOST_SEED
    assert list(train_commands.NETWORK_WORDS) == list(metrics.NETWORKS)
    assert set(metrics.SEEDS) >= {"judge", "identity", "factors"}


def fields(kind):
    return {f.name: f.default for f in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    "kind",
    [
        consistency.Weights,
        consistency.StyleSettings,
        removal.ForwardSettings,
        masks.MaskWeights,
        recipes.AutoencoderSettings,
        recipes.ClassifierSettings,
        recipes.StyleRun,
    ],
)
def test_settings_are_read_off_the_source_as_they_are(kind):
    found = shell.documented(kind.__name__)
    plain = {k: v for k, v in fields(kind).items() if v is not dataclasses.MISSING}
    assert {k: f.default for k, f in found.items() if k in plain} == plain
    assert all(f.words for f in found.values()), [k for k, f in found.items() if not f.words]


def test_arguments_are_read_off_the_source_as_they_are():
    for kind in (autoencoder.DiffusionAutoencoder, modulation.StyleModulation, styles.LatentMapper, latent.LatentPrior):
        real = {p.name: p.default for p in inspect.signature(kind).parameters.values() if p.default is not p.empty}
        assert {k: f.default for k, f in shell.documented(kind.__name__).items()} == real, kind


def test_terms_of_an_autoencoder_are_those_of_its_task():
    known = inspect.signature(training.train_autoencoder).parameters
    run = ("warmup", "decay", "ema_decay", "channels_last", "data_seed", "regions")
    assert {k for k in fields(recipes.AutoencoderSettings) if k not in run} <= set(known)
    assert set(run[:4]) <= set(fields(training.Settings))


# ---- recipes


EDITORS = [name for name, r in RECIPES.items() if not r.prompted]


@pytest.mark.parametrize("name", EDITORS)
def test_a_recipe_says_what_its_stages_can_be_told(name):
    r = RECIPES[name]
    left_out = {"identity", *ONLY_RENDERED} if r.data else set()
    assert (
        r.name == name and list(TEACHES) == list(USES) and list(r.stages) == [s for s in TEACHES if s not in left_out]
    )
    assert set(r.minutes) == (set() if r.data else set(TEACHES))
    core.TagSet([core.CELEBA_TAGS[t] for t in r.tags])
    recipes.AutoencoderSettings(**r.stages["autoencoder"]["settings"])
    recipes.ClassifierSettings(**r.stages["classifiers"]["settings"])
    recipes.StyleRun(**r.stages["styles"]["settings"])
    runner.style_choices(r.stages["styles"]["groups"])
    masks.MaskWeights(**r.stages["mask"]["groups"][""])
    latent.LatentPrior(8, **r.stages["latent"]["network"])
    for stage in {"judge", "identity", "factors"} & set(r.stages):
        assert r.stages[stage]["seed"] == metrics.SEEDS[stage]
    assert r.stages["critic"]["seed"] == metrics.SEEDS["perceptual"]
    assert r.stages["evaluation"]["seed"] not in [r.seed, *metrics.SEEDS.values()]
    json.dumps(recipes.plain(r))


def test_networks_that_measure_are_trained_alike_by_recipe_and_by_name():
    for kind, stage in {"judge": "judge", "identity": "identity", "factors": "factors", "perceptual": "critic"}.items():
        said = RECIPES["synthfaces64"].stages[stage]
        assert {k: v for k, v in metrics.RECIPES[kind].items() if k != "decay"}.items() <= said.items()


def test_the_prior_of_the_recipe_is_the_networks_default():
    sizes = {k: f.default for k, f in shell.documented("LatentPrior").items()}
    assert RECIPES["synthfaces64"].stages["latent"]["network"] == sizes
    how = RECIPES["synthfaces64"].stages["latent"]
    assert {k: how[k] for k in ("batch_size", "lr")} == {k: latent.LATENT_HOW[k] for k in ("batch_size", "lr")}
    assert {s: RECIPES[s].stages["latent"]["labels"] for s in EDITORS} == dict.fromkeys(EDITORS, ())


def test_stages_stand_only_on_those_before_them():
    for i, (stage, used) in enumerate(USES.items()):
        assert set(used) <= set(list(USES)[:i]), stage


def test_a_trial_is_shorter_everywhere_and_the_whole_is_the_recipe():
    r = RECIPES["course"]
    assert scaled(r, 1) is r
    small = scaled(r, 0.01)
    for stage, how in small.stages.items():
        for k in ("n", "steps", "save_every"):
            assert how.get(k, 0) <= r.stages[stage].get(k, 0)
    assert small.scale == 0.01 and small.stages["styles"]["settings"]["min_flip"] == 0
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            scaled(r, wrong)


def test_a_key_tells_what_a_stage_stands_on():
    r, known = RECIPES["course"], dict.fromkeys(TEACHES, "0")
    other = dataclasses.replace(r, stages=varied(r.stages, styles=dict(groups={"": dict(style=1.0)})))
    changed = [s for s in TEACHES if stage_key(r, s, known) != stage_key(other, s, known)]
    assert changed == ["styles"], "what comes after it changes by its weights"
    assert [s for s in TEACHES if stage_key(r, s, known) != stage_key(r, s, known | {"judge": "1"})] == ["evaluation"]


def test_stages_that_are_missing_or_in_another_order_are_refused():
    stages = RECIPES["course"].stages
    for wrong in (dict(reversed(stages.items())), {k: v for k, v in stages.items() if k != "mask"}):
        with pytest.raises(ValueError, match="in this order"):
            dataclasses.replace(RECIPES["course"], stages=wrong)


# ---- without torch


def without_torch(code, tmp_path):
    "Run some code in a Python of its own; torch must not have been imported at the end."
    code += "\nimport sys\nassert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers')]"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_recipes_need_no_torch(tmp_path):
    without_torch("from latref_nb.recipes import RECIPES, scaled\nscaled(RECIPES['course'], .1)", tmp_path)


@pytest.mark.parametrize("module, name", [("commands", "latref_data"), ("train_commands", "latref_train")])
def test_help_of_a_group_needs_no_torch(tmp_path, module, name):
    code = f"""
from latref_nb.{module} import {name} as group
from latref_nb.shell import make_parser
assert group.run(["--help"]) == 0
for name, (f, examples) in group.commands.items():
    page = make_parser(f, name, examples).format_help()
    assert "examples:" in page
    try: group.run([name, "--help"])
    except SystemExit: pass
"""
    assert "usage" in without_torch(code, tmp_path)


def test_help_of_the_others_needs_no_torch(tmp_path):
    code = """
from latref_nb import commands, train_commands
from latref_nb.shell import make_parser
for f in (commands.latref_edit, commands.latref_eval, commands.latref_convert, train_commands.eval_ablations):
    print(make_parser(f, f.__name__).format_help())
"""
    assert "--precision" in without_torch(code, tmp_path)


def test_help_lists_the_settings_with_what_they_do(capsys):
    page = shell.make_parser(train_commands.train_styles, "latref_train styles").format_help()
    for words in ("perceptual=", "settings.noise=", "forward.steps=", "modulation.width=", "min_flip="):
        assert words in page
    assert str(ROOT) not in page


def test_the_course_needs_no_torch(tmp_path):
    code = """
from latref_nb.course import latref_course
for words in (["--help"], ["--out", "mine"], ["quiz", "--help"]):
    try: latref_course(words)
    except SystemExit as e: assert not e.code, e.code
"""
    assert "chapters copied to mine" in without_torch(code, tmp_path) and (tmp_path / "mine" / "play.ipynb").is_file()
