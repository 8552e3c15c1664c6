"""SymmCD: new crystals with the symmetry asked for."""
