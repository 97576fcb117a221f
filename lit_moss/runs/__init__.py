"""Run folders, checkpoints, recipes, launching and MLflow tracking."""
