"""Benchmarks, one file each; run as `python -m lit_moss evaluate NAME -c …`."""
