#!/usr/bin/env python
"""The way of a new user, from the wheel: build it, install it outside of the tree, and do what the README says.

    python tests/tools/new_user.py             the whole way, with an installation of everything (20 minutes)
    python tests/tools/new_user.py --short     what CI does: packages of this environment, short runs (5 minutes)
    python tests/tools/new_user.py --left-out  only say what --short leaves out
    python tests/tools/new_user.py --keep DIR  leave everything in DIR to look at

Steps: wheel, environment, own files, Python snippets of the README, demo, commands of the README (own CIF files,
training, samples of the weights just trained, evaluation), resume. Where the machine allows it, everything after
the installation runs without a network. Exit status 1 with the output of the step that failed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAVE = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "shared")
SHORTER = {"train": ["--preset", "tiny", "--max-seconds", "5"], "sample": ["-n", "4"]}
"Options that make a command of the README quick; the last one that is given counts."
SHORT_DEMO = ["-n", 4, "--mofs", 4, "--seconds", 10]
OWN_FILES = """
import numpy as np
from pathlib import Path
from matgen_nb import Crystal
from matgen_nb.mofdiff.bonds import textbook_mof
salt = [[0, 0, 0], [0, .5, .5], [.5, 0, .5], [.5, .5, 0], [.5, .5, .5], [.5, 0, 0], [0, .5, 0], [0, 0, .5]]
Path("my_cifs").mkdir(); Path("my_mofs").mkdir()
for i, (a, b, size) in enumerate([(11, 17, 5.64), (19, 17, 6.29), (3, 9, 4.03), (12, 8, 4.21), (20, 8, 4.81)] * 3):
    cell = size * (1 + i / 500) * np.eye(3)
    Crystal(cell, [a] * 4 + [b] * 4, salt).to_cif(f"my_cifs/{i:02d}.cif")
Path("my_cifs/torn.cif").write_text("data_nothing\\n")
Crystal(5.64 * np.eye(3), [11] * 4 + [17] * 4, salt).to_cif("mine.cif")
for name in ("MIL-53", "IRMOF-1", "HKUST-1"):
    textbook_mof(name).crystal.to_cif(f"my_mofs/{name}.cif")
textbook_mof("MIL-53").crystal.to_cif("mof.cif")
"""


def snippets(text, language):
    "The code blocks of a page in a language, as written."
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def commands_of(block):
    "The matgen commands of a shell block, as lists of words; comments are left out."
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part) for part in parts if part.startswith("matgen ")]


def shortened(command):
    "A command of the README with options that make it quick."
    return [*command, *SHORTER.get(command[1], [])]


def left_out():
    "What --short leaves out, a line each."
    words = lambda options: " ".join(map(str, options))
    yield "the installation of the packages from the index: those of this environment are taken"
    yield f"the demo in its full length (instead: {words(SHORT_DEMO)})"
    yield from (
        f"matgen {name} in its full length (instead: {words(options)})" for name, options in SHORTER.items()
    )


def left_out_text():
    "`left_out` with its number, for the end of a run."
    lines = list(left_out())
    return "\n".join([f"{len(lines)} things are left out by new_user.py --short", *(f"  {x}" for x in lines)])


class Way:
    "The folder of a new user, and what was done in it."

    def __init__(self, folder, short):
        self.folder, self.short, self.start = Path(folder), short, time.monotonic()
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)
        self.bin = self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self.environment = kept | dict(PATH=f"{self.bin}{os.pathsep}{kept['PATH']}", MPLBACKEND="Agg")
        self.offline = []

    def run(self, name, *words, cwd=None):
        "Run a program, tell how long it took; its output as text. Ends everything where it fails."
        begin = time.monotonic()
        command = [*self.offline, *map(str, words)]
        done = subprocess.run(
            command,
            cwd=cwd or self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        print(
            f"{'ok' if not done.returncode else 'FAILED':7}{time.monotonic() - begin:6.1f} s  {name}",
            flush=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def check(self, good, text):
        if not good:
            sys.exit(f"FAILED  {text}")

    def cut_network(self):
        "Run what follows in a network namespace without a network, where that is allowed."
        probe = ["unshare", "--net", "true"]
        allowed = shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0
        self.offline = ["unshare", "--net"] if allowed else []
        print(
            "ok              "
            + ("no network from here on" if allowed else "note: the network cannot be cut here")
        )


def build_and_install(way):
    "The wheel, built from a copy of the tree, in an environment of its own."
    tree, wheels = way.folder / "tree", way.folder / "wheels"
    shutil.copytree(ROOT, tree, ignore=LEAVE)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    way.run("wheel", *pip, "--wheel-dir", wheels, tree, cwd=way.folder)
    wheel = next(wheels.glob("matgen_nb-*.whl"))
    shutil.rmtree(tree)
    way.run("environment", sys.executable, "-m", "venv", way.folder / "venv")
    install = [way.bin / "python", "-m", "pip", "install", "--quiet"]
    if way.short:  # the packages of this environment, without its own matgen_nb
        here = way.run(
            "packages", sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        ).strip()
        there = way.run(
            "place", way.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        )
        (Path(there.strip()) / "packages_of_this_environment.pth").write_text(f"{here}\n")
        way.run("install", *install, "--no-deps", "--ignore-installed", wheel)
    else:
        way.run("install torch", *install, "torch==2.13.0")
        way.run("install", *install, wheel)
    found = way.run("import", way.bin / "python", "-c", "import matgen_nb; print(matgen_nb.__file__)").strip()
    way.check(str(way.folder) in found, f"matgen_nb is imported from {found}, not from the wheel")


def readme_snippets(way, text):
    "The Python snippets of the README, as written, each in a process of its own."
    for number, block in enumerate(snippets(text, "python"), 1):
        (way.home / "snippet.py").write_text(block, encoding="utf-8")
        way.run(f"README, Python snippet {number}", way.bin / "python", "snippet.py")


def demo(way):
    "matgen demo: as the README has it, or short."
    options = SHORT_DEMO if way.short else []
    said = way.run("matgen demo", "matgen", "demo", *options)
    record = json.loads((way.home / "matgen-demo" / "run.json").read_text(encoding="utf-8"))
    way.check("gallery.html" in said and record["difference"], "the demo compares nothing")
    way.check(record["framework"]["valid"], f"the framework is not valid: {record['framework']['reason']}")
    way.check(record["ending"]["warm_up_over"], "the training of the demo did not leave its warm-up")
    for name in ("shipped/cif/00003.cif", "trained/cif/00003.cif", "mof/framework.png", "side_by_side.png"):
        way.check((way.home / "matgen-demo" / name).exists(), f"the demo left no {name}")


def readme_commands(way, text):
    "The commands of the README in their order, shortened; samples are those of the weights just trained."
    for block in snippets(text, "sh"):
        for command in commands_of(block):
            if command[1] == "demo":
                continue
            said = way.run(" ".join(command[:3]), *shortened(command))
            if command[1] == "sample":
                trained = way.home / command[command.index("--weights") + 1]
                digest = f"from matgen_nb.scale.records import file_hash; print(file_hash({str(trained)!r}))"
                wanted = way.run("hash", way.bin / "python", "-c", digest).strip().splitlines()[-1]
                out = way.home / command[command.index("--out") + 1]
                record = json.loads((out / "run.json").read_text(encoding="utf-8"))
                way.check(record["weights"]["hash"] == wanted, f"{out} was not sampled from {trained}")
                way.check(wanted in said, "sample does not say which weights it uses")
    report = (way.home / "report" / "gallery.html").read_text(encoding="utf-8")
    way.check("struct_valid" in report and "95 % interval" in report, "the report does not show its figures")


def resume(way):
    "A training and a run of samples that go on; and the word about a training that is not used."
    train = ["matgen", "train", "symmcd", "mine.safetensors", "--preset", "tiny", "--out", "again"]
    way.run("train, 10 steps", *train, "--steps", 10)
    way.run("train, --resume to 20", *train, "--steps", 20, "--resume")
    record = json.loads((way.home / "again" / "run.json").read_text(encoding="utf-8"))
    way.check(
        record["last"]["step"] == 20 == record["ending"]["steps"], "the training did not go on to step 20"
    )
    sample = [
        "matgen",
        "sample",
        "symmcd",
        "-n",
        4,
        "--chunk",
        2,
        "--steps",
        5,
        "--candidates",
        1,
        "--out",
        "parts",
    ]
    said = way.run("sample in two parts", *sample)
    way.check("is not used" in said, "nobody said that a training lies beside")
    table = (way.home / "parts" / "table.csv").read_text(encoding="utf-8")
    (way.home / "parts" / "chunks" / "00001.csv").unlink()
    way.run("sample, --resume", *sample, "--resume")
    again = (way.home / "parts" / "table.csv").read_text(encoding="utf-8")
    way.check(again == table, "samples that were drawn again are other ones")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="packages of this environment, short runs")
    parser.add_argument("--left-out", action="store_true", help="only say what --short leaves out")
    parser.add_argument("--keep", type=Path, help="folder (new) for everything")
    args = parser.parse_args()
    if args.left_out:
        return print(left_out_text())
    folder = args.keep or Path(tempfile.mkdtemp(prefix="new_user_"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    try:
        way = Way(folder, args.short)
        build_and_install(way)
        way.cut_network()
        way.run("own files", way.bin / "python", "-c", OWN_FILES)
        readme_snippets(way, text)
        demo(way)
        readme_commands(way, text)
        resume(way)
        print(f"a new user arrives after {time.monotonic() - way.start:.0f} s")
        if args.short:
            print(left_out_text())
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
