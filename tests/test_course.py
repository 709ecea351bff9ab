"The course: what every chapter owes it, copies that never overwrite work, notes of what was passed, and all of it from an installed wheel."

import json, os, re, shutil, subprocess, sys, zipfile
import nbformat, pytest
from repo import CHAPTERS, HANG, ROOT, cells, execute, read, source as text_of
from test_install import wheel  # noqa: F401  a fixture

from latref_nb import checks, course


# ---- what every chapter has


def section(text, name):
    "The text under a heading of the second level."
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found[1] if found else ""


def unpredicted(nb):
    "First lines of the cells whose stored figure comes without a prediction since the figure before."
    said, out = "", []
    for c in nb["cells"]:
        if c["cell_type"] == "markdown":
            said += "\n" + text_of(c)
        elif any(m.startswith("image/") for o in c.get("outputs", []) for m in o.get("data", {})):
            if not re.search(r"^\*\*Predict\.\*\* .*\?", said, re.M):
                out.append(text_of(c).splitlines()[0])
            said = ""
    return out


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_has_all_of_the_course(path):
    told = "\n\n".join(cells(path, "markdown"))
    assert re.search(r"\byou can\b", told[:1500]), "no objectives on the first screen"
    assert not unpredicted(read(path)), f"figures without a prediction before them: {unpredicted(read(path))}"
    assert len(re.findall(r"^- ", section(told, "Recap"), re.M)) >= 3, "no recap of three points"
    assert len(re.findall(r"<summary>Answer</summary>", section(told, "Three questions"))) == 3, (
        "not three questions with folded answers"
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_folds_are_closed(path):
    told = "\n".join(cells(path, "markdown"))
    assert told.count("<details") == told.count("</details>") == told.count("<summary")


def test_a_figure_without_a_prediction_is_found():
    figure = {"cell_type": "code", "source": "plot()", "outputs": [{"data": {"image/png": ""}}]}
    asked = {"cell_type": "markdown", "source": "**Predict.** What comes?"}
    assert unpredicted({"cells": [asked, figure, figure]}) == ["plot()"] and not unpredicted({"cells": [asked, figure]})


# ---- copies


def notebook(*sources):
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_markdown_cell("# Title\n> about it")] + [nbformat.v4.new_code_cell(s) for s in sources]
    return json.loads(nbformat.writes(nb))


def write(folder, name, nb):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(nb), encoding="utf-8")


def text(path):
    return path.read_text(encoding="utf-8")


STUB = (
    "from latref_nb.checks import your_turn",
    "def double(x):\n    ...",
    "def check_double(f):\n    assert f(3) is not None, 'nothing yet: return a number'\n    assert f(3) == 6",
    "your_turn(check_double, double)",
)


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "chapters", "00_one", notebook("x = 1", *STUB))
    write(tmp_path / "chapters", "01_two", notebook("y = 2"))
    return tmp_path / "chapters"


def test_copies_are_notebooks_that_jupyter_reads(source, tmp_path):
    handed = course.copy_course(tmp_path / "mine", source)
    assert [(h.chapter, h.state) for h in handed] == [("00_one", "new"), ("01_two", "new")]
    for h in handed:
        nbformat.validate(nbformat.read(h.path, 4))


def test_every_real_chapter_copies_and_validates(tmp_path):
    handed = course.copy_course(tmp_path / "mine")
    assert {h.chapter for h in handed} == {p.stem for p in CHAPTERS} - set(course.STAYS) | {"index", "play"}
    for h in handed:
        nb = nbformat.read(h.path, 4)
        nbformat.validate(nb)
        assert "](../" not in "".join(c.source for c in nb.cells if c.cell_type == "markdown"), h.chapter
    done = course.standing(tmp_path / "mine")
    assert done["04_unet"] == (0, 3), "check_grid is no exercise"
    assert not [name for name, (_, n) in done.items() if n < 3 and name not in ("index", "play")], (
        "a chapter lost exercises on the way"
    )


def test_work_survives_every_update(source, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine, source)
    for version in range(3):
        path = mine / "00_one.ipynb"
        nb = json.loads(text(path))
        nb["cells"].append(nbformat.v4.new_markdown_cell(f"note {version}"))
        write(mine, "00_one", nb)
        before = text(path)
        write(source, "00_one", notebook("x = 1", *STUB, f"new = {version}"))
        one, two = course.copy_course(mine, source)
        assert (
            (one.state, two.state, one.added) == ("beside", "same", 1)
            and text(path) == before
            and f"new = {version}" in text(one.path)
        )
    assert len(list(mine.glob("00_one.new-*.ipynb"))) == 3


def test_a_copy_laid_beside_and_then_edited_is_not_overwritten(source, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine, source)
    write(mine, "00_one", notebook("mine"))
    write(source, "00_one", notebook("newer"))
    beside = course.copy_course(mine, source)[0].path
    beside.write_text("my own", encoding="utf-8")
    (mine / course.PROGRESS).unlink()
    course.copy_course(mine, source)
    assert text(beside) == "my own" and "mine" in text(mine / "00_one.ipynb")


def test_without_notes_nothing_is_taken_for_untouched(source, tmp_path):
    mine = tmp_path / "mine"
    write(mine, "00_one", notebook("somebody's own work of the same name"))
    assert course.copy_course(mine, source)[0].state == "beside"
    assert "somebody's own work" in text(mine / "00_one.ipynb")


def test_a_chapter_that_is_no_notebook_any_more_stays(source, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine, source)
    (mine / "00_one.ipynb").write_text("{ half", encoding="utf-8")
    write(source, "00_one", notebook("newer"))
    assert course.copy_course(mine, source)[0].state == "beside" and text(mine / "00_one.ipynb") == "{ half"


def run(path, folder):
    nb = nbformat.read(path, 4)
    execute(nb, folder)
    nbformat.write(nb, path)
    return nb


def test_passed_exercises_are_noted_from_a_running_notebook(source, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine, source)
    path = mine / "00_one.ipynb"
    for body in ("...", "return x", "return 1 / 0"):
        nb = nbformat.read(path, 4)
        next(c for c in nb.cells if c.source.startswith("def double")).source = f"def double(x):\n    {body}"
        nbformat.write(nb, path)
        nb = run(path, mine)
        assert course.read_progress(mine)["passed"] == {} and course.standing(mine)["00_one"] == (0, 1), body
    nb.cells += [
        nbformat.v4.new_code_cell("def double(x): return x + x"),
        nbformat.v4.new_code_cell("your_turn(check_double, double)"),
    ]
    nbformat.write(nb, path)
    nb = run(path, mine)
    assert list(course.read_progress(mine)["passed"]["00_one"]) == ["check_double"]
    assert "passed: check_double" in str(nb.cells[-1].outputs)
    course.copy_course(mine, source)
    assert list(course.read_progress(mine)["passed"]["00_one"]) == ["check_double"], "an update keeps the notes"


def test_standing_counts_what_a_chapter_asks_for_now(source, tmp_path):
    mine = tmp_path / "mine"
    course.copy_course(mine, source)
    course.note_passed(mine, "00_one", "check_of_an_older_version")
    course.note_passed(mine, "00_one", "check_double")
    assert course.standing(mine) == {"00_one": (1, 1), "01_two": (0, 0)}
    (mine / "00_one.ipynb").write_text("{ half", encoding="utf-8")
    (mine / "01_two.ipynb").unlink()
    assert course.standing(mine) == {"00_one": (0, 0), "01_two": (0, 0)}


def test_checks_are_folded_in_a_copy(source, tmp_path):
    course.copy_course(tmp_path / "mine", source)
    folded = [
        c.source
        for c in nbformat.read(tmp_path / "mine/00_one.ipynb", 4).cells
        if c.metadata.get("jupyter", {}).get("source_hidden")
    ]
    assert len(folded) == 1 and folded[0].startswith("def check_double")


def test_a_new_listener_takes_the_place_of_the_old_one(tmp_path):
    course.keep_progress("00_one", tmp_path)
    course.keep_progress("00_one", tmp_path)
    try:
        assert len([o for o in checks.when_right if isinstance(o, course.Notes)]) == 1
    finally:
        checks.when_right.clear()


def test_a_folder_that_cannot_be_noted_in_does_not_disturb(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    notes = course.Notes("00_one", tmp_path / "file")
    notes("check_x")
    notes("check_x")
    assert capsys.readouterr().out.count("progress is not noted") == 1


def test_what_chapter_18_has_stored_is_true():
    stored = "".join(
        str(o.get("text", "")) for c in read(ROOT / "nbs/18_course.ipynb")["cells"] for o in c.get("outputs", [])
    )
    asked = sum(len(course.exercises(nb)) for nb in course.chapters().values())
    for n in re.findall(r"(\d+) chapters", stored):
        assert int(n) == len(course.chapters()), "run chapter 18 and save it"
    assert f"0 of {asked}\\n" in stored, f"{asked} exercises now: run chapter 18 and save it"


def test_course_from_the_wheel_in_an_empty_folder(wheel, tmp_path):  # noqa: F811
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "latref_nb/chapters/00e_core.ipynb" in names and not [
        n for n in names if n.startswith("latref_nb/chapters/") and not n.endswith(".ipynb")
    ]
    code = "import sys, latref_nb; assert latref_nb.__file__.startswith(sys.argv[1]); from latref_nb.course import latref_course; latref_course(['--out', 'mine'])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "chapters copied to mine" in done.stdout
        and (empty / "mine/00e_core.ipynb").is_file()
        and (empty / "mine" / course.PROGRESS).is_file()
    )


@pytest.mark.skipif(not shutil.which("make") or not (ROOT / ".git").exists(), reason="no make here, or no clone")
def test_make_lab_opens_copies_that_the_clone_does_not_see():
    told = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True).stdout
    assert told.index("latref_course --out course") < told.index("course/play.ipynb") and "/course and is yours" in told
    assert subprocess.run(["git", "check-ignore", "-q", "course/play.ipynb"], cwd=ROOT).returncode == 0
    assert "course" not in subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True).stdout


def test_what_has_no_exercises_is_handed_out_as_it_is():
    nb = course.chapters()["play"]
    assert [c["id"] for c in course.student_copy(nb, "play")["cells"]] == [c["id"] for c in nb["cells"]]
    assert "progress" in [c["id"] for c in course.student_copy(course.chapters()["00e_core"], "00e_core")["cells"]]


# ---- the quiz

QUESTIONS = [(title, q) for title, questions in course.questions_of().items() for q in questions]


def plain(words):
    return re.sub(r"\s+", " ", re.sub(r"[*`]", "", words)).lower()


def under(path, heading):
    "The text under a heading of any level, up to the next one of that level or a higher one; None without such a heading."
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", "\n\n".join(cells(path, "markdown")), re.M | re.S)
    return found and re.split(rf"^#{{1,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.M)[0]


@pytest.mark.parametrize("title, q", QUESTIONS, ids=lambda v: getattr(v, "chapter", None))
def test_an_answer_stands_where_the_question_says(title, q):
    assert q.chapter in course.chapters(), "a chapter that the course does not hand out"
    section, keys = (
        under(course.chapters_folder() / f"{q.chapter}.ipynb", q.section),
        re.findall(r"\*(.+?)\*", q.answer),
    )
    assert section, f"{q.chapter} has no section {q.section!r}"
    assert keys and not [k for k in keys if plain(k) not in plain(section)], f"{q.chapter}, {q.section}: {keys}"


def test_there_are_ten_questions_for_each_path_and_none_twice():
    assert [len(v) for v in course.questions_of().values()] == [10, 10, 10] and len({q.ask for _, q in QUESTIONS}) == 30
    paths = text(CHAPTERS[0].parents[1] / "docs/paths.md")
    for title in course.questions_of():
        assert f"## {title}\n" in paths, title


def test_the_page_of_the_quiz_is_what_the_command_prints(capsys):
    with pytest.raises(SystemExit) as left:
        course.latref_course(["quiz"])
    assert left.value.code == 0 and capsys.readouterr().out == text(CHAPTERS[0].parents[1] / "docs/quiz.md"), (
        "run `latref_course quiz > docs/quiz.md`"
    )


@pytest.mark.parametrize("path, code, words", [("hour", 0, "## An hour"), ("hours", 1, "Did you mean 'hour'?")])
def test_the_quiz_of_one_path(path, code, words, capsys):
    with pytest.raises(SystemExit) as left:
        course.latref_course(["quiz", "--path", path])
    said = capsys.readouterr()
    assert left.value.code == code and words in said.out + said.err and "## An afternoon" not in said.out


@pytest.mark.parametrize(
    "typed, missed", [(["", "y"] * 3, 0), (["", "n", "", "yes", "", ""], 2), (["", "y"], 2), ([], 3)]
)
def test_a_quiz_counts_what_was_known(typed, missed, capsys):
    left = iter(typed)

    def answer(prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    assert len(course.ask_quiz(course.HOUR[:3], answer)) == missed
    assert course.HOUR[0].ask in capsys.readouterr().out


def test_the_quiz_asks_in_a_terminal():
    pty = pytest.importorskip("pty", reason="no terminals to be had on this system")
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from latref_nb.course import latref_course; latref_course(['quiz', '--path', 'minutes'])",
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, b"\ny\n" * 9 + b"\nn\n")
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:
        pass  # the other end was closed
    assert (
        run.wait(timeout=HANG) == 0 and b"9 of 10" in said and b"look again at 15_explore: AttentionExplorer" in said
    ), said.decode()
