"""Corpora of any layout -> speech manifests: `python -m lit_moss prepare`."""
