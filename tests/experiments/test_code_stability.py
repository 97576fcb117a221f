"""The share of codes that a change of the sound changes."""

import torch

from experiments.benches.code_stability import CHANGES, changed_share
from lit_moss.codec import SpeechTokenizer
from lit_moss.data.wave_changes import WaveChanges


def test_the_share_is_0_without_a_change_and_between_0_and_1_with_one(tiny_encoder, speech):
    tokenizer = SpeechTokenizer(tiny_encoder())
    waves = [wave[:16_000] for wave in speech[:2]]
    assert changed_share(tokenizer, waves, WaveChanges()) == 0.0
    assert 0.0 < changed_share(tokenizer, waves, CHANGES["white noise, 15 dB"]) <= 1.0
    assert changed_share(tokenizer, [torch.zeros(1280)], CHANGES["gain 0.1 (-20 dB)"]) == 0.0
