"""Run in a process of its own by tests/test_import.py: everything that trains and samples must work with these libraries absent."""
import importlib
import importlib.util
import pkgutil
import sys

BLOCKED = {"pymatgen", "spglib", "pyxtal", "rdkit", "nglview", "pandas", "matplotlib", "smact"}


class Blocker:
    "An import hook for which the blocked libraries are not installed."

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


def import_modules():
    "Import all of symmetry, diffusion, and what training and sampling need, as far as it is written."
    import matgen_nb.diffusion
    import matgen_nb.symmetry
    for package in (matgen_nb.symmetry, matgen_nb.diffusion):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    names = [f"matgen_nb.symmcd.{m}" for m in ("dataset", "network", "model", "sampling")] + ["matgen_nb.scale.training"]
    for name in names:
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def train_and_sample_briefly():
    "A few steps of training and of sampling with a tiny model (filled in with the model's lessons)."


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    import_modules()
    train_and_sample_briefly()
    assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
    print("works without", ", ".join(sorted(BLOCKED)))
