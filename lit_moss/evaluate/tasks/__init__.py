"""Tasks for lm-eval that come with the package: their YAML files and their questions."""
