"""Run in a process of its own by tests/test_import.py: everything that trains and samples must work with these libraries absent."""

import importlib
import importlib.util
import pkgutil
import sys

BLOCKED = {"pymatgen", "spglib", "pyxtal", "rdkit", "nglview", "pandas", "smact", "ase"}
NOT_AT_IMPORT = {
    "matplotlib",
    "scipy",
    "networkx",
    "gemmi",
}  # torch or the trainer may bring these in later; our modules must not at their top


class Without:
    "An import finder for which the blocked libraries are not installed."

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)


TRAINING_AND_SAMPLING = (
    [f"matgen_nb.symmcd.{m}" for m in ("dataset", "network", "model", "sampling")]
    + [
        f"matgen_nb.mofdiff.{m}"
        for m in (
            "building_blocks",
            "embedding",
            "coarse_graining",
            "network",
            "model",
            "sampling",
            "assembly",
        )
    ]
    + ["matgen_nb.scale.training"]
)


def is_written(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def import_modules():
    "Import all of symmetry and diffusion, and what training and sampling need; returns the names of the latter that are not written yet."
    import matgen_nb.diffusion
    import matgen_nb.symmetry

    for package in (matgen_nb.symmetry, matgen_nb.diffusion):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    for name in filter(is_written, TRAINING_AND_SAMPLING):
        importlib.import_module(name)
    early = NOT_AT_IMPORT & {name.split(".")[0] for name in sys.modules}
    assert not early, f"imported at the top of a module: {early}"
    return [name for name in TRAINING_AND_SAMPLING if not is_written(name)]


def textbook_data():
    "Rock salt, caesium chloride and a perovskite as prepared data, forty copies with different cells: made without any library."
    import numpy as np
    from matgen_nb.symmcd.dataset import from_units
    from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit
    from matgen_nb.symmetry.lattice import lattice_to_k

    kinds = [(225, 5.64, [11, 17], "ab"), (221, 4.12, [55, 17], "ab"), (221, 3.90, [38, 22, 8], "abc")]
    sites = {"a": [0, 0, 0], "b": [0.5, 0.5, 0.5], "c": [0, 0.5, 0.5]}

    def unit(group, a, elements, letters, scale):
        k = lattice_to_k(a * scale * np.eye(3))
        return AsymmetricUnit(
            group,
            np.asarray(k),
            np.array(elements),
            np.array([sites[x] for x in letters]),
            np.array(["abc".index(x) for x in letters]),
        )

    return from_units([unit(*kinds[i % 3], 0.95 + 0.1 * i / 40) for i in range(40)])


def train_and_sample_briefly():
    "A few steps of the Trainer, weights saved and loaded, then crystals: free, of a given formula, of a given group."
    import tempfile
    from pathlib import Path
    import torch
    from matgen_nb.scale.optimization import TrainConfig
    from matgen_nb.scale.training import Trainer
    from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics
    import matgen_nb.symmcd.staged_sampling  # noqa: F401  (gives SymmCD its sample method)
    from matgen_nb.symmcd.reverse import SamplingOptions

    data = textbook_data()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = SymmCD(SymmCDConfig.preset("tiny", width=32, layers=2), crystal_statistics(data))
        config = TrainConfig(
            steps=60,
            batch_size=16,
            lr=5e-3,
            warmup_steps=5,
            ema_decay=0.9,
            log_every=20,
            val_fraction=0.2,
            device="cpu",
            progress=False,
        )
        trainer = Trainer(model, data, config, Path(folder) / "run")
        history = trainer.fit()
        assert history[-1]["step"] == 60 and history[-1]["loss"] < history[0]["loss"], history
        trainer.ema_model.save_pretrained(Path(folder) / "weights.safetensors")
        trained = SymmCD.from_pretrained(Path(folder) / "weights.safetensors")
    free = trained.sample(3, options=SamplingOptions(steps=5, progress=False))
    wanted = trained.sample(
        2, formula="SrTiO3", space_group=221, options=SamplingOptions(steps=5, progress=False)
    )
    assert len(free) == 3 and all(s.row["space_group"] in (221, 225) for s in free)
    assert all(s.crystal.formula == "SrTiO3" and s.row["space_group"] == 221 for s in wanted)
    assert "data_" in free[0].crystal.to_cif()


if __name__ == "__main__":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    assert not any(map(is_written, BLOCKED))
    missing = import_modules()
    train_and_sample_briefly()
    assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
    print("works without", ", ".join(sorted(BLOCKED)), *(["; not written yet:", *missing] if missing else []))
