"""Wrong arguments in Python and on the command line: a MatgenError that says what, and what to do instead."""

from functools import lru_cache, partial

import numpy as np
import pytest

import matgen_nb as m
from matgen_nb.diffusion.pretrained import find_weights
from matgen_nb.mofdiff.bonds import textbook_mof
from matgen_nb.mofdiff.property_design import Goal
from matgen_nb.parallel import check_processes, parallel_map
from matgen_nb.utils import MatgenError, atomic_write, check_kind

WEIGHTS = "symmcd-mp20-small"
SALT = dict(lattice=5.6 * np.eye(3), elements=[11, 17], frac_coords=[[0, 0, 0], [0.5, 0.5, 0.5]])


@lru_cache(None)
def thing(name):
    "What the calls are made on, read once."
    made = dict(
        crystal=lambda: m.Crystal(*SALT.values()),
        symmcd=lambda: m.SymmCD.from_pretrained(WEIGHTS),
        mofdiff=lambda: m.MofDiff.from_pretrained("mofdiff-small"),
        mof=lambda: textbook_mof("IRMOF-1"),
        coarse=lambda: m.CoarseMof.from_decomposition(m.decompose(thing("mof"))),
    )
    return made[name]()


def cell(**changes):
    return lambda: m.Crystal(*(SALT | changes).values())


def on(name, method, *args, **more):
    return lambda: getattr(thing(name), method)(*args, **more)


CALLS = {
    "Crystal: None": (cell(lattice=None), "lattice"),
    "Crystal: NaN": (cell(lattice=np.nan * np.eye(3)), "lattice"),
    "Crystal: wrong shape": (cell(frac_coords=[[0, 0]]), "shape|coordinates|positions"),
    "Crystal: unknown element": (cell(elements=["Xx", "Cl"]), "Xx|element"),
    "Crystal: empty": (cell(elements=[], frac_coords=[]), "atom"),
    "from_cif: None": (partial(m.Crystal.from_cif, None), "None|CIF"),
    "from_cif: number": (partial(m.Crystal.from_cif, 5), "CIF"),
    "from_cif: missing file": (partial(m.Crystal.from_cif, "/no/such.cif"), "such.cif"),
    "from_cif: folder": (partial(m.Crystal.from_cif, "/"), "neither|folder"),
    "from_pymatgen: number": (partial(m.Crystal.from_pymatgen, 3), "pymatgen"),
    "from_ase: None": (partial(m.Crystal.from_ase, None), "[Aa]se|Atoms"),
    "to_cif: folder": (on("crystal", "to_cif", "/"), "is a folder: give the path of a file"),
    "to_cif: number": (on("crystal", "to_cif", 5), "path of a file must be str or PathLike, not int"),
    "unit: None": (
        partial(m.AsymmetricUnit.from_crystal, None),
        "must be Crystal, not None: Crystal.from_cif",
    ),
    "unit: text": (partial(m.AsymmetricUnit.from_crystal, "x.cif"), "must be Crystal, not str .x.cif."),
    "unit: symprec text": (lambda: m.AsymmetricUnit.from_crystal(thing("crystal"), "a"), "symprec .* 'a'"),
    "unit: symprec None": (lambda: m.AsymmetricUnit.from_crystal(thing("crystal"), None), "symprec .* None"),
    "group: 0": (partial(m.SpaceGroup, 0), "integer from 1 to 230, got 0"),
    "group: text": (partial(m.SpaceGroup, "abc"), "integer from 1 to 230, got 'abc'"),
    "group: None": (partial(m.SpaceGroup, None), "integer from 1 to 230, got None"),
    "weights: None": (partial(m.SymmCD.from_pretrained, None), "text or a path"),
    "weights: missing": (partial(m.SymmCD.from_pretrained, "/no"), "ship with the package"),
    "weights: device": (partial(m.SymmCD.from_pretrained, WEIGHTS, "tpu9"), "device must be cpu.* 'tpu9'"),
    "weights: other model": (
        partial(m.BlockEncoder.from_pretrained, "mofdiff-small"),
        "weights of blocks.*small",
    ),
    "weights: of crystals": (
        partial(m.MofDiff.from_pretrained, WEIGHTS),
        "Give weights of mofdiff, such as mof",
    ),
    "symmcd: -1": (on("symmcd", "sample", -1), "number of samples"),
    "symmcd: None": (on("symmcd", "sample", None), "number of samples .* not None"),
    "symmcd: text": (on("symmcd", "sample", "a"), "number of samples"),
    "symmcd: NaN": (on("symmcd", "sample", np.nan), "number of samples"),
    "symmcd: group": (on("symmcd", "sample", 1, space_group=300), "300"),
    "symmcd: formula": (on("symmcd", "sample", 1, formula=5), "formula"),
    "symmcd: seed": (on("symmcd", "sample", 1, seed="a"), "seed"),
    "symmcd: options": (on("symmcd", "sample", 1, options=3), "options must be SamplingOptions, not int"),
    "predict: None": (on("symmcd", "predict", None), "units of predict must be list or tuple, not None"),
    "predict: empty": (on("symmcd", "predict", []), "at least one unit"),
    "predict: texts": (on("symmcd", "predict", ["a"]), "must be AsymmetricUnit, not str"),
    "mofdiff: None": (on("mofdiff", "sample", None), "number of samples .* None"),
    "mofdiff: text": (on("mofdiff", "sample", "a"), "number of samples .* 'a'"),
    "mofdiff: 1.5": (on("mofdiff", "sample", 1.5), "number of samples .* 1.5"),
    "mofdiff: NaN": (on("mofdiff", "sample", np.nan), "number of samples .* nan"),
    "mofdiff: seed": (on("mofdiff", "sample", 1, seed="a"), "seed must be .* not str"),
    "mofdiff: options": (on("mofdiff", "sample", 1, options=3), "options must be MofSamplingOptions"),
    "evaluate_crystals: None": (partial(m.evaluate_crystals, None, None), "Crystal|list|None"),
    "evaluate_mofs: None": (partial(m.evaluate_mofs, None), "frameworks to evaluate must be list or tuple"),
    "evaluate_mofs: path": (partial(m.evaluate_mofs, "/no"), "frameworks to evaluate .* not str"),
    "evaluate_mofs: reference": (lambda: m.evaluate_mofs([], 5), "reference must be .* not int"),
    "energies: text": (
        partial(m.energies, "a", "chgnet"),
        "potential must be Potential, not str .chgnet.: get_",
    ),
    "decompose: None": (partial(m.decompose, None), "must be Mof, not None: Mof.from_cif"),
    "decompose: crystal": (lambda: m.decompose(thing("crystal")), "must be Mof, not Crystal"),
    "mof: missing file": (partial(m.Mof.from_cif, "/no.cif"), "no.cif"),
    "assemble: None": (partial(m.assemble, None), "must be CoarseMof or list or tuple, not None"),
    "assemble: texts": (partial(m.assemble, ["a"]), "each framework of a list must be CoarseMof"),
    "assemble: options": (lambda: m.assemble(thing("coarse"), options=3), "options must be AssemblyOptions"),
    "relax: None": (partial(m.relax, None), "what is relaxed must be Crystal, not None"),
    "relax: options": (lambda: m.relax(thing("crystal"), 3), "options must be RelaxationOptions"),
    "generate: no model": (partial(m.generate, None, 1), "model must be MofDiff, not None: MofDiff.from_pre"),
    "generate: n": (lambda: m.generate(thing("mofdiff"), "a"), "number of samples"),
    "generate: options": (
        lambda: m.generate(thing("mofdiff"), 1, options=4),
        "options must be PipelineOptions",
    ),
    "coarse: None": (partial(m.CoarseMof, None, None, None), "lattice .* shape .3, 3."),
    "coarse: shapes": (partial(m.CoarseMof, np.eye(3), np.zeros((2, 3)), []), "frac_coords|position"),
    "processes: -5": (partial(parallel_map, str, [1], n_jobs=-5), "--n-jobs .* not -5"),
    "processes: text": (partial(parallel_map, str, [1], n_jobs="a"), "--n-jobs .* not 'a'"),
    "goal: text": (
        lambda: Goal("density", "much").checked(thing("mofdiff")),
        "target must be a number, not .much",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_argument_is_named(what):
    call, words = CALLS[what]
    with pytest.raises(ValueError if what.startswith("group") else MatgenError, match=words):
        call()


def test_right_arguments_pass():
    assert [check_processes(n) for n in (1, 3, -1)] == [1, 3, -1]
    check_kind("x", 3, int)
    with pytest.raises(MatgenError, match="x must be int or str, not float .1.5.: give one"):
        check_kind("x", 1.5, (int, str), "give one")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    with pytest.raises(MatgenError, match="is a folder"), atomic_write(tmp_path) as file:
        file.write("x")
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


def matgen(capsys, *words):
    "(exit status, what was said) of a command."
    from matgen_nb.commands.main import main

    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    said = capsys.readouterr()
    return stop.value.code, " ".join((said.out + said.err).split())


def cif_folder(path):
    path.mkdir()
    m.Crystal(*SALT.values()).to_cif(path / "salt.cif")
    return path


def odd_files(path):
    "A weights file, the same cut short, an empty one, and bytes that are called a table."
    path.mkdir()
    whole = find_weights(WEIGHTS).read_bytes()
    texts = dict(tensors=whole, cut=whole[: len(whole) // 2], empty=b"", bytes=bytes(range(256)) * 20)
    for name, text in texts.items():
        (path / f"{name}.{'csv' if name == 'bytes' else 'safetensors'}").write_bytes(text)
    return {p.stem: p for p in path.iterdir()}


COMMANDS = {
    "a state for a swing": (
        "gcmc {cifs} --temperature 200 --gas CO2=0.5 --out {out}",
        "--gas, --temperature would change nothing with --protocol mixture: add --protocol state$",
    ),
    "cycles without RASPA": (
        "gcmc {cifs} --cycles 10 --out {out}",
        "--cycles would change nothing with --simulator biased: add --simulator raspa$",
    ),
    "insertions of RASPA": (
        "gcmc {cifs} --simulator raspa --trials 900 --out {out}",
        "--trials would change",
    ),
    "resume and overwrite": (
        "sample mofdiff --resume --overwrite --out {out}",
        "--resume goes on with a run and --overwrite replaces it: give one of them$",
    ),
    "steps and epochs": (
        "train symmcd none --steps 2 --epochs 3 --out {out}",
        "--steps and --epochs both say",
    ),
    "tensors as structures": (
        "gcmc {tensors} --out {out}",
        "tensors.safetensors is a prepared file or weights: give CIF files, a CSV or the folder of a run$",
    ),
    "tensors to export": ("export {tensors} --out {out}", "is a prepared file or weights"),
    "tensors to evaluate": ("evaluate mofs {tensors} --out {out}", "is a prepared file or weights"),
    "bytes as a table": ("export {bytes} --out {out}", r"has no column 'cif'; it has [\x20-\uffff]{1,700}$"),
    "folder to train on": (
        "train mofdiff {cifs} --out {out}",
        "cifs is a folder; make a file of it with: matgen prepare mofs SOURCE --out FILE.safetensors",
    ),
    "folder of blocks": ("train blocks {cifs} --out {out}", "cifs is a folder; make a file of it"),
    "folder of crystals": ("train symmcd {cifs} --out {out}", "with: matgen prepare crystals SOURCE"),
    "weights cut short": (
        "sample mofdiff --weights {cut} --out {out}",
        "cut.safetensors is not a readable weights file .*cut short or damaged, fetch it again",
    ),
    "crystal weights cut short": ("sample symmcd --weights {cut} --out {out}", "not a readable weights file"),
    "empty weights": ("sample mofdiff --weights {empty} --out {out}", "not a readable weights file"),
    "a CIF as weights": ("sample mofdiff --weights {cifs}/salt.cif --out {out}", "not a readable weights"),
    "jobs": ("prepare mofs {cifs} --n-jobs -5 --out {out}.safetensors", "--n-jobs must be a number .* -5"),
    "jobs of evaluation": ("evaluate mofs {cifs} --n-jobs -5 --out {out}", "--n-jobs must be"),
    "jobs of crystals": ("prepare crystals {cifs} --n-jobs -2 --out {out}.safetensors", "--n-jobs must be"),
    "potential": (
        "evaluate crystals {cifs} --reference {cifs} --potential chgnet --out {out}",
        "--potential says how energies are computed: add --energy",
    ),
    "relaxations": (
        "evaluate crystals {cifs} --reference {cifs} --relaxations 3 --out {out}",
        "--relaxations says how energies are computed: add --energy",
    ),
    "file for a folder": (
        "export {cifs} --format cif --out {out}.txt",
        "writes a file for each structure: --out .* must be a folder",
    ),
    "weights of another model": (
        "sample mofdiff --weights symmcd-mp20-small -n 1 --out {out}",
        "Give weights of",
    ),
    "no such property": ("design --property colour --target 1 -n 1 --out {out}", "colour.*(density|void)"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_wrong_command_is_explained_and_leaves_nothing(what, tmp_path, capsys):
    import re

    command, words = COMMANDS[what]
    places = dict(cifs=cif_folder(tmp_path / "cifs"), out=tmp_path / "new", **odd_files(tmp_path / "files"))
    code, said = matgen(capsys, *command.format(**places).split())
    assert code == 2 and re.search(words, said), said
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"cifs", "files"} or not [*(tmp_path / "new").rglob("*.cif")], left


def test_a_prepared_file_is_no_weights(tmp_path, capsys):
    from matgen_nb.mofdiff.hypothetical import embedded_mofs

    embedded_mofs().subset(range(3)).trimmed().save(tmp_path / "mofs.safetensors")
    with pytest.raises(MatgenError, match="it is a prepared data set: train with it"):
        m.MofDiff.from_pretrained(tmp_path / "mofs.safetensors")


def test_where_core_mof_is_missing_the_extra_is_named(monkeypatch):
    from matgen_nb.mofdiff import core_mof

    monkeypatch.setattr(core_mof, "find_spec", lambda name: None)
    with pytest.raises(MatgenError, match=r"not installed: pip install 'matgen_nb\[core-mof\]'"):
        core_mof.read_core_mof("2014")


def test_too_many_blocks_name_the_option():
    from dataclasses import replace

    from matgen_nb.mofdiff.coarse_graining import Limits, excess

    assert "(--max-blocks)" in excess(thing("coarse"), replace(Limits(), max_blocks=3))[0].text
