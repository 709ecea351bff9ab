"The wheel, away from the repository: what ships is in it, and it is enough."
import os, subprocess, sys, zipfile
import pytest
from repo import HANG, MODULES, ROOT, tracked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from the files under version control alone, as a clone has them."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source], check=True, stdin=subprocess.DEVNULL, timeout=HANG)
    return next(out.glob("*.whl"))

def test_wheel_holds_the_package_the_data_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in MODULES: assert f"latref_nb/{path.name}" in names
    for path in tracked():
        if path.is_relative_to(ROOT / "data") and not path.name.startswith("."): assert f"latref_nb/{path.relative_to(ROOT)}" in names, path
    assert any(n.endswith("LICENSE") for n in names)
    text = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    for command in ("latref_data", "latref_train", "latref_edit", "latref_eval"): assert f"{command} = latref_nb.commands:{command}" in text

def test_shipped_model_edits_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = """
import latref_nb, sys
assert latref_nb.__file__.startswith(sys.argv[1]), latref_nb.__file__
from latref_nb.core import shipped_path
from latref_nb.pipeline import LatRefPipeline
pipe = LatRefPipeline.from_pretrained("synthfaces64")
out = pipe(shipped_path("faces/img_align_celeba/000029.jpg"), "Eyeglasses=with", num_inference_steps=2)
assert str(shipped_path("faces")).startswith(sys.argv[1]) and out.images[0].size == (64, 64)
"""
    done = subprocess.run([sys.executable, "-c", code, str(site)], cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(empty.iterdir())
