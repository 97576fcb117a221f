"""Comparison with recorded tensors of the released codec."""
