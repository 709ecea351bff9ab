"Every measured claim in one table: python benchmarks/run.py [--only faces,sampling] [--rounds N] [--json FILE]"

import argparse
import json
import platform
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
PARTS = ("faces", "sampling", "training", "styles", "explore", "prompted", "precision", "memory")
ALONE = ("photos", "chapters")  # take long, and run only where they are named


def machine():
    "What this was measured on."
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def number(v):
    return "" if v is None else f"{v:.1f}" if v < 1000 else f"{v:.0f}"


def table(rows):
    "The rows as text."
    head = ("what", "ours", "peer", "unit", "ratio", "bar", "", "")
    body = [
        (
            r.what,
            number(r.ours),
            number(r.peer),
            r.unit,
            "" if r.ratio is None else f"{r.ratio:.3f}",
            r.bar,
            {True: "met", False: "MISSED", None: ""}[r.met],
            r.note,
        )
        for r in rows
    ]
    wide = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            v.ljust(w) if i in (0, 3, 5, 6, 7) else v.rjust(w) for i, (v, w) in enumerate(zip(line, wide))
        ).rstrip()
        for line in [head, *body]
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        help=f"parts to run, with commas between: {', '.join(PARTS + ALONE)}; without it, all but {', '.join(ALONE)}",
    )
    parser.add_argument(
        "--chapters",
        default="",
        help="what the names of chapters begin with, with commas between, e.g. 03,16: those alone are run",
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often each pair is timed side by side")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a bar is missed")
    args = parser.parse_args(argv)
    parts = args.only.split(",") if args.only else PARTS
    if wrong := [p for p in parts if p not in PARTS + ALONE]:
        parser.error(f"no part is called {wrong[0]!r}: choose from {', '.join(PARTS + ALONE)}")
    if args.chapters and "chapters" not in parts:
        parser.error("--chapters belongs to --only chapters")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}: at least 1 is needed")
    names = [n for n in args.chapters.split(",") if n]
    if "chapters" in parts:
        try:
            import_module("chapters").chosen(names)
        except ValueError as e:
            parser.error(str(e))
    rows = []
    for part in parts:
        print(f"{part} …", file=sys.stderr, flush=True)
        rows += import_module(part).run(args.rounds, **({"names": names} if part == "chapters" else {}))
    print(table(rows))
    if args.json:
        from latref_nb.files import atomic_write

        with atomic_write(args.json) as temporary:
            temporary.write_text(
                json.dumps({"machine": machine(), "rows": [r.as_dict() for r in rows]}, indent=1, ensure_ascii=False),
                encoding="utf-8",
            )
    return int(args.strict and any(r.met is False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
