"""A student plays through every chapter: it runs from its first cell to its last and makes the pictures that are stored
in it; right answers are called right, known mistakes are named, nothing stops."""

import ast, json, re, time
import nbformat, pytest
from exercises import MISTAKES
from repo import CHAPTERS, ROOT, code_of, execute, exercises, pictured, read, skipped, source

from latref_nb import checks, course

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


# ---- your_turn


def check_half(f):
    got = f(6)
    assert got is not None, "nothing yet: return a number"
    assert got != 12, "that is\ntwice 6"
    if got != 3:
        raise AssertionError  # bare: pytest gives an assert words of its own
    return "of 6" if f(1) else None


def stops(x):
    return {}[x]


def leaves(x):
    raise SystemExit(1)


def asserts(x):
    raise AssertionError("no negative number")


@pytest.mark.parametrize(
    "f, line",
    [
        (lambda x: None, "your turn: return a number"),
        (lambda x: 2 * x, "not yet: that is twice 6"),
        (lambda x: "3", "not yet: the check fails"),
        (lambda x: x / 2, "right: check_half passed (of 6)"),
        (lambda x: x // 2, "right: check_half passed"),
        (stops, "not yet: KeyError: 6 (in `return {}[x]`)"),
        (lambda: 3, "not yet: TypeError: <lambda>() takes 0 positional arguments but 1 was given"),
        (3, "not yet: TypeError: 'int' object is not callable"),
        (leaves, "not yet: SystemExit: 1 (in `raise SystemExit(1)"),
        (asserts, "not yet: no negative number"),
        (lambda x: int("1" * 9999), "not yet: ValueError: "),
    ],
)
def test_your_turn_says_one_line_whatever_comes(f, line, capsys):
    assert checks.your_turn(check_half, f) is None
    out = capsys.readouterr().out
    assert out.startswith(line) and out.count("\n") == 1 and out.endswith("\n") and len(out) < 400, out


def test_only_what_is_right_is_told_to_those_who_listen(capsys):
    told = []
    checks.when_right.append(told.append)
    try:
        for f in (lambda x: None, stops, lambda x: x, lambda x: x / 2):
            checks.your_turn(check_half, f)
    finally:
        checks.when_right.remove(told.append)
    assert told == ["check_half"]


def test_an_interrupt_is_no_mistake():
    def wait(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.your_turn(check_half, wait)


# ---- the form


def function(code, name):
    "The definition of a function in a cell."
    found = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == name]
    assert found, f"no function {name} in\n{code}"
    return found[-1]


def names(code):
    "What a cell reads."
    code = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))
    return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def begun_only(f):
    "A docstring, and `...`."
    return ast.get_docstring(f) and len(f.body) == 2 and ast.unparse(f.body[1]) == "..."


@chapters
def test_every_exercise_has_the_form(path):
    nb, found = read(path)["cells"], exercises(path)
    assert len(found) >= 3, f"{len(found)} exercises"
    lines = re.findall(r"^your_turn\(", code_of(path), re.M)
    assert len({e.check for e in found}) == len(found) == len(lines), (
        "a line your_turn(check_x, x) stands alone in its cell, once for each check"
    )
    for e in found:
        stub, check = function(source(nb[e.stub]), e.name), function(source(nb[e.turn - 1]), e.check)
        assert re.search(r"^##+ Exercise", e.task, re.M), f"{e.name}: above the stub no heading begins with Exercise"
        assert begun_only(stub), f"{e.name}: the stub is a docstring and `...`"
        assert ast.unparse(check.args) == "f", f"{e.check} takes the reader's function f and has no default"
        for fold in ("Hint", "Solution"):
            assert f"<summary>{fold}</summary>" in e.folded, f"{e.name}: no folded {fold}"
        assert e.solution, f"{e.name}: the solution is no block of Python"
        assert ast.unparse(function(e.solution, e.name).args) == ast.unparse(stub.args), f"{e.name}: another signature"


@chapters
def test_nothing_but_its_turn_uses_the_readers_function(path):
    nb = read(path)["cells"]
    for e in exercises(path):
        for i, cell in enumerate(nb):
            if i > e.stub and i != e.turn and cell["cell_type"] == "code":
                used = names(source(cell))
                assert e.name not in used, f"cell {i} uses {e.name}: a wrong answer would break the chapter"


@chapters
def test_what_is_stored_tells_the_reader_that_it_is_their_turn(path):
    nb = read(path)["cells"]
    for e in exercises(path):
        first = re.search(r'"nothing yet: (.*?)"', source(nb[e.turn - 1]))
        assert first, f'{e.check}: its first assertion says "nothing yet: …", and what to do'
        assert said(nb[e.turn]) == [f"your turn: {first[1]}"], f"{e.check}: run the chapter and save it"


@chapters
def test_every_check_has_known_mistakes(path):
    known = MISTAKES.get(path.stem, {})
    assert set(known) == {e.check for e in exercises(path)}, "tests/exercises.py"
    for check, mistakes in known.items():
        assert len({words for _, words in mistakes}) >= 2, f"{check}: two mistakes at least, told apart by words"


# ---- the student

ODD = [
    "lambda *a, **k: 1 / 0",
    "lambda *a, **k: 'words'",
    "lambda *a, **k: 0",
    "lambda *a, **k: [None] * 4",
    "lambda *a, **k: __import__('torch').full((1, 3, 64, 64), 7.)",
    "lambda one, too, many, things, to, ask: 0",
    "7",
]


def said(cell):
    "The lines that a cell printed."
    streams = [o for o in cell.get("outputs", []) if o["output_type"] == "stream" and o["name"] == "stdout"]
    return "".join(source({"source": o["text"]}) for o in streams).splitlines()


def trial(check, mistake):
    "A cell that puts something in a student's place and asks the check about it."
    name = mistake if not re.search(r"^def wrong", mistake, re.M) else "wrong"
    return nbformat.v4.new_code_cell((mistake + "\n" if name == "wrong" else "") + f"your_turn({check}, {name})")


def solved(path):
    "The chapter as a student of the course has it when all is done, and the numbers of the cells that ask."
    nb = read(path)
    for e in exercises(path):
        nb["cells"][e.stub]["source"] = e.solution
    copied = path.stem not in course.STAYS
    nb = nbformat.reads(json.dumps(course.student_copy(nb, path.stem) if copied else nb), 4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and skipped(c))]
    return nb, copied


@chapters
def test_a_student(path, tmp_path, record_property):
    (nb, copied), asked = solved(path), exercises(path)
    trials = [(e, mistake, words) for e in asked for mistake, words in MISTAKES[path.stem][e.check]]
    trials += [(e, odd, None) for e in asked for odd in ODD] + [(e, e.name, "right") for e in asked]
    cells = [trial(e.check, mistake) for e, mistake, _ in trials]
    stubs = [
        nbformat.v4.new_code_cell(source(cell) + f"\nyour_turn({e.check}, {e.name})")
        for e in asked
        for cell in [read(path)["cells"][e.stub]]
    ]
    turns = [c for c in nb.cells if c.cell_type == "code" and c.source.startswith("your_turn(")]
    pictures, files = pictured(nb), set((ROOT / "nbs").iterdir())
    nb.cells += cells + stubs
    start = time.perf_counter()
    where = tmp_path if copied else ROOT / "nbs"
    execute(nb, where)
    record_property("chapter", (path.stem, time.perf_counter() - start))
    assert pictured(nb) == pictures, "the stored pictures are not those that the code makes: run the chapter and save it"
    left = {p.name for p in set((ROOT / "nbs").iterdir()) - files} - {".ipynb_checkpoints"}
    assert not left, f"left behind in nbs: {left}"
    for e, cell in zip(asked, turns, strict=True):
        first, *rest = said(cell)
        assert first.startswith(f"right: {e.check} passed"), f"the solution of {e.check}: {first}"
        assert rest == [f"passed: {e.check} (noted in {course.PROGRESS})"] * copied
    for (e, mistake, words), cell in zip(trials, cells):
        (line,) = said(cell)
        begin = {None: ("not yet: ", "your turn: "), "right": "right: "}.get(words, "not yet: ")
        assert line.startswith(begin) and (words or "") in line, f"{e.check} of {mistake}: {line}"
    for e, cell in zip(asked, stubs):
        assert said(cell) == said(read(path)["cells"][e.turn]), f"{e.check} of the stub"
    if copied:
        assert list(course.read_progress(tmp_path)["passed"][path.stem]) == [e.check for e in asked]
