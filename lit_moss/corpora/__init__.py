"""Manifests, readers of public corpora, and the embedded corpora."""
