"The benchmark command: its table, its JSON, and what wrong words say."
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


def bench(*words): return subprocess.run([sys.executable, str(RUN), *map(str, words)], capture_output=True, text=True)


def test_one_part_as_table_and_json(tmp_path):
    done = bench("--only", "faces", "--rounds", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {"what", "ours", "peer", "unit", "ratio", "bar", "met", "note"} <= set(rows[0]) and rows[0]["ours"] > 0 and rows[0]["ratio"] > 1
    assert all(r["what"] in done.stdout for r in rows)


def test_a_chapter_and_its_slowest_cells(tmp_path):
    done = bench("--only", "chapters", "--chapters", "03", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [r["what"] for r in rows] == ["03_schedule"] and rows[0]["ours"] > 0 and rows[0]["unit"] == "s"
    assert rows[0]["note"].count(" s `") == 3 and "03_schedule" in done.stdout


@pytest.mark.parametrize("words, said", [
    (("--only", "face"), "no part is called 'face'"), (("--only", "chapters", "--chapters", "99"), "no chapter begins with '99'"),
    (("--only", "faces", "--chapters", "03"), "--chapters belongs to --only chapters")])
def test_wrong_words(words, said):
    done = bench(*words)
    assert done.returncode == 2 and said in done.stderr, done.stderr
