"""Training on any hardware, result folders, benchmark, ablations."""
