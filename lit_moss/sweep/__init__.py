"""Sweeps by Optuna: a trial is one `fit` for each seed, a process of its own."""
