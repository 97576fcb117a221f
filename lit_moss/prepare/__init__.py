"""Data preparation: converts corpora of any layout to speech manifests and documents (`python -m lit_moss
prepare`)."""
