"""SymmCD: new crystals with a given symmetry."""
