"""The same functions on a Dask cluster: order, failures and time limits are kept. Skipped where Dask is not installed."""
import time

import joblib
import numpy as np
import pytest

from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import parallel_map

distributed = pytest.importorskip("distributed")
SALT = Crystal(5.64 * np.eye(3), [11] * 4 + [17] * 4, [[0, 0, 0], [0, .5, .5], [.5, 0, .5], [.5, .5, 0], [.5, 0, 0], [0, .5, 0], [0, 0, .5], [.5, .5, .5]])


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made, distributed.Client(made) as client:
        yield client


def square(x):
    if x == 3: raise ValueError("three is no good")
    start = time.monotonic()
    while x == 5 and time.monotonic() - start < 20: time.sleep(.01)
    return x * x


def test_order_failures_and_time_limits(cluster):
    with joblib.parallel_config(backend="dask"): results, failures = parallel_map(square, range(8), progress=None, timeout=1)
    assert results == [0, 1, 4, None, 16, None, 36, 49]
    assert [(f.name, "three" in f.reason, "1 s" in f.reason) for f in failures] == [("3", True, False), ("5", False, True)]


def test_preparing_crystals(tmp_path, cluster):
    from matgen_nb.symmcd.dataset import prepare
    for i in range(6): SALT.to_cif(tmp_path/f"{i}.cif")
    (tmp_path/"x.cif").write_text("data_nothing\n")
    with joblib.parallel_config(backend="dask"): data, report = prepare(tmp_path, progress=None)
    assert len(data) == 6 and data.space_group.tolist() == [225] * 6 and [f.name for f in report.failures] == ["x.cif"]


def on_dask(function):
    with joblib.parallel_config(backend="dask"): return function()


def test_evaluating_crystals(cluster):
    from matgen_nb.symmcd.evaluation import evaluate_crystals
    chloride = Crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [.5, .5, .5]])
    judge = lambda: evaluate_crystals([SALT, chloride, None], [SALT], ("validity", "symmetry", "uniqueness", "novelty"), n_jobs=2, progress=False)
    here, there = judge(), on_dask(judge)
    assert str(here) == str(there) and [r["failure"] for r in there.table][:2] == ["", ""] and there.table[2]["failure"] == "no crystal"
    assert there.summary["novel"]["value"] == pytest.approx(1 / 3)


def test_assembling_relaxing_and_judging_frameworks(cluster):
    from matgen_nb.mofdiff.assembly import assemble
    from matgen_nb.mofdiff.building_blocks import decompose, textbook_mof
    from matgen_nb.mofdiff.coarse_graining import CoarseMof
    from matgen_nb.mofdiff.evaluation import evaluate_mofs
    from matgen_nb.mofdiff.relaxation import relax_many
    names = ["MIL-53", "IRMOF-1"]
    coarse = [CoarseMof.from_decomposition(decompose(textbook_mof(n)), name=n) for n in names]
    build = lambda: assemble(coarse, seed=0, starts=8, generations=1, batch_size=1, n_jobs=2)
    here, there = build(), on_dask(build)
    assert all(a.row["assembled"] and np.allclose(a.crystal.frac_coords, b.crystal.frac_coords, atol=1e-6) for a, b in zip(here, there))
    relax = lambda: relax_many([here[0], None], ["MIL-53", "nothing"], n_jobs=2, time_limit=120)
    (rested, none), failures = on_dask(relax)
    assert rested.row["converged"] and none is None and [f.name for f in failures] == ["nothing"]
    assert np.allclose(rested.crystal.lattice, relax()[0][0].crystal.lattice, atol=1e-6)
    judge = lambda: evaluate_mofs([a.crystal for a in here] + [None], (), [dict(name=n) for n in [*names, "nothing"]], n_jobs=2, progress=False)
    assert str(judge()) == str(on_dask(judge))
