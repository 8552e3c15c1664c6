"""The same functions on a Dask cluster: order, failures and time limits are kept. Skipped where Dask is not installed."""

import time
from dataclasses import replace

import joblib
import numpy as np
import pytest
from conftest import rock_salt

from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.parallel import parallel_map

distributed = pytest.importorskip("distributed")
SALT = rock_salt()


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as made,
        distributed.Client(made) as client,
    ):
        yield client


def square(x):
    if x == 3:
        raise ValueError("three is no good")
    start = time.monotonic()
    while x == 5 and time.monotonic() - start < 20:
        time.sleep(0.01)
    return x * x


def test_order_failures_and_time_limits(cluster):
    with joblib.parallel_config(backend="dask"):
        results, failures = parallel_map(square, range(8), progress=None, timeout=1)
    assert results == [0, 1, 4, None, 16, None, 36, 49]
    assert [(f.name, "three" in f.reason, "1 s" in f.reason) for f in failures] == [
        ("3", True, False),
        ("5", False, True),
    ]


def test_preparing_crystals(tmp_path, cluster):
    from matgen_nb.symmcd.preparing import prepare

    for i in range(6):
        SALT.to_cif(tmp_path / f"{i}.cif")
    (tmp_path / "x.cif").write_text("data_nothing\n")
    with joblib.parallel_config(backend="dask"):
        data, report = prepare(tmp_path, progress=None)
    assert (
        len(data) == 6
        and data.space_group.tolist() == [225] * 6
        and [f.name for f in report.failures] == ["x.cif"]
    )


def both(function):
    "function(n_jobs) in a plain loop, and on Dask with two jobs, where the workers must have had the work."
    with distributed.get_task_stream() as stream, joblib.parallel_config(backend="dask"):
        there = function(2)
    assert any("batch_of" in task["key"] for task in stream.data), "nothing ran on the cluster"
    return function(1), there


def test_evaluating_crystals(cluster):
    from matgen_nb.symmcd.evaluation import evaluate_crystals

    chloride = Crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    potassium = Crystal(6.29 * np.eye(3), [19] * 4 + [17] * 4, SALT.frac_coords)
    crushed = Crystal(4 * np.eye(3), [11, 17, 17], np.zeros((3, 3)))
    metrics = "validity", "coverage", "symmetry", "uniqueness", "novelty"
    here, there = both(
        lambda n: evaluate_crystals(
            [SALT, crushed, chloride, SALT], [SALT, potassium], metrics, n_jobs=n, progress=False
        )
    )
    assert repr(here.table) == repr(there.table) and repr(here.summary) == repr(there.summary)
    assert [r["space_group@0.1"] for r in there.table] == [225, None, 221, 225] and [
        r["valid"] for r in there.table
    ] == [True, False, True, True]
    assert [r["failure"] == "" for r in there.table] == [
        True,
        False,
        True,
        True,
    ] and "atoms may overlap" in there.table[1]["failure"]
    assert [r["unique"] for r in there.table] == [True, True, True, False] and [
        r["novel"] for r in there.table
    ] == [False, True, True, False]


NAMES = "MIL-53", "broken", "MOF-74"


@pytest.fixture(scope="module")
def assembled(cluster):
    "Two textbook frameworks and, between them, one with a chemical element that there is not: assembled here and on Dask."
    from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
    from matgen_nb.mofdiff.bonds import textbook_mof
    from matgen_nb.mofdiff.decomposition import decompose
    from matgen_nb.mofdiff.coarse_graining import CoarseMof

    first, last = (CoarseMof.from_decomposition(decompose(textbook_mof(n)), n) for n in (NAMES[0], NAMES[2]))
    block = first.blocks[-1]
    broken = replace(
        first,
        name="broken",
        blocks=[*first.blocks[:-1], replace(block, elements=np.full(len(block.elements), 150))],
    )
    options = AssemblyOptions(starts=8, rotations=512, generations=1, batch_size=1)
    return both(lambda n: assemble([first, broken, last], options=options, n_jobs=n))


def assert_same(a, b):
    "The same cell, atoms and bonds: positions to 1e-6 (or a whole cell away), bond vectors to 1e-5 A."
    bond_vectors = lambda x: (
        (x.crystal.frac_coords[x.bonds[:, 1]] + x.images - x.crystal.frac_coords[x.bonds[:, 0]])
        @ x.crystal.lattice
    )
    moved = a.crystal.frac_coords - b.crystal.frac_coords
    assert (
        np.array_equal(a.crystal.elements, b.crystal.elements)
        and np.array_equal(a.bonds, b.bonds)
        and np.allclose(moved, moved.round(), atol=1e-6)
    )
    assert np.allclose(a.crystal.lattice, b.crystal.lattice, atol=1e-6) and np.allclose(
        bond_vectors(a), bond_vectors(b), atol=1e-5
    )


def test_assembling_frameworks(assembled):
    here, there = assembled
    assert [a.row["name"] for a in there] == list(NAMES) and [a.row["assembled"] for a in there] == [
        True,
        False,
        True,
    ]
    assert (
        there[1].crystal is None
        and "150" in there[1].row["reason"]
        and there[1].row["reason"] == here[1].row["reason"]
    )
    for a, b in zip(here[::2], there[::2]):
        assert_same(a, b)


def test_relaxing_frameworks(assembled):
    from matgen_nb.mofdiff.relaxation import RelaxationOptions, relax_many

    (here, failures), (there, same) = both(
        lambda n: relax_many(assembled[0], NAMES, RelaxationOptions(steps=100), n_jobs=n, progress=None)
    )
    assert failures == same and [f.name for f in failures] == ["broken"] and here[1] is there[1] is None
    for a, b in zip(here[::2], there[::2]):
        assert_same(a, b)
        assert (
            b.converged
            and np.allclose(a.energies, b.energies, rtol=0, atol=1e-6)
            and b.energies[-1] < b.energies[0]
        )


def test_evaluating_frameworks(assembled):
    from matgen_nb.mofdiff.evaluation import evaluate_mofs

    mil, _, mof = (a.crystal for a in assembled[0])
    here, there = both(
        lambda n: evaluate_mofs(
            [mil, "no crystal at all", mof], [mil], [dict(name=n) for n in NAMES], n_jobs=n, progress=False
        )
    )
    assert repr(here) == repr(there) and [f.name for f in there.failures] == ["broken"]
    assert [r["valid"] for r in there.table] == [True, False, True] and [r["novel"] for r in there.table] == [
        False,
        False,
        True,
    ]
