"""Manifests, order, and the LightningDataModules."""

from lit_moss.data.speech import SpeechBatch, SpeechDataModule

__all__ = ["SpeechBatch", "SpeechDataModule"]
