"""Weights in 2, 3, 4 or 8 bits: how they lie in memory, the layers that hold them, and who multiplies them."""
