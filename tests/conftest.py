"""Fixtures: real speech where it lies beside the project, synthesised speech everywhere."""

import os
import signal
from pathlib import Path

import lit_moss  # noqa: F401  before torch: it sets how long waiting OpenMP threads spin

# isort: split
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# Downloads and the synthesised corpus are made once and kept; everything else a test writes goes to its
# tmp_path.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed prints to stdout what it has not found
# Threads that wait for each other on tiny tensors spin: on two busy cores a test of 5 s took over 100 s with
# two.
torch.set_num_threads(1)
# In the background of a shell that is not interactive pytest starts with Ctrl-C ignored, and so would the
# programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)  # -m "not slow" is the quick part
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the recordings of ../shared/data")
    return SHARED / "data"


@pytest.fixture(scope="session")
def contract() -> Path:
    if not (SHARED / "contract").is_dir():
        pytest.skip("needs the recorded tensors of ../shared/contract")
    return SHARED / "contract"


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder with train.jsonl (22 utterances) and validation.jsonl (2) of synthesised speech."""
    from lit_moss.corpora.everyday import everyday_corpus

    return everyday_corpus(limit=24)


@pytest.fixture(scope="session")
def speech(corpus) -> list[torch.Tensor]:
    """Eight waves at 16 kHz."""
    from lit_moss.audio import io
    from lit_moss.corpora.manifest import read_manifest

    return [io.read(u.audio, 16_000) for u in read_manifest(corpus / "train.jsonl")[:8]]


@pytest.fixture
def tiny_encoder():
    """A small random encoder; its codebook is drawn from its own frames of noise: any code can be reached."""
    from lit_moss.codec.encoder import CausalEncoder, EncoderConfig

    def make(**changes):
        sizes = {
            "num_mel_bins": 80,
            "d_model": 64,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 128,
            "quantize_position": 2,
            "max_source_positions": 1500,
            "quantize_vocab_size": 256,
        }
        torch.manual_seed(0)
        encoder = CausalEncoder(EncoderConfig(**(sizes | changes)))
        with torch.no_grad():
            frames = encoder.pool(encoder(torch.randn(1, encoder.config.num_mel_bins, 8 * 64)))[0]
            size = encoder.config.quantize_vocab_size
            rows = frames[torch.randint(len(frames), (size,))]
            encoder.codebook.weight.copy_(rows + 0.1 * frames.std() * torch.randn(rows.shape))
            encoder.ema_weight.copy_(encoder.codebook.weight)
        return encoder

    return make
