"""Studies: one file each, run as `python -m experiments.NAME`. Results are kept in LOG.md."""
