"""Benchmarks, one file each; `python -m lit_moss evaluate NAME -c …`."""
