"""Bad input is rejected with a message that says what, where and what to do; nothing odd gets through in silence."""

import os

import numpy as np
import pytest

from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError
from matgen_nb.utils import MatgenError

CELL = {"length_a": 5, "length_b": 5, "length_c": 5, "angle_alpha": 90, "angle_beta": 90, "angle_gamma": 90}
COLUMNS = "label type_symbol fract_x fract_y fract_z occupancy"


def cif(*sites, columns=COLUMNS, **changes):
    "The text of a small CIF."
    cell = {k: v for k, v in {**CELL, **changes}.items() if v is not None}
    lines = [
        "data_test",
        *(f"_cell_{k} {v}" for k, v in cell.items()),
        "loop_",
        *(f"_atom_site_{c}" for c in columns.split()),
        *sites,
    ]
    return "\n".join(lines) + "\n"


def rejected(text, *words):
    with pytest.raises(CrystalError) as caught:
        Crystal.from_cif(text)
    for word in words:
        assert word in str(caught.value), str(caught.value)


GOOD = "Na1 Na 0 0 0 1", "Cl1 Cl 0.5 0.5 0.5 1"


def test_the_good_one_is_read():
    assert Crystal.from_cif(cif(*GOOD)).formula == "NaCl"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "hello\nworld\n",
        "data_x\nloop_\n_atom_site_fract_x\n",
        "data_x\n_cell_length_a 5\n",
        cif("Na1 Na 0 0 0"),
    ],
)
def test_no_cif(text):
    rejected(text)


def test_a_file_that_is_not_there():
    rejected("not_there.cif", "not_there.cif", "file")


def test_a_file_is_named_in_its_error(tmp_path):
    path = tmp_path / "broken_one.cif"
    path.write_text(cif("Na1 Na 0 0 0 0.5"))
    rejected(path, "broken_one.cif", "Na1")
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    rejected(tmp_path / "binary.cif", "binary.cif")
    rejected(tmp_path, "neither")


def test_partial_occupancy():
    rejected(cif("Fe1 Fe 0 0 0 0.5", "Ni1 Ni 0 0 0 0.5"), "Fe1", "0.5", "disordered")


def test_deuterium_is_hydrogen():
    assert Crystal.from_cif(cif("D1 D 0 0 0 1", "O1 O2- 0.5 0.5 0.5 1")).elements.tolist() == [1, 8]


@pytest.mark.parametrize("symbol", ["Am", "Og", "X", "Qq", "."])
def test_elements_we_do_not_know(symbol):
    rejected(cif(*GOOD, f"Zz1 {symbol} 0.2 0.2 0.2 1"), "Zz1", "94")


@pytest.mark.parametrize("value", ["?", ".", "nan", "abc"])
def test_missing_coordinates(value):
    rejected(cif(*GOOD, f"O1 O 0.1 {value} 0.1 1"), "O1", "coordinates")


def test_cartesian_coordinates_only():
    rejected(cif("Na1 Na 0 0 0", columns="label type_symbol Cartn_x Cartn_y Cartn_z"), "fract")


def test_duplicate_atoms():
    assert len(Crystal.from_cif(cif(*GOOD, "Na2 Na 0.0001 0 1.0 1"))) == 2  # the same atom again, rounded
    rejected(cif(*GOOD, "Na2 Na 0.06 0 1.0 1"), "overlap", "Na")  # 0.3 A away: another position of it
    rejected(cif(*GOOD, "K1 K 0.0001 0 1.0 1"), "overlap", "K1")


@pytest.mark.parametrize(
    "change",
    [
        {"length_a": 0},
        {"length_a": -4},
        {"angle_alpha": 5, "angle_beta": 170},
        {"angle_gamma": 180},
        {"length_b": "nan"},
    ],
)
def test_a_cell_that_is_none(change):
    rejected(cif(*GOOD, **change))


@pytest.mark.parametrize("key", CELL)
def test_an_incomplete_cell(key):
    rejected(cif(*GOOD, **{key: None}), key, "missing")


@pytest.mark.parametrize("value", ["225.", "x"])
def test_a_number_that_is_none(value):
    rejected(cif(*GOOD).replace("data_", f"data_t\n_symmetry_Int_Tables_number {value}\n#", 1))


def test_one_atom():
    assert len(Crystal.from_cif(cif("Po1 Po 0 0 0 1"))) == 1


@pytest.mark.parametrize(
    "lattice, elements, frac, word",
    [
        (np.zeros((3, 3)), [1], [[0, 0, 0]], "no volume"),
        (np.ones((3, 3)), [1], [[0, 0, 0]], "no volume"),
        (np.eye(3) * np.nan, [1], [[0, 0, 0]], "not a number"),
        (np.eye(3), [1], [[0, np.inf, 0]], "atom 0"),
        (np.eye(2), [1], [[0, 0, 0]], "3 x 3"),
        (np.eye(3), [], np.zeros((0, 3)), "at least one"),
        (np.eye(3), [1, 2], [[0, 0, 0]], "(2, 3)"),
        (np.eye(3), [1, 95], [[0, 0, 0], [0, 0, 0.5]], "atom 1"),
        (np.eye(3), [0], [[0, 0, 0]], "94"),
        (np.eye(3), [1.5], [[0, 0, 0]], "1.5"),
        (np.eye(3), ["Na"], [[0, 0, 0]], "atomic number"),
        (np.eye(3), [1], [["x", 0, 0]], "numbers"),
    ],
)
def test_arrays_that_are_no_crystal(lattice, elements, frac, word):
    with pytest.raises(CrystalError) as caught:
        Crystal(lattice, elements, frac)
    assert word in str(caught.value)


def test_a_left_handed_cell_is_turned():
    crystal = Crystal(np.diag([4.0, 5.0, -6.0]), [11, 17], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
    assert crystal.volume > 0 and np.allclose(np.linalg.norm(crystal.lattice, axis=1), [4, 5, 6])


def test_disordered_and_odd_pymatgen_structures():
    from pymatgen.core import DummySpecies, Lattice, Structure

    cubic = Lattice.cubic(4)
    for species in ({"Fe": 0.5, "Ni": 0.5}, DummySpecies("X"), "Am"):
        with pytest.raises(CrystalError):
            Crystal.from_pymatgen(Structure(cubic, [species], [[0, 0, 0]]))
    with pytest.raises(CrystalError, match="overlap"):
        Crystal.from_pymatgen(Structure(cubic, ["Fe", "Fe"], [[0, 0, 0], [0, 0, 1]]))


# From here on: what the whole pipeline does with such input.


def write_folder(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.cif").write_text(text)
    return folder


BAD = dict(
    torn="data_x\n_cell_length_a 5\n",
    disorder=cif("Fe1 Fe 0 0 0 0.5", "Ni1 Ni 0 0 0 0.5"),
    americium=cif("Am1 Am 0 0 0 1"),
    nothing="",
    nan=cif("Na1 Na 0 nan 0 1"),
    flat=cif(*GOOD, length_a=0),
    double=cif("Na1 Na 0 0 0 1", "K2 K 0 0 0.00001 1"),
)
REASON = dict(
    torn="no atoms",
    disorder="disordered",
    americium="94",
    nothing="",
    nan="coordinates",
    flat="",
    double="overlap",
)


def grid(n, a=3.0):
    "A crystal of n^3 sites of two elements without any symmetry: shaken by a fixed generator."
    rng = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"), -1).reshape(-1, 3)
    return Crystal(
        a * n * np.eye(3),
        np.where(np.arange(n**3) % 2, 11, 17),
        sites + rng.normal(size=sites.shape) * 0.05 / n,
    )


def test_preparing_a_folder_names_every_bad_file(tmp_path):
    from matgen_nb.symmcd.preparing import prepare

    folder = write_folder(tmp_path / "cifs", good=cif(*GOOD), **BAD)
    data, report = prepare(folder, n_jobs=1, progress=None)
    assert data.names == ["good.cif"] and report.total == 1 + len(BAD)
    assert sorted(f.name for f in report.failures) == sorted(f"{name}.cif" for name in BAD)
    for failure in report.failures:
        assert REASON[failure.name[:-4]] in failure.reason, failure


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nothing_to_prepare(tmp_path, n_jobs):
    from matgen_nb.symmcd.preparing import prepare

    (tmp_path / "empty").mkdir()
    (tmp_path / "no_column.csv").write_text("structure\nx\n")
    (tmp_path / "no_rows.csv").write_text("cif\n")
    bad = write_folder(tmp_path / "bad", **BAD)
    for source, text in [
        ("empty", "no structure in"),
        ("no_column.csv", "no column 'cif'.*'structure'"),
        ("no_rows.csv", "none of the 0"),
        ("not_there", "no folder"),
        (bad, "none of the 7"),
    ]:
        with pytest.raises(MatgenError, match=text):
            prepare(tmp_path / source, out=tmp_path / "out.safetensors", n_jobs=n_jobs, progress=None)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_was_changed_or_not_read_is_in_the_report(tmp_path):
    import gzip

    from matgen_nb.symmcd.preparing import CrystalPrepareOptions, prepare

    twice = cif(*GOOD, "Na2 Na 0.0001 0 1.0 1").replace("data_test", "data_one") + cif(
        "Po1 Po 0 0 0 1"
    ).replace("data_test", "data_two")
    folder = write_folder(tmp_path / "mixed", good=cif(*GOOD, length_c=5.05), twice=twice)
    (folder / "packed.cif.gz").write_bytes(gzip.compress(cif(*GOOD).encode()))
    (folder / "cut.cif.gz").write_bytes(gzip.compress(cif(*GOOD).encode())[:-12])
    for name in ("a.xsf", "si.res", "notes.txt", "x.pdb", "POSCAR"):
        (folder / name).write_text("Si")
    data, report = prepare(folder, n_jobs=1, progress=None)
    assert report.skipped == ["a.xsf", "si.res", "x.pdb"] and sorted(data.names) == [
        "good.cif",
        "packed.cif.gz",
        "twice.cif",
    ]
    said = "; ".join(report.notes["twice.cif"])
    assert (
        "merged: Na2" in said
        and "data_two" in said
        and "raised from 123" in "; ".join(report.notes["good.cif"])
    )
    assert [f.name for f in report.failures] == ["cut.cif.gz", "POSCAR"]
    assert "cannot be read" not in report.failures[0].reason.split(":")[0]
    assert "POSCAR, line 2: the file ends" in report.failures[1].reason, "a format that is read, damaged"
    assert "si.res" in str(report) and "notes on" in str(report)
    strict, report = prepare(folder, n_jobs=1, progress=None, options=CrystalPrepareOptions(symprec=0.01))
    assert strict.space_group.tolist()[0] == 123 != data.space_group.tolist()[0] and "raised" not in str(
        report
    )
    with pytest.raises(MatgenError, match="--symprec"):
        prepare(folder, n_jobs=1, progress=None, options=CrystalPrepareOptions(symprec=0))


def test_a_byte_order_mark_in_a_table(tmp_path):
    import csv

    from matgen_nb.symmcd.preparing import read_crystal_csv

    for encoding in ("utf-8", "utf-8-sig"):
        with open(tmp_path / "t.csv", "w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows([("cif", "name"), (cif(*GOOD), "salt")])
        assert [name for name, _ in read_crystal_csv(tmp_path / "t.csv")] == ["salt"]


def test_the_commands_write_the_notes(tmp_path):
    import json

    from matgen_nb.commands import main as entry

    folder = write_folder(tmp_path / "in", good=cif(*GOOD, length_c=5.05))
    (folder / "a.xsf").write_text("Si")
    for options, raised in (([], True), (["--symprec", "0.01"], False)):
        with pytest.raises(SystemExit) as stop:
            entry.main(
                [
                    "prepare",
                    "crystals",
                    str(folder),
                    "--n-jobs",
                    "1",
                    "--overwrite",
                    "--out",
                    str(tmp_path / "o.safetensors"),
                    *options,
                ]
            )
        record = json.loads((tmp_path / "o.run.json").read_text())
        assert stop.value.code == 0 and record["skipped"] == ["a.xsf"]
        assert ("raised" in "; ".join(record["notes"]["good.cif"])) == raised and "no symmetry" in record[
            "notes"
        ]["good.cif"][0]


def test_one_atom_goes_all_the_way(tmp_path):
    from matgen_nb.symmcd.preparing import prepare
    from matgen_nb.symmcd.evaluation import evaluate_crystals

    folder = write_folder(
        tmp_path / "one",
        po=cif("Po1 Po 0 0 0 1", length_a=3.35, length_b=3.35, length_c=3.35),
        d=cif("D1 D 0 0 0 1"),
    )
    data, report = prepare(folder, n_jobs=1, progress=None)
    assert (
        len(data) == 2
        and not report.failures
        and data.space_group.tolist() == [221, 221]
        and data.elements.tolist() == [1, 84]
    )
    crystals = [data[i].to_crystal() for i in (0, 1)]
    evaluated = evaluate_crystals(crystals, crystals, n_jobs=1, progress=False)
    assert not any(row["failure"] for row in evaluated.table) and evaluated.summary["unique"]["value"] == 1


def test_five_hundred_atoms(tmp_path):
    from matgen_nb.symmcd.preparing import CrystalPrepareOptions, prepare
    from matgen_nb.symmcd.evaluation import describe_crystal

    big = grid(8)
    assert len(big) == 512 and len(Crystal.from_cif(big.to_cif())) == 512
    folder = write_folder(tmp_path / "big", big=big.to_cif(), good=cif(*GOOD))
    data, report = prepare(folder, n_jobs=1, progress=None)
    assert (
        data.names == ["good.cif"]
        and "512" in report.failures[0].reason
        and "limits" in report.failures[0].reason
    )
    data, report = prepare(
        folder, n_jobs=1, progress=None, options=CrystalPrepareOptions(max_orbits=600, max_atoms=600)
    )
    assert len(data) == 2 and sorted(data.num_orbits.tolist())[1] == 512
    row = describe_crystal(big, fingerprints=False)
    assert row["struct_valid"] and row["space_group@0.1"] == 1 and not row["failure"]


@pytest.fixture(scope="module")
def model():
    from matgen_nb.symmcd.dataset import from_units, prepare_one
    from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics

    data = from_units([prepare_one(cif(*GOOD))])
    return SymmCD(SymmCDConfig.preset("tiny", width=16, layers=1), crystal_statistics(data)), data


def test_weights_of_another_kind(tmp_path, model):
    import torch
    from safetensors.torch import save_file
    from matgen_nb.symmcd.model import SymmCD

    symmcd, data = model
    symmcd.save_pretrained(tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    torch.save(symmcd.state_dict(), tmp_path / "pickle.safetensors")
    data.save(tmp_path / "crystals.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "foreign.safetensors")
    bare = good.replace(
        b'"checksum":', b'"checksux":'
    )  # a file without a checksum, as the first edition wrote them
    (tmp_path / "next_version.safetensors").write_bytes(
        bare.replace(b"matgen_nb symmcd 1", b"matgen_nb symmcd 9")
    )
    (tmp_path / "other_size.safetensors").write_bytes(bare.replace(b'\\"width\\": 16', b'\\"width\\": 24'))
    (tmp_path / "changed.safetensors").write_bytes(good.replace(b"matgen_nb symmcd 1", b"matgen_nb symmcd 9"))
    for name, text in [
        ("cut", "cut short"),
        ("empty", "cut short"),
        ("pickle", "cut short"),
        ("crystals", "matgen_nb crystals"),
        ("foreign", "something else"),
        ("next_version", "symmcd 9"),
        ("changed", "checksum"),
        ("other_size", "does not fit"),
        ("not_there", "no weights"),
    ]:
        with pytest.raises(MatgenError, match=text):
            SymmCD.from_pretrained(tmp_path / f"{name}.safetensors")
    SymmCD.from_pretrained(tmp_path / "good.safetensors")


def test_data_of_another_kind(tmp_path, model):
    from matgen_nb.symmcd.dataset import CrystalData

    symmcd, data = model
    symmcd.save_pretrained(tmp_path / "weights.safetensors")
    data.save(tmp_path / "data.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "data.safetensors").read_bytes()[:-5])
    for name, text in [("weights", "symmcd"), ("cut", "not a readable"), ("none", "does not exist")]:
        with pytest.raises(MatgenError, match=text):
            CrystalData.load(tmp_path / f"{name}.safetensors")


def test_a_prepared_file_without_names_or_with_missing_parts(tmp_path, model):
    from safetensors.torch import save_file
    from matgen_nb.symmcd.dataset import CRYSTAL_FORMAT, CrystalData

    _, data = model
    save_file(data.tensors(), tmp_path / "nameless.safetensors", {"format": CRYSTAL_FORMAT})
    assert CrystalData.load(tmp_path / "nameless.safetensors").names == ["crystal 0"]
    save_file({"k": data.k}, tmp_path / "parts.safetensors", {"format": CRYSTAL_FORMAT})
    with pytest.raises(MatgenError, match="lacks space_group"):
        CrystalData.load(tmp_path / "parts.safetensors")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_leaves_the_old_file(tmp_path, model, monkeypatch, error):
    symmcd, data = model
    files = {"data.safetensors": data.save, "weights.safetensors": symmcd.save_pretrained}
    for name, save in files.items():
        save(tmp_path / name)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(fd):
        raise error

    monkeypatch.setattr(os, "fsync", full)
    for name, save in files.items():
        with pytest.raises(type(error)):
            save(tmp_path / name)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("symprec", ["nan", "inf", "-1", "0", "1e9"])
def test_tolerances_that_are_none(symprec, tmp_path, capsys):
    "spglib takes nan, and takes the interpreter with it."
    from matgen_nb.commands.main import main
    from matgen_nb.symmcd.dataset import embedded

    embedded(copies=1, max_atoms=4)[0][1].to_cif(tmp_path / "a.cif")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "prepare",
                "crystals",
                str(tmp_path),
                "--out",
                str(tmp_path / "out.safetensors"),
                "--n-jobs",
                "1",
                "--symprec",
                symprec,
            ]
        )
    assert (
        stop.value.code == 2
        and "--symprec" in capsys.readouterr().err
        and not (tmp_path / "out.safetensors").exists()
    )


def test_tolerances_of_the_symmetry_search():
    from matgen_nb.symmcd.dataset import embedded
    from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit

    crystal = embedded(copies=1, max_atoms=4)[0][1]
    for symprec in (float("nan"), float("inf"), -1.0, 0.0):
        with pytest.raises(CrystalError, match="symprec"):
            AsymmetricUnit.from_crystal(crystal, symprec)


def test_no_process_is_no_number_of_processes(tmp_path, capsys):
    from matgen_nb.commands.main import main
    from matgen_nb.symmcd.dataset import embedded

    embedded(copies=1, max_atoms=4)[0][1].to_cif(tmp_path / "a.cif")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "prepare",
                "crystals",
                str(tmp_path),
                "--out",
                str(tmp_path / "out.safetensors"),
                "--n-jobs",
                "0",
            ]
        )
    assert stop.value.code == 2 and "--n-jobs" in capsys.readouterr().err


def test_each_prepared_file_has_its_own_record(tmp_path):
    from matgen_nb.commands.main import main
    from matgen_nb.symmcd.dataset import embedded

    cifs = tmp_path / "cifs"
    cifs.mkdir()
    embedded(copies=1, max_atoms=4)[0][1].to_cif(cifs / "a.cif")
    for name in ("db.1", "db.2"):
        with pytest.raises(SystemExit) as stop:
            main(["prepare", "crystals", str(cifs), "--out", str(tmp_path / name), "--n-jobs", "1"])
        assert not stop.value.code
    assert (tmp_path / "db.1.run.json").exists() and (tmp_path / "db.2.run.json").exists()


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path):
    from matgen_nb.scale.crystal_evaluation import read_crystals
    from matgen_nb.utils import MatgenError

    (tmp_path / "a.cif").write_text("data_x\nnonsense\n")
    with pytest.raises(MatgenError, match=r"none of the 1 structures.*a\.cif: CIF: no atoms"):
        read_crystals(tmp_path)
