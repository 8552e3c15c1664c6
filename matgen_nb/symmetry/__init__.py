"""What a crystal is: lattices, space groups, Wyckoff positions. No learning."""
