"""The command line: help, errors, files; the models are stand-ins, the end-to-end run has its own test."""
import json
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from matgen_nb.scale import command_line as cli
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

COMMANDS = (["demo"], ["prepare", "crystals"], ["train", "symmcd"], ["sample", "symmcd"], ["evaluate", "crystals"])
CESIUM_CHLORIDE = Crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [.5, .5, .5]])


def run(*arguments):
    with pytest.raises(SystemExit) as stop: cli.main([str(a) for a in arguments])
    return stop.value.code


@pytest.fixture
def cifs(tmp_path):
    (tmp_path/"cifs").mkdir()
    for i in range(4): CESIUM_CHLORIDE.to_cif(tmp_path/"cifs"/f"{i}.cif")
    return tmp_path/"cifs"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    shown = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0
    for word in ("--seed", "--device", "--out", "Example", "matgen " + " ".join(command)): assert word in shown.output, word


def test_help_is_fast_and_light():
    code = ("import sys\nfrom matgen_nb.scale.command_line import main\ntry: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
            "heavy = {'torch', 'pymatgen', 'spglib', 'pyxtal', 'rdkit', 'pandas', 'matplotlib', 'lightning', 'scipy'} & set(sys.modules)\nassert not heavy - {'torch'}, heavy")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_errors_are_one_line(tmp_path, capsys):
    for arguments in (["train", "symmcd", tmp_path/"no", "--out", tmp_path/"o"], ["evaluate", "crystals", tmp_path/"no", "--reference", "x", "--out", tmp_path/"o"],
                      ["train", "symmcd", tmp_path/"no", "--preset", "huge", "--out", tmp_path/"o"], ["prepare", "crystals", tmp_path/"no", "--out", tmp_path/"f"]):
        assert run(*arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("matgen: ") and shown.count("\n") == 1 and "Traceback" not in shown
    assert run("sample", "symmcd", "--device", "tpu", "--out", tmp_path/"o") == 2
    assert not (tmp_path/"o").exists() and not (tmp_path/"f").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(MatgenError): cli.main(["--debug", "train", "symmcd", str(tmp_path/"no"), "--out", str(tmp_path/"o")])
    assert run("train", "symmcd", tmp_path/"no", "--out", tmp_path/"o") == 2


def test_results_are_not_overwritten_by_accident(tmp_path, capsys):
    (tmp_path/"out").mkdir()
    (tmp_path/"out"/"precious").write_text("x")
    assert run("evaluate", "crystals", tmp_path, "--reference", tmp_path, "--out", tmp_path/"out") == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.fresh_folder(tmp_path/"out", overwrite=True).name == "out" and cli.fresh_folder(tmp_path/"new").name == "new"


def test_prepare_folder_and_its_failures(tmp_path, cifs, capsys):
    (cifs/"broken.cif").write_text("data_nothing\n")
    assert run("prepare", "crystals", cifs, "--out", tmp_path/"p.safetensors", "--n-jobs", 1) == 0
    assert "4 of 5 crystals" in capsys.readouterr().out
    record = json.loads((tmp_path/"p.run.json").read_text())
    assert record["structures"] == 4 and "broken" in record["failures"][0]
    assert run("prepare", "crystals", cifs, "--out", tmp_path/"p.safetensors") == 2
    assert cli.reference_crystals(tmp_path/"p.safetensors")[0].formula == CESIUM_CHLORIDE.formula


def test_read_crystals(tmp_path, cifs):
    assert cli.read_crystals(cifs)[1] == ["0.cif", "1.cif", "2.cif", "3.cif"]
    cli.write_table(tmp_path/"a.csv", [{"cif": CESIUM_CHLORIDE.to_cif()}, {"cif": "nonsense"}])
    crystals, names, failures = cli.read_crystals(tmp_path/"a.csv")
    assert len(crystals) == 1 and names == ["row 1"] and failures[0].name == "row 2"
    cli.write_table(tmp_path/"b.csv", [{"structure": "x"}])
    for source, text in ((tmp_path/"b.csv", "no column 'cif'"), (tmp_path/"none", "there is no"), (tmp_path, "holds no structures")):
        with pytest.raises(MatgenError, match=text): cli.read_crystals(source)


class Model(torch.nn.Module):
    "Stands in for SymmCD."
    def __init__(self, config, statistics):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3))
    def loss(self, batch, generator): return {"loss": (self.w - 1).square().sum()}
    def save_pretrained(self, path): path.write_text("weights")
    @classmethod
    def from_pretrained(cls, path, device): return cls(None, None)
    def sample(self, n, seed=0, **asked):
        return [types.SimpleNamespace(crystal=CESIUM_CHLORIDE, row={"formula": CESIUM_CHLORIDE.formula, "space_group": asked.get("space_group", 221), "moved": .1}) for _ in range(n)]


@dataclass
class Evaluation:
    table: list
    summary: dict


@pytest.fixture
def stand_ins(monkeypatch):
    def module(name, **names):
        made = types.ModuleType(name)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made
    module("matgen_nb.symmcd.sampling")
    module("matgen_nb.symmcd.model", SymmCD=Model, SymmCDConfig=types.SimpleNamespace(preset=lambda name: None))
    module("matgen_nb.symmcd.evaluation", evaluate_crystals=lambda crystals, reference, **_: Evaluation([{"valid": True} for _ in crystals], {"valid": 1., "n": len(crystals)}))
    monkeypatch.setattr(cli, "new_symmcd", lambda preset, data: Model(None, None))


def test_train_sample_evaluate(tmp_path, cifs, stand_ins, capsys):
    assert run("prepare", "crystals", cifs, "--out", tmp_path/"p.safetensors", "--n-jobs", 1) == 0
    train = ["train", "symmcd", tmp_path/"p.safetensors", "--preset", "tiny", "--steps", 30, "--batch-size", 2, "--out", tmp_path/"run", "--device", "cpu"]
    assert run(*train) == 0 and run(*train) == 2 and run(*train, "--resume") == 0
    assert {"weights.safetensors", "last.safetensors", "history.csv", "loss.png", "run.json"} <= {p.name for p in (tmp_path/"run").iterdir()}
    assert run("sample", "symmcd", "--weights", tmp_path/"run"/"weights.safetensors", "-n", 3, "--space-group", 221, "--out", tmp_path/"s") == 0
    assert {p.name for p in (tmp_path/"s").iterdir()} == {"cif", "table.csv", "gallery.html", "gallery.png", "run.json"}
    record = json.loads((tmp_path/"s"/"run.json").read_text())
    assert record["request"] == {"space_group": 221} and record["seed"] == 0 and record["versions"]["torch"]
    assert run("evaluate", "crystals", tmp_path/"s", "--reference", tmp_path/"p.safetensors", "--out", tmp_path/"e") == 0
    assert json.loads((tmp_path/"e"/"summary.json").read_text())["n"] == 3
    assert run("sample", "symmcd", "-n", 0, "--out", tmp_path/"z") == 2 and run("sample", "symmcd", "--space-group", 231, "--out", tmp_path/"z") == 2


def test_gallery_is_self_contained_and_escaped(tmp_path):
    rows = [{"name": "<script>", "formula": "CsCl", "value": float("nan")}]
    cli.write_gallery(tmp_path/"g.html", "T & T", [CESIUM_CHLORIDE], rows)
    page = (tmp_path/"g.html").read_text()
    assert "<script>," not in page and "&lt;script&gt;" in page and "http" not in page and page.count("base64,") == 1
