"""Structures in and out of other programs: each direction read by the other library, and what a file does not say is never guessed."""

import csv
import gzip
import json
import sys
import warnings

import numpy as np
import pytest
from conftest import rock_salt

from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError
from matgen_nb.symmetry.formats import read_extxyz, read_poscar
from matgen_nb.symmetry.structure_files import (
    read_item,
    folder_items,
    file_stems,
    format_of,
    frames_of,
    read_optimade,
    read_structure,
    split_optimade,
    structure_files,
)
from matgen_nb.utils import MatgenError

SALT = rock_salt()


def random_crystal(seed):
    "A triclinic cell, turned in space, with atoms of three elements that do not touch."
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    lattice = (np.diag([6, 7, 8]) + rng.uniform(-1, 1, (3, 3))) @ turn
    grid = np.array([[i, j, k] for i in (0.1, 0.6) for j in (0.2, 0.7) for k in (0.3, 0.8)])
    frac = grid[:6] + rng.uniform(-0.1, 0.1, (6, 3))
    return Crystal(lattice, rng.permutation([22, 8, 8, 38, 8, 22]), frac)


CRYSTALS = [SALT, random_crystal(1), random_crystal(2)]


def assert_same(a, b, ordered=True):
    "The same cell, elements and positions (modulo whole cells) to 1e-6; in the same order, or sorted by element."
    assert np.allclose(a.lattice, b.lattice, atol=1e-6)
    order = np.arange(len(a))
    if not ordered:
        kinds = list(dict.fromkeys(a.elements.tolist()))
        order = np.argsort([kinds.index(z) for z in a.elements.tolist()], kind="stable")
    assert np.array_equal(a.elements[order], b.elements)
    delta = a.frac_coords[order] - b.frac_coords
    assert np.abs((delta - np.round(delta)) @ a.lattice).max() < 1e-6


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: c.formula)
class TestTheOtherLibrary:
    def test_ase(self, crystal):
        pytest.importorskip("ase")
        atoms = crystal.to_ase()
        assert atoms.pbc.all() and np.allclose(atoms.get_volume(), crystal.volume)
        assert_same(crystal, Crystal.from_ase(atoms))
        atoms.positions += 3 * atoms.cell[0]  # atoms outside of the cell are the same crystal
        assert_same(crystal, Crystal.from_ase(atoms))

    def test_extxyz_is_read_by_ase_and_ours_reads_theirs(self, crystal, tmp_path):
        io = pytest.importorskip("ase.io")
        crystal.to_extxyz(
            tmp_path / "ours.xyz", info={"name": 'with "quotes" \\ and', "energy": -1.5, "ok": True}
        )
        atoms = io.read(tmp_path / "ours.xyz", format="extxyz")
        assert atoms.info["name"] == 'with "quotes" \\ and' and atoms.info["ok"] is True
        assert_same(crystal, Crystal.from_ase(atoms))
        atoms.set_momenta(np.ones((len(atoms), 3)))
        atoms.set_initial_magnetic_moments(np.arange(len(atoms)))
        io.write(tmp_path / "theirs.xyz", atoms, format="extxyz")
        reading = read_structure(tmp_path / "theirs.xyz")
        assert_same(crystal, reading.crystal)
        assert "momenta" in reading.notes[0] and "initial_magmoms" in reading.notes[0]

    @pytest.mark.parametrize("direct", [True, False])
    def test_poscar_is_read_by_ase_and_ours_reads_theirs(self, crystal, direct, tmp_path):
        io = pytest.importorskip("ase.io")
        from ase.constraints import FixAtoms

        crystal.to_poscar(tmp_path / "POSCAR")
        atoms = io.read(tmp_path / "POSCAR", format="vasp")
        assert_same(crystal, Crystal.from_ase(atoms), ordered=False)
        atoms.set_constraint(FixAtoms([0, 1]))
        io.write(tmp_path / "CONTCAR", atoms, format="vasp", direct=direct)
        reading = read_structure(tmp_path / "CONTCAR")
        assert_same(Crystal.from_ase(atoms), reading.crystal)
        assert "selective dynamics" in reading.notes[0]

    def test_poscar_is_read_by_pymatgen_and_ours_reads_theirs(self, crystal, tmp_path):
        from pymatgen.io.vasp import Poscar

        crystal.to_poscar(tmp_path / "POSCAR")
        structure = Poscar.from_file(tmp_path / "POSCAR", check_for_potcar=False).structure
        assert_same(crystal, Crystal.from_pymatgen(structure), ordered=False)
        moving = Poscar(structure, velocities=[[0.1, 0.2, 0.3]] * len(structure))
        reading = read_poscar(str(moving))
        assert_same(Crystal.from_pymatgen(structure), reading.crystal)
        assert "velocities" in reading.notes[0]

    def test_optimade_of_pymatgen(self, crystal):
        adapter = pytest.importorskip("pymatgen.io.optimade").OptimadeStructureAdapter
        entry = adapter.get_optimade_structure(crystal.to_pymatgen())
        assert_same(crystal, read_optimade(json.dumps(entry)).crystal)

    def test_table_of_lemat_genbench_is_read_by_pymatgen(self, crystal, tmp_path):
        from pymatgen.core import Structure

        from matgen_nb.symmetry.structure_files import export_file

        export_file([crystal], ["first"], tmp_path / "t.csv", "lemat")
        with open(tmp_path / "t.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure.from_str(row["cif_string"], fmt="cif")
        assert row["material_id"] == "first"
        assert structure.composition == crystal.to_pymatgen().composition
        assert np.isclose(structure.volume, crystal.volume, rtol=1e-6)


POSCAR, XYZ = SALT.to_poscar(), SALT.to_extxyz()
HEAD = "\n".join(POSCAR.split("\n")[:5])


def entry(**changes):
    species = [dict(name=s, chemical_symbols=[s], concentration=[1.0]) for s in ("Na", "Cl")]
    stated = dict(
        lattice_vectors=SALT.lattice.tolist(),
        cartesian_site_positions=SALT.cart_coords.tolist(),
        species_at_sites=["Na"] * 4 + ["Cl"] * 4,
        species=species,
        dimension_types=[1, 1, 1],
        nsites=8,
        structure_features=[],
    )
    return json.dumps(dict(id="x-1", type="structures", attributes=stated | changes))


NOT_SAID = {
    "elements of VASP 4": (read_poscar, POSCAR.replace("Na Cl\n", ""), "VASP 4"),
    "a comment is no species": (
        read_poscar,
        POSCAR.replace("NaCl\n", "Na Cl\n").replace("\nNa Cl\n", "\n"),
        "VASP 4",
    ),
    "unknown element": (read_poscar, POSCAR.replace("Na Cl", "Na Xx"), "'Xx'"),
    "cut short": (read_poscar, "\n".join(POSCAR.split("\n")[:11]), "the file ends"),
    "cut in a line": (read_poscar, POSCAR.rstrip()[:-20], "3 numbers"),
    "steps of a run": (read_poscar, POSCAR.replace("Direct", "Direct configuration=     1"), "XDATCAR"),
    "two structures": (read_poscar, POSCAR + POSCAR, "another structure"),
    "a word for the scale": (read_poscar, POSCAR.replace("\n1.0\n", "\none\n"), "scale"),
    "zero scale": (read_poscar, POSCAR.replace("\n1.0\n", "\n0\n"), "scale"),
    "no mode": (read_poscar, POSCAR.replace("Direct", "0.0 0.0 0.0"), "Direct or Cartesian"),
    "labels that contradict": (
        read_poscar,
        "\n".join([*POSCAR.split("\n")[:8], *(line + " O" for line in POSCAR.split("\n")[8:16])]),
        "contradict",
    ),
    "atoms in one place": (read_poscar, f"{HEAD}\nNa Cl\n1 1\nDirect\n0 0 0\n0 0 0.01\n", "0.5 A"),
    "no cell": (read_extxyz, "1\nProperties=species:S:1:pos:R:3\nNa 0 0 0\n", "no Lattice"),
    "a flat cell": (read_extxyz, XYZ.replace("5.6400000000", "0.0", 1), "volume"),
    "a slab": (read_extxyz, XYZ.replace("T T T", "T T F"), "pbc"),
    "bohr": (read_extxyz, SALT.to_extxyz(info=dict(length_unit="Bohr")), "convert"),
    "nanometers": (read_extxyz, SALT.to_extxyz(info=dict(units="nm")), "convert"),
    "two frames": (read_extxyz, XYZ * 2, "2 frames"),
    "a frame cut short": (read_extxyz, XYZ + "\n".join(XYZ.split("\n")[:5]), "frame 2 ends"),
    "partial occupancy (column)": (
        read_extxyz,
        XYZ.replace("pos:R:3", "pos:R:3:occupancy:R:1").replace("0000\n", "0000 0.5\n"),
        "partly occupied",
    ),
    "dummy atoms": (read_extxyz, XYZ.replace("\nNa ", "\nX "), "'X'"),
    "missing columns": (read_extxyz, XYZ.replace("pos:R:3", "pos:R:3:q:R:1"), "columns"),
    "an alloy": (
        read_optimade,
        entry(species=[dict(name="Na", chemical_symbols=["Na", "K"], concentration=[0.5, 0.5])]),
        "disordered",
    ),
    "a vacancy": (
        read_optimade,
        entry(species=[dict(name="Na", chemical_symbols=["Na"], concentration=[0.9])]),
        "disordered",
    ),
    "attached hydrogen": (
        read_optimade,
        entry(
            species=[
                dict(name="Na", chemical_symbols=["Na"], concentration=[1], attached=["H"], nattached=[1])
            ]
        ),
        "disordered",
    ),
    "announced disorder": (read_optimade, entry(structure_features=["disorder"]), "disorder"),
    "implicit atoms": (read_optimade, entry(structure_features=["implicit_atoms"]), "no position"),
    "assemblies": (read_optimade, entry(assemblies=[dict(sites_in_groups=[[0], [1]])]), "alternatives"),
    "a layer": (read_optimade, entry(dimension_types=[1, 1, 0]), "2 directions"),
    "no cell in the entry": (read_optimade, entry(lattice_vectors=None), "lattice_vectors"),
    "no species": (read_optimade, entry(species=None), "response_fields"),
    "names without a species": (read_optimade, entry(species_at_sites=["Fe"] * 8), "Fe"),
    "missing sites": (read_optimade, entry(nsites=9), "9 sites"),
    "an empty vector": (read_optimade, entry(lattice_vectors=[[5, 0, 0], [0, 5, 0], [None] * 3]), "volume"),
}


@pytest.mark.parametrize("case", NOT_SAID, ids=lambda c: c.replace(" ", "-"))
def test_what_a_file_does_not_say_is_not_guessed(case):
    reader, text, reported = NOT_SAID[case]
    with pytest.raises(CrystalError, match="(?s)" + reported.replace("(", r"\(")):
        reader(text, "some.file")


def test_scales_of_a_poscar():
    cartesian = "x\n2.0\n1 0 0\n0 2 0\n0 0 3\nNa_pv Cl/a1b2\n1 1\nCartesian\n0 0 0\n0.5 1.0 1.5\n"
    crystal = read_poscar(cartesian).crystal
    assert np.allclose(np.diag(crystal.lattice), [2, 4, 6]) and np.allclose(crystal.frac_coords[1], 0.5)
    assert crystal.elements.tolist() == [11, 17], "suffixes of potentials are no part of the element"
    three = read_poscar(cartesian.replace("2.0\n", "2.0 1.0 0.5\n", 1)).crystal
    assert np.allclose(np.diag(three.lattice), [2, 2, 1.5]) and np.allclose(three.frac_coords[1], 0.5)
    volume = read_poscar(cartesian.replace("2.0\n", "-384\n", 1)).crystal
    assert np.isclose(volume.volume, 384) and np.allclose(volume.frac_coords[1], 0.5)


def test_elements_behind_the_coordinates_are_a_statement():
    lines = POSCAR.replace("Na Cl\n", "").split("\n")
    labelled = [*lines[:7], *(f"{line} {s}" for line, s in zip(lines[7:15], ["Na"] * 4 + ["Cl"] * 4))]
    assert_same(SALT, read_poscar("\n".join(labelled)).crystal)


def test_partial_occupancy_of_ase_is_rejected():
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("Na", cell=[4] * 3, pbc=True, info=dict(occupancy={"0": {"Na": 0.5, "K": 0.5}}))
    with pytest.raises(CrystalError, match="partly occupied"):
        Crystal.from_ase(atoms)
    for wrong, reported in ((dict(pbc=[1, 1, 0], cell=[4] * 3), "T T F"), (dict(pbc=True), "no cell")):
        with pytest.raises(CrystalError, match=reported):
            Crystal.from_ase(ase.Atoms("Na", **wrong))
    with pytest.raises(CrystalError, match="atomic number 0"):
        Crystal.from_ase(ase.Atoms("X", cell=[4] * 3, pbc=True))


def test_without_ase_the_message_names_the_extra(monkeypatch):
    from matgen_nb.utils import MatgenError

    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(MatgenError, match=r"matgen_nb\[ase\]"):
        SALT.to_ase()


def test_name_and_content():
    texts = dict(cif=SALT.to_cif(), poscar=POSCAR, extxyz=XYZ, optimade=entry())
    names = dict(cif="a.cif", poscar="POSCAR", extxyz="a.xyz.gz", optimade="a.json")
    for kind, text in texts.items():
        assert format_of(text) == format_of(text, "x.txt") == format_of(text, names[kind]) == kind
        for other in names.keys() - {kind}:
            with pytest.raises(CrystalError, match="rename"):
                format_of(text, names[other])
    assert format_of("{}", "run.json") is None and format_of("hello", "notes.txt") is None
    with pytest.raises(CrystalError, match="none of the formats"):
        frames_of("hello", "notes.txt")


def test_pages_and_lines_of_optimade():
    page = json.dumps(dict(data=[json.loads(entry())] * 3, meta=dict(more_data_available=True)))
    lines = '{"x-optimade": {"meta": {"api_version": "1.2"}}}\n' + "\n".join([entry()] * 2)
    assert len(split_optimade(page)[0]) == 3 and "more pages" in split_optimade(page)[1][0]
    assert len(split_optimade(lines)[0]) == 2 and not split_optimade(lines)[1]
    with pytest.raises(CrystalError, match="/structures"):
        split_optimade('{"data": [{"type": "references", "attributes": {}}]}')


@pytest.fixture()
def mixed(tmp_path):
    "A folder with a structure in each format, one of three frames, three damaged ones, and a record of a run."
    folder = tmp_path / "mixed"
    folder.mkdir()
    SALT.to_cif(folder / "a.cif")
    SALT.to_poscar(folder / "POSCAR_b")
    (folder / "c.extxyz.gz").write_bytes(gzip.compress((XYZ * 3).encode()))
    (folder / "d.json").write_text(entry())
    (folder / "broken.json").write_text(entry()[:-5])
    (folder / "broken.xyz").write_text(XYZ[:-30])
    (folder / "wrong.vasp").write_text(XYZ)
    (folder / "run.json").write_text('{"command": "matgen"}')
    (folder / "other.xsf").write_text("CRYSTAL\n")
    return folder


def test_prepare_reads_a_mixed_folder(mixed, tmp_path):
    from matgen_nb.symmcd.preparing import prepare

    assert structure_files(mixed).skipped == ["other.xsf"]
    data, report = prepare(mixed, n_jobs=1, progress=None)
    good = ["a.cif", "POSCAR_b", "c.extxyz.gz#0", "c.extxyz.gz#1", "c.extxyz.gz#2", "d.json"]
    assert sorted(data.names) == sorted(good) and data.space_group.tolist() == [225] * 6
    assert {f.name for f in report.failures} == {"broken.json", "broken.xyz", "wrong.vasp"}
    assert "frame 1 of the 3" in report.notes["c.extxyz.gz#1"][0] and "other.xsf" in str(report)
    for name, n in (("POSCAR_b", 1), ("c.extxyz.gz", 3), ("d.json", 1), ("a.cif", 1)):
        alone, _ = prepare(mixed / name, n_jobs=1, progress=None)
        assert alone.space_group.tolist() == [225] * n


def test_commands(mixed, tmp_path):
    from typer.testing import CliRunner

    from matgen_nb.commands.main import app

    def shell(*words):
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, result.output or result.exception
        return result.output

    out = tmp_path / "out"
    said = shell("export", mixed, "--format", "lemat", "--out", out / "t.csv", "--n-jobs", 1)
    assert "6 structures written" in said and "3 of 9 items failed" in said
    shell("prepare", "crystals", out / "t.csv", "--out", out / "t.safetensors", "--n-jobs", 1)
    shell("export", out / "t.csv", "--format", "poscar", "--out", out / "vasp", "--n-jobs", 1)
    assert len(list((out / "vasp").glob("*.vasp"))) == 6
    shell("export", out / "vasp", "--out", out / "all.xyz", "--n-jobs", 1)
    assert len(frames_of((out / "all.xyz").read_text(), "all.xyz")) == 6
    for words, reported in (
        (("export", mixed, "--out", out / "all.xyz"), "exists"),
        (("export", mixed, "--out", out / "b.x", "--format", "xml"), "--format"),
        (("export", mixed, "--out", mixed, "--format", "cif"), "choose another --out"),
    ):
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code and reported in str(result.exception)
    assert sorted(p.name for p in mixed.iterdir())[:2] == ["POSCAR_b", "a.cif"], "inputs stay"


def test_names_of_files_are_distinct():
    stems = file_stems(["a/b.cif", "a_b.cif", "A_B", "../../etc/passwd", "x.xyz#3", "é ü", ""])
    assert len({s.lower() for s in stems}) == len(stems) and not any("/" in s or ".." in s for s in stems)


def test_no_file_of_a_folder_vanishes_without_a_word(tmp_path):
    "Empty files, JSON that is cut off and links that lead nowhere are named; other JSON is no structure."
    (tmp_path / "good.cif").write_text(rock_salt().to_cif())
    (tmp_path / "zero.extxyz").write_text("")
    (tmp_path / "cut.json").write_text('{"data": [{"type": "struct')
    (tmp_path / "zero.json").write_text("")
    (tmp_path / "run.json").write_text('{"seed": 0}')
    (tmp_path / "lost.cif").symlink_to(tmp_path / "nowhere.cif")
    folder = structure_files(tmp_path)
    assert set(folder.skipped) == {"cut.json", "zero.json", "lost.cif"}
    items = dict(folder_items(tmp_path).items)
    assert set(items) == {"good.cif", "zero.extxyz"}
    with pytest.raises(CrystalError, match="no structure"):
        read_item(items["zero.extxyz"])
    for name in ("zero.extxyz", "nope.cif"):
        with pytest.raises(CrystalError, match=name):
            Crystal.from_file(tmp_path / name)


def test_a_json_file_of_a_folder_is_read_once(tmp_path, monkeypatch):
    "Whether it is one of ours, and what it holds, come from one reading."
    from matgen_nb.symmcd.preparing import prepare
    from matgen_nb.symmetry import structure_files as sf

    entry = dict(
        id="one",
        lattice_vectors=[[4, 0, 0], [0, 4, 0], [0, 0, 4]],
        cartesian_site_positions=[[0, 0, 0], [2, 2, 2]],
        species_at_sites=["Cs", "Cl"],
        species=[dict(name=s, chemical_symbols=[s], concentration=[1.0]) for s in ("Cs", "Cl")],
    )
    (tmp_path / "ours.json").write_text(json.dumps(dict(data=[entry])))
    (tmp_path / "lines.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(entry))
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n{"a": 2}')
    (tmp_path / "torn.json").write_text('{"a": ')
    real, read = sf.cif_file_text, []
    monkeypatch.setattr(sf, "cif_file_text", lambda path: read.append(path.name) or real(path))
    found = sf.folder_items(tmp_path)
    names = [name for name, _ in found.items]
    assert names == ["lines.jsonl#0", "lines.jsonl#1", "ours.json"]
    assert sorted(read) == ["lines.jsonl", "other.json", "other.jsonl", "ours.json", "torn.json"]
    folder = sf.structure_files(tmp_path)
    assert [p.name for p in folder.files] == ["lines.jsonl", "ours.json"] and folder.skipped == ["torn.json"]
    assert found.skipped == folder.skipped
    read.clear()
    report = prepare(tmp_path, n_jobs=1, progress=None)[1]
    assert report.skipped == ["torn.json"] and len(read) == 5, "preparing looks into each file once"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crystal.from_ase(None),
        lambda: Crystal.from_ase("x.cif"),
        lambda: Crystal.from_pymatgen(None),
        lambda: Crystal.from_pymatgen("NaCl"),
        lambda: Crystal.from_cif(None),
        lambda: Crystal.from_cif(b"data_x"),
        lambda: Crystal.from_file(None),
        lambda: Crystal.from_file(3),
    ],
)
def test_what_is_no_structure_is_named_by_its_type(make):
    with pytest.raises(MatgenError, match=r"not (NoneType|str|bytes|int)"):
        make()


def test_an_index_is_a_whole_number(tmp_path):
    Crystal(4 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_poscar(tmp_path / "a.vasp")
    with pytest.raises(MatgenError, match="index must be a whole number, not 'a'"):
        Crystal.from_file(tmp_path / "a.vasp", index="a")


def test_an_error_of_a_crystal_is_one_of_ours_and_a_value_error():
    with pytest.raises(MatgenError) as found:
        Crystal(None, None, None)
    assert isinstance(found.value, ValueError)


def test_a_table_is_exported_again_only_over_our_own(tmp_path, capsys):
    "With --overwrite a file that matgen wrote is written anew; somebody's own file is left alone."
    from matgen_nb.commands import main as entry

    def export(*more):
        line = [
            "export",
            str(tmp_path / "in"),
            "--format",
            "lemat",
            "--n-jobs",
            "1",
            "--out",
            *map(str, more),
        ]
        with pytest.raises(SystemExit) as stop:
            entry.main(line)
        return stop.value.code, capsys.readouterr().err

    (tmp_path / "in").mkdir()
    Crystal(4 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_cif(tmp_path / "in" / "a.cif")
    mine, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    theirs.write_text("mine")
    assert export(mine)[0] == 0
    code, said = export(mine)
    assert code == 2 and "--overwrite" in said
    mine.write_text("older")
    assert export(mine, "--overwrite")[0] == 0 and mine.read_text().startswith("material_id")
    code, said = export(theirs, "--overwrite")
    assert code == 2 and "not made by matgen" in said and theirs.read_text() == "mine"
    assert export(tmp_path / "in", "--overwrite")[0] == 2 and export(tmp_path, "--overwrite")[0] == 2


def test_errors_name_paths_and_commands_that_exist(tmp_path, capsys):
    from matgen_nb.commands import main as entry

    (tmp_path / "file").write_text("x")
    for line, words in (
        (["sample", "crystals"], ["There are: mofdiff, symmcd"]),
        (["prepare", "foo"], ["There are: crystals, mofs"]),
        (["sample", "symcd"], ["Did you mean 'symmcd'"]),
        (["sample", "symmcd", "-n", "1", "--out", str(tmp_path / "file" / "x")], ["not a directory"]),
        (["benchmark", "--compare", str(tmp_path)], ["cannot be read: is a directory"]),
    ):
        with pytest.raises(SystemExit) as stop:
            entry.main(line)
        said = " ".join(capsys.readouterr().err.split())
        assert stop.value.code == 2 and all(w in said for w in words) and "Errno" not in said, said
