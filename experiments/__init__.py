"""Studies and benchmarks, run as `python -m experiments.NAME`. Results are kept in LOG.md."""

import lit_moss as lit_moss  # before torch: it sets how long waiting OpenMP threads spin
