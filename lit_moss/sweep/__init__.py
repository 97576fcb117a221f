"""Hyper-parameter sweeps with Optuna: a trial is one `fit` per seed, each in a separate process."""
