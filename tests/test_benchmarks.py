"The benchmark command: its table, its JSON, and what wrong words say."
import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


def bench(*words): return subprocess.run([sys.executable, str(RUN), *map(str, words)], capture_output=True, text=True)


def test_one_part_as_table_and_json(tmp_path):
    done = bench("--only", "faces", "--rounds", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {"what", "ours", "peer", "unit", "ratio", "bar", "met", "note"} <= set(rows[0]) and rows[0]["ours"] > 0 and rows[0]["ratio"] > 1
    assert all(r["what"] in done.stdout for r in rows)


def test_wrong_words():
    done = bench("--only", "face")
    assert done.returncode == 2 and "no part is called 'face'" in done.stderr
