"""Models in files: found, checked, rebuilt; presets; methods of later lessons."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import matgen_nb
from matgen_nb.diffusion.pretrained import Presets, Pretrained, find_weights, read_weights
from matgen_nb.mofdiff.embedding import BlockConfig, BlockEncoder
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig
from matgen_nb.symmcd.model import SymmCD, SymmCDConfig
from matgen_nb.utils import MatgenError, load_tensors


def test_weights_are_read_or_the_error_says_why(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "good.safetensors", {"format": "x 1", "unit": "m"})
    assert read_weights(
        tmp_path / "good.safetensors",
        "x 1",
        lambda metadata, tensors: (metadata["unit"], tensors["w"].tolist()),
    ) == ("m", [0, 1, 2])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-5])
    torch.save({"w": torch.ones(1)}, tmp_path / "pickle.safetensors")
    for name, form, text in (
        ("cut", "x 1", "cut short"),
        ("pickle", "x 1", "cut short"),
        ("good", "x 2", "another model or version"),
        ("none", "x 1", "ship with the package: .*symmcd-mp20-small"),
    ):
        with pytest.raises(MatgenError, match=text):
            read_weights(tmp_path / f"{name}.safetensors", form, lambda *parts: parts)
    with pytest.raises(MatgenError, match="does not fit.*no_such"):
        read_weights(tmp_path / "good.safetensors", "x 1", lambda metadata, tensors: metadata["no_such"])


@pytest.mark.parametrize("model", [SymmCD, BlockEncoder, MofDiff])
def test_every_model_reads_its_weights_the_same_way(model):
    "One definition of saving and loading, and a format of its own for each model."
    assert issubclass(model, Pretrained) and model.FORMAT.startswith("matgen_nb ")
    for name in ("save_pretrained", "__getattr__"):
        assert getattr(model, name) is getattr(Pretrained, name)
    assert model.from_pretrained.__func__ is Pretrained.from_pretrained.__func__


@pytest.mark.parametrize(
    "model, name",
    [
        (SymmCD, "symmcd-mp20-small"),
        (SymmCD, "symmcd-mp20-common"),
        (BlockEncoder, "blocks-small"),
        (MofDiff, "mofdiff-small"),
    ],
)
def test_shipped_weights_come_back_as_they_are(model, name, tmp_path):
    "What is written again has the texts and tensors of what was read; other models reject it."
    first = model.from_pretrained(name)
    assert not first.training
    first.save_pretrained(tmp_path / "model.safetensors", first.info, torch.float32)
    again = model.from_pretrained(tmp_path)
    assert again.config == first.config and again.info == first.info and first.info
    state = again.state_dict()
    assert all(torch.equal(t, state[key]) for key, t in first.state_dict().items())
    shipped, texts = (load_tensors(path)[0] for path in (find_weights(name), tmp_path / "model.safetensors"))
    for key in shipped.keys() - {"checksum", "config", "info", "identities", "nets"}:
        assert texts[key] == shipped[key], (
            "the others are compared as they are read, see below and test_small_files"
        )
    assert json.loads(shipped["config"]).items() <= json.loads(texts["config"]).items()
    for other in {SymmCD, BlockEncoder, MofDiff} - {model}:
        with pytest.raises(MatgenError, match=f"holds '{model.FORMAT}', but '{other.FORMAT}' is needed"):
            other.from_pretrained(name)


@dataclass(frozen=True)
class Size(Presets):
    width: int = 3


Size.PRESETS = dict(tiny=Size(1))


class Toy(Pretrained):
    FORMAT = "toy 1"

    def __init__(self, config):
        super().__init__()
        self.config, self.layer = config, nn.Linear(1, config.width)
        self.register_buffer("stat_mean", torch.tensor(0.1))

    @classmethod
    def from_file(cls, config, texts, tensors):
        model = cls(Size(**config))
        model.load_state_dict(tensors)
        return model


def test_statistics_keep_their_precision_and_a_failed_write_leaves_the_old_file(tmp_path):
    toy = Toy(Size())
    toy.save_pretrained(tmp_path / "model.safetensors", dtype=torch.bfloat16)
    half = Toy.from_pretrained(tmp_path)
    assert half.stat_mean == torch.tensor(0.1) and half.info == {}
    assert torch.equal(half.layer.weight, toy.layer.weight.bfloat16().float())
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(TypeError):
        toy.save_pretrained(tmp_path / "model.safetensors", info=dict(what=object()))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_configuration_that_does_not_fit_is_said(tmp_path):
    toy = Toy(Size())
    toy.save_pretrained(tmp_path / "good.safetensors")
    texts, tensors = load_tensors(tmp_path / "good.safetensors")
    texts.pop("checksum")
    for config, word in (
        ('{"width": 4}', "does not fit"),
        ('{"length": 4}', "length"),
        ("{", "does not fit"),
        ('{"width": 1000000000}', "asks for more than"),
    ):
        save_file(tensors, tmp_path / "odd.safetensors", texts | {"config": config})
        with pytest.raises(MatgenError, match=word):
            Toy.from_pretrained(tmp_path / "odd.safetensors")
    with pytest.raises(NotImplementedError, match="Pretrained"):
        Pretrained.from_file({}, {}, {})


@pytest.mark.parametrize("config", [Size, SymmCDConfig, BlockConfig, MofDiffConfig])
def test_presets(config):
    assert isinstance(config.preset("tiny"), config) and config.preset("tiny", width=7).width == 7
    assert config.preset("tiny") == config.PRESETS["tiny"]
    with pytest.raises(MatgenError, match="no preset 'huge'; there are tiny"):
        config.preset("huge")
    with pytest.raises(TypeError):
        config.preset("tiny", no_such=1)


@pytest.mark.parametrize(
    "module, name, weights, method, later",
    [
        ("symmcd.model", "SymmCD", "symmcd-mp20-small", "sample", "matgen_nb.symmcd."),
        ("symmcd.model", "SymmCD", "symmcd-mp20-small", "predict", "matgen_nb.symmcd."),
        ("mofdiff.model", "MofDiff", "mofdiff-small", "sample", "matgen_nb.mofdiff."),
        ("mofdiff.model", "MofDiff", "mofdiff-small", "loss", "matgen_nb.mofdiff."),
    ],
)
def test_a_method_of_a_later_lesson_names_its_import(module, name, weights, method, later):
    code = (
        f"from matgen_nb.{module} import {name}\nmodel = {name}.from_pretrained({weights!r})\n"
        f"try: model.{method}\nexcept AttributeError as error: print(error)\n"
        f"import matgen_nb; matgen_nb.{name}.{method}; print(callable(model.{method}))\n"
        f"try: model.no_such_thing\nexcept AttributeError as error: print(error)"
    )
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert lines[0].startswith(f"{name}.{method} comes with a later lesson: import {later}")
    assert lines[0].endswith(f"or take {name} from matgen_nb") and lines[1] == "True"
    assert "no_such_thing" in lines[2] and "later" not in lines[2]


METHODS = ["from_cif", "from_file", "from_ase", "to_ase", "to_poscar", "to_extxyz"]


@pytest.mark.parametrize("method", METHODS)
def test_a_later_method_of_crystal_names_its_import(method):
    "Taken from its module alone, `Crystal` says what to import; with that import it has the method."
    code = (
        "from matgen_nb.symmetry.crystal import Crystal\n"
        "one = Crystal([[4, 0, 0], [0, 4, 0], [0, 0, 4]], [84], [[0, 0, 0]])\n"
        f"for own in (Crystal, one):\n  try: own.{method}\n  except AttributeError as error: print(error)\n"
    )
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert len(lines) == 2 and len(set(lines)) == 1
    assert lines[0].startswith(f"Crystal.{method} comes with a later lesson: import matgen_nb.symmetry.")
    module = lines[0].split("import ")[1].split(",")[0]
    then = (
        f"import {module}\nfrom matgen_nb.symmetry.crystal import Crystal\nprint(callable(Crystal.{method}))"
    )
    assert subprocess.check_output([sys.executable, "-c", then], text=True).strip() == "True"


def test_what_the_front_door_gives_has_complete_crystals():
    code = (
        "import matgen_nb\nmatgen_nb.AsymmetricUnit\nfrom matgen_nb.symmetry.crystal import Crystal\n"
        f"print(all(callable(getattr(Crystal, name)) for name in {METHODS}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def _patched():
    "(class, method, module) of every public method that a module gives a class of another module."
    home, found = {}, []
    for path in sorted(Path(matgen_nb.__file__).parent.rglob("*.py")):
        module = ".".join(path.relative_to(Path(matgen_nb.__file__).parents[1]).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                home[node.name] = module
            marks = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
            if isinstance(node, ast.FunctionDef) and any(m.split("(")[0] == "patch" for m in marks):
                kind = node.args.args[0].annotation
                own = ast.unparse(kind.slice if isinstance(kind, ast.Subscript) else kind)
                found.append((own, node.name, module))
    return sorted(x for x in found if home[x[0]] != x[2] and not x[1].startswith("_")), home


@pytest.mark.parametrize("own", ["Crystal", "MofDiff", "NetFirst", "SymmCD"])
def test_every_method_of_a_later_module_says_its_import(own):
    "Of the class and, for models, of an instance, where that module has not been imported."
    found, home = _patched()
    assert {kind for kind, *_ in found} == {"Crystal", "MofDiff", "NetFirst", "SymmCD"}
    found, makes = [one for one in found if one[0] == own], ["own"]
    makes += [] if own == "Crystal" else ["own.__new__(own)"]
    lines = [f"import {home[own]} as home", f"own = home.{own}"]
    for _, name, _ in found:
        lines += [f"try: {one}.{name}\nexcept AttributeError as error: print(error)" for one in makes]
    text = subprocess.check_output([sys.executable, "-c", "\n".join(lines)], text=True).splitlines()
    expected = [
        f"{own}.{name} comes with a later lesson: import {module}, or take {own} from matgen_nb"
        for _, name, module in found
        for _ in makes
    ]
    assert text == expected
