"""A clip of nearly 30 s that augmentation made longer ended the tokenizer's training with a traceback.

The encoder's positions end at 30 s. The order of data is exact, so each resume came to the same batch again.
"""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.audio import rates
from lit_moss.data import SpeechDataModule


@pytest.mark.parametrize("changes", [{"speeds": [0.9]}, {"shift": True}, {"speeds": [0.9], "shift": True}])
def test_a_clip_of_30_seconds_stays_within_the_encoder(tmp_path, changes):
    noise = np.random.default_rng(0).normal(0, 0.1, 30 * rates.TOKENIZER_RATE_HZ)
    lines = []
    for name, seconds in (("long", 30.0), ("short", 5.0)):
        soundfile.write(tmp_path / f"{name}.wav", noise[: int(seconds * 16000)], rates.TOKENIZER_RATE_HZ)
        lines.append({"audio_filepath": f"{name}.wav", "duration": seconds, "text": "noise"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = SpeechDataModule(train=[str(tmp_path / "train.jsonl")], batch_sec=40.0, workers=0, **changes)
    data.setup("fit")
    lengths = {}
    for _, batch in zip(range(4), data.train_dataloader(), strict=False):
        lengths |= dict(zip(batch.ids, batch.samples_B.tolist(), strict=True))
    long, short = (next(n for name, n in lengths.items() if kind in name) for kind in ("long", "short"))
    assert long == rates.MAX_SEGMENT_SAMPLES
    assert short > 5 * rates.TOKENIZER_RATE_HZ  # changed
