"""The command line: help, errors, files; the models are stand-ins, the end-to-end run has its own test."""

import ast
import errno
import gzip
import inspect
import json
import os
import re
import subprocess
import sys
import types
import weakref
from collections import defaultdict
from dataclasses import dataclass, fields

import numpy as np
import pytest
import safetensors.torch
import torch
from tools import house_debts as debts
from typer.testing import CliRunner

from matgen_nb.commands import main as entry, options
from matgen_nb.scale import crystal_evaluation, crystal_runs, records, runs
from matgen_nb.scale.crystal_evaluation import EvaluationOptions
from matgen_nb.scale.optimization import TrainConfig
from matgen_nb.scale.runs import RunOptions
from matgen_nb.symmcd.composition import composition_validity
from matgen_nb.symmcd.model import SymmCD
from matgen_nb.symmcd.templates import unpack_templates
from matgen_nb import Crystal
from matgen_nb.symmetry.space_groups import SpaceGroup
from matgen_nb.utils import MatgenError, numpy_stream

COMMANDS = (
    ["demo"],
    ["prepare", "crystals"],
    ["train", "symmcd"],
    ["sample", "symmcd"],
    ["evaluate", "crystals"],
)
CESIUM_CHLORIDE = Crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


@pytest.fixture
def cifs(tmp_path):
    (tmp_path / "cifs").mkdir()
    for i in range(4):
        CESIUM_CHLORIDE.to_cif(tmp_path / "cifs" / f"{i}.cif")
    return tmp_path / "cifs"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    shown = CliRunner().invoke(
        options.app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert shown.exit_code == 0
    for word in ("--out", "Example", "matgen " + " ".join(command)):
        assert word in shown.output, word
    for word in ("--seed", "--device") if command[0] in ("demo", "train", "sample") else ():
        assert word in shown.output, word


def every_command():
    "(words, typer's command, its options and arguments) of all commands, those of other modules too."
    import typer

    def walk(words, command):
        if hasattr(command, "commands"):
            for name, part in command.commands.items():
                yield from walk([*words, name], part)
        else:
            made = command.get_params(typer.Context(command))
            yield words, command, [one for one in made if one.name != "help"]

    return list(walk([], typer.main.get_command(options.app)))


def test_every_option_says_what_it_does_and_what_happens_without_it():
    "A text for each; the value, or in words what happens, for each that may be left out and is no mere switch."
    assert len(every_command()) >= 12
    for words, _, shown in every_command():
        for option in shown:
            assert len(option.help or "") > 10, (words, option.name)
            if option.param_type_name == "option" and not option.required and not option.is_flag:
                assert option.default is not None or isinstance(option.show_default, str), (
                    words,
                    option.name,
                )


def sets_of(command):
    "The dataclasses of a command: those whose fields are its options."
    return getattr(command.callback, "sets", ())


def test_the_options_of_the_samplers_are_all_offered():
    "Nothing that a sampler can do is missing from its command, but what no command line can say."
    offered = {" ".join(words): {o.name for o in shown} for words, _, shown in every_command()}
    from matgen_nb.symmcd.requests import Conditions
    from matgen_nb.symmcd.reverse import SamplingOptions

    for kind, without in ((SamplingOptions, {"accept", "progress", "batch_size"}), (Conditions, set())):
        assert {f.name for f in fields(kind)} - without <= offered["sample symmcd"], kind


# What a command decides by itself although a dataclass that it uses has a field of that name, and why.
BY_HAND = {
    "n_jobs": "all cores from the shell, one process from Python",
    "seed": "one option for all parts of a run",
    "device": "one option for all parts of a run",
    "out": "where to write",
    "chunk": "of a shard; the field of that name is another number",
    "overwrite": "help of `RunOptions`",
    "resume": "help of `RunOptions`",
    "precision": "help of `TrainConfig`",
    "compile": "help of `TrainConfig`",
}


def test_no_option_is_written_by_hand_where_a_field_exists():
    "Of the names of all fields that commands know, none is a parameter of the function of such a command."
    seen = 0
    for words, command, _ in every_command():
        known = {f.name for one in sets_of(command) for f in fields(one.dataclass())}
        function = getattr(command.callback, "function", command.callback)
        own = set(inspect.signature(function).parameters) - {one.into for one in sets_of(command)}
        assert not (own & known) - BY_HAND.keys(), (words, own & known)
        seen += len(known)
    assert seen > 100


# Names that stand in several dataclasses of options, which mean a thing of their own in each of them.
SEVERAL = {
    "batch_size": "of a training; of the sampler; of the assembly; of a benchmark, by the device",
    "chunk": "read at a time; sent to a worker; sampled together",
    "data": "a name or a file, with what goes by default; of a recipe that knows its own",
    "device": "of a training, which knows `auto`; elsewhere a device",
    "limits": "of the builder; of what is read: two dataclasses",
    "max_seconds": "of a training; of a benchmark; of one relaxation",
    "n": "how many of what the dataclass is about",
    "seconds": "of a benchmark; of the training in the demo",
    "steps": "of the reverse process; of a training; of a relaxation",
    "target": "value of the property of a goal; property and value together",
    "val": "data in memory; the file of a recipe",
}


def written_options():
    "{name: classes} of the fields that are written with `option` anywhere in the package."
    found = defaultdict(list)
    for path in debts.modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Call):
                    if ast.unparse(line.value.func) == "option":
                        found[ast.unparse(line.target)].append(f"{path.stem}.{node.name}")
    return found


def test_an_option_is_written_once():
    "A field that stands in two dataclasses is taken from the same definition (`option_of`), or means two things."
    found = written_options()
    assert (
        len(found) > 150
        and found["seed"] == ["utils.SharedOptions"]
        and found["lr"] == ["optimization.TrainConfig"]
    )
    assert {name for name, classes in found.items() if len(classes) > 1} == SEVERAL.keys(), found


def test_help_that_is_shared_is_that_of_its_field():
    known = {f.name: f.metadata["help"] for f in fields(RunOptions)}
    known |= {f.name: f.metadata["help"] for f in fields(TrainConfig)}
    known["n_jobs"] = next(f for f in fields(EvaluationOptions) if f.name == "n_jobs").metadata["help"]
    compared = 0
    for words, command, shown in every_command():
        from_fields = {f.name for one in sets_of(command) for f in one.chosen()}
        for option in shown:
            if option.name in BY_HAND.keys() - from_fields - {"out", "weights", "chunk"}:
                assert option.help == known[option.name], (words, option.name)
                compared += 1
    assert compared > 30


def test_no_option_does_nothing():
    "Every parameter of a command is read in its body, and every field of a dataclass reaches the dataclass."
    for words, command, _ in every_command():
        function = getattr(command.callback, "function", command.callback)
        body = re.split(r"\)(?: -> None)?:\n", inspect.getsource(function), maxsplit=1)[1]
        for name in inspect.signature(function).parameters:
            assert re.search(rf"\b{name}\b", body), (words, name)
        for one in sets_of(command):
            given = {f.name: None for f in one.chosen()}
            for name in list(given):
                assert one.take(given | {name: "a value"}) == {name: "a value"}


def test_version_and_completion(capsys):
    import matgen_nb

    assert run("--version") == 0 and matgen_nb.__version__ in capsys.readouterr().out
    shown = (
        CliRunner()
        .invoke(options.app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        .output
    )
    assert "--install-completion" in shown and "--version" in shown
    code = "from matgen_nb.commands.main import main; main()"
    env = os.environ | {"_MATGEN_COMPLETE": "complete_bash", "COMP_WORDS": "matgen sam", "COMP_CWORD": "1"}
    assert subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    ).stdout.split() == ["sample"]


HEAVY = "torch pymatgen spglib pyxtal rdkit pandas matplotlib lightning scipy safetensors".split()


def light(words, **environment):
    "Output of a command line, run alone; fails where it loads a heavy library."
    code = (
        "import sys\n"
        "from matgen_nb.commands.main import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", ["--help", "--version", "sample --help", "sample symmcd --help"])
def test_help_is_fast_and_light(line):
    assert light(line.split())


def test_help_of_every_command_is_light():
    "All of them in one process, which then knows neither torch nor pymatgen."
    lines = [[*words, "--help"] for words, *_ in every_command()]
    code = (
        "import sys\n"
        "from matgen_nb.commands.main import main\n"
        f"for words in {lines!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert not stop.code, words\n"
        f"    heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(lines) > 12


@pytest.mark.parametrize(
    "line, expected",
    [
        ("matgen sam", {"sample"}),
        ("matgen sample ", {"symmcd", "mofdiff"}),
        ("matgen sample symmcd --si", {"--site-steps"}),
        ("matgen sample mofdiff --net", {"--net-share", "--net-candidates"}),
        ("matgen design --tol", {"--tolerance"}),
        ("matgen predict symmcd x --ste", {"--steps"}),
    ],
)
def test_completion_is_light(line, expected):
    "A shell completes commands and options, those of late dataclasses too, and nothing heavy is loaded."
    last = str(len(line.split()) - (not line.endswith(" ")))
    found = light([], _MATGEN_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=last)
    assert set(found.split()) == expected


def test_help_and_completion_know_what_the_parser_knows():
    "The options read from the source of a module are those of its dataclass, to the last word of help."
    late = [one for _, command, _ in every_command() for one in sets_of(command) if one.late]
    assert len(late) >= 3
    for one in late:
        sketch, real = one.declared(), one.parameters()
        assert [p.name for p in sketch] == [p.name for p in real], one.into
        kinds = lambda made: [(p.default, p.annotation.__origin__) for p in made]
        assert kinds(sketch) == kinds(real), one.into
        for written, imported in zip(sketch, real):
            reported, known = (vars(p.annotation.__metadata__[0]) for p in (written, imported))
            assert reported == known, written.name


def test_late_options_belong_to_late_commands():
    for words, command, _ in every_command():
        if any(one.late for one in sets_of(command)):
            assert isinstance(command, options.LateCommand), words


def test_errors_are_one_line(tmp_path, capsys):
    for arguments in (
        ["train", "symmcd", tmp_path / "no", "--out", tmp_path / "o"],
        ["evaluate", "crystals", tmp_path / "no", "--reference", "x", "--out", tmp_path / "o"],
        ["train", "symmcd", tmp_path / "no", "--preset", "huge", "--out", tmp_path / "o"],
        ["prepare", "crystals", tmp_path / "no", "--out", tmp_path / "f"],
    ):
        assert run(*arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("matgen: ") and shown.count("\n") == 1 and "Traceback" not in shown
    assert run("sample", "symmcd", "--device", "tpu", "--out", tmp_path / "o") == 2
    assert not (tmp_path / "o").exists() and not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("line", "reason", "answer"),
    [
        ("sample symmcd -n 1 --out {}/o", (), "stopped; go on with --resume\n"),
        ("--debug train symmcd none --out {}/o", (), "stopped; go on with --resume\n"),
        ("prepare crystals embedded --out {}/o.safetensors", (), "stopped\n"),
        ("prepare crystals embedded --shard 1/2 --out {}/o", (), "stopped; go on with --resume\n"),
        ("evaluate mofs {} --out {}/o", (), "stopped\n"),
        ("sample symmcd -n 1 --out {}/o", ("2 of 3 chunks are kept",), ""),
    ],
)
def test_an_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch, line, reason, answer):
    "Unless it brings a text, which was said where it was caught."

    def stop(*args, **more):
        raise KeyboardInterrupt(*reason)

    for name in ("matgen_nb.symmcd.model.SymmCD.from_pretrained", "matgen_nb.commands.crystals.fresh_file"):
        monkeypatch.setattr(name, stop)
    for name in ("matgen_nb.scale.shard_kinds.crystal_work", "matgen_nb.commands.crystals.load_data"):
        monkeypatch.setattr(name, stop)
    monkeypatch.setattr("matgen_nb.commands.mofs.fresh_folder", stop)
    with pytest.raises(SystemExit) as end:
        entry.main(line.replace("{}", str(tmp_path)).split())
    assert end.value.code == 130 and capsys.readouterr().err == answer


def test_a_message_with_bytes_of_a_file_stays_short_and_printable():
    said = entry.error_text(MatgenError("no number: \x00\x1b[31m\n" + 9000 * "x"))
    assert said.startswith("no number: ??[31m\n") and len(said) < 1600


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(MatgenError):
        entry.main(["--debug", "train", "symmcd", str(tmp_path / "no"), "--out", str(tmp_path / "o")])
    assert run("train", "symmcd", tmp_path / "no", "--out", tmp_path / "o") == 2


def test_results_are_not_overwritten_by_accident(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert (
        run(
            "evaluate",
            "crystals",
            tmp_path / "mine",
            "--reference",
            tmp_path / "mine",
            "--out",
            tmp_path / "out",
        )
        == 2
    )
    assert "not empty" in capsys.readouterr().err
    assert (
        run(
            "evaluate",
            "crystals",
            tmp_path,
            "--reference",
            tmp_path,
            "--out",
            tmp_path / "out",
            "--overwrite",
        )
        == 2
    )
    assert (
        "lies inside SOURCE" in capsys.readouterr().err and (tmp_path / "out" / "precious").read_text() == "x"
    )
    for name, choices in (("out", dict(overwrite=True)), ("new", dict())):
        with runs.fresh_folder(tmp_path / name, **choices) as folder:
            assert folder.out.name == name


def test_prepare_folder_and_its_failures(tmp_path, cifs, capsys):
    (cifs / "broken.cif").write_text("data_nothing\n")
    assert run("prepare", "crystals", cifs, "--out", tmp_path / "p.safetensors", "--n-jobs", 1) == 0
    assert "4 of 5 crystals" in capsys.readouterr().out
    record = json.loads((tmp_path / "p.run.json").read_text())
    assert record["structures"] == 4 and "broken" in record["failures"][0]
    assert run("prepare", "crystals", cifs, "--out", tmp_path / "p.safetensors") == 2
    assert (
        crystal_evaluation.reference_crystals(tmp_path / "p.safetensors")[0].formula
        == CESIUM_CHLORIDE.formula
    )


def test_read_crystals(tmp_path, cifs):
    assert crystal_evaluation.read_crystals(cifs)[1] == ["0.cif", "1.cif", "2.cif", "3.cif"]
    records.write_table(tmp_path / "a.csv", [{"cif": CESIUM_CHLORIDE.to_cif()}, {"cif": "nonsense"}])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    for name in ("a.csv", "a.csv.gz"):
        crystals, names, failures = crystal_evaluation.read_crystals(tmp_path / name)
        assert (
            crystals[0].formula == "CsCl"
            and crystals[1] is None
            and names == ["row 1", "row 2"]
            and failures[0].name == "row 2"
        )
    assert len(crystal_evaluation.reference_crystals(tmp_path / "a.csv")) == 1
    records.write_table(tmp_path / "b.csv", [{"structure": "x"}])
    (tmp_path / "c.csv").write_text("name,cif\n")
    (tmp_path / "empty").mkdir()
    for source, text in (
        (tmp_path / "b.csv", "no column 'cif'"),
        (tmp_path / "none", "there is no"),
        (tmp_path / "c.csv", "holds no structures"),
        (tmp_path / "empty", "no structure in"),
    ):
        with pytest.raises(MatgenError, match=text):
            crystal_evaluation.read_crystals(source)


class Model(torch.nn.Module):
    "Stands in for SymmCD."

    def __init__(self, config, statistics):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3))
        self.stat_balanced = torch.tensor(0.9)

    def loss(self, batch, generator):
        return {"loss": (self.w - 1).square().sum()}

    def save_pretrained(self, path, info=None):
        texts = dict(format="a stand-in", info=json.dumps(info or {}))
        path.write_bytes(safetensors.torch.save(dict(w=self.w.detach()), texts))

    @classmethod
    def from_pretrained(cls, path, device):
        return cls(None, None)

    def sample(self, n, seed=0, options=None, **requested):
        return [
            types.SimpleNamespace(
                crystal=CESIUM_CHLORIDE,
                row={
                    "formula": CESIUM_CHLORIDE.formula,
                    "space_group": requested.get("space_group", 221),
                    "moved": 0.1,
                },
            )
            for _ in range(n)
        ]


@dataclass
class Evaluation:
    table: list
    summary: dict

    def plot(self):
        return cli_figure()


def cli_figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


@pytest.fixture
def stand_ins(monkeypatch):
    def module(name, **names):
        made = types.ModuleType(name)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    from matgen_nb.symmcd import reverse, sampling  # noqa: F401  (options of the sampler, as they are)

    module("matgen_nb.symmcd.staged_sampling", SymmCD=Model)
    module(
        "matgen_nb.symmcd.model",
        SymmCD=Model,
        SymmCDConfig=types.SimpleNamespace(preset=lambda name: None),
        find_weights=lambda name: name,
    )
    module(
        "matgen_nb.symmcd.evaluation",
        prepare_reference=lambda crystals, *_, **__: crystals,
        evaluate_crystals=lambda crystals, reference, names=None, **_: Evaluation(
            [{"name": n, "valid": c is not None} for n, c in zip(names, crystals)],
            {"valid": 1.0, "n": len(crystals)},
        ),
    )
    monkeypatch.setattr(crystal_runs, "new_symmcd", lambda preset, data, init_from=None: Model(None, None))


def test_train_sample_evaluate(tmp_path, cifs, stand_ins, capsys):
    assert run("prepare", "crystals", cifs, "--out", tmp_path / "p.safetensors", "--n-jobs", 1) == 0
    train = [
        "train",
        "symmcd",
        tmp_path / "p.safetensors",
        "--preset",
        "tiny",
        "--steps",
        30,
        "--batch-size",
        2,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    ]
    assert run(*train) == 0 and run(*train) == 2 and run(*train, "--resume") == 0
    assert {"weights.safetensors", "last.safetensors", "history.csv", "loss.png", "run.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert (
        run(
            "sample",
            "symmcd",
            "--weights",
            tmp_path / "run" / "weights.safetensors",
            "-n",
            3,
            "--space-group",
            221,
            "--out",
            tmp_path / "s",
        )
        == 0
    )
    assert {p.name for p in (tmp_path / "s").iterdir() if p.name[0] != "."} == {
        "cif",
        "table.csv",
        "gallery.html",
        "gallery.png",
        "run.json",
        "request.json",
        "chunks",
    }
    record = json.loads((tmp_path / "s" / "run.json").read_text())
    assert (
        record["request"]["space_group"] == 221
        and record["request"]["n"] == 3
        and record["seed"] == 0
        and record["versions"]["torch"]
    )
    (tmp_path / "s" / "cif" / "torn.cif").write_text("data_x")
    assert (
        run(
            "evaluate",
            "crystals",
            tmp_path / "s",
            "--reference",
            tmp_path / "p.safetensors",
            "--out",
            tmp_path / "e",
        )
        == 0
    )
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["n"] == 4, "what cannot be read counts"
    evaluated = records.read_table(tmp_path / "e" / "table.csv")
    assert (
        [row["file"] for row in evaluated[:3]] == ["00000.cif", "00001.cif", "00002.cif"]
        and "file" not in evaluated[3]
        and evaluated[3]["failure"]
    )
    assert (
        run("sample", "symmcd", "-n", 0, "--out", tmp_path / "z") == 2
        and run("sample", "symmcd", "--space-group", 231, "--out", tmp_path / "z") == 2
    )


def test_gallery_is_self_contained_and_escaped(tmp_path):
    rows = [{"name": "<script>", "formula": "CsCl", "value": float("nan")}]
    records.write_gallery(tmp_path / "g.html", "T & T", [CESIUM_CHLORIDE], rows)
    page = (tmp_path / "g.html").read_text()
    assert (
        "<script>," not in page
        and "&lt;script&gt;" in page
        and "http" not in page
        and page.count("base64,") == 1
    )


REQUEST = {"n": 10, "chunk": 4, "seed": 5}


def draw(i, n, log=None):
    rng = numpy_stream(5, "chunk", i)
    crystals = [
        Crystal(CESIUM_CHLORIDE.lattice * x, CESIUM_CHLORIDE.elements, CESIUM_CHLORIDE.frac_coords)
        for x in rng.uniform(0.9, 1.1, n)
    ]
    return crystals, [{"formula": c.formula, "volume": c.volume} for c in crystals]


def stream_whole(out, **choices):
    with runs.open_run(out, REQUEST, **choices) as folder:
        made = runs.stream(folder, REQUEST, draw)
    runs.finish_stream(out, "T", records.run_record("test", 5, 0.0, request=REQUEST))
    return made


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("run.json", ".matgen-files")
    }


def test_stream_forgets_what_it_has_written(tmp_path):
    alive, most = weakref.WeakSet(), 0

    def watched(i, n):
        nonlocal most
        crystals, rows = draw(i, n)
        alive.update(crystals)
        most = max(most, len(alive))
        return crystals, rows

    runs.stream(tmp_path / "a", REQUEST | {"n": 40}, watched)
    assert most <= 2 * REQUEST["chunk"] and len(list((tmp_path / "a" / "cif").iterdir())) == 40


@pytest.mark.parametrize("files", [0, 2, 5, 9])
def test_full_disk_and_then_resume(tmp_path, monkeypatch, files):
    "The disk is full after some files: nothing half-written is left, and the resumed run equals one that was never broken."
    assert stream_whole(tmp_path / "whole") == 10
    replace, left = os.replace, files

    def full(*paths):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        stream_whole(tmp_path / "broken")
    monkeypatch.undo()
    for name, data in contents(tmp_path / "broken").items():
        assert name == "request.json" or data == contents(tmp_path / "whole")[name], name
    stream_whole(tmp_path / "broken", resume=True)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert stream_whole(tmp_path / "broken", resume=True) == 0


def test_what_a_kill_or_a_power_cut_left_is_mended(tmp_path):
    stream_whole(tmp_path / "a")
    (tmp_path / "a" / "cif" / "00005.cif").write_text("")
    (tmp_path / "a" / "cif" / "00001.cif").unlink()
    (tmp_path / "a" / "cif" / ".00006.cif.123.456.tmp").write_text("data_")
    assert stream_whole(tmp_path / "a", resume=True) == 8
    stream_whole(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_generated_crystal_with_atoms_in_one_place_does_not_stop_the_run(tmp_path):
    "A bad model generates such crystals; our reader rejects them. They stay in the table and count as failures in the evaluation."
    twice = Crystal(4 * np.eye(3), [50, 69], [[0, 0, 0], [0.001, 0, 0]])
    request = REQUEST | {"n": 2}
    with runs.open_run(tmp_path / "a", request) as folder:
        runs.stream(
            folder,
            request,
            lambda i, n: ([CESIUM_CHLORIDE, twice], [{"formula": "CsCl"}, {"formula": "TmSn"}]),
        )
    runs.finish_stream(tmp_path / "a", "T", records.run_record("test", 5, 0.0, request=request))
    assert (
        len(records.read_table(tmp_path / "a" / "table.csv")) == 2
        and (tmp_path / "a" / "gallery.html").read_text().count("base64,") == 1
    )
    crystals, _, failures = crystal_evaluation.read_crystals(tmp_path / "a")
    assert crystals[1] is None and "overlap" in failures[0].reason


def test_overwriting_leaves_no_old_results(tmp_path):
    old = REQUEST | {"n": 13}
    with runs.open_run(tmp_path / "a", old) as folder:
        assert runs.stream(folder, old, draw) == 13
    with pytest.raises(MatgenError, match="--resume"):
        stream_whole(tmp_path / "a")
    assert (
        stream_whole(tmp_path / "a", overwrite=True) == 10
        and not (tmp_path / "a" / "cif" / "00012.cif").exists()
    )
    (tmp_path / "a" / "cif" / "00099.cif").write_text("mine")
    with pytest.raises(MatgenError, match="00099.cif was not made by matgen"):
        stream_whole(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "cif" / "00099.cif").read_text() == "mine" and (
        tmp_path / "a" / "table.csv"
    ).exists()
    with pytest.raises(MatgenError, match="n was 10 and is now 11"):
        runs.open_run(tmp_path / "a", REQUEST | {"n": 11}, resume=True)


KILLED = """
import os, signal, sys
import numpy as np
from matgen_nb import SymmCD
from matgen_nb.commands import main as entry
sample, calls = SymmCD.sample, []
def doomed(self, *args, **choices):
    calls.append(1)
    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)
    return sample(self, *args, **choices)
if sys.argv[1] == "killed": SymmCD.sample = doomed
entry.main(sys.argv[2:])
"""


def test_killed_sampling_resumes_with_identical_results(tmp_path):
    "The weights that ship; SIGKILL in the third of four chunks; then --resume, and the same files as without a break."
    (tmp_path / "run.py").write_text(KILLED)
    line = ["sample", "symmcd", "-n", "7", "--chunk", "2", "--steps", "3", "--seed", "3", "--device", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def go(how, *options):
        return subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), how, *line, *options],
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )

    assert go("killed", "--out", str(tmp_path / "a")).returncode == -9
    assert [p.name for p in sorted((tmp_path / "a" / "chunks").iterdir())] == [
        "00000.csv",
        "00001.csv",
    ] and not (tmp_path / "a" / "table.csv").exists()
    for more in (["--out", str(tmp_path / "a"), "--resume"], ["--out", str(tmp_path / "b")]):
        done = go("whole", *more)
        assert done.returncode == 0, done.stderr[-2000:]
    a, b = (
        {name: data for name, data in contents(tmp_path / x).items() if name != "gallery.html"} for x in "ab"
    )  # the page names the command
    assert a == b and len(records.read_table(tmp_path / "a" / "table.csv")) == 7


def test_options_of_the_sampler_reach_it_and_belong_to_the_request(tmp_path, capsys, monkeypatch):
    from matgen_nb import SymmCD

    requested, sample = [], SymmCD.sample
    monkeypatch.setattr(SymmCD, "sample", lambda self, *a, **k: requested.append(k) or sample(self, *a, **k))
    choices = dict(
        eta=0.5, guidance=0.25, min_contact=0.6, score_scale=2, templates=0.5, corrector=1, retries=2
    )
    line = [
        "sample",
        "symmcd",
        "-n",
        1,
        "--steps",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path / "s",
        *(x for k, v in choices.items() for x in (f"--{k.replace('_', '-')}", v)),
    ]
    assert run(*line) == 0
    assert {name: getattr(requested[0]["options"], name) for name in choices} == choices
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert request | choices == request
    assert run(*line, "--resume") == 0 and len(requested) == 1
    for key in choices:
        changed = list(map(str, line))
        changed[changed.index(f"--{key.replace('_', '-')}") + 1] = "1" if key != "corrector" else "3"
        capsys.readouterr()
        assert run(*changed, "--resume") == 2 and f"{key.replace('_', '-')} was" in capsys.readouterr().err
    assert run(*line[:4], "--guidance", 2, "--out", tmp_path / "t") == 2
    assert not (tmp_path / "t").exists()


def test_the_request_is_the_dataclass(tmp_path):
    "Every option of the sampler stands in the request, typed or not, with the value that the sampler uses."
    from matgen_nb.symmcd.reverse import SamplingOptions
    from matgen_nb.symmcd.sampling import resolved

    line = ["sample", "symmcd", "-n", 1, "--steps", 2, "--candidates", 1, "--num-orbits", 2, "--neutral"]
    assert run(*line, "--retries", 1, "--device", "cpu", "--out", tmp_path / "s") == 0
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    given = SamplingOptions(steps=2, candidates=1, num_orbits=2, neutral=True, retries=1)
    model = SymmCD.from_pretrained("symmcd-mp20-small")
    right = {f.name: getattr(resolved(model, given, False), f.name) for f in fields(SamplingOptions)}
    for name in ("accept", "progress", "batch_size"):
        del right[name]
    own = {"model", "weights", "n", "chunk", "seed", "seed_rule"}
    assert {k: v for k, v in request.items() if k not in own} == right
    assert None not in right.values(), "what was left open is resolved"
    assert json.loads((tmp_path / "s" / "run.json").read_text())["request"] == request


def test_neutral_crystals_on_request(tmp_path, capsys):
    "What cannot be charge-neutral is sampled again, for the same group and number of orbits; the option belongs to the request."
    rows = {}
    for name, more in (("plain", ["--balance", 0]), ("neutral", ["--neutral"])):
        line = [
            "sample",
            "symmcd",
            "-n",
            12,
            "--steps",
            4,
            "--candidates",
            1,
            "--seed",
            2,
            "--device",
            "cpu",
            "--out",
            tmp_path / name,
            *more,
        ]
        assert run(*line) == 0
        rows[name] = records.read_table(tmp_path / name / "table.csv")
    good = {name: [composition_validity(r["formula"]) for r in table] for name, table in rows.items()}
    assert sum(good["plain"]) < sum(good["neutral"]) and all(
        r["attempts"] == 1 for r, ok in zip(rows["plain"], good["plain"])
    )
    assert all(ok or int(r["attempts"]) == 6 for r, ok in zip(rows["neutral"], good["neutral"]))
    for key in ("space_group", "num_orbits"):
        assert [r[key] for r in rows["plain"]] == [r[key] for r in rows["neutral"]]
    request = json.loads((tmp_path / "neutral" / "request.json").read_text())
    assert request["neutral"] is True and request["retries"] == 5
    capsys.readouterr()
    assert run(*line[:-1], "--resume") == 2
    said = capsys.readouterr().err
    assert "neutral was True and is now False" in said and "balance was" in said, "all that differs is named"


def test_templates_on_request(tmp_path, capsys):
    "Known sets of sites unless they are switched off; a share that is none is rejected before anything is written."
    line, rows = ["sample", "symmcd", "-n", 40, "--steps", 4, "--seed", 2, "--device", "cpu", "--out"], {}
    for name, more in (("as-shipped", []), ("all", ["--templates", 1]), ("none", ["--templates", 0])):
        assert run(*line, tmp_path / name, *more) == 0
        rows[name] = records.read_table(tmp_path / name / "table.csv")
    sites = lambda name: [
        (r["space_group"], " ".join(sorted(part.split(":")[1] for part in r["wyckoff"].split())))
        for r in rows[name]
    ]
    known = {
        (g, " ".join(sorted(SpaceGroup(g)[w].label for w in t)))
        for (g, _), c in unpack_templates(SymmCD.from_pretrained("symmcd-mp20-small").stat_templates).items()
        for t in c
    }
    assert sites("as-shipped") == sites("all") and sum(s in known for s in sites("all")) > sum(
        s in known for s in sites("none")
    )
    capsys.readouterr()
    assert run(*line, tmp_path / "wrong", "--templates", 2) == 2 and not (tmp_path / "wrong").exists()
    said = capsys.readouterr().err.replace("\n", " ")
    assert re.search(r"--templates.*(<=x<=1|less than or equal to 1)", said), "in the words of this typer"


def test_demo_from_beginning_to_end(tmp_path, capsys):
    "A small one: crystals of both models side by side, a valid framework in one cell; again only with --overwrite."
    line = ["demo", "--seconds", 4, "-n", 2, "--mofs", 4, "--device", "cpu", "--out", tmp_path / "demo"]
    assert run(*line) == 0
    shown, home = capsys.readouterr().out, tmp_path / "demo"
    made = {p.relative_to(home).as_posix() for p in home.rglob("*.*")}
    wanted = (
        "shipped/cif/00001.cif trained/cif/00001.cif gallery.html table.csv summary.json side_by_side.png"
    )
    wanted += (
        " training/weights.safetensors mof/mof.cif mof/framework.png mof/beads_and_atoms.png mof/table.csv"
    )
    assert set(wanted.split()) <= made
    for stage in ("shipped/gallery.html", "mof/framework.png", "training/loss.png", "trained/gallery.html"):
        assert str(home / stage) in shown, f"{stage} is announced"
    record = json.loads((home / "run.json").read_text())
    page, framework = (home / "gallery.html").read_text(encoding="utf-8"), record["framework"]
    assert page.count('class="w"') == 3 and framework["formula"] in shown
    assert f"{framework['formed']} of {framework['sampled']} sampled frameworks form all their bonds" in page
    assert framework["sampled"] % 4 == 0 and framework["relaxation"]
    assert framework["valid"] and framework["bond_success"] == 1, "of four rounds of four one is valid"
    mof = Crystal.from_cif(home / "mof" / "mof.cif")
    assert mof.formula == framework["formula"] and len(mof) == framework["num_atoms"]
    assert record["ending"]["warm_up_over"] and record["ending"]["ended_by"] == "time budget"
    assert record["difference"] in shown and "2 of 2" in record["difference"].replace("1 of 2", "2 of 2")
    table = records.read_table(home / "table.csv")
    assert [row["model"] for row in table] == ["shipped"] * 2 + ["trained"] * 2
    assert all((home / row["file"]).exists() for row in table)
    assert run(*line) == 2


def test_a_demo_whose_training_learned_nothing_shows_no_crystals_of_it(tmp_path, capsys):
    from matgen_nb.scale import demo
    from matgen_nb.symmcd.dataset import from_units, prepare_one

    with runs.fresh_folder(tmp_path / "demo") as out:
        state = demo.DemoState(data=from_units([prepare_one(CESIUM_CHLORIDE, 0.1)] * 30))
        demo.show_training(out, demo.DemoOptions(n=2, seconds=1e-3), state, evaluator=None)
        assert state.trained is None and "within its warm-up" in state.cut_off[0]
        demo.write_demo(out, demo.DemoOptions(), state, 1.0)
    record = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert not record["ending"]["warm_up_over"] and record["cut_off"] == state.cut_off
    assert "within its warm-up" in (tmp_path / "demo" / "gallery.html").read_text(encoding="utf-8")
    assert not (tmp_path / "demo" / "trained").exists()
    from matgen_nb.scale.records import describe_weights

    weights = describe_weights(tmp_path / "demo" / "training" / "weights.safetensors")
    assert "within its warm-up" in weights["text"], "whoever samples these can read it"


def test_sample_says_which_weights_it_uses(tmp_path, capsys, monkeypatch):
    "Name, what they were trained on, hash; and that a training beside them is not used."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifs").mkdir()
    for i in range(6):
        size = 4 + i / 10
        Crystal(size * np.eye(3), [55, 17], CESIUM_CHLORIDE.frac_coords).to_cif(
            tmp_path / "cifs" / f"{i}.cif"
        )
    assert run("prepare", "crystals", "cifs", "--out", "mine.safetensors", "--n-jobs", 1) == 0
    assert run("train", "symmcd", "mine.safetensors", "--preset", "tiny", "--steps", 2, "--out", "run") == 0
    said = capsys.readouterr().out
    assert "within its warm-up" in said and "--steps" in said, "two steps teach nothing, and that is said"
    ending = json.loads((tmp_path / "run" / "run.json").read_text())["ending"]
    assert ending == dict(steps=2, ended_by="steps", warm_up_over=False)
    quick = ["-n", 1, "--steps", 3, "--device", "cpu"]
    assert run("sample", "symmcd", *quick, "--candidates", 1, "--out", "a") == 0
    said = capsys.readouterr().out
    assert "weights: symmcd-mp20-small (ships with matgen_nb), trained on" in said and "15,471" in said
    assert "run/weights.safetensors was trained here and is not used" in said.replace("\\", "/")
    assert "look at a/gallery.html" in said.replace("\\", "/")
    assert run("sample", "symmcd", *quick, "--weights", "run/weights.safetensors", "--out", "b") == 0
    said = capsys.readouterr().out
    digest = records.file_hash(tmp_path / "run" / "weights.safetensors")
    assert "trained on cifs (" in said and f"hash {digest}" in said and "not used" not in said
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["weights"]["hash"] == digest == record["request"]["weights"]
    page = (tmp_path / "b" / "gallery.html").read_text(encoding="utf-8")
    for words in ("1 structures", "made by: matgen", "seed 0", digest, "python 3", "volume (Å³)"):
        assert words in page, words


def test_help_of_an_option_is_that_of_its_field():
    "Every option that belongs to a field has its help, unit, limits and default, and no default of its own."
    compared = 0
    for words, command, made in every_command():
        shown = {o.name: o for o in made}
        for one in sets_of(command):
            for field in one.chosen():
                option, compared = shown[field.name], compared + 1
                assert option.help.startswith(field.metadata["help"]), (words, field.name)
                unit = field.metadata.get("unit")
                assert not unit or f"In {unit}." in option.help, (words, field.name)
                assert option.default is None, (words, field.name, "the dataclass knows the default")
                if field.name not in one.shown:
                    in_words = option.show_default
                    expected = options.default_of(field)
                    if expected is None:
                        right = in_words in ("none", "not given")
                    elif isinstance(expected, bool):
                        right = in_words is False or f"--{in_words}" in (
                            option.opts if expected else option.secondary_opts
                        )
                    else:
                        right = in_words == str(expected) or option.required
                    assert right, (words, field.name, in_words)
                for limit in ("min", "max"):
                    kind_of = getattr(option, "type", None)  # some versions of typer have limits there
                    found = getattr(option, limit, getattr(kind_of, limit, None))
                    assert found == field.metadata.get(limit), (words, field.name)
    assert compared > 60


def test_training_commands_share_their_options():
    known = {tuple(words): {o.name: o.help for o in made} for words, _, made in every_command()}
    trained = [known[("train", model)] for model in ("symmcd", "blocks", "mofdiff")]
    for name in [*options.TRAIN_OPTIONS, "seed", "device", "init_from", "resume", "overwrite"]:
        assert len({shown[name] for shown in trained}) == 1, name


def test_work_that_needs_float64_does_not_go_to_mps(monkeypatch, tmp_path, capsys):
    "On a Mac: training may use its GPU, sampling takes the CPU by itself and says so where mps is requested."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (
        crystal_runs.pick_device("auto") == "mps"
        and crystal_runs.pick_device("mps") == "mps"
        and crystal_runs.pick_device("auto", float64=True) == "cpu"
    )
    assert run("sample", "symmcd", "-n", 2, "--steps", 2, "--out", tmp_path / "auto") == 0
    assert (
        run("sample", "symmcd", "-n", 2, "--device", "mps", "--out", tmp_path / "mps") == 2
        and "no float64" in capsys.readouterr().err
        and not (tmp_path / "mps").exists()
    )
    assert (
        run("sample", "mofdiff", "-n", 2, "--device", "mps", "--out", tmp_path / "mps") == 2
        and not (tmp_path / "mps").exists()
    )


@pytest.mark.parametrize("name", ["symmcd", "mofdiff"])
def test_a_model_on_mps_says_that_it_cannot_sample(monkeypatch, name):
    from matgen_nb.mofdiff.sampling import MofDiff, MofSamplingOptions
    from matgen_nb import SymmCD
    from matgen_nb.symmcd.reverse import SamplingOptions

    model = (SymmCD if name == "symmcd" else MofDiff).from_pretrained(
        "symmcd-mp20-small" if name == "symmcd" else "mofdiff-small"
    )
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("mps")))
    with pytest.raises(MatgenError, match="float64"):
        model.sample(2, options=(SamplingOptions if name == "symmcd" else MofSamplingOptions)())


def sampled(out, *more):
    "Three crystals of P222 from the weights that ship, into the folder `out`: (CIF texts, rows, request)."
    assert (
        run(
            "sample",
            "symmcd",
            "-n",
            3,
            "--space-group",
            16,
            "--num-orbits",
            3,
            "--steps",
            2,
            "--device",
            "cpu",
            "--out",
            out,
            *more,
        )
        == 0
    )
    return (
        [p.read_text() for p in sorted((out / "cif").iterdir())],
        records.read_table(out / "table.csv"),
        json.loads((out / "request.json").read_text()),
    )


def test_sampled_cifs_name_their_group_unless_p1_is_requested(tmp_path):
    symmetric, rows, request = sampled(tmp_path / "s", "--resample-higher", 0)
    plain, same_rows, p1 = sampled(tmp_path / "p", "--resample-higher", 0, "--p1")
    assert rows == same_rows and p1 == request | {"p1": True} and request["resample_higher"] == 0
    for group_cif, cell_cif, row in zip(symmetric, plain, rows):
        assert "'P 1'" in cell_cif and (
            "_space_group_IT_number 16\n" in group_cif or row["min_distance"] < 0.5
        )
        a, b = Crystal.from_cif(group_cif), Crystal.from_cif(cell_cif)
        assert (
            len(a) == len(b) == row["num_atoms"]
            and a.formula == b.formula
            and np.allclose(a.lattice, b.lattice, atol=1e-6)
        )
        delta = a.frac_coords[:, None] - b.frac_coords
        assert (np.abs(delta - np.round(delta)).max(-1) < 1e-6).any(1).all()
    page = (tmp_path / "s" / "gallery.html").read_text()
    assert "higher_symmetry" in page and "space_group@0.1" in page, (
        "the found group stands in the gallery's table"
    )


def test_resampling_stands_in_the_request_and_what_is_left_is_said(tmp_path, capsys):
    _, rows, request = sampled(tmp_path / "a")
    assert request["resample_higher"] == 10, "on where a group is requested, and on record"
    assert all({"space_group@0.1", "higher_symmetry", "resampled"} <= row.keys() for row in rows)
    line = [
        "sample",
        "symmcd",
        "-n",
        2,
        "--space-group",
        16,
        "--formula",
        "NaCl",
        "--num-atoms",
        2,
        "--steps",
        2,
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    assert run(*line, "--out", tmp_path / "b") == 2 and not (tmp_path / "b").exists()
    assert "force a higher group, 47 (Pmmm)" in capsys.readouterr().err
    assert run(*line, "--out", tmp_path / "b", "--resample-higher", 0) == 0
    assert "2 of 2 crystals have a higher symmetry" in capsys.readouterr().out
    assert all(
        row["higher_symmetry"] is True and row["space_group@0.01"] == 47
        for row in records.read_table(tmp_path / "b" / "table.csv")
    )
    assert (
        run(
            "sample",
            "symmcd",
            "-n",
            1,
            "--steps",
            2,
            "--num-orbits",
            2,
            "--device",
            "cpu",
            "--out",
            tmp_path / "c",
        )
        == 0
    )
    assert json.loads((tmp_path / "c" / "request.json").read_text())["resample_higher"] == 0, (
        "off without a group"
    )
