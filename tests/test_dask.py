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
