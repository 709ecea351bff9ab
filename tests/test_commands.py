"What the commands do when all is well; tests/test_faults.py has the rest."

import json, os, re, shlex, shutil, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from repo import HANG, ROOT
from latref_nb import ablations, cards, commands, draw, extended, obeyed, runner, shell, train_commands, value_claims
from latref_nb.tags import CELEBA_TAGS
from latref_nb.core import load_image, resolve_precision, save_image
from latref_nb.datasets import open_faces
from latref_nb.faces import SynthFaces
from latref_nb.pipeline import LatRefPipeline
from test_pipeline import SIZE, tiny_pipeline

torch.set_num_threads(1)
BIN = Path(sys.prefix) / "bin"
PLAIN = {
    "latref_edit": (commands.latref_edit, commands._edit_examples),
    "latref_eval": (commands.latref_eval, commands._eval_examples),
    "latref_convert": (commands.latref_convert, commands._convert_examples),
    "latref_draw": (draw.latref_draw, draw._examples),
    "latref_eval ablations": (train_commands.eval_ablations, commands._ablation_examples),
    "latref_eval prompted": (obeyed.eval_prompted, commands._prompted_examples),
    "latref_eval values": (value_claims.eval_values, commands._values_examples),
    "latref_eval extended": (extended.eval_extended, commands._extended_examples),
}
GROUPS = {"latref_data": commands.latref_data, "latref_train": train_commands.latref_train}
SMALL = "--set image_size=32 --set patch_size=4 --set model_channels=32 --set channel_mult=[1,1] --set enc_channels=32 --set enc_channel_mult=[1,1,1] --set num_res_blocks=1 --set attention_resolutions=[] --set z_dim=16"


def run(name, line):
    "A command in this process: its exit code."
    argv = line.split()
    return GROUPS[name].run(argv) if name in GROUPS else shell.run_command(PLAIN[name][0], name, PLAIN[name][1], argv)


def parsers():
    "(how it is called, its parser, its examples) of every command there is."
    for name, (f, examples) in PLAIN.items():
        yield name, shell.make_parser(f, name, examples), examples
    for name, g in GROUPS.items():
        for sub, (f, examples) in g.commands.items():
            yield f"{name} {sub}", shell.make_parser(f, f"{name} {sub}", examples), examples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "styled"
    tiny_pipeline(styles=True, sure=2).save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path):
    "Three pictures, one of them a folder further down."
    rng = np.random.default_rng(0)
    d = tmp_path / "in"
    (d / "deep").mkdir(parents=True)
    for p in ("a.png", "b.jpg", "deep/c.png"):
        Image.fromarray(rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)).save(d / p)
    return d


@pytest.mark.parametrize(
    "prog,parser,examples", list(parsers()), ids=lambda o: o if isinstance(o, str) and "\n" not in o else ""
)
def test_help_pages(prog, parser, examples):
    page = parser.format_help()
    assert (
        page.startswith(f"usage: {prog} [-h]") and "examples:" in page and "--pdb" not in page and "--xtra" not in page
    )
    assert all(f"  {line.strip()}" in page.splitlines() for line in examples.strip().splitlines())
    assert not re.search(r"--\w*_", page)
    for a in parser._actions:
        assert a.help, f"{prog}: {a.dest} has no explanation"


def test_every_example_can_be_parsed():
    known = {prog: p for prog, p, _ in parsers()}
    for prog, _, examples in parsers():
        for line in examples.strip().splitlines():
            words = shlex.split(line)
            n = len(prog.split())
            assert " ".join(words[:n]) == prog
            longer = [k for k in known if k.startswith(f"{prog} ") and k == " ".join(words[: n + 1])]
            assert not longer
            known[prog].parse_args(words[n:])


def lines_of(page):
    "The command lines in the blocks of a page, without what stands behind #."
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("latref_") and words[0] != "latref_course":
                yield words


@pytest.mark.parametrize(
    "page", [p for p in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md") if any(lines_of(p))], ids=lambda p: p.name
)
def test_every_command_on_a_page_can_be_parsed(page):
    known = {prog: p for prog, p, _ in parsers()}
    for words in lines_of(page):
        n = 2 if " ".join(words[:2]) in known else 1
        known[" ".join(words[:n])].parse_args(words[n:])


@pytest.mark.parametrize("name", list(GROUPS))
def test_pages_of_the_groups(name, capsys):
    assert run(name, "--help") == 0
    page = capsys.readouterr().out
    assert all(
        f"  {sub}" in page and examples.strip().splitlines()[0].strip() in page
        for sub, (_, examples) in GROUPS[name].commands.items()
    )
    assert run(name, "") == 2


def test_dashes_and_underscores(model, photos, tmp_path):
    for option in ("--batch-size", "--batch_size"):
        assert run("latref_edit", f"{photos} --out {tmp_path / 'out'} --model {model} --steps 1 {option} 1") == 0


def test_edit_files_and_folders(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        run(
            "latref_edit",
            f"{photos / 'deep' / 'c.png'} {photos} --edit Eyeglasses=with --edit Smiling=with:gain=0.5 --out {out} --model {model} --steps 2 --seed 1 --device cpu",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [f"{n}_{k}.png" for n in "abc" for k in ("edited", "strip")] + ["edits.json"]
    )
    assert len(said.splitlines()) == 4 and "Eyeglasses=with" in said and "3 edited, 0 skipped" in said
    data = json.loads((out / "edits.json").read_text())
    assert (
        data["edits"] == ["Eyeglasses=with", "Smiling=with:gain=0.5"]
        and data["seed"] == 1
        and [Path(r["file"]).name for r in data["files"]] == ["c.png", "a.png", "b.jpg"]
    )
    assert load_image(out / "a_edited.png").shape == (3, SIZE, SIZE)


def test_edit_recursive_and_round_trip(model, photos, tmp_path):
    assert run("latref_edit", f"{photos} --recursive --out {tmp_path / 'out'} --model {model} --steps 1") == 0
    data = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert data["edits"] == [] and len(data["files"]) == 3


def test_edit_says_what_was_skipped(model, photos, tmp_path, capsys):
    (photos / "letter.png").write_text("Dear reader,")
    assert run("latref_edit", f"{photos} --out {tmp_path / 'out'} --model {model} --steps 1") == 1
    out, err = capsys.readouterr()
    assert "2 edited, 1 skipped" in out and "letter.png: is not an image" in err


def test_captions_of_a_comparison_say_that_each_edit_stands_alone(photos):
    pipe = tiny_pipeline(styles=True, sure=2)
    edits = [
        f"Eyeglasses=with:ref={photos / 'b.jpg'}",
        "Eyeglasses=with:seed=3",
        "HairColor=blond:method=image_specific",
    ]
    images, words = commands.compare_edits(pipe, photos / "a.png", edits, 1)
    assert words == [
        "source",
        "reference",
        "Eyeglasses with alone\nstyle of the reference",
        "Eyeglasses with alone\ndrawn, seed 3",
        "HairColor blond alone\nimage specific",
    ]
    assert len(images) == len(words)


def test_edit_by_reference_and_noise_with_a_mask(styled, photos, tmp_path, capsys):
    mask = np.zeros((60, 50), np.uint8)
    mask[:30] = 255
    Image.fromarray(mask).save(tmp_path / "half of it.png")
    out = tmp_path / "out"
    code = shell.run_command(
        commands.latref_edit,
        "latref_edit",
        "",
        [
            str(photos / "a.png"),
            "--edit",
            f"Eyeglasses=with:ref={photos / 'b.jpg'}:gain=0.8:mask={tmp_path / 'half of it.png'}",
            "--edit",
            "Smiling=with:seed=3",
            "--edit",
            "Male=with:method=direction",
            "--compare",
            "--out",
            str(out),
            "--model",
            str(styled),
            "--steps",
            "2",
        ],
    )
    data = json.loads((out / "edits.json").read_text())
    assert code == 0 and data["edits"] == [
        f"Eyeglasses=with:ref={photos / 'b.jpg'}:gain=0.8:mask={tmp_path / 'half of it.png'}",
        "Smiling=with:seed=3",
        "Male=with:method=direction",
    ]
    assert set(data["files"][0]["probability"]) == {"Eyeglasses=with", "Smiling=with", "Male=with"} and load_image(
        out / "a_strip.png"
    ).shape == (3, SIZE, 2 * SIZE + 2)
    assert (
        f"side by side: {out / 'a_compare.png'}" in capsys.readouterr().out
        and Image.open(out / "a_compare.png").width > 5 * 64
    )
    for name, words in (
        ("one", "Eyeglasses=with:seed=1"),
        ("two", "Eyeglasses=with:seed=1"),
        ("three", "Eyeglasses=with:seed=2"),
    ):
        assert (
            run("latref_edit", f"{photos / 'a.png'} --edit {words} --out {tmp_path / name} --model {styled} --steps 2")
            == 0
        )
    one, two, three = (load_image(tmp_path / n / "a_edited.png") for n in ("one", "two", "three"))
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("layout,kind", [("celebamask_hq", "CelebAMask-HQ"), ("celeba", "CelebA")])
def test_faces_are_written_and_told_about(tmp_path, capsys, layout, kind):
    assert (
        run("latref_data", f"synthfaces --out {tmp_path / 'f'} --n 6 --size 32 --seed 3 --layout {layout} --no-masks")
        == 0
    )
    assert run("latref_data", f"info {tmp_path / 'f'} --json {tmp_path / 'i.json'}") == 0
    data = json.loads((tmp_path / "i.json").read_text())
    said = capsys.readouterr().out
    assert data["layout"] == kind and data["faces"] == 6 and f"{kind}, 6 faces" in said
    assert torch.equal(open_faces(tmp_path / "f", 32).labels, SynthFaces(6, 32, 3).labels)
    for t in CELEBA_TAGS:
        assert sum(r["faces"] for r in data["rows"] if r["tag"] == t.name) == 6


def test_value_shares_count_the_unknown():
    rows = commands.value_shares(torch.tensor([[0, 1, 1, -1, 1, 1], [1, 1, 1, 2, 1, 1]]), CELEBA_TAGS)
    assert {"tag": "HairColor", "value": "unknown", "faces": 1, "share": 0.5} in rows and {
        "tag": "Smiling",
        "value": "with",
        "faces": 1,
        "share": 0.5,
    } in rows
    assert not any(r["value"] == "unknown" for r in rows if r["tag"] == "Smiling")


def test_from_nothing_to_an_edited_face(tmp_path, photos, capsys):
    ae, mine = tmp_path / "ae", tmp_path / "mine"
    train = f"autoencoder --out {ae} --n 16 --batch-size 4 --set z_labels=0.1 --set warmup_z=1 --device cpu --threads 1 {SMALL}"
    assert run("latref_train", f"{train} --steps 2") == 0 and run("latref_train", f"{train} --steps 4 --resume") == 0
    assert (
        json.loads((ae / "training.json").read_text())["steps"] == 4
        and len((ae / "commands.txt").read_text().splitlines()) == 2
    )
    fit = f"classifiers --autoencoder {ae / 'autoencoder'} --out {mine} --n 120 --held-out 40 --set steps=3 --calibrate 1 --set calibrate_steps=1 --set method=image_specific --set image_specific.max_steps=2 --set sure=2 --half --device cpu"
    assert run("latref_train", f"{fit} --json {tmp_path / 'fit.json'}") == 0
    data = json.loads((tmp_path / "fit.json").read_text())
    pipe = LatRefPipeline.from_pretrained(mine)
    assert [r["tag"] for r in data["probes"]] == CELEBA_TAGS.names and {r["method"] for r in data["calibration"]} == {
        "global_direction",
        "image_specific",
    }
    weights = ["autoencoder/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"]
    assert (mine / weights[0]).stat().st_size < 0.6 * (
        ae / "autoencoder" / weights[1]
    ).stat().st_size and pipe.autoencoder.dtype == torch.float32
    assert (
        pipe.config.method == "image_specific"
        and pipe.config.options == {"image_specific": {"max_steps": 2}}
        and pipe.config.sure == 2
    )
    assert (
        len(pipe.linear.config.strengths["global_direction"])
        == len(CELEBA_TAGS.pairs)
        == len(pipe.mlp.config.strengths["image_specific"])
    )
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit Male=with --out {tmp_path / 'out'} --model {mine} --steps 1 --device cpu",
        )
        == 0
    )


def few(*words):
    return f"--data synthfaces --n 12 --batch-size 4 --set min_flip=0 --set stages=0 --set forward.steps=1 --set modulation.width=16 --set modulation.blocks=1 --set decoded=1 --threads 1 --device cpu {' '.join(words)}".replace(
        "--set decoded", "--set settings.decoded"
    )


def stages(folder):
    "{stage: facts} of the record beside a model."
    return json.loads((folder / "training.json").read_text())["stages"]


def test_styles_are_trained_resumed_and_kept(model, tmp_path, photos, capsys):
    (tmp_path / "mine").mkdir()
    pipe = LatRefPipeline.from_pretrained(model)
    pipe.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "training.json").write_text('{"stages": {"autoencoder": {"commands": ["latref_train …"]}}}')
    train = f"styles --model {tmp_path / 'mine'} --out {tmp_path / 'run'} --half {few()}"
    assert (
        run("latref_train", f"{train} --steps 1") == 0
        and run("latref_train", f"{train} --steps 2") == 1
        and run("latref_train", f"{train} --steps 2 --resume") == 0
    )
    out = tmp_path / "run" / "pipeline"
    back = LatRefPipeline.from_pretrained(out)
    assert (
        set(back.parts) == {"autoencoder", "linear", "mlp", "modulation", "extractor", "mapper"}
        and back.modulation.config.width == 16
        and back.config.sure == pipe.config.sure
    )
    made = stages(out)
    assert list(made) == ["autoencoder", "styles"] and (tmp_path / "run" / "cache").is_dir()
    assert made["styles"]["steps"] == 2 and made["styles"]["faces"] == 12 and made["styles"]["batch_size"] == 4
    assert len(made["styles"]["commands"]) == 2 and set(made["styles"]["removals"]) == set(CELEBA_TAGS.names)
    more = train.replace(str(tmp_path / "run"), f"{tmp_path / 'more'} --init {tmp_path / 'run'}")
    assert run("latref_train", f"{more} --steps 1") == 0 and run("latref_train", f"{more} --steps 2 --resume") == 0
    assert (
        run(
            "latref_train",
            f"{train.replace(str(tmp_path / 'run'), str(tmp_path / 'no'))} --init {tmp_path / 'nowhere'} --steps 1",
        )
        == 1
        and "nowhere: holds no style networks to train further" in capsys.readouterr().err
    )
    mask = f"mask --model {tmp_path / 'more' / 'pipeline'} --cache {tmp_path / 'run' / 'cache'} --out {tmp_path / 'mask'} --n 12 --batch-size 4 --steps 2 --set forward.steps=1 --set area=2 --half --threads 1 --device cpu"
    assert (
        run("latref_train", mask) == 0
        and run("latref_train", mask) == 1
        and run("latref_train", mask + " --set modulation.width=3") == 2
    )
    masked = LatRefPipeline.from_pretrained(tmp_path / "mask" / "pipeline")
    assert masked.picture_mask is not None and len(masked.parts) == 7
    made = stages(tmp_path / "mask" / "pipeline")
    assert list(made) == ["autoencoder", "styles", "mask"] and made["mask"]["task"]["weights"]["area"] == 2
    told = "\n".join(cards.record_tables({"stages": made}))
    assert "| styles | tags | 12 | 2 of 4 |" in told and "| mask | tags | 12 | 2 of 4 |" in told
    weights = "diffusion_pytorch_model.safetensors"
    assert (out / "modulation" / weights).stat().st_size < 0.6 * (
        tmp_path / "run" / "modulation" / weights
    ).stat().st_size and torch.equal(back.linear.u_cov, pipe.linear.u_cov)
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit Male=with:ref={photos / 'b.jpg'} --edit Young=without:seed=1 --out {tmp_path / 'out'} --model {out} --steps 1",
        )
        == 0
    )
    capsys.readouterr()


def test_a_prior_is_trained_resumed_and_draws(model, photos, tmp_path, capsys):
    "On codes alone: from rendered faces, and from a folder of pictures of which nobody knows a tag."
    out = tmp_path / "run"
    line = f"latent --model {model} --out {out} --n 12 --batch-size 4 --set width=8 --set layers=2 --threads 1"
    line += " --save-every 1 --device cpu"
    assert run("latref_train", f"{line} --steps 2 --half") == 0 and run("latref_train", f"{line} --steps 2") == 1
    assert "Add --resume" in capsys.readouterr().err
    assert run("latref_train", f"{line} --steps 3 --half --resume") == 0
    assert run("latref_train", f"{line} --steps 3 --set depth=3") == 2 and "depth" in capsys.readouterr().err
    assert run("latref_train", line.replace(str(out), f"{tmp_path / 'no'}") + " --steps 1 --set layers=1") == 2
    assert "at least 2" in capsys.readouterr().err and not (tmp_path / "no").exists()
    pipe = LatRefPipeline.from_pretrained(out / "pipeline")
    assert pipe.latent.config.width == 8 and len(pipe.sample(2, 1, latent_steps=2).images) == 2
    made = stages(out / "pipeline")["latent"]
    assert made["labels"] == [] and made["faces"] == 12 and made["steps"] == 3
    folder = line.replace(str(out), str(tmp_path / "mine")) + f" --steps 1 --data {photos}"
    assert run("latref_train", folder) == 0
    other = line + f" --steps 4 --resume --data {photos}"
    assert run("latref_train", other) == 1 and "another training" in capsys.readouterr().err


def test_published_files_of_diffae_become_a_pipeline(tmp_path, capsys):
    from latref_nb.official import fill_by_rule

    fixtures = Path(__file__).parent / "fixtures"
    small = json.loads((fixtures / "diffae_small.json").read_text())
    d = small["config"]["z_dim"] if "z_dim" in small["config"] else small["config"]["embed_channels"]
    stats = {"conds_mean": torch.zeros(1, d), "conds_std": torch.ones(1, d)}
    wide = {"time_embed.0": (d, 64), "time_embed.2": (d, d), "layers.0.linear": (8, d), "layers.1.linear": (d, 8 + d)}
    wide |= {f"layers.0.{k}": (8, d) for k in ("linear_emb", "cond_layers.1")}
    keys = {f"latent_net.{k}.weight": s for k, s in wide.items()} | {
        f"latent_net.{k}.bias": s[:1] for k, s in [*wide.items(), ("layers.0.norm", (8,))]
    }
    net = fill_by_rule(small["keys"] | keys | {"latent_net.layers.0.norm.weight": (8,)})
    torch.save({"state_dict": {f"ema_model.{k}": v for k, v in net.items()} | stats}, tmp_path / "latent.ckpt")
    rows = fill_by_rule({"classifier.weight": (40, d), "classifier.bias": (40,)})
    torch.save({"state_dict": rows}, tmp_path / "cls.ckpt")
    torch.save({"conds": torch.zeros(3, d), "conds_mean": stats["conds_mean"][0], "conds_std": stats["conds_std"][0]}, tmp_path / "latent.pkl")
    sets = " ".join(f"--set {k}={json.dumps(v).replace(' ', '')}" for k, v in small["config"].items())
    line = f"{tmp_path / 'latent.ckpt'} --kind diffae --latent {tmp_path / 'latent.ckpt'} --classifiers {tmp_path / 'cls.ckpt'} {sets} --half"
    assert run("latref_convert", f"{line} --out {tmp_path / 'no'}") == 1
    assert "cls.ckpt: conds_mean is not there" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert run("latref_convert", f"{line} --statistics {tmp_path / 'latent.pkl'} --out {tmp_path / 'made'}") == 0
    pipe = LatRefPipeline.from_pretrained(tmp_path / "made")
    assert list(pipe.parts) == ["autoencoder", "linear", "latent"] and len(pipe.tags) == 40
    out = pipe.sample(1, 1, latent_steps=2, output_type="pt")
    edited = pipe(out.images, "No_Beard=without:gain=0.5", 1, output_type="pt")
    assert (edited.z_edit - edited.z).norm() > 0
    assert run("latref_convert", f"{tmp_path / 'latent.ckpt'} --latent {tmp_path / 'latent.ckpt'} --out x") == 2
    assert "add --kind diffae" in capsys.readouterr().err


def test_ablations_are_trained_and_measured(model, tmp_path, capsys, monkeypatch):
    line = f"ablations --model {model} --out {tmp_path / 'ab'} --steps 1 --seeds 2 --name whole --name no_cross --faces 2 --eval-steps 1 --json {tmp_path / 'ab.json'} {few()}"
    monkeypatch.setattr(sys, "argv", ["latref_eval", *line.split()])
    with pytest.raises(SystemExit) as e:
        commands.latref_eval()
    said, err = capsys.readouterr()
    assert not e.value.code, err[-500:]
    data = json.loads((tmp_path / "ab.json").read_text())
    assert (
        [r["ablation"] for r in data["rows"]] == ["whole", "no_cross"]
        and {"target", "target_sd", "psnr"} <= set(data["rows"][0])
        and len(data["runs"]) == 4
    )
    assert "whole method" in said and "no cross-attention" in said and "±" in said


def test_tables_with_deviations():
    rows = [{"words": "whole", "n": 3, "target": 0.9571, "target_sd": 0.012, "psnr": 27.1, "psnr_sd": 0.31}]
    assert ablations.deviations(rows) == [
        {"": "whole", "seeds": 3, "target": "0.957 ± 0.012", "psnr": "27.10 ± 0.31"}
    ]


@pytest.mark.parametrize(
    "pairs,words",
    [
        (["percptual=1"], "Did you mean 'perceptual'?"),
        (["modulaton.width=3"], "Did you mean 'modulation'?"),
        (["modulation.wdth=3"], "Did you mean 'width'?"),
        (["modulation.style_dim=3"], "not known"),
        (["shape.style_dims=3"], "style_dim"),
        (["settings.nois=1"], "noise"),
    ],
)
def test_settings_of_a_style_training(pairs, words):
    with pytest.raises(shell.UsageError, match=re.escape(words)):
        train_commands.grouped_settings(pairs)
    found = train_commands.grouped_settings(
        ["perceptual=0.5", "settings.noise=0.3", "forward.steps=4", "modulation.width=8", "shape.style_dim=4"]
    )
    assert (
        found["weights"].perceptual == 0.5
        and found["settings"].noise == 0.3
        and found["forward"].steps == 4
        and found["modulation"] == {"width": 8}
        and found["shape"] == {"style_dim": 4}
        and found["mapper"] == {}
    )


def test_published_weights_are_converted(tmp_path, photos, capsys):
    from latref_nb.official import latref_networks, released_tensors
    from safetensors.torch import save_file

    small = dict(
        image_size=32,
        model_channels=32,
        channel_mult=[1, 1],
        enc_channel_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        attention_resolutions=[],
        z_dim=16,
        tags=["Male"],
    )
    with torch.device("meta"):
        nets = latref_networks(**small)
    file = tmp_path / "small.safetensors"
    save_file({k: torch.randn(*shape) * 0.05 for o in released_tensors(nets).values() for k, shape in o.items()}, file)
    how = " ".join(f"--set {k}={json.dumps(v).replace(' ', '')}" for k, v in small.items())
    assert (
        run("latref_convert", f"{file} --out {tmp_path / 'made'} --half {how}") == 0
        and "pipeline: " in capsys.readouterr().out
    )
    pipe = LatRefPipeline.from_pretrained(tmp_path / "made")
    assert set(pipe.parts) == {"autoencoder", "modulation", "extractor", "mapper"}
    t, v = pipe.tags.pairs[1]
    (tmp_path / "small.safetensors").unlink()
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit {t}={v}:ref={photos / 'b.jpg'} --out {tmp_path / 'out'} --model {tmp_path / 'made'} --steps 1",
        )
        == 0
    )
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit {t}={v} --out {tmp_path / 'out2'} --model {tmp_path / 'made'} --steps 1",
        )
        == 1
        and "needs linear" in capsys.readouterr().err
    )


def test_an_autoencoder_goes_on_under_tags_of_ones_own(tmp_path, capsys):
    from latref_nb.tags import TagSet

    few_tags = TagSet([CELEBA_TAGS["Male"], CELEBA_TAGS["HairColor"]]).save(tmp_path / "tags.json")
    common = f"--n 8 --batch-size 4 --steps 1 --device cpu --threads 1 --tags {few_tags}"
    assert run("latref_train", f"autoencoder --out {tmp_path / 'a'} {common} {SMALL}") == 0
    assert (
        run(
            "latref_train",
            f"autoencoder --out {tmp_path / 'b'} --init {tmp_path / 'a' / 'autoencoder'} --set z_image=0.1 --set z_labels=0.1 {common}",
        )
        == 0
    )
    a, b = (json.loads((tmp_path / o / "autoencoder" / "config.json").read_text()) for o in "ab")
    assert a["z_dim"] == b["z_dim"] == 16
    assert (
        run(
            "latref_train",
            f"autoencoder --out {tmp_path / 'c'} --init {tmp_path / 'a' / 'autoencoder'} --set z_dim=8 {common}",
        )
        == 2
        and "Leave one of them out" in capsys.readouterr().err
    )
    assert (
        run(
            "latref_train",
            f"classifiers --autoencoder {tmp_path / 'b' / 'autoencoder'} --out {tmp_path / 'm'} --n 60 --held-out 20 --tags {few_tags} --set steps=2 --calibrate 0 --device cpu",
        )
        == 0
    )
    assert LatRefPipeline.from_pretrained(tmp_path / "m").tags.names == ["Male", "HairColor"]


@pytest.fixture
def hair(tmp_path):
    "A folder of pictures with a list of LongHair for most of them, and the file of the tag."
    from latref_nb.tags import Tag, TagSet

    ds = SynthFaces(24, 32, seed=3)
    d = tmp_path / "hair"
    d.mkdir()
    for i, x in enumerate(ds.batch(range(24))["image"]):
        save_image(x, d / f"{i}.png")
    (d / "labels.csv").write_text(
        "file,LongHair\n" + "".join(f"{i}.png,{('short', 'long', '')[i % 7 % 3]}\n" for i in range(24))
    )
    return d, TagSet([Tag("LongHair", ("short", "long"))]).save(tmp_path / "hair.json")


def test_long_hair_from_a_folder_to_an_edited_face(hair, photos, tmp_path, capsys):
    "docs/own_images.md on the command line: the critic that ships is refused for a tag it does not know, one of one's own is taken."
    folder, tags = hair
    mine, run_, critic = tmp_path / "mine", tmp_path / "run", tmp_path / "critic"
    assert (
        run(
            "latref_train",
            f"autoencoder --out {tmp_path / 'ae'} --n 8 --batch-size 4 --steps 1 --device cpu --threads 1 {SMALL}",
        )
        == 0
    )
    assert (
        run(
            "latref_train",
            f"classifiers --autoencoder {tmp_path / 'ae' / 'autoencoder'} --out {mine} --data {folder} --tags {tags} --n 20 --held-out 4 --set steps=2 --calibrate 0 --device cpu",
        )
        == 0
    )
    styles = f"styles --model {mine} --data {folder} --out {run_} {few().replace('--data synthfaces ', '').replace('--set modulation', '--steps 1 --set modulation', 1)}"
    capsys.readouterr()
    assert run("latref_train", styles) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "the critic knows TagSet(Smiling" in said
        and "and not TagSet(LongHair: short, long)" in said
        and "latref_train perceptual --data FOLDER --tags FILE" in said
        and not run_.exists()
    )
    assert (
        run("latref_train", f"mask --model {mine} --data {folder} --out {run_} --n 4 --steps 1 --device cpu") == 1
        and not run_.exists()
    )
    assert (
        run("latref_eval", f"x") == 2
        and shell.run_command(
            train_commands.eval_ablations,
            "latref_eval ablations",
            "",
            f"--model {mine} --data {folder} --out {run_} --n 4 --steps 1 --device cpu".split(),
        )
        == 1
        and not run_.exists()
    )
    assert (
        run(
            "latref_train",
            f"perceptual --data {folder} --tags {tags} --size 32 --out {critic} --n 1000 --steps 2 --batch-size 4 --device cpu --threads 1",
        )
        == 0
    )
    assert run("latref_train", f"{styles} --critic {critic / 'model'}") == 0
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit LongHair=long:ref={photos / 'b.jpg'} --out {tmp_path / 'out'} --model {run_ / 'pipeline'} --steps 1 --device cpu",
        )
        == 0
    )
    assert (
        run("latref_train", f"factors --data {folder} --tags {tags} --out {tmp_path / 'f'} --steps 1") == 1
        and "only rendered faces have" in capsys.readouterr().err
    )
    assert (
        run(
            "latref_train",
            f"classifiers --autoencoder {tmp_path / 'ae' / 'autoencoder'} --out {tmp_path / 'no'} --data {folder} --tags {tags} --n 20 --held-out 4 --set steps=2 --calibrate 1 --device cpu",
        )
        == 1
    )
    assert (
        "the perceptual network knows" in (err := capsys.readouterr().err) and "--judge-path, or --calibrate 0" in err
    )
    opinion = runner.second_opinion(LatRefPipeline.from_pretrained(mine).tags, "perceptual", critic / "model")
    assert opinion(torch.zeros(3, 3, 32, 32)).shape == (3, 1)


def test_resume_finds_the_pictures_it_began_with(hair, tmp_path, capsys):
    folder, tags = hair
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    shutil.copyfile(folder / "1.png", other / "0.png")
    train = lambda data, steps, *more: run(
        "latref_train",
        f"autoencoder --data {data} --tags {tags} --out {tmp_path / 'run'} --steps {steps} --batch-size 4 --device cpu --threads 1 {' '.join(more)} {SMALL}",
    )
    assert train(folder, 1) == 0 and train(folder, 2, "--resume --cache none") == 0
    capsys.readouterr()
    assert (
        train(other, 3, "--resume") == 1
        and "data.pictures and labels:" in (said := capsys.readouterr().err)
        and "made by another training" in said
    )
    assert (
        train(folder, 3, f"--resume --cache {tmp_path / 'c.faces'}") == 0
        and json.loads((tmp_path / "run" / "training.json").read_text())["steps"] == 3
    )


@pytest.mark.filterwarnings("ignore::latref_nb.core.PrecisionWarning")
@pytest.mark.parametrize("option, word", [("", "auto"), ("--precision no", "no"), ("--mixed-precision bf16", "bf16")])
def test_every_record_says_the_precision_that_was_used(model, photos, tmp_path, option, word):
    used = resolve_precision(word)
    read = lambda *path: json.loads(tmp_path.joinpath(*path).read_text())
    assert (
        run(
            "latref_edit",
            f"{photos / 'a.png'} --edit Male=with --out {tmp_path / 'out'} --model {model} --steps 1 --device cpu {option}",
        )
        == 0
        and read("out", "edits.json")["precision"] == used
    )
    assert (
        run(
            "latref_eval",
            f"--model {model} --n 2 --seed 77 --steps 1 --edit Eyeglasses=with --method source --brief --json {tmp_path / 't.json'} --device cpu {option}",
        )
        == 0
        and read("t.json")["settings"]["precision"] == used
    )
    assert (
        run(
            "latref_train",
            f"autoencoder --out {tmp_path / 'ae'} --n 8 --batch-size 4 --steps 1 --device cpu --threads 1 {option} {SMALL}",
        )
        == 0
        and read("ae", "training.json")["settings"]["precision"] == used
    )
    assert (
        run(
            "latref_train",
            f"classifiers --autoencoder {tmp_path / 'ae' / 'autoencoder'} --out {tmp_path / 'm'} --n 60 --held-out 20 --set steps=2 --calibrate 0 --device cpu {option}",
        )
        == 0
    )
    assert stages(tmp_path / "m")["classifiers"]["precision"] == used
    words = {"bf16": "bfloat16", "no": "float32"}[used]
    assert f"| {words} |" in "".join(cards.record_tables(cards.read_record(tmp_path / "m")))


@pytest.mark.parametrize(
    "argv, words",
    [
        ("autoencoder --set ema_decay=NaN", "ema_decay=nan"),
        ("autoencoder --lr inf", "lr=inf"),
        ("autoencoder --set high_noise=-1", "high_noise=-1"),
        ("autoencoder --set ema_decay=2", "ema_decay=2"),
        ("autoencoder --set z_labels=NaN", "z_labels=nan"),
        ("autoencoder --seed -1", "seed=-1"),
        ("judge --lr nan", "lr=nan"),
        ("judge --steps 0", "steps=0"),
        ("judge --size 40", "multiple of 16"),
    ],
)
def test_numbers_that_are_none_train_nothing(tmp_path, capsys, argv, words):
    shape = SMALL if argv.startswith("autoencoder") else ""
    assert run(
        "latref_train",
        f"{argv} --out {tmp_path / 'run'} --n 8 --batch-size 4 {'' if '--steps' in argv else '--steps 2'} --device cpu --threads 1 {shape}",
    ) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    by_parser = "--" + words.replace("_", "-").removesuffix(".0")  # refused where it was read, as it was typed
    assert (words in said or by_parser in said) and not list((tmp_path).rglob("*.safetensors"))


def test_regions_need_masks_and_memory(tmp_path, photos, capsys):
    assert (
        run(
            "latref_train",
            f"autoencoder --data {photos} --n 2 --set regions=0.5 --set z_image=1 --out {tmp_path / 'a'} --steps 1",
        )
        != 0
        and "no masks to weigh regions by" in capsys.readouterr().err
    )
    assert (
        run("latref_train", f"autoencoder --n 2 --set regions=0.5 --cache none --out {tmp_path / 'b'} --steps 1") == 2
        and "--cache memory" in capsys.readouterr().err
    )


def test_a_pipeline_knows_how_its_autoencoder_was_made(tmp_path):
    common = "--n 8 --batch-size 4 --device cpu --threads 1"
    assert run("latref_train", f"autoencoder --out {tmp_path / 'a'} {common} --steps 1 {SMALL}") == 0
    more = f"autoencoder --out {tmp_path / 'b'} --init {tmp_path / 'a' / 'autoencoder'} --set z_labels=0.5 {common}"
    assert run("latref_train", f"{more} --steps 1") == 0 and run("latref_train", f"{more} --steps 2 --resume") == 0
    fit = f"classifiers --autoencoder {tmp_path / 'b' / 'autoencoder'} --out {tmp_path / 'm'} --n 60 --held-out 20 --set steps=2 --calibrate 0 --device cpu"
    assert run("latref_train", fit) == 0
    made = stages(tmp_path / "m")
    assert made["autoencoder"]["steps"] == 2 and made["autoencoder"]["labels"] == ["tags"]
    assert len(made["autoencoder"]["commands"]) == 2 and made["classifiers"]["faces"] == 60
    told = cards.record_tables(cards.read_record(tmp_path / "m"))
    assert told[0] == "Labels seen by the model: tags." and "| autoencoder | tags | 8 | 2 of 4 |" in told[1]
    assert cards.record_tables(cards.read_record(tmp_path / "a" / "autoencoder")) == [
        "No record of the training lies beside this model."
    ]
    (tmp_path / "m" / "training.json").write_text("{")
    with pytest.raises(ValueError, match="training.json is damaged"):
        cards.read_record(tmp_path / "m")


def test_networks_that_measure_are_trained(tmp_path):
    assert (
        run("latref_train", f"judge --out {tmp_path / 'j'} --n 8 --steps 1 --batch-size 4 --device cpu --threads 1")
        == 0
    )
    assert (tmp_path / "j" / "model" / "config.json").exists()


def test_evaluation(model, tmp_path, capsys):
    line = f"--model {model} --n 6 --seed 77 --steps 1 --edit Eyeglasses=with --method source --method global_direction --json {tmp_path / 't.json'} --device cpu"
    assert run("latref_eval", line) == 0
    data = json.loads((tmp_path / "t.json").read_text())
    said = capsys.readouterr().out
    assert set(data["autoencoder"]) == {"probe_mean", "probe_min", "round_trip_psnr", "round_trip_ssim", "z_only_psnr"}
    assert [(r["method"], r["tag"], r["value"]) for r in data["rows"]] == [
        ("source", "Eyeglasses", "with"),
        ("global_direction", "Eyeglasses", "with"),
    ]
    assert {"target", "others", "identity", "psnr", "ssim", "lpips", "style_error", "diversity", "frechet"} <= set(
        data["rows"][0]
    )
    assert "global_direction" in said and "round_trip_psnr" in said


def test_model_card(styled, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mine"
    shutil.copytree(styled, folder)
    typed = {"autoencoder": "latref_train autoencoder --out a", "styles": "latref_train styles --out s"}
    made = {"stages": {k: {"commands": [v], "steps": 2000, "labels": ["tags"]} for k, v in typed.items()}}
    (folder / "training.json").write_text(json.dumps(made))
    argv = f"--model {folder} --n 2 --seed 77 --steps 1 --edit Eyeglasses=with --method source --card --brief --device cpu".split()
    monkeypatch.setattr(sys, "argv", ["latref_eval", *argv])
    assert shell.run_command(commands.latref_eval, "latref_eval", "", argv) == 0
    card, said = (folder / "README.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert (
        "# mine" in card
        and "classifiers and style networks" in card
        and "    latref_train styles --out s\n" in card
        and "Labels seen by the model: tags." in card
        and "| styles | tags |  | 2,000 |" in card
        and f"latref_eval {' '.join(argv)}" in card
        and said.strip() in card
    )
    assert shell.run_command(commands.latref_eval, "latref_eval", "", [*argv[2:], "--model", "synthfaces46"]) == 1


def test_called_from_python(model, photos, tmp_path):
    assert commands.latref_edit([str(photos)], ["Male=with"], str(tmp_path / "out"), str(model), steps=1) == 0
    assert "Edit faces" in commands.latref_edit.__doc__


def test_a_closed_pipe_is_no_error():
    def work():
        raise BrokenPipeError

    saved = os.dup(1)
    try:
        assert shell.guarded(work, "x") == 0
    finally:
        os.dup2(saved, 1)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("LATREF_DEBUG", "1")
    with pytest.raises(ValueError):
        shell.guarded(lambda: int("x"), "x")


def test_the_installed_command():
    done = subprocess.run([BIN / "latref_edit", "--help"], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0 and "examples:" in done.stdout and done.stderr == ""
