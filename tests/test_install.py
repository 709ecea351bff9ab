"The wheel, away from the repository: what ships is in it, and it is enough. The Pythons that are promised, read from settings.ini."

import configparser, email, importlib.metadata, os, re, shutil, subprocess, sys, zipfile
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from repo import HANG, MODULES, ROOT, tracked

SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
FIRST, LAST = (SETTINGS["DEFAULT"][k] for k in ("min_python", "max_python"))
MINORS = range(int(FIRST.split(".")[1]), int(LAST.split(".")[1]) + 1)
PROMISED = [f"3.{n}" for n in MINORS]
OUTSIDE = [(2, 7), (3, MINORS[0] - 1), (3, MINORS[-1] + 1)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from the files under version control alone, as a clone has them."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=HANG,
    )
    return next(out.glob("*.whl"))


def test_wheel_holds_the_package_the_data_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in MODULES:
        assert f"latref_nb/{path.name}" in names
    for path in tracked():
        if path.is_relative_to(ROOT / "data") and not path.name.startswith("."):
            assert f"latref_nb/{path.relative_to(ROOT)}" in names, path
        if path.is_relative_to(ROOT / "latref_nb/static"):
            assert str(path.relative_to(ROOT)) in names, path
    assert any(n.endswith("LICENSE") for n in names)
    text = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    for command in ("latref_data", "latref_train", "latref_edit", "latref_eval"):
        module = "train_commands" if command == "latref_train" else "commands"
        assert f"{command} = latref_nb.{module}:{command}" in text


def test_shipped_model_edits_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = """
import latref_nb, sys
assert latref_nb.__file__.startswith(sys.argv[1]), latref_nb.__file__
from latref_nb.files import shipped_path
from latref_nb.pipeline import LatRefPipeline
pipe = LatRefPipeline.from_pretrained("synthfaces64")
out = pipe(shipped_path("faces/img_align_celeba/000029.jpg"), "Eyeglasses=with", num_inference_steps=2)
assert str(shipped_path("faces")).startswith(sys.argv[1]) and out.images[0].size == (64, 64)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(empty.iterdir())


# ---- the Pythons that are promised: min_python to max_python of settings.ini


def test_wheel_asks_for_the_promised_pythons(wheel):
    with zipfile.ZipFile(wheel) as z:
        text = z.read(next(n for n in z.namelist() if n.endswith("/METADATA"))).decode()
    facts = email.message_from_string(text)
    asked = SpecifierSet(facts["Requires-Python"])
    assert all(f"{v}.4" in asked for v in PROMISED) and not any(f"{a}.{b}.4" in asked for a, b in OUTSIDE)
    named = {c.rpartition(" ")[2] for c in facts.get_all("Classifier") if c.startswith("Programming Language")}
    assert named == {"3", *PROMISED}


def test_pages_promise_what_settings_promise():
    text = {
        p.relative_to(ROOT): p.read_text(encoding="utf-8")
        for p in tracked()
        if p.suffix in (".md", ".ipynb") or p.name == "Makefile"
    }
    for page in ("README.md", "CONTRIBUTING.md", "nbs/index.ipynb"):
        assert f"Python {FIRST} to {LAST}" in text[ROOT.joinpath(page).relative_to(ROOT)], page
    named = {(str(page), v) for page, t in text.items() for v in re.findall(r"[Pp]ython ?(3\.\d+)\b(?!\.\d)", t)}
    assert named and not [n for n in named if n[1] not in PROMISED]


def test_a_version_that_is_pinned_has_a_release_for_every_promised_python():
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    ]
    seen = 0
    for pin in pins:
        for v in PROMISED:
            assert not pin.marker or pin.marker.evaluate({"python_version": v, "python_full_version": f"{v}.99"}), (
                f"{pin}: not on {v}"
            )
        try:
            facts = importlib.metadata.metadata(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        seen += 1
        if facts["Version"].partition("+")[0] in pin.specifier:
            assert all(f"{v}.99" in SpecifierSet(facts["Requires-Python"] or "") for v in PROMISED), (
                f"{pin.name} wants Python {facts['Requires-Python']}"
            )
    assert seen > 100


def pretend(version):
    "Words that make a Python say it is of another version."
    return f"import sys; sys.version_info = {(*version, 4, 'final', 0)}; sys.version = '{version[0]}.{version[1]}.4 (main)'"


def make_with(version, folder):
    "`make setup` with a Python that says it is of a version, and can make no environment."
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\n{pretend(version)}\nif sys.argv[1] != '-c': sys.exit('no environment here')\nexec(sys.argv[2])\n"
    )
    python.chmod(0o755)
    words = ["make", "setup", f"PYTHON={python}", f"VENV={folder / 'venv'}"]
    alone = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))
    }  # not as a part of `make test`
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HANG, env=alone)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize("version", OUTSIDE)
def test_make_says_in_one_line_which_pythons_are_promised(version, tmp_path):
    done = make_with(version, tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(said) == 1 and not done.stdout, done
    assert f"Python {FIRST} to {LAST}" in said[0] and f"make setup PYTHON=python{LAST}" in said[0]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize("minor", MINORS)
def test_make_goes_on_with_a_promised_python(minor, tmp_path):
    done = make_with((3, minor), tmp_path)
    assert "no environment here" in done.stderr and f"Python {FIRST} to {LAST}" not in done.stderr


@pytest.mark.parametrize("version", OUTSIDE)
def test_pip_is_told_before_it_looks_for_libraries(version, tmp_path):
    for file in ("setup.py", "settings.ini"):
        shutil.copy(ROOT / file, tmp_path)
    code = f"import setuptools; {pretend(version)}; exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"needs Python {FIRST} to {LAST}" in done.stderr and f"this is {version[0]}.{version[1]}.4" in done.stderr
