"Bad input to the commands: one clear line, an exit code that is not 0, and nothing half-written."

import json, os, resource, shutil, signal, subprocess, sys
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from repo import HANG, wait_for
from latref_nb import commands, faces, metrics, official, runner, shell, train_commands
from latref_nb.tags import Tag, TagSet
from latref_nb.core import save_image
from latref_nb.datasets import open_faces
from latref_nb.resuming import TrainingError
from test_pipeline import tiny_pipeline

BIN = Path(sys.prefix) / "bin"
TINY = [
    "--set",
    "image_size=32",
    "--set",
    "model_channels=32",
    "--set",
    "channel_mult=[1,1]",
    "--set",
    "enc_channels=32",
    "--set",
    "enc_channel_mult=[1,1,1]",
    "--set",
    "num_res_blocks=1",
    "--set",
    "attention_resolutions=[]",
    "--set",
    "z_dim=16",
    "--n",
    "16",
    "--batch-size",
    "4",
    "--device",
    "cpu",
    "--threads",
    "1",
]


@pytest.fixture
def call(capsys, monkeypatch):
    "A command in this process: (exit code, what it printed, its lines on stderr without progress bars)."

    def run(command, *argv):
        capsys.readouterr()
        if isinstance(command, shell.Commands):
            code = command.run([str(a) for a in argv])
        else:
            monkeypatch.setattr(sys, "argv", ["command", *map(str, argv)])
            with pytest.raises(SystemExit) as e:
                command()
            code = e.value.code
        out, err = capsys.readouterr()
        return (
            code,
            out,
            [
                l
                for l in err.replace("\r", "\n").split("\n")
                if l.strip() and "it/s]" not in l and "face/s]" not in l and "?" not in l[-12:]
            ],
        )

    return run


def refused(result, *words):
    "One line, not 0, no traceback."
    code, out, err = result
    assert code not in (0, None) and len(err) == 1 and len(err[0]) < 600 and "Traceback" not in err[0], (code, out, err)
    for w in words:
        assert w in err[0], err[0]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@contextmanager
def little_room(n):
    "No file may grow beyond n bytes: what a full disk does to a writer."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


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
def face(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "in" / "face.png"
    path.parent.mkdir()
    Image.fromarray(rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)).save(path)
    return path


def edit(call, face, model, out, *more):
    return call(commands.latref_edit, face, "--model", model, "--steps", 1, "--out", out, *more)


# ---- pictures


def text(p):
    p.write_text("a letter")


def empty(p):
    p.touch()


def cut(p):
    p.write_bytes((p.parent / "face.png").read_bytes()[:200])


def dot(p):
    Image.new("RGB", (1, 1)).save(p)


def ribbon(p):
    Image.new("RGB", (20_000, 10)).save(p)


def film(p):
    Image.new("RGB", (20, 20)).save(p, "GIF", save_all=True, append_images=[Image.new("RGB", (20, 20), "red")])


def page(p):
    p.write_text("<html>404</html>")


@pytest.mark.parametrize(
    "make,words",
    [
        (text, "not an image"),
        (empty, "zero bytes"),
        (cut, "cut short"),
        (dot, "too small"),
        (ribbon, "too elongated"),
        (film, "frames"),
        (page, "not an image"),
    ],
    ids=lambda o: getattr(o, "__name__", ""),
)
def test_a_bad_picture_is_named_and_skipped(call, face, model, tmp_path, make, words):
    bad = face.parent / "bad.png"
    make(bad)
    result = edit(call, face.parent, model, tmp_path / "out", "--edit", "Smiling=with")
    refused(result, words, "bad.png")
    assert "1 edited, 1 skipped" in result[1] and set(files(tmp_path / "out")) == {
        "face_edited.png",
        "face_strip.png",
        "edits.json",
    }
    assert [("error" in r) for r in json.loads((tmp_path / "out/edits.json").read_text())["files"]].count(True) == 1


def test_unusual_but_good_pictures_are_taken(call, face, model, tmp_path):
    folder, im = face.parent, Image.open(face)
    im.convert("CMYK").save(folder / "cmyk.jpg")
    im.convert("P").save(folder / "palette.png")
    im.convert("LA").save(folder / "grey alpha.png")
    Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(folder / "sixteen.png")
    im.resize((300, 20)).save(folder / "wide.webp")
    code, out, err = edit(call, folder, model, tmp_path / "out")
    assert code == 0 and not err and "6 edited, 0 skipped" in out


def test_no_picture_at_all(call, model, tmp_path):
    (tmp_path / "none").mkdir()
    for source, words in ((tmp_path / "none", "none"), (tmp_path / "gone.png", "gone.png")):
        refused(edit(call, source, model, tmp_path / "out"), words)


# ---- words


@pytest.mark.parametrize(
    "wish,words",
    [
        ("Smilling=with", "Did you mean 'Smiling'?"),
        ("HairColor=blonde", "Did you mean 'blond'?"),
        ("Smiling", "name=value"),
        ("Smiling=with:gian=1", "Did you mean 'gain'?"),
        ("Smiling=with:gain=lots", "not a number"),
        ("Smiling=with:method=directions", "method"),
    ],
)
def test_wrong_wishes_write_nothing(call, face, model, tmp_path, wish, words):
    refused(edit(call, face, model, tmp_path / "out", "--edit", wish), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wish,words",
    [
        ("Smiling=with:ref=her.png:seed=3", "reference and seed"),
        ("Smiling=with:seed=three", "whole number"),
        ("Smiling=with:ref=gone.png", "gone.png: no such file"),
        ("Smiling=with:rfe=her.png", "Did you mean 'ref'?"),
        ("Smiling=with:seed=1:mask=gone.png", "gone.png: no such file"),
        ("Smiling=with:seed=1:mask=hair", "class_mask"),
        ("Smiling=with:seed=1:mask=LETTER", "not an image"),
        ("Smiling=with:seed=1:mask=BLACK", "is empty"),
        ("Smiling=with:ref=LETTER", "not an image"),
        ("Smiling=with:seed=1,2", "one for all"),
        ("Hat=with:seed=1", "'Hat' is not known"),
    ],
)
def test_wrong_styles_and_masks_write_nothing(call, face, styled, tmp_path, wish, words):
    (tmp_path / "letter.png").write_text("Dear")
    Image.new("L", (60, 50)).save(tmp_path / "black.png")
    refused(
        edit(
            call,
            face,
            styled,
            tmp_path / "out",
            "--edit",
            wish.replace("LETTER", str(tmp_path / "letter.png")).replace("BLACK", str(tmp_path / "black.png")),
        ),
        words,
    )
    assert not (tmp_path / "out").exists()


def test_wishes_that_contradict_each_other(call, face, styled, tmp_path):
    refused(
        edit(call, face, styled, tmp_path / "out", "--edit", "HairColor=blond:seed=1", "--edit", "HairColor=black"),
        "both blond and black",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wish", ["Smiling=with:seed=1", "Smiling=with:ref=her.png"])
def test_a_checkpoint_without_style_networks_says_so(call, face, model, tmp_path, wish):
    refused(
        edit(call, face, model, tmp_path / "out", "--edit", wish),
        "needs modulation",
        "no such network",
        "latref_train styles",
    )
    assert (
        not (tmp_path / "out").exists() and edit(call, face, model, tmp_path / "out", "--edit", "Smiling=with")[0] == 0
    )


def test_a_reference_without_the_value_is_noted(call, face, styled, tmp_path):
    from latref_nb.pipeline import LatRefPipeline

    pipe = LatRefPipeline.from_pretrained(styled)
    value = "with" if float(pipe.read(pipe.encode(face))["Smiling"][0, 1]) < 0.5 else "without"
    code, out, err = edit(call, face, styled, tmp_path / "out", "--edit", f"Smiling={value}:ref={face}")
    assert (
        code == 0
        and len(err) == 1
        and "note:" in err[0]
        and f"does not look like Smiling={value}" in err[0]
        and "1 edited" in out
    )


@pytest.mark.parametrize(
    "argv,words", [(["--stepz", 3], "--stepz"), (["--steps", "many"], "many"), (["--device", "tpu9"], "tpu9")]
)
def test_wrong_options(call, face, model, tmp_path, argv, words):
    refused(edit(call, face, model, tmp_path / "out", *argv), words)
    assert not (tmp_path / "out").exists()


def test_unknown_commands_name_the_nearest(call):
    refused(call(commands.latref_data, "synthface"), "Did you mean 'synthfaces'?")
    refused(call(train_commands.latref_train, "autoencodr"), "Did you mean 'autoencoder'?")


# ---- checkpoints

WEIGHTS = "diffusion_pytorch_model.safetensors"


def cut_weights(p):
    (p / "autoencoder" / WEIGHTS).write_bytes((p / "autoencoder" / WEIGHTS).read_bytes()[:4000])


def page_for_weights(p):
    (p / "mlp" / WEIGHTS).write_text("<html>404</html>")


def pointer_for_weights(p):
    (p / "autoencoder" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def flipped_weights(p):
    data = bytearray((p / "linear" / WEIGHTS).read_bytes())
    data[20] ^= 255
    (p / "linear" / WEIGHTS).write_bytes(data)


def foreign(p):
    (p / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )


def one_part(p):
    [shutil.rmtree(p / k) for k in ("linear", "mlp")]


def nothing(p):
    shutil.rmtree(p)
    p.mkdir()


def a_file(p):
    shutil.rmtree(p)
    p.write_text("weights")


@pytest.mark.parametrize(
    "damage",
    [cut_weights, page_for_weights, pointer_for_weights, flipped_weights, foreign, one_part, nothing, a_file],
    ids=lambda f: f.__name__,
)
def test_checkpoints_that_cannot_be_used(call, face, model, tmp_path, damage):
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    damage(copy)
    refused(edit(call, face, copy, tmp_path / "out", "--edit", "Smiling=with"), "copy")
    assert not (tmp_path / "out").exists()


def test_a_name_that_does_not_ship(call, face, tmp_path):
    refused(edit(call, face, "synthfaces46", tmp_path / "out"), "synthfaces46", "Shipped:")


def test_a_checkpoint_with_other_tags(call, face, tmp_path):
    tiny_pipeline(TagSet([Tag("Mood", ("calm", "glad", "sad"))])).save_pretrained(tmp_path / "mood")
    refused(
        edit(call, face, tmp_path / "mood", tmp_path / "out", "--edit", "Smiling=with"),
        "'Smiling' is not known",
        "Known: Mood",
    )
    assert edit(call, face, tmp_path / "mood", tmp_path / "out", "--edit", "Mood=glad")[0] == 0


# ---- places


def test_places_that_cannot_be_written(call, face, model, tmp_path):
    for place in (face / "deeper", Path("/proc/latref")):
        refused(edit(call, face, model, place), "cannot write")
        refused(call(commands.latref_data, "synthfaces", "--out", place, "--n", 2, "--size", 32), "cannot write")
    assert list(face.parent.iterdir()) == [face]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission(call, face, model, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    refused(edit(call, face, model, tmp_path / "shut" / "out"), "no permission")


def test_a_full_disk_while_editing(call, face, model, tmp_path):
    with little_room(1000):
        result = edit(call, face, model, tmp_path / "out")
    refused(result, "cannot write")
    assert not [n for n in files(tmp_path / "out") if ".part" in n or n.endswith(".png")]
    assert edit(call, face, model, tmp_path / "out")[0] == 0


def test_a_full_disk_while_writing_faces_and_going_on(call, tmp_path):
    make = ["synthfaces", "--out", tmp_path / "faces", "--n", 6, "--size", 64]
    with little_room(1500):
        refused(call(commands.latref_data, *make), "cannot write")
    assert not [n for n in files(tmp_path / "faces") if ".part" in n or n.endswith((".jpg", "anno.txt"))]
    assert call(commands.latref_data, *make)[0] == 0 and len(open_faces(tmp_path / "faces")) == 6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm"])
def test_a_full_disk_never_leaves_half_a_picture(tmp_path, suffix):
    "PIL alone takes a short write for a whole file in four of these formats."
    with little_room(1500), pytest.raises(OSError, match="cannot write"):
        save_image(torch.rand(3, 64, 64) * 2 - 1, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_folders_of_somebody_else_are_not_written_into(call, face, tmp_path):
    before = files(face.parent)
    refused(call(commands.latref_data, "synthfaces", "--out", face.parent, "--n", 2), "was not written here")
    assert files(face.parent) == before


@pytest.mark.parametrize(
    "argv,words", [(["--n", 0], "0"), (["--size", 7], "32 to 256"), (["--layout", "ffhq"], "ffhq")]
)
def test_faces_that_cannot_be_made(call, tmp_path, argv, words):
    refused(call(commands.latref_data, "synthfaces", "--out", tmp_path / "f", *argv), words)
    assert not (tmp_path / "f").exists()


# ---- annotations


@pytest.fixture
def celeba(call, tmp_path):
    call(commands.latref_data, "synthfaces", "--out", tmp_path / "celeba", "--n", 5, "--size", 32, "--layout", "celeba")
    return tmp_path / "celeba"


def test_rows_and_pictures_that_do_not_match_are_one_note(call, celeba):
    (celeba / "img_align_celeba/000002.jpg").unlink()
    (celeba / "img_align_celeba/000003.jpg").rename(celeba / "img_align_celeba/x.jpg")
    code, out, err = call(commands.latref_data, "info", celeba)
    assert (
        code == 0
        and "CelebA, 3 faces" in out
        and len(err) == 1
        and "2 rows have no picture" in err[0]
        and "1 pictures have no row" in err[0]
    )


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda t: t[:-9], "line 7"),
        (lambda t: t.replace(" 1", " 7", 1), "the value '7'"),
        (lambda t: "", "is empty"),
        (lambda t: "<html>404</html>", "holds no rows"),
        (lambda t: t.replace("00000", "99999"), "none of its 5 rows has a picture"),
    ],
    ids=["cut", "seven", "empty", "page", "other"],
)
def test_bad_annotations_name_file_and_line(call, celeba, tmp_path, change, words):
    path = celeba / "list_attr_celeba.txt"
    path.write_text(change(path.read_text()))
    for command, argv in (
        (commands.latref_data, ["info", celeba, "--json", tmp_path / "info.json"]),
        (train_commands.latref_train, ["autoencoder", "--out", tmp_path / "run", "--data", celeba, "--steps", 1]),
    ):
        refused(call(command, *argv), "list_attr_celeba.txt", words)
    assert not (tmp_path / "info.json").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command,argv",
    [(commands.latref_data, ["info"]), (train_commands.latref_train, ["autoencoder", "--steps", 1, "--data"])],
    ids=["info", "train"],
)
def test_missing_and_empty_folders(call, tmp_path, command, argv):
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "run"] if command is train_commands.latref_train else []
    for folder, words in (("empty", "no pictures"), ("gone", "no such folder")):
        refused(call(command, *argv, tmp_path / folder, *out), folder, words)
    assert not (tmp_path / "run").exists()


# ---- measuring and fitting


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--edit", "Smilling=with"], "Did you mean 'Smiling'?"),
        (["--n", 0], "--n=0"),
        (["--method", "magic"], "magic"),
        (["--model", "synthfaces46"], "Shipped:"),
        (["--lpips", "gone.pth"], "gone.pth"),
    ],
)
def test_what_cannot_be_measured(call, model, tmp_path, argv, words):
    refused(
        call(
            commands.latref_eval, "--model", model, "--n", 2, "--steps", 1, "--json", tmp_path / "new" / "t.json", *argv
        ),
        words,
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--autoencoder", "gone"], "gone"),
        (["--n", 1, "--held-out", 39], "faces"),
        (["--set", "magic.step=1"], "magic"),
        (["--data", "gone"], "gone"),
        (["--out", "/dev/null/new"], "cannot write"),
    ],
)
def test_what_cannot_be_fitted(call, model, tmp_path, argv, words):
    base = [
        "classifiers",
        "--autoencoder",
        model / "autoencoder",
        "--out",
        tmp_path / "new",
        "--n",
        40,
        "--held-out",
        8,
        "--set",
        "steps=2",
        "--calibrate",
        0,
    ]
    result = call(train_commands.latref_train, *base, *argv)
    refused((result[0], result[1], [l for l in result[2] if "encoding" not in l]), words)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_found_before_the_work(call, model, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(runner, "encode_dataset", never)
    monkeypatch.setattr(train_commands, "style_cache", never)
    monkeypatch.setattr(official, "load_latref", never)
    (tmp_path / "file").write_text("mine")
    for out, words in (
        (tmp_path / "file" / "new", "cannot write"),
        ("/proc/new/deep", "cannot write"),
        (tmp_path / "file", "that is a file"),
    ):
        refused(
            call(train_commands.latref_train, "classifiers", "--autoencoder", model / "autoencoder", "--out", out),
            words,
        )
        refused(call(commands.latref_convert, "x.ckpt", "--out", out), words)
        refused(call(commands.latref_eval, "ablations", "--model", model, "--out", out), words)
    refused(
        call(train_commands.latref_train, "styles", "--model", model, "--out", tmp_path / "file" / "new", "--n", 8),
        "cannot write",
    )
    shell.check_place(tmp_path / "a" / "b" / "c")
    assert files(tmp_path) == {"file": b"mine"} and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--model", "synthfaces46"], "Shipped:"),
        (["--set", "percptual=1"], "Did you mean 'perceptual'?"),
        (["--set", "modulation.wdth=8"], "Did you mean 'width'?"),
        (["--data", "gone"], "gone"),
        (["--threads", "x"], "x"),
    ],
)
def test_style_trainings_that_cannot_begin(call, model, tmp_path, argv, words):
    for base in ([train_commands.latref_train, "styles"], [commands.latref_eval, "ablations"]):
        refused(call(*base, "--model", model, "--out", tmp_path / "run", "--n", 8, *argv), words)
    assert not list(tmp_path.iterdir())


def test_styles_need_removals_that_remove(call, model, tmp_path):
    code, out, err = call(
        train_commands.latref_train,
        "styles",
        "--model",
        model,
        "--out",
        tmp_path / "run",
        "--n",
        4,
        "--set",
        "min_flip=1",
        "--set",
        "forward.steps=1",
        "--device",
        "cpu",
        "--threads",
        1,
    )
    assert code == 1 and "did not remove enough" in err[-1] and "min_flip" in err[-1]


@pytest.mark.parametrize(
    "content,words",
    [(b"", "no readable checkpoint"), (b"<html>404</html>", "no readable checkpoint"), (None, "not there")],
)
def test_files_that_cannot_be_converted(call, tmp_path, content, words):
    file = tmp_path / "x.ckpt"
    if content is not None:
        file.write_bytes(content)
    for kind in ("latref", "diffae"):
        refused(call(commands.latref_convert, file, "--out", tmp_path / "made", "--kind", kind), words, "x.ckpt")
    assert not (tmp_path / "made").exists()


def test_a_training_is_not_started_over_by_accident(call, tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    for kind in ("autoencoder", "judge"):
        refused(
            call(train_commands.latref_train, kind, "--out", tmp_path / "run", "--n", 8, "--steps", 1), "Add --resume"
        )
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--preset", "ffhq1"], "ffhq1"),
        (["--set", "z_dims=4"], "Did you mean 'z_dim'?"),
        (["--set", "z_dim=-4"], "z_dim=-4"),
        (["--set", "channel_mult=wide"], "channel_mult=wide"),
        (["--set", "z_dim"], "name=value"),
        (["--set", "weighting=p3"], "p3"),
        (["--steps", 0], "at least 1"),
    ],
)
def test_trainings_that_cannot_begin(call, tmp_path, argv, words):
    refused(
        call(train_commands.latref_train, "autoencoder", "--out", tmp_path / "run", "--steps", 1, *TINY, *argv), words
    )
    assert not (tmp_path / "run" / "checkpoint").exists()


# ---- numbers, devices and settings

RUN = ["autoencoder", *TINY]  # of a training; what is tried comes behind and wins


@pytest.mark.parametrize(
    "option,words",
    [
        *[("--steps", w) for w in ("0", "-1", "1e3", "nan", str(10**30))],
        *[("--batch-size", w) for w in ("0", "-4", "70000", "x")],
        *[("--seed", w) for w in (str(2**63), str(2**64), "-1", "1.5")],
        *[("--lr", w) for w in ("inf", "nan", "0", "-1", "1e400")],
        ("--save-every", "0"),
        ("--threads", "0"),
        ("--threads", "100000000"),
        ("--n", "0"),
        ("--n", "-5"),
    ],
)
def test_numbers_of_a_training_are_checked_first(call, tmp_path, option, words):
    refused(
        call(train_commands.latref_train, *RUN, "--out", tmp_path / "run", f"{option}={words}"),
        option,
        f"{option}={words} came",
        "is needed",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pair",
    [
        *[f"ema_decay={w}" for w in ("NaN", "2", "1", "-0.1")],
        *[f"data_seed={w}" for w in ("1.5", "-1")],
        "decay=1.5",
        "high_noise=-1",
        "regions=NaN",
        "z_labels=-1",
        "z_image=1e400",
        "warmup=-1",
        "weighting=3",
    ],
)
def test_settings_of_a_training_are_checked_first(call, tmp_path, pair):
    refused(call(train_commands.latref_train, *RUN, "--out", tmp_path / "run", "--set", pair), pair.partition("=")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    [
        "--batch-size=0",
        "--batch-size=-1",
        "--steps=0",
        "--steps=100000",
        f"--seed={2**63}",
        f"--seed={-(2**64)}",
        "--batch-size=1e9",
        "--device=cuda:99",
        "--device=meta",
        "--device=",
        "--device=cpu:3",
    ],
)
def test_numbers_of_an_edit_are_checked_first(call, face, model, tmp_path, option):
    refused(call(commands.latref_edit, face, "--model", model, "--out", tmp_path / "out", option))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["--n=0", "--steps=0", "--batch-size=0", "--threads=0", f"--seed={2**63}", "--seed=-1", "--n=1e12"]
)
def test_numbers_of_an_evaluation_are_checked_first(call, model, option):
    refused(call(commands.latref_eval, "--model", model, option), option)


@pytest.mark.parametrize("option", ["--seeds=0", "--eval-steps=0", "--faces=0", "--processes=0", "--n=0", "--steps=0"])
def test_numbers_of_ablations_are_checked_first(call, model, tmp_path, option):
    refused(call(commands.latref_eval, "ablations", "--model", model, "--out", tmp_path / "ab", option), option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--held-out=0", "--calibrate=-1", "--n=0", "--threads=0", "--seed=-1"])
def test_numbers_of_classifiers_are_checked_first(call, model, tmp_path, option):
    refused(
        call(
            train_commands.latref_train,
            "classifiers",
            "--autoencoder",
            model / "autoencoder",
            "--out",
            tmp_path / "new",
            option,
        ),
        option,
    )
    assert not list(tmp_path.iterdir())


def test_every_number_has_a_range():
    from test_commands import parsers

    for prog, parser, _ in parsers():
        for a in parser._actions:
            assert a.type not in (int, float), f"{prog}: --{a.dest} takes any number"


@pytest.mark.parametrize(
    "wish",
    [
        f"Smiling=with:seed={2**63}",
        f"Smiling=with:seed=1,{-(2**70)}",
        "Smiling=with:gain=1e30",
        "Smiling=with:gain=-1e9",
        "Smiling=with:seed=1e3",
    ],
)
def test_numbers_in_wishes(call, face, styled, tmp_path, wish):
    refused(
        edit(call, face, styled, tmp_path / "out", "--edit", wish),
        "out of range" if "1e3" not in wish or "gain" in wish else "whole number",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["latref", "diffae"])
@pytest.mark.parametrize(
    "pair,words",
    [
        ("nonsense=3", "'nonsense' is not known"),
        ("image_size=abc", "image_size=abc"),
        ("z_dim=-4", "z_dim=-4"),
        ("channel_mult=[[1]]", "channel_mult"),
        ("model_channels=100000", "from 1 to 8,192"),
        ("model_channels=8000", "weights"),
        ("z_dim", "name=value"),
        ("attention_resolutions=" + "[" * 5000, "no network"),
        ("z_dim=null", "z_dim"),
    ],
)
def test_settings_of_published_weights_are_checked_before_they_are_read(call, tmp_path, kind, pair, words):
    refused(
        call(
            commands.latref_convert, tmp_path / "gone.ckpt", "--out", tmp_path / "made", "--kind", kind, "--set", pair
        ),
        words,
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pair",
    [
        "perceptual=abc",
        "perceptual=-1",
        "perceptual=NaN",
        "perceptual=1e400",
        "perceptual=null",
        "forward.steps=0.5",
        "forward.steps=true",
        "forward.recolour=1",
        "settings.noise=-1",
        "modulation.width=-3",
        "modulation.width=wide",
        "modulation.heads=7",
        "shape.style_dim=[1]",
        "extractor.layers=x",
    ],
)
def test_settings_of_styles_are_checked_before_the_work(call, model, tmp_path, pair):
    for base in ([train_commands.latref_train, "styles"], [commands.latref_eval, "ablations"]):
        refused(call(*base, "--model", model, "--out", tmp_path / "run", "--n", 8, "--set", pair))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pair,words",
    [
        ("image_specific.nonsense=1", "'nonsense' is not known"),
        ("image_specific.step=big", "number"),
        ("image_specific.max_steps=1.5", "whole number"),
        ("global_direction.step=1", "not known"),
    ],
)
def test_settings_of_methods_are_checked_before_the_work(call, model, tmp_path, pair, words):
    refused(
        call(
            train_commands.latref_train,
            "classifiers",
            "--autoencoder",
            model / "autoencoder",
            "--out",
            tmp_path / "new",
            "--set",
            pair,
        ),
        words,
    )
    assert not list(tmp_path.iterdir())


# ---- whatever a command throws


def bug(kind, *words):
    def work(*_, **__):
        raise kind(*words)

    return work


@pytest.mark.parametrize(
    "kind,args",
    [
        (KeyError, ("a bug",)),
        (MemoryError, ()),
        (RecursionError, ("maximum recursion depth exceeded",)),
        (RuntimeError, ("[enforce fail]\nmany\nlines" + "x" * 2000,)),
        (AssertionError, ()),
        (AttributeError, ("no",)),
        (TypeError, ("missing",)),
        (ZeroDivisionError, ("division by zero",)),
        (StopIteration, ()),
        (torch.OutOfMemoryError, ("CUDA out of memory",)),
    ],
)
def test_a_bug_is_one_line_and_its_traceback_is_at_hand(call, tmp_path, monkeypatch, kind, args):
    monkeypatch.setattr(faces, "SynthFaces", bug(kind, *args))
    line = ["synthfaces", "--out", tmp_path / "f", "--n", 2]
    refused(call(commands.latref_data, *line), f"unexpected {kind.__name__}", "--traceback")
    code, out, err = call(commands.latref_data, *line, "--traceback")
    assert (
        code == 1
        and err[0].startswith("Traceback")
        and any(kind.__name__ in l for l in err)
        and err[-1].startswith("latref_data synthfaces: unexpected")
    )


@pytest.mark.parametrize("kind", [ValueError, OSError, TrainingError])
def test_an_error_of_ours_is_said_as_it_is(call, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(faces, "SynthFaces", bug(kind, "Give\nanother."))
    assert call(commands.latref_data, "synthfaces", "--out", tmp_path / "f")[2] == [
        "latref_data synthfaces: Give another."
    ]


def test_every_command_knows_the_traceback():
    from test_commands import parsers

    for prog, parser, _ in parsers():
        assert "--traceback" in parser.format_help(), prog


# ---- telling never stops the work

ODD = [
    "plain",
    "ü é 中 🙂",
    "caf\udce9",
    "two\nlines",
    "a  b",
    "n" * 245,
    "🙂" * 59,
    "\udcff",
]  # names without their suffix


@pytest.mark.parametrize("name", ODD, ids=lambda n: ascii(n[:9]))
def test_files_of_any_name_are_edited_and_told(call, face, model, tmp_path, name):
    odd = face.parent / (name + ".png")
    shutil.copy(face, odd)
    (face.parent / (name[:200] + "x.jpg")).write_text("a letter")
    code, out, err = edit(call, face.parent, model, tmp_path / "out", "--edit", "Smiling=with")
    data = json.loads((tmp_path / "out" / "edits.json").read_text(encoding="utf-8"))
    assert code == 1 and len(err) == 1 and len(out.splitlines()) == 3 and "2 edited, 1 skipped" in out
    row = next(r for r in data["files"] if r["file"] == str(odd))
    assert (tmp_path / "out" / row["edited"]).is_file() and (tmp_path / "out" / row["strip"]).is_file()


def child(argv, cwd, **env):
    "A command in a process of its own."
    return subprocess.run([str(a) for a in argv], cwd=cwd, capture_output=True, timeout=HANG, env={**os.environ, **env})


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "cp1252", "C"],
)
def test_terminals_that_lack_letters(face, model, tmp_path, env):
    folder = os.fsencode(face.parent)
    shutil.copy(os.fsencode(face), folder + b"/\xff.png")
    with open(folder + b"/\xe9.jpg", "w") as f:
        f.write("a letter")
    done = child(
        [
            BIN / "latref_edit",
            face.parent,
            "--model",
            model,
            "--steps",
            1,
            "--batch-size",
            1,
            "--edit",
            "Smiling=with",
            "--out",
            "out",
        ],
        tmp_path,
        **env,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"2 edited, 1 skipped" in done.stdout, (
        done.stderr[-900:]
    )
    assert b"\\u2192" in done.stdout or b"\xe2\x86\x92" in done.stdout
    assert len(json.loads((tmp_path / "out" / "edits.json").read_text(encoding="utf-8"))["files"]) == 3


@pytest.mark.parametrize("how", ["head", "closed", "full"])
def test_nobody_needs_to_listen(face, model, tmp_path, how):
    for i in range(3):
        shutil.copy(face, face.parent / f"{i}.png")
    line = f"{BIN / 'latref_edit'} {face.parent} --model {model} --steps 1 --batch-size 1 --edit Smiling=with --out out"
    ways = {
        "head": f"{line} | true; exit ${{PIPESTATUS[0]}}",
        "closed": f"{line} >&- 2>&-",
        "full": f"{line} > /dev/full",
    }
    done = child(["bash", "-c", ways[how]], tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr[-900:]
    assert len(json.loads((tmp_path / "out" / "edits.json").read_text())["files"]) == 4


def test_a_python_without_a_terminal(call, face, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    argv = [face.parent, "--model", model, "--steps", 1, "--edit", "Smiling=with", "--out", tmp_path / "out"]
    assert shell.run_command(commands.latref_edit, "latref_edit", "", [str(a) for a in argv]) == 0


# ---- one file never ends a run, and nobody's file is overwritten


def test_the_odd_files_of_public_reports(call, model, tmp_path):
    cases = Path(__file__).parent / "fixtures" / "cases"
    pictures = [p for p in cases.rglob("*") if p.suffix in (".png", ".jpg")]
    code, out, err = call(
        commands.latref_edit,
        cases,
        "--recursive",
        "--model",
        model,
        "--steps",
        1,
        "--edit",
        "Smiling=with",
        "--out",
        tmp_path / "out",
    )
    rows = json.loads((tmp_path / "out" / "edits.json").read_text())["files"]
    bad = [r for r in rows if "error" in r]
    assert len(rows) == len(pictures) > 10 and f"{len(rows) - len(bad)} edited, {len(bad)} skipped" in out
    assert (
        code == (1 if bad else 0)
        and len(err) == len(bad)
        and not any("Traceback" in l or "\n" in r["error"] for l, r in zip(err, bad))
    )


def test_pictures_that_are_not_read_are_named(call, face, model, tmp_path):
    for i in range(7):
        (face.parent / f"{i}.heic").write_bytes(b"heic")
    code, out, err = edit(call, face.parent, model, tmp_path / "out")
    assert (
        code == 1
        and "1 edited, 0 skipped, 7 passed over" in out
        and len(err) == 6
        and "0.heic" in err[0]
        and "2 more" in err[-1]
    )


def test_the_pictures_folder_as_out(call, face, model, tmp_path):
    "Twice the same: the second run leaves out what the first has made, and overwrites nobody's file."
    folder, notes = (
        face.parent,
        {"face_edited.png": b"mine", "other_strip.png": b"mine too", "other_compare.png": b"and mine"},
    )
    shutil.copy(face, folder / "other.png")
    for name, data in notes.items():
        (folder / name).write_bytes(data)
    for n in (1, 2, 3):
        before = files(folder)
        code, out, err = edit(call, folder, model, folder, "--edit", "Smiling=with", "--compare")
        after = files(folder)
        rows = json.loads(after["edits.json"])["files"]
        assert code == 1 and "2 edited, 3 skipped" in out and len(err) == 3, (out, err)  # the notes are no pictures
        assert {k: after[k] for k in ("face.png", "other.png", *notes)} == {
            k: before[k] for k in ("face.png", "other.png", *notes)
        }
        assert {r["edited"] for r in rows if "edited" in r} == {"face-2_edited.png", "other-2_edited.png"} and (
            n == 1 or set(after) == set(before)
        )


def test_inputs_references_and_masks_keep_their_names(call, face, styled, tmp_path):
    folder = face.parent
    shutil.copy(face, folder / "face_edited.png")
    shutil.copy(face, folder / "a_edited.png")
    shutil.copy(face, folder / "a_strip.png")
    shutil.copy(face, folder / "a.png")
    before = files(folder)
    code, out, err = call(
        commands.latref_edit,
        face,
        folder / "face_edited.png",
        folder / "a.png",
        "--model",
        styled,
        "--steps",
        1,
        "--out",
        folder,
        "--edit",
        f"Smiling=with:ref={folder / 'a_edited.png'}:mask={folder / 'a_strip.png'}",
    )
    after = files(folder)
    assert code == 0 and "3 edited" in out and {k: after[k] for k in before} == before
    assert {r["edited"] for r in json.loads(after["edits.json"])["files"]} == {
        "face-2_edited.png",
        "face_edited_edited.png",
        "a-2_edited.png",
    }


@pytest.mark.parametrize("content", ["my notes", "[]", '{"files": 3}', '{"files": [{"edited": 3}]}', ""])
def test_somebodys_edits_json_stays(call, face, model, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "edits.json").write_text(content)
    refused(edit(call, face, model, tmp_path / "out"), "edits.json", "is no record of edits")
    assert files(tmp_path / "out") == {"edits.json": content.encode()}


def test_a_run_that_edits_nothing_leaves_the_earlier_record(call, face, model, tmp_path):
    assert edit(call, face, model, tmp_path / "out", "--edit", "Smiling=with")[0] == 0
    before = files(tmp_path / "out")
    (tmp_path / "letter.png").write_text("Dear")
    code, out, err = edit(call, tmp_path / "letter.png", model, tmp_path / "out")
    assert (
        code == 1
        and len(err) == 1
        and "0 edited, 1 skipped" in out
        and "stays" in out
        and files(tmp_path / "out") == before
    )
    refused(edit(call, face, model, tmp_path / "out", "--edit", "Smilling=with"))
    assert files(tmp_path / "out") == before


def test_what_earlier_runs_made_is_remembered(call, face, model, tmp_path):
    other = tmp_path / "other.png"
    shutil.copy(face, other)
    for picture in (face, other, face):
        assert edit(call, picture, model, tmp_path / "out")[0] == 0
    assert set(files(tmp_path / "out")) == {
        "edits.json",
        *(f"{n}_{k}.png" for n in ("face", "other") for k in ("edited", "strip")),
    }


def test_a_folder_that_goes_away_while_editing(call, face, model, tmp_path, monkeypatch):
    from latref_nb import batch

    for i in range(3):
        shutil.copy(face, face.parent / f"{i}.png")
    real = batch.save_image

    def taken(x, path, **how):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").write_text("a file in its place")
        return real(x, path, **how)

    monkeypatch.setattr(batch, "save_image", taken)
    code, out, err = edit(call, face.parent, model, tmp_path / "out")
    assert code == 1 and 1 <= len(err) <= 5 and all("cannot write" in l and "Traceback" not in l for l in err)


# ---- places


@pytest.mark.parametrize(
    "out,words", [("", "path is needed"), ("/", "root"), ("FILE", "that is a file"), ("FILE/deep", "cannot write")]
)
def test_places_that_are_none(call, face, model, tmp_path, out, words):
    (tmp_path / "FILE").write_text("mine")
    (tmp_path / "x.ckpt").write_text("x")
    out = str(tmp_path / out) if "FILE" in out else out
    before = files(tmp_path)
    for line in (
        [commands.latref_edit, face, "--model", model],
        [commands.latref_data, "synthfaces", "--n", 2, "--size", 32],
        [train_commands.latref_train, *RUN, "--steps", 1],
        [train_commands.latref_train, "judge", "--steps", 1, "--n", 8],
        [train_commands.latref_train, "classifiers", "--autoencoder", model / "autoencoder"],
        [train_commands.latref_train, "styles", "--model", model],
        [train_commands.latref_train, "mask", "--model", model],
        [commands.latref_eval, "ablations", "--model", model],
        [commands.latref_convert, tmp_path / "x.ckpt"],
        [commands.latref_convert, tmp_path / "x.ckpt", "--kind", "diffae"],
    ):
        refused(call(*line, "--out", out), words)
    assert files(tmp_path) == before


@pytest.mark.parametrize("where", [".", "../here", "./", ".."])
def test_the_folder_one_stands_in(call, face, model, tmp_path, monkeypatch, where):
    "What is written anew as a whole would leave the shell in a folder that is gone; other things can be put there."
    (tmp_path / "all" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "all" / "here")
    before = files(tmp_path)
    for line in (
        [train_commands.latref_train, "classifiers", "--autoencoder", model / "autoencoder"],
        [commands.latref_convert, "x.ckpt"],
    ):
        refused(call(*line, "--out", where), "you are in it" if where != ".." else "would be lost")
    assert files(tmp_path) == before
    assert (
        call(train_commands.latref_train, *RUN, "--steps", 1, "--out", where)[0] == 0
        and (Path(where) / "autoencoder" / "config.json").is_file()
    )
    assert edit(call, face, model, where)[0] == 0 and (Path(where) / "face_edited.png").is_file()


@pytest.mark.parametrize("where", [".", "../copy", "./"])
def test_a_model_one_stands_in(call, face, model, tmp_path, monkeypatch, where):
    monkeypatch.chdir(shutil.copytree(model, tmp_path / "copy"))
    assert edit(call, face, where, tmp_path / "out", "--edit", "Smiling=with")[0] == 0
    refused(edit(call, face, where, where), "is a model")


def test_what_others_have_in_a_folder_is_not_lost(call, face, model, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the work has begun")

    for module, name in (
        (runner, "encode_dataset"),
        (train_commands, "style_cache"),
        (official, "load_latref"),
        (official, "load_diffae"),
        (metrics, "train_network"),
    ):
        monkeypatch.setattr(module, name, never)
    mine = tmp_path / "mine"
    (mine / "photos").mkdir(parents=True)
    shutil.copy(face, mine / "photos")
    (mine / "notes.txt").write_text("mine")
    before = files(tmp_path)
    refused(
        call(train_commands.latref_train, "classifiers", "--autoencoder", model / "autoencoder", "--out", mine),
        "would be lost",
        "photos",
    )
    for kind in ("latref", "diffae"):
        refused(call(commands.latref_convert, "x.ckpt", "--out", mine, "--kind", kind), "would be lost", "photos")
    refused(
        call(
            train_commands.latref_train,
            "classifiers",
            "--autoencoder",
            model / "autoencoder",
            "--out",
            model / "autoencoder",
        ),
        "would be lost",
    )
    for kind in (["autoencoder", *TINY], ["styles", "--model", model], ["mask", "--model", model]):
        refused(call(train_commands.latref_train, *kind, "--out", model), "model_index.json")
    (mine / "model").mkdir()
    (mine / "model" / "x").write_text("y")
    before = files(tmp_path)
    refused(call(train_commands.latref_train, "judge", "--out", mine, "--n", 8), "holds model")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "name,words",
    [
        ("notes.txt", "something else"),
        ("list.json", "something else"),
        ("model/model_index.json", "something else"),
        ("", "Give a file name"),
        ("FILE/t.json", "cannot write"),
    ],
)
def test_tables_overwrite_nobody(call, face, model, tmp_path, name, words):
    copy = shutil.copytree(model, tmp_path / "model")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "FILE").write_text("f")
    before = files(tmp_path)
    for line in (
        [commands.latref_data, "info", face.parent],
        [commands.latref_eval, "--model", model, "--n", 2],
        [commands.latref_eval, "ablations", "--model", model, "--out", tmp_path / "ab"],
        [train_commands.latref_train, "classifiers", "--autoencoder", copy / "autoencoder", "--out", tmp_path / "new"],
    ):
        refused(call(*line, "--json", tmp_path / name), words)
    assert files(tmp_path) == before


def test_a_table_replaces_an_earlier_one(call, face, tmp_path):
    for _ in range(2):
        assert call(commands.latref_data, "info", face.parent, "--json", tmp_path / "t.json")[0] == 0
    (tmp_path / "empty.json").touch()
    assert call(commands.latref_data, "info", face.parent, "--json", tmp_path / "empty.json")[0] == 0


def test_the_home_folder(call, face, styled, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(face, tmp_path / "her.png")
    shutil.copytree(styled, tmp_path / "styled")
    Image.new("L", (40, 40), 255).save(tmp_path / "m.png")
    assert (
        call(
            commands.latref_edit,
            "~/in/face.png",
            "--model",
            "~/styled",
            "--out=~/out",
            "--steps",
            1,
            "--edit",
            "Smiling=with:ref=~/her.png:mask=~/m.png",
        )[0]
        == 0
    )
    assert (
        (tmp_path / "out" / "face_edited.png").is_file()
        and call(commands.latref_data, "info", "~/in", "--json=~/t.json")[0] == 0
        and (tmp_path / "t.json").is_file()
    )


def test_a_card_is_checked_before_the_work(call, model, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(metrics, "evaluate", never)
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "README.md").write_text("my own words")
    refused(call(commands.latref_eval, "--model", copy, "--card"), "is no card")
    (copy / "README.md").unlink()
    for text in ("{", "[]", "{}", '{"settings": 3}', "\udcff".encode("utf-8", "surrogateescape"), "[" * 10**5):
        (copy / "training.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        if text != "{}":
            refused(call(commands.latref_eval, "--model", copy, "--card"), "training", "copy")
    assert not (copy / "README.md").exists()


def test_tags_of_ones_own_are_told(call, tmp_path):
    folder = Path(__file__).parent / "fixtures" / "cases" / "labels"
    code, out, err = call(commands.latref_data, "info", folder / "digits12", "--tags", folder / "digits12.tags.json")
    assert code == 0 and "tags: Sex: 1, 2" in out and "Smiling" not in out
    for bad, words in (
        (tmp_path / "gone.json", "gone.json"),
        (tmp_path, str(tmp_path)),
        (Path(__file__), "test_faults"),
    ):
        refused(call(commands.latref_data, "info", folder / "digits12", "--tags", bad), words)


# ---- whole processes


def test_a_terminal_sees_one_line_and_an_exit_code(tmp_path):
    done = subprocess.run(
        [BIN / "latref_edit", "gone.png", "--edit", "Smiling=wiht", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert (
        done.returncode == 1
        and len(done.stderr.strip().splitlines()) == 1
        and "Traceback" not in done.stderr
        and not list(tmp_path.iterdir())
    )


def test_ctrl_c_in_training_saves_and_says_how_to_go_on(tmp_path):
    argv = [BIN / "latref_train", "autoencoder", "--out", tmp_path / "run", "--steps", "100000", *TINY]
    p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(
        lambda: p.poll() is not None or list((tmp_path / "run").glob("**/events*"))
    )  # the tracker is opened once signals are caught
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=HANG)
    said = [l for l in (out + err).replace("\r", "\n").splitlines() if "--resume" in l or "resume" in l]
    assert p.returncode == 130 and said and "Traceback" not in err, (p.returncode, out[-500:], err[-1500:])
    assert (tmp_path / "run" / "checkpoint").is_dir() and not [
        q for q in (tmp_path / "run").rglob("*") if ".part" in q.name
    ]
