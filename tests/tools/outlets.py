#!/usr/bin/env python
"""Where the lessons are read besides a checkout: the first cells of each lesson (Colab) and the sidebar of the site.

    python tests/tools/outlets.py           write what is missing or out of date, from settings.ini
    python tests/tools/outlets.py --check   only say so (exit status 1)

Each lesson gets a badge that opens it in Colab, and a cell that installs the package where it is missing and sets the
style of the figures. `nbs/sidebar.yml` lists all pages in the order of the course, for nbdev and quarto.
"""

import argparse
import configparser
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT / "nbs"
BADGE, SETUP = "outlet01", "outlet02"
PARTS = {
    "1_symmetry": "1 · Symmetry",
    "2_diffusion": "2 · Diffusion",
    "3_symmcd": "3 · SymmCD: crystals",
    "4_mofdiff": "4 · MOFDiff: frameworks",
    "5_scale": "5 · Scale",
    "0_utilities": "0 · Utilities",
    "teacher": "For teachers",
}
FIRST = ["index.ipynb", "00_overview.ipynb"]
INSTALL = """#| hide
# Where the package is missing (Colab), install it; then give all figures the style of the course.
from importlib.util import find_spec

if find_spec("matgen_nb") is None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "pip", "install", "-q", "git+{git_url}"]
    subprocess.run(command, check=True)

from matgen_nb.figures import use_style

use_style()"""


def settings():
    "settings.ini, as nbdev reads it."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def pages():
    "All pages of the course, relative to nbs/, in no special order."
    found = (p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb"))
    return sorted(p for p in found if not re.search(r"(^|/)[._]", p))


def is_lesson(page):
    "Whether a page is run by its reader: the numbered ones."
    return bool(re.search(r"(^|/)\d\d_\w+\.ipynb$", page)) and not page.startswith("teacher/")


def badge(page, cfg):
    "A link that opens the page in Colab."
    host = cfg["git_url"].replace("https://github.com/", "https://colab.research.google.com/github/")
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({host}/blob/{cfg['branch']}/nbs/{page})"


def first_cells(page, cfg):
    "The two cells that follow the title of a lesson."
    lines = lambda text: text.splitlines(keepends=True)
    setup = INSTALL.format(git_url=cfg["git_url"])
    return [
        {"cell_type": "markdown", "id": BADGE, "metadata": {}, "source": lines(badge(page, cfg))},
        {
            "cell_type": "code",
            "execution_count": None,
            "id": SETUP,
            "metadata": {},
            "outputs": [],
            "source": lines(setup),
        },
    ]


def with_first_cells(page, cfg):
    "The text of a lesson whose first cells are up to date."
    nb = json.loads((NBS / page).read_text(encoding="utf-8"))
    title, *rest = nb["cells"]
    for cell in rest:
        if re.fullmatch(r"#\| *default_exp \S+\s*", "".join(cell["source"])):
            cell["source"] = ["".join(cell["source"]).strip() + "\n", "#| hide"]  # or it stands on the site
    nb["cells"] = [title, *first_cells(page, cfg), *(c for c in rest if c["id"] not in (BADGE, SETUP))]
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def sidebar():
    "The text of nbs/sidebar.yml."
    left = [p for p in pages() if p not in FIRST]
    lines = ["website:", "  sidebar:", "    contents:", *(f"      - {p}" for p in FIRST)]
    for folder, title in PARTS.items():
        inside = [p for p in left if p.startswith(folder + "/")]
        if inside:
            lines += [
                f'      - section: "{title}"',
                "        contents:",
                *(f"          - {p}" for p in inside),
            ]
            left = [p for p in left if p not in inside]
    return "\n".join([*lines, *(f"      - {p}" for p in left)]) + "\n"


def wanted():
    "{path: text} of all that this script looks after."
    cfg = settings()
    lessons = {NBS / page: with_first_cells(page, cfg) for page in pages() if is_lesson(page)}
    return {**lessons, NBS / "sidebar.yml": sidebar()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    texts = wanted()
    stale = [p for p, text in texts.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    names = ", ".join(p.relative_to(ROOT).as_posix() for p in stale)
    if args.check and stale:
        sys.exit(f"out of date: {names}; run python tests/tools/outlets.py")
    for path in stale if not args.check else []:
        path.write_text(texts[path], encoding="utf-8")
    print(f"written: {names}" if stale else "all lessons and the sidebar are up to date")


if __name__ == "__main__":
    main()
