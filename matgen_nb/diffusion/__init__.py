"""Four kinds of noise and how to undo them."""
