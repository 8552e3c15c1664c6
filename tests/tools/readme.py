#!/usr/bin/env python
"""Make README.md from nbs/index.ipynb; with --check, only say whether it is up to date (exit status 1 if not).

Cells marked `#| hide` are left out, of cells marked `#| echo: false` only the output is kept. Pictures go to nbs/images."""

import argparse
import base64
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
NOTE = "<!-- Made from nbs/index.ipynb by tests/tools/readme.py: edit the notebook, not this file. -->\n\n"


def visible(nb):
    "The notebook without hidden cells and directives."
    cells = []
    for cell in nb.cells:
        directives = re.findall(r"^#\|\s*(.*)$", cell.source, flags=re.M) if cell.cell_type == "code" else []
        if "hide" in directives or any(d.startswith("default_exp") for d in directives):
            continue
        cell.source = (
            re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            if cell.cell_type == "code"
            else cell.source
        )
        if "echo: false" in directives:
            cell.metadata["remove_source"] = True
            cell.source = ""
        cells.append(cell)
    nb.cells = cells
    return nb


def point_home(match):
    "A link of the notebook, which is relative to nbs/, as one of the README; the name alone where the lesson is not written yet."
    name, target = match.groups()
    path = (ROOT / "nbs" / target).resolve()
    if path.suffix == ".ipynb" and not path.exists():
        return f"{name} *(coming)*"
    return f"[{name}]({path.relative_to(ROOT).as_posix()})"


def point_home_picture(match):
    "A picture of the notebook (a GIF in nbs/images, say) as one of the README."
    path = (ROOT / "nbs" / match[2]).resolve()
    return f"![{match[1]}]({path.relative_to(ROOT).as_posix()})"


ANIMATIONS = {
    "nbs/images/crystal.gif": ("nbs/3_symmcd/15_staged_sampling.ipynb", "sg12pth2"),
    "nbs/images/framework.gif": ("nbs/4_mofdiff/40_pictures.ipynb", "22cdenc3"),
}
"Animations of the first page: the saved output of a cell of a lesson."


def animations():
    "{path: bytes} of the animations, as their lessons saved them."
    found = {}
    for path, (lesson, cell) in ANIMATIONS.items():
        cells = nbformat.read(ROOT / lesson, as_version=4).cells
        outputs = next(c.outputs for c in cells if c.id == cell)
        gif = next(o.data["image/gif"] for o in outputs if "image/gif" in o.get("data", {}))
        found[path] = base64.b64decode(gif)
    return found


def make_readme():
    "(text of README.md, {path: bytes of a picture})."
    nb = visible(nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4))
    text, resources = MarkdownExporter().from_notebook_node(
        nb, resources={"output_files_dir": "nbs/images", "unique_key": "readme"}
    )
    text = re.sub(r"(?ms)^```[^\n]*\n(.*?)^```\n", lambda block: block[0] if block[1].strip() else "", text)
    text = re.sub(
        r"\[((?:!\[[^]\n]*\]\([^)]*\))|[^]\n!]+)\]\((?!https?:|#|/|nbs/)([^)]+)\)", point_home, text
    )
    text = re.sub(r"!\[([^]\n]*)\]\((?!https?:|#|/|nbs/)([^)]+)\)", point_home_picture, text)
    return NOTE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text, pictures = make_readme()
    wanted = {"README.md": text.encode(), **pictures, **animations()}
    stale = [
        name
        for name, data in wanted.items()
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != data
    ]
    if not args.check:
        (ROOT / "nbs" / "images").mkdir(exist_ok=True)
        for name in stale:
            (ROOT / name).write_bytes(wanted[name])
        print(f"written: {', '.join(stale) or 'nothing, all up to date'}")
    elif stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python tests/tools/readme.py")
    else:
        print("README.md is up to date")


if __name__ == "__main__":
    main()
