"The benchmark command: its table, its JSON, and what wrong words say."

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


def bench(*words):
    return subprocess.run([sys.executable, str(RUN), *map(str, words)], capture_output=True, text=True)


def test_one_part_as_table_and_json(tmp_path):
    done = bench("--only", "faces", "--rounds", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert (
        {"what", "ours", "peer", "unit", "ratio", "bar", "met", "note"} <= set(rows[0])
        and rows[0]["ours"] > 0
        and rows[0]["ratio"] > 1
    )
    assert all(r["what"] in done.stdout for r in rows)


def test_a_chapter_and_its_slowest_cells(tmp_path):
    done = bench("--only", "chapters", "--chapters", "03", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [r["what"] for r in rows] == ["03_schedule"] and rows[0]["ours"] > 0 and rows[0]["unit"] == "s"
    assert rows[0]["note"].count(" s `") == 3 and "03_schedule" in done.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (("--only", "face"), "no part is called 'face'"),
        (("--only", "chapters", "--chapters", "99"), "no chapter begins with '99'"),
        (("--only", "faces", "--chapters", "03"), "--chapters belongs to --only chapters"),
    ],
)
def test_wrong_words(words, said):
    done = bench(*words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_the_page_on_training_shows_what_is_counted():
    done = subprocess.run([sys.executable, str(RUN.parent / "cost.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (RUN.parents[1] / "docs/train.md").read_text(encoding="utf-8")
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(tables) > 12 and not [line for line in tables if line not in page]


def test_photographs_beside_the_published_loop():
    sys.path.insert(0, str(RUN.parent))
    import photos

    rows = {r.what: r for r in photos.run(1, preset="synthfaces64", faces=3)}
    edit = next(r for what, r in rows.items() if what.startswith("an edit of one photograph"))
    assert (
        0 < edit.ours < edit.peer
        and abs(edit.ratio - edit.ours / edit.peer) < 0.2
        and "network calls against 200" in edit.note
    )
    assert rows["memory of synthfaces64, batch 8"].ours >= rows["memory of synthfaces64, batch 1"].ours > 0
    assert rows["largest batch in 24 GiB, float32, a tenth left free"].ours > 8
