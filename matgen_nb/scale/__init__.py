"""Training on any hardware, and the `matgen` command."""
