"Stages of a training, and ablations: each leaves out what it says, finished runs are kept."

import json
from dataclasses import replace

import pytest
import torch
from consistency_case import FIT, NETS, SHAPE, batch_of, cache, classifiers, flipped, frozen, numbers, task_of  # noqa: F401, F811

from latref_nb.ablations import (
    ABLATIONS,
    DirectionStyles,
    StageRecorder,
    gather_stages,
    load_stages,
    save_stages,
    snapshot_steps,
    train_ablations,
)
from latref_nb.consistency import train_styles
from latref_nb.tags import CELEBA_TAGS
from latref_nb.removal import CacheWarning

torch.set_num_threads(1)
PARTS = dict(shape=SHAPE, modulation=NETS["modulation"], extractor=NETS["extractor"])


# ---- stages


def test_stages_come_back_with_their_ablations(frozen, cache, tmp_path):
    made = [StageRecorder(tmp_path / f"{k}.safetensors", [1]).take(task_of(frozen), flipped(cache), 1) for k in "ab"]
    assert torch.equal(made[0].restored, made[1].restored) and made[0].original.dtype == torch.uint8
    assert made[0].losses.shape == (1, len(made[0].terms))
    assert all(i != j for i, j in zip(made[0].faces, made[0].references))
    assert all(CELEBA_TAGS[t].index(v) is not None for t, v in zip(made[0].tags, made[0].values))
    save_stages(tmp_path / "both.safetensors", replace(made[0], ablations={"no_mask": made[1]}))
    back = load_stages(tmp_path / "both.safetensors")
    assert back.steps == [1] and back.faces == made[0].faces
    assert torch.equal(back.ablations["no_mask"].swapped, made[1].swapped)
    assert back.ablations["no_mask"].terms == made[1].terms


def test_a_training_that_was_stopped_records_the_same_stages(frozen, cache, tmp_path):
    how = dict(critic=frozen.critic, min_flip=0, **NETS, **FIT)

    def go(out, die_at=None):
        recorder = StageRecorder(tmp_path / out / "stages.safetensors", [1, 2, 5])

        def watch(run):
            recorder(run)
            if run.done == die_at:
                raise RuntimeError("power cut")

        train_styles(frozen.autoencoder, classifiers(frozen), flipped(cache), tmp_path / out, 5, callback=watch, **how)

    go("a")
    with pytest.raises(RuntimeError):
        go("b", die_at=3)
    go("b")
    a, b = (load_stages(tmp_path / o / "stages.safetensors") for o in "ab")
    assert a.steps == b.steps == [1, 2, 5]
    assert torch.equal(a.restored, b.restored) and torch.equal(a.losses, b.losses)


def test_bad_stages_are_one_line(tmp_path):
    (tmp_path / "s.safetensors").write_bytes(b"0" * 30)
    for name in ("s.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match="holds no stages") as e:
            load_stages(tmp_path / name)
        assert "\n" not in str(e.value)


def test_snapshot_steps():
    assert snapshot_steps(600, 7)[0] == 1 and snapshot_steps(600, 7)[-1] == 600 and len(snapshot_steps(600, 7)) == 7
    assert snapshot_steps(2, 7) == [1, 2] and snapshot_steps(10, 1) == [10]


# ---- ablations


def test_each_ablation_leaves_out_what_it_says(frozen, cache):
    tasks = {name: task_of(frozen, name, readers=torch.ones(6, 3, 16, 4)) for name in ABLATIONS}
    config = lambda name: tasks[name].networks.modulation.config
    uses = {"no_vectors": "use_vectors", "no_cross": "use_cross", "no_style_vector": "use_style", "no_mask": "use_mask"}
    for name, option in uses.items():
        assert config("whole")[option] and not config(name)[option]
    assert config("flat").flat and len(tasks["flat"].networks.modulation.translators) == 1 and not config("whole").flat
    b = {**batch_of(cache), "flipped": torch.ones(6, 6, dtype=torch.bool)}
    terms = {name: set(t.loss(b, numbers())) for name, t in tasks.items()}
    for term in ("perceptual", "classification", "style", "difference"):
        assert terms["whole"] - terms[f"no_{term}"] == {term}
    assert not tasks["no_forward"].settings.from_removed and tasks["no_bottleneck"].settings.noise == 0
    assert isinstance(tasks["direction"].networks.extractor, DirectionStyles)
    with pytest.raises(ValueError, match="ablation 'no_masks' is not known. Did you mean 'no_mask'"):
        task_of(frozen, "no_masks")


def test_without_the_style_vector_only_the_tokens_speak(frozen):
    net = task_of(frozen, "no_style_vector").networks.modulation
    from latref_nb.styles import StyleCode

    torch.nn.init.normal_(net.post[-1].weight, std=0.1)
    for t in net.translators:
        torch.nn.init.normal_(t.transformer.proj_out.weight, std=0.1)
    feats, s, w = torch.randn(2, net.config.feat_dim, 2, 2), torch.randn(2, 2, 6), torch.randn(2, 2, 2, 8)
    edit = lambda i, j: net(feats, "Bangs", "with", StyleCode(s[i], w[j]))
    assert torch.equal(edit(0, 0), edit(1, 0)) and not torch.allclose(edit(0, 0), edit(0, 1))


def test_finished_runs_are_kept(frozen, cache, tmp_path):
    seen = []

    def evaluate(nets):
        seen.append(nets)
        return {"psnr": 20.0 + len(seen), "what": "words"}

    go = lambda names, steps=2: train_ablations(
        frozen.autoencoder,
        classifiers(frozen),
        flipped(cache),
        tmp_path,
        steps,
        evaluate,
        names=names,
        seeds=(0, 1),
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        parts=PARTS,
        progress=False,
        **{k: v for k, v in FIT.items() if k not in ("progress", "trackers")},
    )
    first = go(("whole", "no_mask"))
    assert len(seen) == 4 and [r["ablation"] for r in first["rows"]] == ["whole", "no_mask"]
    assert (
        first["rows"][0]["psnr"] == 22.0
        and first["rows"][0]["psnr_sd"] == pytest.approx(2**0.5)
        and first["rows"][0]["n"] == 2
        and "what" not in first["rows"][0]
    )
    assert json.loads((tmp_path / "ablations.json").read_text())["rows"] == first["rows"]
    assert go(("whole", "no_mask", "flat"))["rows"][:2] == first["rows"] and len(seen) == 6, (
        "finished runs are not trained again"
    )
    with pytest.warns(CacheWarning, match="another training"):
        go(("flat",), 3)
    assert len(seen) == 8
    for text in ("{", "[]", '{"key": 3}'):
        (tmp_path / "flat-0" / "result.json").write_text(text)
        with pytest.raises(ValueError, match="result.json.* Move it away to do this run again"):
            go(("flat",), 3)


def test_seeds_differ_and_repeat(frozen, cache, tmp_path):
    def weights(seed, out):
        rows = train_ablations(
            frozen.autoencoder,
            classifiers(frozen),
            cache,
            tmp_path / out,
            1,
            lambda nets: {"sum": float(sum(p.detach().double().sum() for p in nets.modulation.parameters()))},
            names=("whole",),
            seeds=(seed,),
            critic=frozen.critic,
            min_flip=0,
            stages=0,
            parts=PARTS,
            progress=False,
            batch_size=4,
            device="cpu",
        )
        return rows["rows"][0]["sum"]

    assert weights(0, "a") == weights(0, "b") != weights(1, "c")


def test_stages_of_ablations_are_gathered(frozen, cache, tmp_path):
    train_ablations(
        frozen.autoencoder,
        classifiers(frozen),
        flipped(cache, "flipped"),
        tmp_path,
        2,
        lambda nets: {"a": 1},
        names=("whole", "no_mask"),
        seeds=(0,),
        critic=frozen.critic,
        stages=2,
        parts=PARTS,
        progress=False,
        batch_size=4,
        device="cpu",
    )
    found = gather_stages(tmp_path / "whole-0/stages.safetensors", tmp_path, ("whole", "no_mask", "flat"))
    assert list(found.ablations) == ["whole", "no_mask"] and found.ablations["no_mask"].steps == [1, 2]
