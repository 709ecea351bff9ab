"Removes what `nbdev_clean` leaves: widget state and widget views, which only a running kernel can show. Usage: clean.py [NOTEBOOK …]"

import json, sys
from pathlib import Path

VIEW = "application/vnd.jupyter.widget-view+json"


def clean(nb):
    "The notebook (as read from JSON) without widget state and views, in place."
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        if "outputs" not in cell:
            continue
        for o in cell["outputs"]:
            if "image/png" in o.get("data", {}):
                o["data"].pop(VIEW, None)  # a widget that sends its still picture along
        cell["outputs"] = [o for o in cell["outputs"] if VIEW not in o.get("data", {})]
    return nb


def main(paths):
    for path in map(Path, paths or sorted((Path(__file__).parents[1] / "nbs").glob("*.ipynb"))):
        before = path.read_text(encoding="utf-8")
        after = json.dumps(clean(json.loads(before)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
