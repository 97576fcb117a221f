"""lm-eval tasks included in the package: YAML files and questions."""
