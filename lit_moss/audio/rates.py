"""All rates of the system, and all conversions between samples, frames and codes.

    16 kHz samples --160--> 100 mel frames/s --2--> 50 hidden frames/s --4--> 12.5 codes/s     (tokenizer)
    12.5 codes/s --4--> 50 mel frames/s --480--> 24 kHz samples                               (decoder)

So one code is 80 ms: 1280 samples at 16 kHz, 8 Whisper mel frames, 4 hidden frames, 1920 samples at 24 kHz.
Source: arXiv:2510.00499, section 2.2 (single codebook) and table 3 (12.5 Hz).
"""

TOKENIZER_RATE_HZ = 16_000
DECODER_RATE_HZ = 24_000

WHISPER_FFT_SAMPLES = 400
WHISPER_HOP_SAMPLES = 160
FRAMES_PER_CODE = 8
HIDDEN_PER_CODE = 4
FRAMES_PER_HIDDEN = 2
SAMPLES_PER_HIDDEN = WHISPER_HOP_SAMPLES * FRAMES_PER_HIDDEN
SAMPLES_PER_CODE = WHISPER_HOP_SAMPLES * FRAMES_PER_CODE
CODE_RATE_HZ = TOKENIZER_RATE_HZ / SAMPLES_PER_CODE
SECONDS_PER_CODE = SAMPLES_PER_CODE / TOKENIZER_RATE_HZ
# Whisper's window; the tokenizer encodes longer audio as independent segments of this length.
MAX_SEGMENT_SAMPLES = 30 * TOKENIZER_RATE_HZ

DECODER_FFT_SAMPLES = 1920
DECODER_HOP_SAMPLES = 480
DECODER_MEL_BINS = 80
FRAMES_PER_CODE_DECODER = 4
DECODER_SAMPLES_PER_CODE = DECODER_HOP_SAMPLES * FRAMES_PER_CODE_DECODER


def codes_of_samples(samples: int) -> int:
    """Number of codes of `samples` samples at 16 kHz; an incomplete code counts (ceil)."""
    return -(-samples // SAMPLES_PER_CODE)


def segment_samples(max_source_positions: int) -> int:
    """Maximum segment length, in samples at 16 kHz, for a position table of this length (rows at 50 Hz)."""
    return min(MAX_SEGMENT_SAMPLES, max_source_positions // HIDDEN_PER_CODE * SAMPLES_PER_CODE)
