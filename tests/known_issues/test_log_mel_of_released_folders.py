"""A released tokenizer folder states no log-mel, and the causal one was taken without a word.

14.8 % of the codes (k-means codec, 14 clips) differed from those of Whisper's log-mel, which such tokenizers
were trained on. In training `log_mel: whisper` was saved but not used.
"""

import json

import pytest
import torch

from lit_moss.audio.features import CausalLogMel, whisper_log_mel
from lit_moss.codec import SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.hub import open_tokenizer, speech_tokenizer_fingerprint

CODE = 1280


def saved(tokenizer, folder, **changes):
    """The tokenizer's folder with other settings; None takes a key away."""
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def released(tiny_encoder, tmp_path):
    return saved(SpeechTokenizer(tiny_encoder()), tmp_path / "released", log_mel=None)


def test_a_folder_that_states_none_is_encoded_by_the_released_rule(released, tiny_encoder, speech):
    wave = speech[0]
    expected = SpeechTokenizer(tiny_encoder(log_mel="whisper")).encode(wave, 16_000)
    assert torch.equal(SpeechTokenizer.from_pretrained(released).encode(wave, 16_000), expected)
    causal = SpeechTokenizer.from_pretrained(released, log_mel="causal")
    assert torch.equal(causal.encode(wave, 16_000), SpeechTokenizer(tiny_encoder()).encode(wave, 16_000))


def test_such_a_folder_streams_on_request_alone(released, speech):
    with pytest.raises(UserError, match="log_mel='causal'"):
        SpeechTokenizer.from_pretrained(released).stream()
    causal = SpeechTokenizer.from_pretrained(released, log_mel="causal")
    stream = causal.stream()
    streamed = torch.cat([stream.push(speech[0]), stream.flush()])
    assert torch.equal(streamed, causal.encode(speech[0], 16_000))


def test_a_fingerprint_tells_the_features_apart(released, tiny_encoder, tmp_path):
    ours = saved(SpeechTokenizer(tiny_encoder()), tmp_path / "ours")
    assert speech_tokenizer_fingerprint(str(ours)) == speech_tokenizer_fingerprint(str(ours), "causal")
    assert speech_tokenizer_fingerprint(str(ours)) != speech_tokenizer_fingerprint(str(ours), "whisper")
    assert speech_tokenizer_fingerprint(str(released)) == speech_tokenizer_fingerprint(
        str(released), "whisper"
    )
    assert speech_tokenizer_fingerprint(str(released)) != speech_tokenizer_fingerprint(
        str(released), "causal"
    )
    with pytest.raises(UserError, match="log_mel is 'both'"):
        speech_tokenizer_fingerprint(str(released), "both")
    assert open_tokenizer(str(released), "causal").config.log_mel == "causal"


def test_codes_do_not_depend_on_what_is_encoded_together(tiny_encoder, speech):
    """Whisper's windows are centred: the last of a wave saw its neighbours' padding."""
    tokenizer = SpeechTokenizer(tiny_encoder(log_mel="whisper"))
    waves = [wave[: len(wave) // CODE * CODE] for wave in speech[:4]]
    together = tokenizer.encode(waves, 16_000)
    assert all(torch.equal(a, tokenizer.encode(w, 16_000)) for a, w in zip(together, waves, strict=True))


@pytest.mark.parametrize("log_mel", ["causal", "whisper"])
def test_training_takes_the_features_that_are_saved(tiny_encoder, speech, log_mel):
    from lit_moss.data.batches import SpeechBatch
    from lit_moss.modules.codec_encoder import CodecEncoder

    wave = speech[0][: 10 * CODE][None]
    model = CodecEncoder(init_from=None, encoder=tiny_encoder().config, log_mel=log_mel)
    batch = SpeechBatch.__new__(SpeechBatch)
    for name, value in {"wave_BT": wave, "freq_masks": [], "time_masks": []}.items():
        object.__setattr__(batch, name, value)
    expected = whisper_log_mel(wave, 80) if log_mel == "whisper" else CausalLogMel(80)(wave)
    assert torch.equal(model.log_mel(batch), expected)
    assert model.encoder.config.log_mel == log_mel


def test_verbs_take_log_mel(released, speech, tmp_path):
    import soundfile

    from lit_moss.__main__ import main

    soundfile.write(tmp_path / "a.wav", speech[0].numpy(), 16_000)
    codes = {}
    for log_mel in ("causal", "whisper"):
        out = tmp_path / f"{log_mel}.jsonl"
        words = ["tokenize", str(tmp_path / "a.wav"), "--speech-tokenizer", str(released), "--out", str(out)]
        main([*words, "--log-mel", log_mel])
        codes[log_mel] = json.loads(out.read_text())["codes"]
    expected = SpeechTokenizer.from_pretrained(released, log_mel="causal").encode(speech[0], 16_000)
    assert codes["causal"] == expected.tolist()
    assert codes["causal"] != codes["whisper"]
