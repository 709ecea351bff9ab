"Builds the documentation site from docs/, the chapters with their stored outputs, and the package's source. Nothing is run, nothing is fetched. Usage: docs.py [OUT]"

import ast, configparser, json, os, re, shutil, subprocess, sys, textwrap, urllib.parse
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("docs", "nbs", "api")  # folders of the site; links to any other file lead to the repository
DIRECTIVE = re.compile(r"^#\|\s*(\w+).*$", re.M)
LINK = re.compile(r"(?<!\\)(\]\(<?)([^)>\s]+)")


def settings():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def outward(text, folder):
    "Links that leave the site, turned into links to the repository's page."
    base = f"{settings()['git_url']}/blob/{settings()['branch']}/"

    def point(m):
        file, _, anchor = m[2].partition("#")
        if not file or re.match(r"[a-z][a-z+.-]*:", file):
            return m[0]
        place = Path(os.path.normpath(ROOT / folder / file))
        inside = place.is_relative_to(ROOT) and place.relative_to(ROOT).parts
        if not inside or inside[0] in SHOWN and place.suffix:
            return m[0]
        return f"{m[1]}{base}{'/'.join(inside)}{'#' + anchor if anchor else ''}"

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)  # code stays as it is
    return "".join(p if i % 2 else LINK.sub(point, p) for i, p in enumerate(parts))


# ---- chapters


def shown(cell):
    "The cell as a reader should see it, or None: no directives, no cells that only tests need."
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return {**cell, "source": outward(text, "nbs")}
    if cell["cell_type"] != "code":
        return cell
    words = set(DIRECTIVE.findall(text))
    text = DIRECTIVE.sub("", text).strip("\n")
    if "hide" in words or "default_exp" in words or not text:
        return None
    tags = ["remove-input"] if words & {"hide_input", "echo"} else []
    return {**cell, "source": text, "metadata": {**cell["metadata"], "tags": tags}}


def write_chapters(out):
    out.mkdir(parents=True)
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        nb["cells"] = [c for c in map(shown, nb["cells"]) if c]
        number, _, _ = path.stem.partition("_")
        if number != path.stem:
            nb["cells"][0]["source"] = nb["cells"][0]["source"].replace("# ", f"# {number} ", 1)
        elif path.stem == "index":
            nb["cells"][0]["source"] = nb["cells"][0]["source"].replace(
                "# latref_nb", "# A tour of latref_nb", 1
            )  # the site has a front page of its own
        (out / path.name).write_text(json.dumps(nb, ensure_ascii=False), encoding="utf-8")


# ---- pages of the package


def patched(node):
    "Name of the class that a function is added to by @patch, or None."
    if not any("patch" in ast.unparse(d) for d in node.decorator_list) or not node.args.args:
        return None
    kind = node.args.args[0].annotation
    return ast.unparse(kind).split(",")[0].strip("(") if kind is not None else None


def public(name):
    return not name.startswith("_") or name in ("__init__", "__call__")


def members(tree):
    "Public functions and classes in their order: [(qualified name, node)]; methods stand behind their class."
    found, later = {}, {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            found[node.name] = node
            later[node.name] = [
                n for n in node.body if isinstance(n, ast.FunctionDef) and public(n.name) and n.name != "__init__"
            ]
        elif isinstance(node, ast.FunctionDef) and (owner := patched(node)):
            if public(node.name):
                later.setdefault(owner, []).append(node)
        elif isinstance(node, ast.FunctionDef) and public(node.name):
            found[node.name] = node
    for owner in later:
        found.setdefault(owner, None)
    return [
        (n, o)
        for n, node in found.items()
        for n, o in ((n, node), *((f"{n}.{m.name}", m) for m in later.get(n, [])))
        if o is not None
    ]


def source_of(lines, node):
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    return textwrap.dedent("\n".join(lines[start : node.end_lineno]))


def head_of(lines, node):
    "A function's first lines with the comments behind its arguments, or a class's name, fields and constructor."
    init = (
        next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if isinstance(node, ast.ClassDef)
        else None
    )
    if isinstance(node, ast.ClassDef):
        top = textwrap.dedent(lines[node.lineno - 1])
        fields = [textwrap.dedent(lines[n.lineno - 1]) for n in node.body if isinstance(n, ast.AnnAssign)]
        return "\n".join(
            [top, *(f"    {f}" for f in fields), *([textwrap.indent(head_of(lines, init), "    ")] if init else [])]
        )
    last = node.body[0].lineno - 1
    first, *more = lines[node.lineno - 1 : max(last, node.lineno)]
    margin = " " * (len(first) - len(first.lstrip()))
    text = "\n".join(
        [first, *(f"{margin}{'' if line.lstrip().startswith(')') else '    '}{line.lstrip()}" for line in more)]
    )
    return textwrap.dedent(text.partition(": return")[0] + ":" if ": return" in text and last < node.lineno else text)


def entry(module, lines, name, node):
    args = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
    kind, doc = (
        "class" if isinstance(node, ast.ClassDef) else "method" if "." in name else "function",
        ast.get_docstring(node) or "",
    )
    return "\n".join(
        [
            f"## {name}" if "." not in name else f"### {name}",
            "",
            f":::{{py:{kind}}} {name}{args}",
            ":::",
            "",
            outward(doc, "nbs"),
            "",
            "```python",
            head_of(lines, node),
            "```",
            "",
            "<details><summary>Source</summary>",
            "",
            "```python",
            source_of(lines, node),
            "```",
            "",
            "</details>",
            "",
        ]
    )


def write_api(out):
    "One page for each module: what it offers, each with its source."
    out.mkdir(parents=True)
    chapters = {
        m.group(1): p.name
        for p in (ROOT / "nbs").glob("*.ipynb")
        if (m := re.search(r"#\|\s*default_exp (\w+)", p.read_text(encoding="utf-8")))
    }
    for path in sorted((ROOT / "latref_nb").glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        about = (ast.get_docstring(tree) or "").split("\n")[0]
        whence = (
            f"Made in the chapter [{chapters[path.stem][:-6]}](../nbs/{chapters[path.stem]})."
            if path.stem in chapters
            else ""
        )
        page = [
            f"# latref_nb.{path.stem}",
            "",
            about,
            "",
            whence,
            "",
            f":::{{py:module}} latref_nb.{path.stem}",
            ":::",
            "",
        ]
        (out / f"{path.stem}.md").write_text(
            "\n".join(page + [entry(path.stem, lines, n, node) for n, node in members(tree)]), encoding="utf-8"
        )
    (out / "index.md").write_text(
        "# The package\n\nEvery module, what it offers, and the source of it. The chapters explain; these pages are for looking up.\n\n```{toctree}\n:maxdepth: 1\n:glob:\n\n*\n```\n",
        encoding="utf-8",
    )


# ---- the site


def write_pages(out):
    out.mkdir(parents=True)
    for path in (ROOT / "docs").glob("*.md"):
        (out / path.name).write_text(outward(path.read_text(encoding="utf-8"), "docs"), encoding="utf-8")
    shutil.copytree(ROOT / "docs/images", out / "images")
    shutil.copy(ROOT / "docs/conf.py", out.parent)
    (out.parent / "_static").mkdir()
    for file in ("site.css", "search.js"):
        shutil.copy(ROOT / "docs" / file, out.parent / "_static")


def build(out):
    "Source tree, then Sphinx; the folder of the pages."
    source, pages = out / "source", out / "html"
    for folder in (source, pages):
        shutil.rmtree(folder, ignore_errors=True)
    write_pages(source / "docs")
    write_chapters(source / "nbs")
    write_api(source / "api")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(out / "doctrees"), str(source), str(pages)],
        env={**os.environ, "LATREF_SETTINGS": str(ROOT / "settings.ini")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"Sphinx failed:\n{done.stderr[-4000:]}")
    (pages / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>latref_nb</title><meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">latref_nb</a>\n',
        encoding="utf-8",
    )
    write_texts(pages)
    return pages, done.stderr


class Text(HTMLParser):
    "The text of a page's article, and where in it each anchor stands."

    VOID = {"br", "img", "hr", "input", "link", "meta", "wbr"}
    SKIP = {"script", "style", "button", "svg"}
    BLOCKS = {"p", "div", "li", "td", "th", "h1", "h2", "h3", "h4", "dt", "dd", "pre", "summary", "section", "br"}

    def __init__(self):
        super().__init__()
        self.parts, self.length, self.anchors, self.open, self.article = [], 0, {}, [], None

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag == "article" and self.article is None:
            self.article = len(self.open)
        if tag in self.BLOCKS and self.article != -1:
            self.add(" ")
        if a.get("id") and self.article is not None:
            self.anchors[a["id"]] = self.length
        if tag not in self.VOID:
            self.open.append("script" if "headerlink" in (a.get("class") or "") else tag)

    def handle_endtag(self, tag):
        if tag in self.VOID or not self.open:
            return
        self.open.pop()
        if self.article is not None and len(self.open) <= self.article:
            self.article = -1  # what follows is the frame

    def handle_data(self, data):
        if self.article in (None, -1) or self.SKIP & set(self.open):
            return
        self.add(re.sub(r"\s+", " ", data))

    def add(self, words):
        "Text behind the text so far, with one space where both have one."
        if words[:1] == " " and (not self.parts or self.parts[-1][-1:] == " "):
            words = words[1:]
        if words:
            self.parts.append(words)
        self.length += len(words)


def write_texts(pages):
    "The texts of all pages as a script, for the excerpts of the search (docs/search.js)."
    texts = {}
    for path in sorted(p for folder in SHOWN for p in (pages / folder).rglob("*.html")):
        reader = Text()
        reader.feed(path.read_text(encoding="utf-8"))
        texts[path.relative_to(pages).with_suffix("").as_posix()] = ["".join(reader.parts), reader.anchors]
    (pages / "_static/texts.js").write_text(
        f"const PAGE_TEXTS = {json.dumps(texts, ensure_ascii=False, separators=(',', ':'))};\n", encoding="utf-8"
    )


class Links(HTMLParser):
    "Ids and targets of one page."

    def __init__(self):
        super().__init__()
        self.ids, self.targets, self.loaded = set(), [], []

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.targets.append(a["href"])
        if a.get("src"):
            self.loaded.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.loaded.append(a["href"])


def broken_links(pages):
    "Lines `page: target` for links without a target, and for anything a page would load from elsewhere."
    read, broken = {}, []
    for path in pages.rglob("*.html"):
        if path.is_relative_to(pages / "_static"):
            continue  # templates of the theme
        read[path] = parser = Links()
        parser.feed(path.read_text(encoding="utf-8"))
    for path, parser in read.items():
        for target in [*parser.targets, *parser.loaded]:
            url = urllib.parse.urlsplit(target)
            if url.scheme or url.netloc:
                if target in parser.loaded and url.scheme != "data":
                    broken.append(f"{path.relative_to(pages)}: loads {target}")
                continue
            place = Path(os.path.normpath(path.parent / urllib.parse.unquote(url.path))) if url.path else path
            anchor = urllib.parse.unquote(url.fragment)
            if not place.exists():
                broken.append(f"{path.relative_to(pages)}: {target}")
            elif anchor and place in read and anchor not in read[place].ids:
                broken.append(f"{path.relative_to(pages)}: {target}")
    return sorted(set(broken))


if __name__ == "__main__":
    pages, said = build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs").resolve())
    print(said, end="")
    if broken := broken_links(pages):
        raise SystemExit("broken links:\n" + "\n".join(broken))
    print(f"the site: {pages / 'index.html'}")
