"""What a crystal is: lattices, space groups, Wyckoff positions. No learning."""
from matgen_nb.symmetry import structure_files  # noqa: F401  (gives Crystal from_cif, from_file, to_ase, ..., whichever module is taken first)
