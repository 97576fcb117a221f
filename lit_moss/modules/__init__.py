"""LightningModules: each joins the plain parts, logs, and says what it optimises."""

from lit_moss.modules.codec_encoder import CodecEncoder

__all__ = ["CodecEncoder"]
