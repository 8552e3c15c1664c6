__version__ = "0.1.0"

# The front door: what most people need, each loaded (with all that belongs to it) when it is first asked for.
# name: the module that defines it, and the last module of the course that gives it methods.
_FRONT_DOOR = {
    "Crystal": ("matgen_nb.symmetry.crystal", "matgen_nb.symmetry.structure_files"),
    "AsymmetricUnit": ("matgen_nb.symmetry.asymmetric_unit", "matgen_nb.symmetry.asymmetric_unit"),
    "SpaceGroup": ("matgen_nb.symmetry.space_groups", "matgen_nb.symmetry.space_groups"),
    "SymmCD": ("matgen_nb.symmcd.model", "matgen_nb.symmcd.staged_sampling"),
    "SamplingOptions": ("matgen_nb.symmcd.reverse", "matgen_nb.symmcd.reverse"),
    "evaluate_crystals": ("matgen_nb.symmcd.evaluation", "matgen_nb.symmcd.evaluation"),
    "energies": ("matgen_nb.symmcd.potential", "matgen_nb.symmcd.potential"),
    "Mof": ("matgen_nb.mofdiff.bonds", "matgen_nb.mofdiff.bonds"),
    "decompose": ("matgen_nb.mofdiff.decomposition", "matgen_nb.mofdiff.decomposition"),
    "BlockEncoder": ("matgen_nb.mofdiff.embedding", "matgen_nb.mofdiff.embedding"),
    "CoarseMof": ("matgen_nb.mofdiff.coarse_graining", "matgen_nb.mofdiff.coarse_graining"),
    "MofDiff": ("matgen_nb.mofdiff.model", "matgen_nb.mofdiff.sampling"),
    "NetFirst": ("matgen_nb.mofdiff.net_first", "matgen_nb.mofdiff.net_first_sampling"),
    "assemble": ("matgen_nb.mofdiff.assembly", "matgen_nb.mofdiff.assembly"),
    "relax": ("matgen_nb.mofdiff.relaxation", "matgen_nb.mofdiff.relaxation"),
    "evaluate_mofs": ("matgen_nb.mofdiff.evaluation", "matgen_nb.mofdiff.evaluation"),
    "generate": ("matgen_nb.mofdiff.pipeline", "matgen_nb.mofdiff.pipeline"),
}


def __getattr__(name):
    "Import a name of the front door on first use (PEP 562)."
    if name not in _FRONT_DOOR:
        raise AttributeError(f"module 'matgen_nb' has no attribute {name!r}")
    from importlib import import_module

    home, complete = _FRONT_DOOR[name]
    import_module(_FRONT_DOOR["Crystal"][1])  # whatever it is, crystals come with all their methods
    import_module(complete)
    return getattr(import_module(home), name)


def __dir__():
    return sorted([*globals(), *_FRONT_DOOR])
