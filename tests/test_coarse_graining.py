"""Frameworks as beads: sets from folders, tables and archives, what the limits drop, files that come back, and bad input named and skipped."""

import io
import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matgen_nb.mofdiff import coarse_graining, sources
from matgen_nb.mofdiff.bonds import TEXTBOOK, textbook_crystal, textbook_mof
from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.decomposition import Decomposition, decompose
from matgen_nb.mofdiff.coarse_graining import (
    BlockLibrary,
    CoarseMof,
    Limits,
    PAPER_LIMITS,
    bead_distance,
    block_signature,
    check_block,
    excess,
    handedness,
)
from matgen_nb.mofdiff.data import MofBatch, MofData, merged
from matgen_nb.mofdiff.sources import read_bw_db, read_mof_folder, read_properties
from matgen_nb.mofdiff.preparing import MofPrepareOptions, prepare_mofs
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

REAL = Path(os.environ.get("MATGEN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
COARSE = {name: CoarseMof.from_decomposition(decompose(textbook_mof(name))) for name in TEXTBOOK}


def rotation(seed):
    R = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return R * np.sign(np.linalg.det(R))


@pytest.fixture(scope="module")
def textbook():
    return MofData.from_coarse([replace(c, name=n, properties={"beads": len(c)}) for n, c in COARSE.items()])


@pytest.mark.parametrize("name", TEXTBOOK)
def test_there_and_back(name):
    d, again = decompose(textbook_mof(name)), COARSE[name].to_decomposition()
    joints = lambda d: sorted(map(tuple, np.concatenate([d.connections, d.images], 1).tolist()))
    assert isinstance(again, Decomposition) and joints(d) == joints(again)


def test_turned_blocks_must_be_assembled():
    c = COARSE["HKUST-1"]
    with pytest.raises(MatgenError, match="assembled"):
        replace(c, blocks=[b.rotated(rotation(3)) for b in c.blocks]).to_decomposition()


def test_positions_are_wrapped():
    block = COARSE["IRMOF-1"].blocks[0]
    c = CoarseMof(10 * np.eye(3), [[-0.25, 1.5, -1e-18]], [block])
    assert np.allclose(c.frac_coords, [[0.75, 0.5, 0]]) and (c.frac_coords < 1).all()
    with pytest.raises(MatgenError, match="position"):
        CoarseMof(np.eye(3), [[0, 0, 0]], [block, block])


@pytest.mark.parametrize("name", TEXTBOOK)
def test_signature_does_not_depend_on_orientation_or_order(name):
    for block in {b.identity: b for b in COARSE[name].blocks}.values():
        order = np.random.default_rng(0).permutation(len(block))
        place = np.argsort(order)
        other = BuildingBlock(
            block.elements[order],
            block.cart_coords[order],
            place[block.bonds],
            block.connection_points[::-1],
            place[block.connection_atoms[::-1]],
            block.is_metal,
        ).rotated(rotation(1))
        assert np.allclose(block_signature(block), block_signature(other), atol=1e-6)


def test_library_knows_left_from_right():
    propeller = next(b for b in COARSE["MOF-177"].blocks if not b.is_metal)
    mirror = replace(
        propeller, cart_coords=-propeller.cart_coords, connection_points=-propeller.connection_points
    )
    library = BlockLibrary()
    assert library.index(propeller) == library.index(propeller.rotated(rotation(2))) != library.index(mirror)
    assert (
        np.allclose(handedness(mirror), -handedness(propeller))
        and np.abs(handedness(COARSE["IRMOF-1"].blocks[-1])).max() < 1e-6
    )


def test_batches(textbook):
    batch = textbook.select([3, 0])
    assert (
        isinstance(batch, MofBatch)
        and batch.num_blocks.tolist() == [7, 8]
        and batch.batch.tolist() == [0] * 7 + [1] * 8
    )
    assert (
        batch.features.shape == (15, 0)
        and batch.lattice.dtype == batch.frac_coords.dtype == batch.properties.dtype == torch.float32
    )
    features = (
        textbook.with_embeddings(torch.arange(len(textbook.library) * 2.0).reshape(-1, 2))
        .select([3, 0])
        .features
    )
    assert torch.equal(features, torch.stack([2.0 * batch.block, 2.0 * batch.block + 1], 1))
    assert torch.equal(textbook.subset([5, 3]).select([1]).frac_coords, textbook.select([3]).frac_coords)
    assert len(textbook.subset([])) == 0 and len(textbook.to("cpu")) == len(textbook)
    with pytest.raises(IndexError):
        textbook[len(textbook)]
    with pytest.raises(MatgenError, match="embeddings"):
        textbook.with_embeddings(torch.zeros(1, 3))


def test_items_come_back(textbook):
    for i, (name, c) in enumerate(COARSE.items()):
        item = textbook[i]
        assert (
            item.name == name
            and np.allclose(item.lattice, c.lattice)
            and np.allclose(item.frac_coords, c.frac_coords)
        )
        assert [b.identity for b in item.blocks] == [b.identity for b in c.blocks] and item.properties == {
            "beads": len(c)
        }


def test_file_round_trip_without_rdkit(textbook, tmp_path, monkeypatch):
    data = textbook.with_embeddings(
        torch.randn(len(textbook.library), 4, generator=torch.Generator().manual_seed(0))
    )
    data.save(tmp_path / "t.safetensors")
    monkeypatch.setitem(sys.modules, "rdkit", None)
    again = MofData.load(tmp_path / "t.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(data.tensors().values(), again.tensors().values())
    ) and torch.equal(data.embeddings, again.embeddings)
    for a, b in zip(data.library, again.library):
        assert (
            a.stored_identity == b.identity
            and a.is_metal == b.is_metal
            and (a.bonds == b.bonds).all()
            and (a.cart_coords == b.cart_coords).all()
        )
        assert (
            (a.connection_points == b.connection_points).all()
            and (a.connection_atoms == b.connection_atoms).all()
            and (a.elements == b.elements).all()
        )
    assert again.names == data.names and again.info == data.info and again.property_names == ["beads"]


def test_files_of_another_kind(tmp_path, textbook):
    with pytest.raises(MatgenError, match="does not exist"):
        MofData.load(tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    with pytest.raises(MatgenError, match="not a readable"):
        MofData.load(tmp_path / "bad.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(MatgenError, match="matgen prepare mofs"):
        MofData.load(tmp_path / "other.safetensors")
    textbook.save(tmp_path / "t.safetensors")
    with pytest.raises(AttributeError):
        replace(textbook, library=[None]).save(tmp_path / "t.safetensors")
    assert len(MofData.load(tmp_path / "t.safetensors")) == len(textbook), "a failed save leaves the old file"


def test_limits():
    assert excess(COARSE["UiO-66"], PAPER_LIMITS) and not excess(COARSE["UiO-66"])
    assert [len(excess(c)) for c in COARSE.values()] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert "atoms" in excess(COARSE["MOF-177"], Limits(max_blocks=None, max_block_atoms=50))[0].text
    assert "dimension 1" in excess(COARSE["MIL-53"], dimension=1)[0].text
    near = CoarseMof(10 * np.eye(3), [[0, 0, 0], [0, 0, 0.95]], COARSE["IRMOF-1"].blocks[:2])
    assert np.isclose(bead_distance(near), 0.5) and "from each other" in excess(near)[0].text


@pytest.mark.parametrize("points", [0, 1])
def test_blocks_without_connection(points):
    block = COARSE["IRMOF-1"].blocks[-1]
    lonely = replace(
        block,
        connection_points=block.connection_points[:points],
        connection_atoms=block.connection_atoms[:points],
    )
    with pytest.raises(MatgenError, match="no connection point" if points == 0 else "one connection point"):
        check_block(lonely)


def write_folder(folder):
    for name in ("IRMOF-1", "HKUST-1", "MIL-53"):
        textbook_crystal(name).to_cif(folder / f"{name}.cif")
    Crystal(5.64 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_cif(folder / "salt.cif")
    Crystal(3.6 * np.eye(3), [6], [[0, 0, 0]]).to_cif(folder / "carbon.cif")
    (folder / "broken.cif").write_text("data_x\nthis is not a cif")
    (folder / "values.csv").write_text("file,void,remark\nIRMOF-1.cif,0.8,good\nHKUST-1,,bad\n")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_prepare_folder(tmp_path, n_jobs):
    write_folder(tmp_path)
    data, report = prepare_mofs(
        tmp_path, out=tmp_path / "out" / "d.safetensors", n_jobs=n_jobs, progress=None
    )
    assert data.names == ["HKUST-1", "IRMOF-1", "MIL-53"] and (report.total, report.kept) == (6, 3)
    assert {f.name for f in report.failures} == {"salt", "carbon", "broken"} and "rod" in report.notes[
        "MIL-53"
    ][0]
    assert any("no carbon" in str(f) for f in report.failures) and any(
        "no metal" in str(f) for f in report.failures
    )
    again = MofData.load(tmp_path / "out" / "d.safetensors")
    assert (
        again.property_names == ["void"]
        and again[1].properties == {"void": pytest.approx(0.8)}
        and again[0].properties == {}
    )
    assert again.info["limits"]["max_connections"] == 36 and "3 of 6" in str(report)


def test_prepare_same_result_in_parallel(tmp_path):
    write_folder(tmp_path)
    a, b = (
        prepare_mofs(tmp_path, n_jobs=n, progress=None, options=MofPrepareOptions(chunk=2))[0] for n in (1, 2)
    )
    assert all(
        torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
        for x, y in zip(a.tensors().values(), b.tensors().values())
    )
    assert [x.identity for x in a.library] == [x.identity for x in b.library]


def test_prepare_csv_and_limit(tmp_path):
    import csv

    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "cif", "void"])
        for name in ("IRMOF-1", "MIL-53"):
            writer.writerow([name, textbook_crystal(name).to_cif(), 0.5])
    data, report = prepare_mofs(tmp_path / "t.csv", n_jobs=1, progress=None)
    assert data.names == ["IRMOF-1", "MIL-53"] and data.property_names == ["void"]
    assert (
        len(prepare_mofs(tmp_path / "t.csv", n_jobs=1, progress=None, options=MofPrepareOptions(limit=1))[0])
        == 1
    )
    with pytest.raises(MatgenError, match="no column 'structure'"):
        prepare_mofs(tmp_path / "t.csv", n_jobs=1, options=MofPrepareOptions(column="structure"))


def test_nothing_left(tmp_path):
    with pytest.raises(MatgenError, match="no .cif file"):
        prepare_mofs(tmp_path)
    with pytest.raises(MatgenError, match="known set"):
        prepare_mofs("no-such-thing")
    Crystal(5.64 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_cif(tmp_path / "salt.cif")
    with pytest.raises(MatgenError, match="none of the 1"):
        prepare_mofs(tmp_path, out=tmp_path / "d.safetensors", n_jobs=1, progress=None)
    assert not (tmp_path / "d.safetensors").exists()


def test_time_limit(tmp_path, monkeypatch):
    def slow(mof):
        import time

        time.sleep(5)

    monkeypatch.setattr(coarse_graining, "decompose", slow)
    with pytest.raises(MatgenError, match="longer than 0.3 s"):
        prepare_mofs(
            [("slow", textbook_crystal("MIL-53"))],
            n_jobs=1,
            progress=None,
            options=MofPrepareOptions(timeout=0.3),
        )


def test_properties(tmp_path):
    (tmp_path / "p.csv").write_text("MOFname,CO2 [mmol/g],name\nm1.cif,2.5,7\nm2,nan,8\n")
    assert read_properties(tmp_path / "p.csv") == {"m1": {"CO2 [mmol/g]": 2.5}, "m2": {}}
    (tmp_path / "q.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MatgenError, match="names the structures"):
        read_properties(tmp_path / "q.csv")
    (tmp_path / "x.cif").write_text("data_x")
    with pytest.raises(MatgenError, match="names none"):
        read_mof_folder(tmp_path, tmp_path / "p.csv")


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))


def test_bw_db_layout(tmp_path, monkeypatch):
    archive(
        tmp_path / "s.tar.gz",
        {
            "cifs/m1.cif": textbook_crystal("IRMOF-1").to_cif(),
            "cifs/._m1.cif": "junk",
            "cifs/m2.cif": "data_nothing",
        },
    )
    archive(tmp_path / "t.tar.gz", {"all_MOFs_screening_data.csv": "MOFname,uptake\nm1,2.5\n"})
    monkeypatch.setattr(
        sources,
        "download_bw_db",
        lambda kind: tmp_path / ("s.tar.gz" if kind == "structures" else "t.tar.gz"),
    )
    with pytest.raises(MatgenError, match="names 1 frameworks, 324,426 were published.*Remove .*t.tar.gz"):
        prepare_mofs("bw-db", tmp_path / "out.safetensors", n_jobs=1, progress=None)
    assert not (tmp_path / "out.safetensors").exists()
    assert [name for name, *_ in read_bw_db(tmp_path / "s.tar.gz", tmp_path / "t.tar.gz")] == ["m1", "m2"], (
        "one's own files may be a part"
    )
    monkeypatch.setattr(sources, "BW_DB_ROWS", 1)
    data, report = prepare_mofs("bw-db", n_jobs=1, progress=None)
    assert data.names == ["m1"] and data[0].properties == {"uptake": 2.5} and report.total == 2
    archive(tmp_path / "u.tar.gz", {"other.csv": "a\n"})
    with pytest.raises(MatgenError, match="all_MOFs_screening_data"):
        list(read_bw_db(tmp_path / "s.tar.gz", tmp_path / "u.tar.gz"))


def test_limits_hold_for_the_embedded_set_as_well(tmp_path):
    data, report = prepare_mofs("embedded", progress=None, options=MofPrepareOptions(limit=300))
    assert report.total == report.kept == len(data) == 300 and not report.failures, (
        "what ships is inside the default limits"
    )
    few, report = prepare_mofs(
        "embedded",
        tmp_path / "few.safetensors",
        progress=None,
        options=MofPrepareOptions(limit=300, limits=Limits(max_blocks=6, min_bead_distance=4.0)),
    )
    assert (
        0 < report.kept < 300
        and report.total == 300
        and len(report.failures) == 300 - report.kept == 300 - len(few)
        and (few.num_blocks <= 6).all()
    )
    assert all("outside the limits" in f.reason for f in report.failures) and len(
        MofData.load(tmp_path / "few.safetensors")
    ) == len(few)
    by_name = dict(zip(data.names, data.num_blocks.tolist()))
    assert all(by_name[f.name] > 6 or "from each other" in f.reason for f in report.failures)
    for choices, text in (
        (dict(limits=Limits(max_blocks=1)), "none of the 300 embedded"),
        (dict(limit=0), "at least 1"),
    ):
        with pytest.raises(MatgenError, match=text):
            prepare_mofs("embedded", progress=None, options=MofPrepareOptions(**dict(limit=300) | choices))


def test_download_without_network(tmp_path, monkeypatch):
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    monkeypatch.setattr(sources, "BW_DB_RECORD", (tmp_path / "nothing").as_uri())
    with pytest.raises(MatgenError, match="Without a network"):
        sources.download_bw_db("structures")


def test_download_is_checked_against_what_the_archive_states(tmp_path, monkeypatch):
    "A server that plays the archive, with the real pooch: the right file is taken, another one is rejected and nothing stays."
    import functools, http.server, threading
    import pooch

    site = tmp_path / "site"
    (site / "api").mkdir(parents=True)
    archive(site / "MOF_database.tar.gz", {"m.cif": "data_m"})
    archive(site / "screening_data.tar.gz", {"t.csv": "a"})
    entries = [
        dict(
            key="MOF_database.tar.gz",
            checksum="md5:" + pooch.file_hash(str(site / "MOF_database.tar.gz"), "md5"),
        ),
        dict(key="screening_data.tar.gz", checksum="md5:" + "0" * 32),
    ]
    (site / "api" / "files").write_text(json.dumps(dict(entries=entries)))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *args: None))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    for name, value in (("BW_DB", url), ("BW_DB_RECORD", url + "api/files")):
        monkeypatch.setattr(sources, name, value)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    try:
        assert sources.download_bw_db("structures").exists()
        with pytest.raises(MatgenError, match="not the file that was published.*md5:000"):
            sources.download_bw_db("properties")
    finally:
        server.shutdown()
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "bw-db-MOF_database.tar.gz",
        "bw-db-MOF_database.tar.gz.sha256",
    ]


def test_download_keeps_a_checksum(tmp_path, monkeypatch):
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(sources, "BW_DB_RECORD", (tmp_path / "nothing").as_uri())
    requested = []

    def fetch(url, known_hash, fname, path):
        requested.append(known_hash)
        archive(Path(path) / fname, {"m.cif": "data_m"}) if not (Path(path) / fname).exists() else None
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", fetch)
    sources.download_bw_db("structures"), sources.download_bw_db("structures")
    assert requested[0] is None and requested[1].startswith("sha256:")
    (tmp_path / "bw-db-screening_data.tar.gz").write_bytes(b"half a file")
    with pytest.raises(MatgenError, match="damaged"):
        sources.download_bw_db("properties")
    assert not (tmp_path / "bw-db-screening_data.tar.gz").exists()


@pytest.mark.skipif(not (REAL / "mofs").exists(), reason="no collection of real frameworks at hand")
def test_real_frameworks():
    data, report = prepare_mofs(
        REAL / "mofs",
        n_jobs=1,
        progress=None,
        options=MofPrepareOptions(limits=Limits(max_blocks=None, min_dimension=1)),
    )
    assert report.total >= 81 and report.kept >= 77 and len(data.library) < sum(data.num_blocks) / 4
    points = torch.tensor([b.num_connections * (1 if b.is_metal else -1) for b in data.library])
    batch = data.select(range(len(data)))
    assert (
        torch.zeros(len(data), dtype=torch.long).index_add(0, batch.batch, points[batch.block]).eq(0).all()
    ), "metal points = organic points in every framework"


def test_a_part_of_the_embedded_set_holds_its_own_blocks_only(tmp_path):
    data, _ = prepare_mofs(
        "embedded", tmp_path / "m.safetensors", n_jobs=1, progress=None, options=MofPrepareOptions(limit=20)
    )
    assert len(data) == 20 and len(data.library) == len(set(data.block.tolist())) < 100
    whole, _ = prepare_mofs("embedded", n_jobs=1, progress=None, options=MofPrepareOptions(limit=40))
    for i in range(20):
        assert [b.identity for b in data[i].blocks] == [
            b.identity for b in whole[i].blocks
        ] and np.array_equal(data[i].frac_coords, whole[i].frac_coords)


def test_properties_are_rejected_where_they_would_be_ignored(tmp_path):
    (tmp_path / "p.csv").write_text("file,x\na,1\n")
    (tmp_path / "all.csv").write_text("name,cif\na,b\n")
    for source in ("embedded", "bw-db", tmp_path / "all.csv"):
        with pytest.raises(MatgenError, match="folder of CIF files"):
            prepare_mofs(
                source, n_jobs=1, progress=None, options=MofPrepareOptions(properties=tmp_path / "p.csv")
            )
    (tmp_path / "cifs").mkdir()
    textbook_crystal("IRMOF-1").to_cif(tmp_path / "cifs" / "a.cif")
    (tmp_path / "words.csv").write_text("file,x\na,big\n")
    with pytest.raises(MatgenError, match="holds no numbers"):
        prepare_mofs(
            tmp_path / "cifs",
            n_jobs=1,
            progress=None,
            options=MofPrepareOptions(properties=tmp_path / "words.csv"),
        )


def named_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("data_" + name)


def labelled(folder, table, text):
    "Properties by structure and the notes, from a folder and the text of a table."
    (folder.parent / table).write_text(text)
    notes = {}
    items = read_mof_folder(folder, folder.parent / table, notes)
    return {name: values for name, _, values in items if values}, "\n".join(notes.get(table, []))


def test_the_table_of_our_own_evaluation_goes_by_name(tmp_path):
    "`file` numbers the copies; a file that is missing must not shift the labels of those behind it."
    named_files(tmp_path / "d", ["00000.cif", "00002.cif", "00003.cif", "MIL-53.cif"])
    rows = [
        f"{k:05d}.cif,{name},True,{value}"
        for k, (name, value) in enumerate(
            [("00000", 10), ("00001", 11), ("00002", 12), ("00003", 13), ("MIL-53", 14)]
        )
    ]
    values, notes = labelled(tmp_path / "d", "t.csv", "\n".join(["file,name,checks_passed,lcd", *rows]))
    assert values == {"00000": {"lcd": 10}, "00002": {"lcd": 12}, "00003": {"lcd": 13}, "MIL-53": {"lcd": 14}}
    assert "named by the column 'name'" in notes and "1 row(s) name no file: 00001" in notes
    copies = ["00000.cif", "00001.cif", "00002.cif", "00003.cif", "00004.cif"]
    named_files(tmp_path / "c", copies)
    rows = ["00000.cif,a,True,1", "00001.cif,b,True,2", "00004.cif,c,True,3"]
    values, notes = labelled(tmp_path / "c", "t.csv", "\n".join(["file,name,checks_passed,lcd", *rows]))
    assert (
        values == {"00000": {"lcd": 1}, "00001": {"lcd": 2}, "00004": {"lcd": 3}}
        and "named by the column 'file'" in notes
    ), "its copies go by file"


@pytest.mark.parametrize(
    "bad",
    [
        "0,85",
        "12.3 %",
        "1,234",
        "n/a",
        "N/A",
        "-",
        "none",
        "1_000",
        "inf",
        "1.2(3)",
        "3.4 A",
        "<0.1",
        "about 3",
    ],
)
def test_values_that_are_no_numbers_are_counted_and_named(tmp_path, bad):
    named_files(tmp_path / "d", ["a.cif", "b.cif", "c.cif"])
    text = f'file,void,remark\na,0.5,good\nb,"{bad}",bad\nc,1.5e-1,\n'
    values, notes = labelled(tmp_path / "d", "t.csv", text)
    assert values == {"a": {"void": 0.5}, "c": {"void": 0.15}}
    assert (
        "column 'void': 1 of 3 values are no numbers" in notes
        and f"b {bad!r}" in notes
        and "remark" not in notes
    )
    items, reported = sources.read_mof_csv, {}
    (tmp_path / "s.csv").write_text(f'name,cif,void\na,x,0.5\nb,y,"{bad}"\n')
    assert [values for *_, values in items(tmp_path / "s.csv", notes=reported)] == [
        {"void": 0.5},
        {},
    ] and f"b {bad!r}" in reported["s.csv"][0]


def test_a_decimal_comma_without_quotes_is_not_read_as_a_whole_number(tmp_path):
    named_files(tmp_path / "d", ["a.cif", "b.cif"])
    values, notes = labelled(tmp_path / "d", "t.csv", "file,void\na,0,85\nb,0.5\n")
    assert values == {"b": {"void": 0.5}} and "1 row(s) have more cells" in notes and "left out: a" in notes


def test_nothing_but_decimal_commas(tmp_path):
    named_files(tmp_path / "d", ["a.cif", "b.cif"])
    with pytest.raises(MatgenError, match="no numbers.*0,85"):
        labelled(tmp_path / "d", "t.csv", 'file,void\na,"0,85"\nb,"0,9"\n')
    with pytest.raises(MatgenError, match="semicolons"):
        labelled(tmp_path / "d", "u.csv", "file;void\na;0,85\n")


def test_text_is_no_property(tmp_path):
    named_files(tmp_path / "d", ["a.cif", "b.cif"])
    rows = ["a,Zn,True,97e674cd461889ab,2,2024-01-01", "b,Cu,False,12ab34cd56ef7890,3,2024-01-02"]
    values, notes = labelled(
        tmp_path / "d", "t.csv", "\n".join(["name,formula,valid,identity,blocks,date", *rows])
    )
    assert (
        values == {"a": {"blocks": 2}, "b": {"blocks": 3}}
        and "formula" not in notes
        and "identity" not in notes
    )


def test_rows_that_do_not_fit_are_counted_and_named(tmp_path):
    named_files(tmp_path / "d", ["MIL-53.cif", "b.cif", "c.cif", "lonely.cif", "x/twin.cif", "y/twin.cif"])
    rows = [
        "mil-53,1,7",
        "b,2,7",
        "b.cif,2,8",
        "c,3,7",
        "c,3,7",
        "gone,4,7",
        "other,5,7",
        "twin,6,7",
        "x/twin,7,7",
    ]
    values, notes = labelled(tmp_path / "d", "t.csv", "\n".join(["file,void,n", *rows]))
    assert values == {
        "MIL-53": {"void": 1, "n": 7},
        "b": {"void": 2},
        "c": {"void": 3, "n": 7},
        "x/twin": {"void": 7, "n": 7},
    }
    for line in (
        "2 row(s) name no file: gone, other",
        "2 file(s) have no row: lonely, y/twin",
        "1 row(s) name a file in other case and were taken: mil-53 for MIL-53",
        "1 row(s) may mean several files and were left out: twin",
        "b (2 rows, they differ in n)",
        "c (2 rows)",
    ):
        assert line in notes, line


def test_files_of_one_name_have_relative_names(tmp_path):
    named_files(tmp_path, ["a/MOF.cif", "b/MOF.cif", "b/other.cif", "top.CIF", "c/d/MOF.cif"])
    items = read_mof_folder(tmp_path)
    assert {name: text for name, text, _ in items} == {
        "a/MOF": "data_a/MOF.cif",
        "b/MOF": "data_b/MOF.cif",
        "c/d/MOF": "data_c/d/MOF.cif",
        "other": "data_b/other.cif",
        "top": "data_top.CIF",
    }
    text = "name,void\na/MOF.cif,1\nb/MOF,2\nb/other,3\nc/d/MOF.CIF,4\ne/top,5\n"
    (tmp_path.parent / "paths.csv").write_text(text)
    assert {
        name: values.get("void")
        for name, _, values in read_mof_folder(tmp_path, tmp_path.parent / "paths.csv")
    } == {"a/MOF": 1, "b/MOF": 2, "c/d/MOF": 4, "other": 3, "top": 5}


def test_names_that_differ_in_case_only(tmp_path):
    named_files(tmp_path / "d", ["ab.cif", "x/AB.cif"])
    values, notes = labelled(tmp_path / "d", "t.csv", "name,void\nab,1\nAB,2\nAb,3\n")
    assert (
        values == {"ab": {"void": 1}, "AB": {"void": 2}}
        and "may mean several files and were left out: Ab" in notes
    )


def test_names_that_stand_twice_in_a_table_of_structures(tmp_path):
    (tmp_path / "t.csv").write_text("name,cif,void\na,x,1\na,y,2\nb,z,3\n")
    notes = {}
    assert [item[0] for item in sources.read_mof_csv(tmp_path / "t.csv", notes=notes)] == [
        "a (row 1)",
        "a (row 2)",
        "b",
    ]
    assert notes == {"t.csv": ["1 name(s) stand in several rows: a"]}


def test_edges_stay_with_the_beads(tmp_path):
    "Which beads are joined is kept from the decomposition to the file, whatever cell the beads are given in."
    from matgen_nb.mofdiff.nets import bead_graph, decomposition_graph, isomorphism

    whole = [decompose(textbook_mof(name)) for name in ("IRMOF-1", "MIL-53")]
    coarse = [CoarseMof.from_decomposition(d, name) for d, name in zip(whole, ("one", "two"))]
    for d, c in zip(whole, coarse):
        cells = np.random.default_rng(0).integers(-2, 3, (len(c), 3))
        shifts = c.shifts - cells[c.edges[:, 1]] + cells[c.edges[:, 0]]
        again = replace(c, frac_coords=c.frac_coords + cells, shifts=shifts)
        assert (again.edges == c.edges).all() and (again.shifts == c.shifts).all()
        graph = bead_graph(replace(c, frac_coords=np.random.default_rng(1).random((len(c), 3))))
        same = replace(graph, classes=graph.labels)
        assert isomorphism(decomposition_graph(d), same) is not None, "distances play no part"
    bare = replace(coarse[0], edges=None, shifts=None, name="bare")
    data = MofData.from_coarse([coarse[0], bare, coarse[1]])
    data.save(tmp_path / "mofs.safetensors")
    for some in (data, MofData.load(tmp_path / "mofs.safetensors"), merged([data]), data.trimmed()):
        for i, c in enumerate((coarse[0], bare, coarse[1])):
            assert (some[i].edges is None) == (c.edges is None)
            if c.edges is not None:
                assert (some[i].edges == c.edges).all() and (some[i].shifts == c.shifts).all()
        part = some.subset([2, 1])
        assert part[1].edges is None and (part[0].shifts == coarse[1].shifts).all()
    with pytest.raises(MatgenError, match="shifts"):
        replace(coarse[0], edges=[[0, 99]], shifts=[[0, 0, 0]])
