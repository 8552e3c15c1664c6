"""Settings shared by all tests: one thread a process, the package of this checkout, notebooks listed once."""

import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def sample_by_name(model, n, **given):
    "`SymmCD.sample` with the fields of its options given by name beside what is requested."
    from dataclasses import fields

    from matgen_nb.symmcd.reverse import SamplingOptions

    names = {f.name for f in fields(SamplingOptions)} & given.keys()
    options = SamplingOptions(**{name: given.pop(name) for name in names})
    return model.sample(n, options=options, **given)


def rock_salt():
    "NaCl in its conventional cell: four Na, four Cl, a = 5.64 A."
    import numpy as np

    from matgen_nb.symmetry.crystal import Crystal

    corner = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    chlorine = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]])
    return Crystal(5.64 * np.eye(3), [11] * 4 + [17] * 4, np.concatenate([corner, chlorine]))
