"The rules of the repository: notebooks are the source, clean and small; the package follows them; nothing of one machine is left behind."

import ast, configparser, importlib.metadata, io, json, re, shutil, subprocess, sys, tokenize
from pathlib import Path
import pytest
from repo import (
    CHAPTERS,
    HANG,
    MODULES,
    NOTEBOOKS,
    ROOT,
    cells,
    code_of,
    module_of,
    rank,
    read,
    source,
    tracked,
)

import exports, house, readme  # of tools/, which repo.py puts on the path

name = lambda path: path.stem
BIN = lambda program: shutil.which(program, path=f"{sys.prefix}/bin") or shutil.which(program) or program


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The sources of the package in a folder of their own."
    out = tmp_path_factory.mktemp("copy")
    for folder in ("nbs", "latref_nb"):
        shutil.copytree(ROOT / folder, out / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for file in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, out)
    return out


def changed(copy):
    "Files that differ from the repository's."
    return [
        str(p.relative_to(copy))
        for p in sorted(copy.rglob("*"))
        if p.is_file()
        and "__pycache__" not in p.parts
        and not ((ROOT / p.relative_to(copy)).is_file() and (ROOT / p.relative_to(copy)).read_bytes() == p.read_bytes())
    ]


def run(program, cwd):
    subprocess.run([BIN(program)], cwd=cwd, check=True, capture_output=True, timeout=HANG)


# ---- notebooks and package


def test_package_is_what_the_notebooks_export(copy):
    subprocess.run([sys.executable, ROOT / "tools/exports.py", copy], check=True, capture_output=True, timeout=HANG)
    assert not changed(copy), "notebooks and package have drifted apart: run `make export`"


def test_notebooks_are_clean(copy):
    run("nbdev_clean", copy)
    assert not changed(copy), "run `make export`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_small_and_without_traces(path):
    nb = read(path)
    assert path.stat().st_size < 300_000, "over 300 KB: fewer or smaller figures"
    assert "widgets" not in nb["metadata"], "widget state: run `make export`"
    assert "application/vnd.jupyter.widget-view+json" not in path.read_text(encoding="utf-8"), (
        "a widget's view is stored: run `make export`"
    )
    assert all(c.get("execution_count") is None for c in nb["cells"]), "execution counts: run `make export`"
    assert not [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"], (
        "an error is stored as output"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_opens_with_title_and_summary(path):
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S.*\n+> \S", source(first)), (
        "the first cell is `# Title`, then `> one line that says what the chapter is`"
    )


def test_every_module_has_its_notebook_and_every_notebook_its_module():
    exported = {module_of(p): p for p in NOTEBOOKS if module_of(p)}
    assert sorted(exported) == sorted(p.stem for p in MODULES)
    assert not [p.name for p in CHAPTERS if not module_of(p)], "a chapter exports a module"
    for module, notebook in exported.items():
        assert f"../nbs/{notebook.name}" in (ROOT / f"latref_nb/{module}.py").read_text(encoding="utf-8"), (
            f"{module}.py does not come from {notebook.name}"
        )
        assert notebook.stem.partition("_")[2] == module, f"{notebook.name} exports {module}"


def test_modidx_lists_the_modules_that_exist():
    scope = {}
    exec((ROOT / "latref_nb/_modidx.py").read_text(encoding="utf-8"), scope)
    assert sorted(scope["d"]["syms"]) == sorted(f"latref_nb.{p.stem}" for p in MODULES)


# ---- imports


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_imports_run_to_lower_chapters(path):
    ranks = {module_of(p): rank(p) for p in CHAPTERS}
    python = (ROOT / f"latref_nb/{module_of(path)}.py").read_text(encoding="utf-8"), code_of(path)
    used = {m for text in python for m in house.imported(ast.parse(text)) if m in ranks}
    later = [m for m in sorted(used) if ranks[m] >= rank(path) and m != module_of(path)]
    assert not later, f"{path.stem} imports from {', '.join(later)}"


def test_chapters_have_an_order_with_rooms_between():
    names = ["00_core", "00a_tags", "00b_checkpoints", "01_drawing", "01a_faces", "02_plots", "10_modulation"]
    ranks = [rank(Path(f"{n}.ipynb")) for n in names]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)
    assert len({rank(p) for p in CHAPTERS}) == len(CHAPTERS), "two chapters have one number"


@pytest.mark.parametrize(
    "code",
    [
        "from latref_nb.plots import curve",
        "from .plots import curve",
        "from latref_nb import plots",
        "from . import plots",
        "import latref_nb.plots as built",
        "def f():\n    from latref_nb.plots import (\n        curve,\n    )",
    ],
)
def test_an_import_is_found_however_it_is_written(code):
    assert list(house.imported(ast.parse(code))) == ["plots"]


def test_the_page_of_the_house_is_what_the_chapters_say():
    assert house.PAGE.read_text(encoding="utf-8") == house.drawn(), "run `make export`"


def test_every_import_of_the_package_is_declared():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    plain = lambda n: re.split(r"[<>=!~\[]", n)[0].lower().replace("_", "-")
    needed = (config["DEFAULT"][k] for k in ("requirements", "measure_requirements"))  # the last only where they are
    declared = {plain(r) for r in " ".join(needed).split()}
    owner = importlib.metadata.packages_distributions()
    for path in MODULES:
        roots = {
            a.name.split(".")[0]
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Import)
            for a in n.names
        }
        roots |= {
            n.module.split(".")[0]
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.ImportFrom) and not n.level
        }
        missing = {
            r
            for r in roots - set(sys.stdlib_module_names) - {"latref_nb"}
            if not declared & {plain(d) for d in owner.get(r, [r])} and r not in ("traitlets", "IPython")
        }
        assert not missing, (
            f"{path.name} imports {missing}, which settings.ini does not require"
        )  # traitlets and IPython are ipywidgets' own


def test_every_dependency_is_bounded_pinned_and_explained():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    kinds = ("requirements", "dev_requirements", "docs_requirements", "measure_requirements", "photos_requirements")
    needed = " ".join(config["DEFAULT"][k] for k in kinds).split()
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    why = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for requirement in needed:
        package, bound = re.match(r"([\w-]+)(.*)", requirement).groups()
        assert "<" in bound, f"{package} has no upper bound"
        assert package.lower().replace("_", "-") in pinned, f"{package} is not in constraints.txt"
        assert f"| {package} | `{bound}` |" in why, f"CONTRIBUTING.md does not say why {requirement}"


def test_package_leans_on_no_notebook_global():
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--no-cache",
            "--select",
            "F821,F822,F405,F401",
            "--exclude",
            "_modidx.py",
            "--output-format",
            "concise",
            "latref_nb",
            "--ignore-noqa",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    wrong = [line for line in found.stdout.splitlines() if re.search(r"\bF\d+\b", line) and "__init__.py" not in line]
    assert not wrong, "\n".join(wrong)


# ---- one dialect

LINES = 680  # of a module, after the layout
DIALECT = "E501,E701,E702,E703"  # long lines (pyproject.toml says how long), two statements on a line
PACKAGE = [p for p in (*MODULES, ROOT / "latref_nb/__init__.py")]


def arrows(text):
    "Comments with an arrow of two characters; the house writes →."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [f"{t.start[0]}: {t.string}" for t in tokens if t.type == tokenize.COMMENT and "->" in t.string]


def old_names(tree):
    "Parameters and fields called xT in what is public; the house writes x_T."
    spelt = lambda n: re.search(r"(^|_)xTs?(_|$)", n)
    public = lambda n: not n.startswith("_") or n.startswith("__")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            yield from (f"{node.name}.{f}" for f in fields if spelt(f))
            yield from (f"{node.name}.{o}" for o in old_names(node))
        if isinstance(node, ast.FunctionDef) and public(node.name):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            yield from (f"{node.name}({o.arg})" for o in given if spelt(o.arg))


def test_every_exported_cell_is_laid_out():
    done = subprocess.run([sys.executable, "tools/format.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lines_are_short_and_hold_one_statement():
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--ignore-noqa", "--output-format", "concise"]
    done = subprocess.run([*ruff, "--select", DIALECT, *PACKAGE], cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^(.+?\.py):(\d+):\d+: (E\d+ .*)$", done.stdout, re.M)
    assert found or done.returncode == 0, done.stderr
    assert not found, "\n".join(map(":".join, found))


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_module_is_a_room_and_speaks_the_dialect(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES, f"{text.count(chr(10))} lines: delete what is double, then split by job"
    assert not arrows(text), f"write → in comments: {arrows(text)}"
    assert not list(old_names(ast.parse(text))), f"write x_T: {list(old_names(ast.parse(text)))}"


def test_the_other_dialect_is_found():
    assert arrows("a = 1  # (B,3) -> (B,)\n") == ["1: # (B,3) -> (B,)"] and not arrows("a = 'x -> y'  # → z\n")
    public = "@dataclass\nclass A:\n    xT: int\n    def f(self, xT_old): ...\ndef g(*, with_xT=1): ...\n"
    assert list(old_names(ast.parse(public))) == ["A.xT", "A.f(xT_old)", "g(with_xT)"]
    assert not list(old_names(ast.parse("def _g(xT): ...\nclass _A:\n    xT: int\ndef h(x_T, xTra): ...\n")))


def test_a_long_list_of_names_is_wrapped_and_stays_the_same():
    names = [f"name_{i:03d}" for i in range(40)]
    text = f"# %% auto 0\n__all__ = {names}\n\na = [1]\n"
    made = exports.wrapped(text)
    assert max(map(len, made.splitlines())) <= 120 and made.endswith("\n\na = [1]\n")
    assert ast.literal_eval(made.partition("= ")[2].partition("\n\n")[0]) == names and exports.wrapped(made) == made


# ---- Markdown


def swallowed(text):
    "Lines of a page whose Markdown shows as plain characters: HTML goes on to the next blank line."
    out, html, code = [], False, False
    for line in text.splitlines():
        code ^= line.startswith("```")
        html = (
            not code
            and bool(line.strip())
            and (html or bool(re.match(r"</?(details|summary|div|table|p|center|br)\b", line)))
        )
        if html and re.search(r"\*\*|`|\$\S|\]\(|^#+ |^[-*] |^\d+\. ", re.sub(r"<[^>]*>", "", line)):
            out.append(line)
    return out


@pytest.mark.parametrize("page", [*NOTEBOOKS, *(p for p in tracked() if p.suffix == ".md")], ids=lambda p: p.name)
def test_markdown_after_html_is_markdown(page):
    texts = [page.read_text(encoding="utf-8")] if page.suffix == ".md" else cells(page, "markdown")
    found = [line for text in texts for line in swallowed(text)]
    assert not found, f"a blank line is missing before: {found}"


@pytest.mark.parametrize(
    "text, n",
    [
        ("</details>\n**2. Why?**", 1),
        ("</details>\n\n**2. Why?**", 0),
        ("<details><summary>Hint</summary>`x`", 1),
        (
            "<details><summary>Hint</summary>\n\n`x`\n</details>\n<details><summary>Solution</summary>\n\n```python\n</p> ** `\n```\n</details>",
            0,
        ),
        ("</details>\n## Next", 1),
        ("</details>\n- a point", 1),
        ("a **b** <b>c</b> `d`", 0),
    ],
)
def test_markdown_that_html_swallows_is_found(text, n):
    assert len(swallowed(text)) == n


# ---- README and links


def test_readme_is_the_tour():
    text, pictures = readme.convert(ROOT / "nbs/index.ipynb")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run `make export`"
    assert not [p for p, data in pictures.items() if not (ROOT / p).is_file() or (ROOT / p).read_bytes() != data], (
        "run `make export`"
    )


def links(text):
    "Targets of links and pictures, outside code."
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return re.findall(r"\]\(<?([^)>\s]+)>?[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def heading_ids(path):
    "Anchors that a code host gives to the headings of a page."
    lines = (
        re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
        if path.suffix == ".md"
        else "\n".join(cells(path, "markdown"))
    )
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", lines, re.M)}


def test_every_relative_link_resolves():
    pages = {p: p.read_text(encoding="utf-8") for p in tracked() if p.suffix == ".md"} | {
        p: "\n".join(cells(p, "markdown")) for p in NOTEBOOKS
    }
    broken = []
    for page, text in pages.items():
        for target in links(text):
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            if not place.exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
            elif anchor and place.suffix == ".md" and anchor not in heading_ids(place):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_links_into_a_notebook_work_wherever_it_is_read(path):
    "JupyterLab and code hosts name a heading differently: what is linked has an anchor of its own, and the site knows it."
    for target in links("\n".join(cells(path, "markdown"))):
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        if not anchor or place.suffix != ".ipynb" or ":" in file:
            continue
        assert f'<a id="{anchor}"></a>' in "\n".join(cells(place, "markdown")), (
            f'{place.name} has no <a id="{anchor}"></a>'
        )
        assert anchor in heading_ids(place), f"{place.name} has no heading that a code host would call #{anchor}"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem == "play"], ids=name)
def test_play_is_six_explorers_and_nothing_else(path):
    made = [source(c).splitlines()[-1] for c in read(path)["cells"] if c["cell_type"] == "code"]
    assert len(made) == 6 and all(re.match(r"\w+(Explorer|Player|Style)\(", line) for line in made), made
    for c in read(path)["cells"]:
        if c["cell_type"] == "code":
            assert any("image/png" in o.get("data", {}) for o in c["outputs"]), (
                "no still picture for where nothing moves"
            )


# ---- nothing of one machine, nothing half done

MACHINE = re.compile(r"/(?:work|farm|root|home/[a-z]+|tmp/[a-z]+)/")
OPEN = re.compile(
    "TO" + "DO|FIX" + "ME|XX" + r"X|NotImplementedError\(\)|assert Tru" + r"e|pytest\.skip\(\)|or Tru" + "e"
)
INDEX = re.compile(
    r"(?:extra-)?index-url[= ]+\S*(?:localhost|127\.0\.0\.1|file:)|/opt/(?:pypi|wheels)|find-links", re.I
)


def lines_with(pattern, files, excused=r"(?!)"):
    for path in files:
        if path.suffix in (".png", ".jpg", ".safetensors", ".npz") or path == ROOT / "tests/test_repo.py":
            continue
        for i, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line) and not re.search(excused, line) and not line.lstrip().startswith('"image/'):
                yield f"{path.relative_to(ROOT)}:{i}: {line.strip()[:120]}"


def test_no_path_of_a_machine():
    assert not list(lines_with(MACHINE, tracked(), r"github|example|tmp_path|/home/jovyan|https?://"))


def test_no_package_index_of_a_machine():
    assert not list(lines_with(INDEX, tracked()))


def test_nothing_is_left_open():
    assert not list(lines_with(OPEN, [p for p in tracked() if p.suffix in (".py", ".ipynb")]))


# An own limit beside HANG, or a comparison of measured seconds. A benchmark's place is benchmarks/.
HURRY = re.compile(r"timeout=\d|\.wait\(\d|\bsleep\(|assert\b.*(?:perf_counter|monotonic|time\.time|seconds) *[(<)]")


def test_no_test_asks_how_fast_a_machine_is():
    tests = [
        p for p in tracked() if p.parent == ROOT / "tests" and p.suffix == ".py" and p.name != "repo.py"
    ]  # repo.py holds the one limit
    assert tests and not list(lines_with(HURRY, tests))


@pytest.mark.parametrize(
    "line",
    [
        "run(x, timeout=30)",
        "p.wait(5)",
        "time.sleep(1)",
        "assert time.perf_counter() - start < 2",
        "assert seconds < 3",
    ],
)
def test_a_test_in_a_hurry_is_found(line):
    assert HURRY.search(line)


def test_no_file_is_too_large():
    assert not [f"{p.relative_to(ROOT)}: {p.stat().st_size}" for p in tracked() if p.stat().st_size > 16_000_000]
    shipped = sum(p.stat().st_size for p in tracked() if p.suffix == ".safetensors")
    assert shipped < 64_000_000, f"the checkpoints take {shipped} bytes together"
