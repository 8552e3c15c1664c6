"""Steps of a long measurement whose results are kept on the disk, so that a run that was stopped goes on, and the tables at its end."""

import csv
import json
from pathlib import Path

from matgen_nb.utils import atomic_write


def plain(value):
    "NumPy's numbers and arrays as Python's, for JSON."
    return value.item() if getattr(value, "size", 0) == 1 else value.tolist()


class Kept:
    "Results by name, a JSON file each in a folder: `kept(name, step)` calls step() once, then reads it."

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, step):
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = step()
            with atomic_write(path) as file:
                json.dump(found, file, default=plain)
        return json.loads(path.read_text(encoding="utf-8"))


def rows_but(path, column, measured):
    "The lines of a table, as they are, whose `column` is none of those measured now; none where there is no table."
    if not Path(path).exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row[column] not in measured]


def write_rows(path, columns, rows, number="{}"):
    "A CSV of these columns of rows (dicts), whole or not at all; number: format of a float."
    text = lambda v: number.format(v) if isinstance(v, float) else v
    with atomic_write(path) as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows({k: text(v) for k, v in row.items()} for row in rows)
    print(path, flush=True)
