"""`SpeechTokenizer`: lengths, batches, streams that equal the whole, folders."""

import json
import pickle

import pytest
import torch

from lit_moss.audio.features import CausalLogMel, resample
from lit_moss.codec import SpeechTokenizer
from lit_moss.errors import UserError

CODE = 1280


@pytest.fixture
def tokenizer(tiny_encoder):
    return SpeechTokenizer(tiny_encoder())


def streamed(tokenizer, wave, sizes):
    """Codes of a stream that is fed by chunks of these sizes, the last one repeated."""
    stream, codes, start, sizes = tokenizer.stream(), [], 0, list(sizes)
    while start < len(wave):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        codes.append(stream.push(wave[start : start + size]))
        start += size
    return torch.cat([*codes, stream.flush()])


# --- offline --------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 1279, 1280, 1281, 25_600, 30_000])
def test_a_wave_has_ceil_of_samples_over_1280_codes(tokenizer, samples):
    codes = tokenizer.encode(0.1 * torch.randn(samples), 16_000)
    assert codes.dtype == torch.int64
    assert len(codes) == -(-samples // CODE)
    assert ((codes >= 0) & (codes < 256)).all()


def test_the_codes_of_speech_are_of_many_kinds(tokenizer, speech):
    """Otherwise equality of codes would say little below."""
    assert len(torch.cat(tokenizer.encode(speech, 16_000)).unique()) > 10


def test_a_list_in_any_batch_gives_the_codes_of_each_wave_alone(tokenizer, speech):
    alone = [tokenizer.encode(wave, 16_000) for wave in speech]
    for batch_sec in (0.1, 7.0, 60.0):
        together = tokenizer.encode([*speech, torch.zeros(0)], 16_000, batch_sec=batch_sec)
        assert all(torch.equal(a, b) for a, b in zip(alone, together[:-1], strict=True))
        assert len(together[-1]) == 0


def test_of_several_channels_the_first_is_taken(tokenizer, speech):
    both = torch.stack([speech[0], torch.randn(len(speech[0]))])
    assert torch.equal(tokenizer.encode(both, 16_000), tokenizer.encode(speech[0], 16_000))


def test_another_rate_is_resampled_first(tokenizer, speech):
    wave = resample(speech[0], 16_000, 24_000)
    expected = tokenizer.encode(resample(wave, 24_000, 16_000), 16_000)
    assert torch.equal(tokenizer.encode(wave, 24_000), expected)


def test_long_audio_has_the_codes_of_its_segments(tiny_encoder, speech):
    """256 positions are 64 codes, 5.12 s."""
    tokenizer = SpeechTokenizer(tiny_encoder(max_source_positions=256))
    wave = torch.cat(speech)[: 12 * 16_000]
    segments = [tokenizer.encode(part, 16_000) for part in wave.split(64 * CODE)]
    assert len(segments) == 3
    assert torch.equal(tokenizer.encode(wave, 16_000), torch.cat(segments))


@pytest.mark.parametrize(
    "wave", [torch.tensor([0.0, torch.nan]), torch.tensor([torch.inf]), torch.zeros(9, dtype=torch.int16),
             torch.zeros(1, 1, 9)]
)  # fmt: skip
def test_samples_that_are_no_sound_are_an_error(tokenizer, wave):
    with pytest.raises(ValueError, match=r"finite|expected float samples"):
        tokenizer.encode(wave, 16_000)
    with pytest.raises(ValueError, match=r"finite|expected float samples"):
        tokenizer.stream().push(wave)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 4, 10])
def test_chunks_of_whole_tokens_give_the_codes_of_the_whole(tokenizer, speech, tokens):
    for wave in speech[:4]:
        assert torch.equal(streamed(tokenizer, wave, [tokens * CODE]), tokenizer.encode(wave, 16_000))


@pytest.mark.parametrize("sizes", [[777], [1, 1279, 1281, 5, 4000], [100_000], [0, 300, 0, 9000]])
def test_chunks_of_any_number_of_samples_give_the_codes_of_the_whole(tokenizer, speech, sizes):
    assert torch.equal(streamed(tokenizer, speech[0], sizes), tokenizer.encode(speech[0], 16_000))


def test_a_stream_begins_a_segment_where_the_whole_does(tiny_encoder, speech):
    tokenizer = SpeechTokenizer(tiny_encoder(max_source_positions=256))
    wave = torch.cat(speech)[: 12 * 16_000]
    assert torch.equal(streamed(tokenizer, wave, [10 * CODE]), tokenizer.encode(wave, 16_000))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 4, 10])
def test_near_ties_are_decided_alike(tiny_encoder, speech, tokens):
    """Each vector of the wave lies midway between two codes: `exact=False` flips many of them."""
    encoder, wave = tiny_encoder(), speech[0][: len(speech[0]) // CODE * CODE]
    with torch.no_grad():
        x = encoder.pool(encoder(CausalLogMel(80)(wave[None])))[0]
        aside = 0.02 * x.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(torch.randn_like(x))
        encoder.codebook.weight[: 2 * len(x)] = torch.cat([x + aside, x - aside])
    tokenizer = SpeechTokenizer(encoder)
    assert torch.equal(streamed(tokenizer, wave, [tokens * CODE]), tokenizer.encode(wave, 16_000))


def test_a_code_is_known_once_its_80_ms_are(tokenizer, speech):
    stream = tokenizer.stream()
    assert len(stream.push(speech[0][: CODE - 1])) == 0
    assert len(stream.push(speech[0][CODE - 1 : CODE])) == 1
    assert len(stream.push(speech[0][CODE : 3 * CODE + 5])) == 2
    assert len(stream.flush()) == 1


@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_future_audio_changes_no_code_before_it(tokenizer, speech, tokens):
    changed = speech[0].clone()
    changed[tokens * CODE :] = torch.randn(len(changed) - tokens * CODE)
    before, after = tokenizer.encode(speech[0], 16_000), tokenizer.encode(changed, 16_000)
    assert torch.equal(before[:tokens], after[:tokens])
    assert not torch.equal(before, after)


def test_a_flushed_stream_is_closed(tokenizer):
    stream = tokenizer.stream()
    stream.flush()
    with pytest.raises(RuntimeError, match="make a new one"):
        stream.push(torch.zeros(CODE))


def test_the_released_log_mel_cannot_stream(tiny_encoder):
    with pytest.raises(UserError, match="needs whole segments"):
        SpeechTokenizer(tiny_encoder(log_mel="whisper")).stream()


# --- folders and checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("log_mel", ["causal", "whisper"])
def test_a_saved_tokenizer_comes_back_the_same(tiny_encoder, speech, tmp_path, log_mel):
    tokenizer = SpeechTokenizer(tiny_encoder(log_mel=log_mel))
    tokenizer.save_pretrained(tmp_path)
    again = SpeechTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    ours, theirs = tokenizer.encoder.state_dict(), again.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(again.encode(speech[0], 16_000), tokenizer.encode(speech[0], 16_000))


def test_the_log_mel_can_be_chosen_on_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert SpeechTokenizer.from_pretrained(tmp_path, log_mel="whisper").config.log_mel == "whisper"


def test_a_folder_without_a_codebook_is_refused(tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.codebook.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no codebook"):
        SpeechTokenizer.from_pretrained(tmp_path)


def checkpoint(encoder, path, ready=True):
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    codec = {"config": encoder.config.to_official(), "codebook_ready": ready}
    torch.save({"speech_tokenizer": codec, "state_dict": state | {"head.proj.weight": torch.zeros(2)}}, path)
    return path


def test_a_checkpoint_of_a_run_gives_the_codes_of_its_encoder(tiny_encoder, speech, tmp_path):
    tokenizer = SpeechTokenizer.from_pretrained(checkpoint(tiny_encoder(), tmp_path / "a.ckpt"))
    assert torch.equal(
        tokenizer.encode(speech[0], 16_000), SpeechTokenizer(tiny_encoder()).encode(speech[0], 16_000)
    )


def test_a_checkpoint_from_before_quantization_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="has no codebook yet"):
        SpeechTokenizer.from_pretrained(checkpoint(tiny_encoder(), tmp_path / "a.ckpt", ready=False))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a tokenizer run"):
        SpeechTokenizer.from_pretrained(tmp_path / "a.ckpt")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_as_checkpoint_is_refused_and_does_not_run(tmp_path, save):
    proof = tmp_path / "it-ran"
    save({"speech_tokenizer": Payload(proof), "state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="no readable checkpoint"):
        SpeechTokenizer.from_pretrained(tmp_path / "a.ckpt")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_malicious_pickle_in_a_folder_is_refused_and_does_not_run(tokenizer, tmp_path, name):
    proof = tmp_path / "it-ran"
    (tmp_path / "config.json").write_text(json.dumps(tokenizer.config.to_official()))
    (tmp_path / name).write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(UserError):
        SpeechTokenizer.from_pretrained(tmp_path)
    assert not proof.exists()
