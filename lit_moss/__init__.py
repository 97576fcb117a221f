"""Training code for speech-to-speech language models of the MOSS-Speech kind (arXiv:2510.00499)."""

__version__ = "0.1.0"
