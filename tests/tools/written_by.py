"""The line above the first definitions of a notebook that says which module it writes and who imports it.

python tests/tools/written_by.py           writes the lines into the notebooks
python tests/tools/written_by.py --check   names the notebooks whose line is missing or wrong
"""

import json
import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from test_order import ROOMS, imports_of
from tools.house_debts import is_exported, module_name, modules, notebooks

START = "This notebook writes "


def importers():
    "Module -> names of the modules that import it, in the order of the rooms."
    by = {name: [] for name in ROOMS}
    for path in modules():
        for imported in imports_of(path) if module_name(path) in ROOMS else ():
            by.setdefault(imported, []).append(module_name(path))
    return {name: sorted(found, key=ROOMS.get) for name, found in by.items()}


def line_of(module, by):
    names = [f"`{name.removeprefix('matgen_nb.')}`" for name in by.get(module, [])]
    return f"{START}`{module}`; imported by {', '.join(names) if names else 'no other module'}."


def module_of(nb):
    "The module that a notebook writes, or None."
    for cell in nb["cells"]:
        if found := re.match(r"#\| *default_exp ([\w.]+)", "".join(cell["source"])):
            return f"matgen_nb.{found[1]}"
    return None


def mended(nb, text):
    "The notebook with this line in a cell of its own above the first exported one; whether it changed."
    cells = nb["cells"]
    old = [c for c in cells if c["cell_type"] == "markdown" and "".join(c["source"]).startswith(START)]
    first = next(
        i for i, c in enumerate(cells) if c["cell_type"] == "code" and is_exported("".join(c["source"]))
    )
    at_place = old and cells[first - 1] is old[0]
    if len(old) == 1 and at_place and "".join(old[0]["source"]) == text:
        return False
    nb["cells"] = [c for c in cells if not any(c is o for o in old)]
    first -= sum(any(c is o for o in old) for c in cells[:first])
    nb["cells"].insert(first, dict(cell_type="markdown", id="wrtn0001", metadata={}, source=[text]))
    return True


def main():
    by, wrong = importers(), []
    for path in notebooks():
        nb = json.loads(path.read_text(encoding="utf-8"))
        module = module_of(nb)
        if module and mended(nb, line_of(module, by)):
            wrong.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(wrong)} notebooks: {', '.join(wrong)}" if wrong else "all lines are right")
    sys.exit(1 if wrong and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
