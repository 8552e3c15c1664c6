"""What a crystal is: lattices, space groups, Wyckoff positions. No learning."""
from matgen_nb.symmetry import cif  # noqa: F401  (gives Crystal its from_cif, whichever module is taken first)
