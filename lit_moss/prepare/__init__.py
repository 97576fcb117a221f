"""Data preparation: converts corpora to speech manifests and documents (`python -m lit_moss prepare`)."""
