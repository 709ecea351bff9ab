"Two processes of `accelerate launch` do what one does: the same pictures, one edits.json, one table."

import json, os, subprocess, sys
from pathlib import Path
import pytest
import torch
from repo import HANG, ROOT
from latref_nb import commands, shell
from latref_nb.core import load_image, save_image
from latref_nb.datasets import write_celeba
from latref_nb.faces import SynthFaces
from test_pipeline import SIZE, tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(styles=True, sure=2).save_pretrained(path)
    return path


def launch(processes, command, line, folder):
    "Run a command by `accelerate launch` on the CPU: (exit code, stdout, stderr)."
    script = folder / f"{command}.py"
    script.write_text(f"from latref_nb.commands import {command}\nif __name__ == '__main__':\n    {command}()\n")
    launcher = [sys.executable, "-m", "accelerate.commands.launch"] if processes > 1 else [sys.executable]
    how = f"--multi_gpu --num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher += f"{how} --main_process_port 0".split() if processes > 1 else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    args = [*launcher, str(script), *line.split()]
    done = subprocess.run(args, capture_output=True, text=True, cwd=folder, env=env, timeout=HANG)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def files(tmp_path):
    "Five pictures, two of one name, and a sixth that is cut short."
    d = tmp_path / "in"
    (d / "more").mkdir(parents=True)
    faces = SynthFaces(5, SIZE, seed=3).batch(range(5))["image"]
    for name, x in zip(("a.png", "b.png", "c.png", "d.png", "more/b.png"), faces):
        save_image(x, d / name)
    (d / "e.png").write_bytes((d / "a.png").read_bytes()[:120])
    return d


def test_a_folder_is_edited_by_two_as_by_one(model, files, tmp_path):
    line = f"{files} --recursive --edit Smiling=with --edit Bangs=with:seed=3 --model {model} --steps 2 --batch-size 2"
    made = {n: launch(n, "latref_edit", f"{line} --device cpu --out {tmp_path / str(n)}", tmp_path) for n in (1, 2)}
    assert made[1][0] == 1 and made[2][0] != 0  # one file could not be read; the launcher has a code of its own
    one, two = (json.loads((tmp_path / str(n) / "edits.json").read_text()) for n in (1, 2))
    assert one == two and len(one["files"]) == 6 and sum("error" in r for r in one["files"]) == 1
    assert {r["edited"] for r in one["files"] if "edited" in r} >= {"b_edited.png", "b-2_edited.png"}
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "2").iterdir())
    for n in names:
        if n.endswith(".png"):
            assert torch.equal(load_image(tmp_path / "1" / n), load_image(tmp_path / "2" / n)), n
    assert made[1][1].splitlines()[:-1] == made[2][1].splitlines()[:-1]  # each line is said once
    assert sum("e.png" in l for l in made[2][2].splitlines() if l.startswith("latref_edit")) == 1


def table(path):
    "The figures of a table, rounded: sums are taken over the same batches, but matrices are solved by libraries."
    data = json.loads(path.read_text())
    plain = lambda d: {k: round(v, 5) if isinstance(v, float) else v for k, v in d.items()}
    return [plain(data["autoencoder"]), *map(plain, data["rows"])], data["settings"]


@pytest.mark.parametrize("kind", ["with truth", "without truth"])
def test_a_table_is_measured_by_two_as_by_one(model, tmp_path, kind, capsys):
    line = f"--model {model} --n 7 --steps 1 --batch-size 2 --method latent --method reference --device cpu"
    line += " --edit Smiling=with --precision no"
    if kind == "without truth":
        line += f" --data {write_celeba(SynthFaces(9, SIZE, seed=4), tmp_path / 'faces', progress=False)}"
    assert shell.run_command(commands.latref_eval, "latref_eval", "", f"{line} --json {tmp_path / '1.json'}".split()) == 0
    one = capsys.readouterr().out
    code, two, err = launch(2, "latref_eval", f"{line} --json {tmp_path / '2.json'}", tmp_path)
    assert code == 0, err
    assert table(tmp_path / "1.json") == table(tmp_path / "2.json") and two == one
