"""Of recordings with a speaker on each side the second one was lost without a word: everything reads the
first channel. `channel` names another one, and files whose channels differ are counted and named.
"""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.conversations import read_conversations
from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.data import PromptDataModule, SpeechDataModule, VocoderDataModule
from lit_moss.data.documents import read_documents
from lit_moss.data.grouping import document_key
from lit_moss.data.make_documents import make_documents
from lit_moss.errors import UserError
from lit_moss.evaluate.clips import read_clips
from lit_moss.hub import NamedTokenizer
from lit_moss.hub.code_cache import encode_utterances
from lit_moss.prepare import transcribe
from lit_moss.prepare.chain import Chain, run_chain
from lit_moss.prepare.document_folders import recording_of, source_of
from lit_moss.prepare.filter import FilterOptions, FilterStage
from lit_moss.prepare.storage import Storage

RATE_HZ = 16_000
SECONDS = 4
WARNING = "the first channel was read alone; if each side is a speaker, give each channel a line"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


def sides() -> np.ndarray:
    """Two speakers (T, 2) by turns of a second."""
    rng = np.random.default_rng(0)
    wave_TC = rng.normal(0, 0.1, (SECONDS * RATE_HZ, 2)).astype(np.float32)
    turn_T = np.arange(len(wave_TC)) // RATE_HZ % 2
    return wave_TC * np.stack([turn_T == 0, turn_T == 1], axis=1)


@pytest.fixture
def call(tmp_path) -> Path:
    soundfile.write(tmp_path / "call.wav", sides(), RATE_HZ, subtype="FLOAT")
    return tmp_path / "call.wav"


def manifest(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_a_channel_is_read_by_its_number(call, channel):
    expected_T = torch.from_numpy(sides()[:, channel or 0])
    assert torch.equal(io.read(call, RATE_HZ, channel=channel), expected_T)
    assert torch.equal(io.read(call, RATE_HZ, 1.5, 1.0, channel=channel), expected_T[24_000:40_000])


def test_a_channel_that_is_not_there_is_unreadable(call):
    with pytest.raises(io.UnreadableAudio, match=r"no channel 2: it has 2, counted from 0"):
        io.read(call, RATE_HZ, channel=2)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True])
def test_a_channel_is_a_whole_number(tmp_path, call, value):
    line = {"audio_filepath": "call.wav", "channel": value}
    with pytest.raises(UserError, match=r"line 1: channel is .*, expected a whole number, 0 or more"):
        read_manifest(manifest(tmp_path / "m.jsonl", line))
    messages = {"messages": [{"role": "assistant", **line}]}
    with pytest.raises(UserError, match=r"messages\[0\].channel is .*, expected a whole number"):
        read_conversations(manifest(tmp_path / "c.jsonl", messages))


def test_channels_of_a_file_are_utterances_of_their_own(tmp_path, call):
    lines = [{"audio_filepath": "call.wav", **part} for part in ({}, {"channel": 0}, {"channel": 1})]
    plain, first, second = read_manifest(manifest(tmp_path / "m.jsonl", *lines))
    assert (plain.id, first.id, second.id) == ("call", "call", "call#1")
    assert plain.key == first.key != second.key  # of codes in the cache
    assert len({document_key(u) for u in (plain, first, second)}) == 3  # nobody speaks with itself
    write_manifest(tmp_path / "again.jsonl", [plain, first, second])
    assert read_manifest(tmp_path / "again.jsonl") == [plain, first, second]
    # A recording is trained on or held out with all its channels.
    items = [{**line, "audio_filepath": str(call)} for line in lines]
    assert len({recording_of(item) for item in items}) == 3
    assert len({source_of(item) for item in items}) == 1


@pytest.mark.parametrize(
    ("second", "differs"),
    [
        ("other", True),
        ("same", False),
        ("half as loud", False),
        ("inverted", False),
        ("silent", False),
        ("noise floor", False),
    ],
)
def test_channels_differ_if_the_first_lacks_a_sound(tmp_path, second, differs):
    wave_TC = sides()
    first_T, noise_T = wave_TC[:, 0], np.random.default_rng(1).normal(0, 1e-3, len(wave_TC))
    seconds = {"other": wave_TC[:, 1], "same": first_T, "half as loud": 0.5 * first_T, "inverted": -first_T,
               "silent": 0 * first_T, "noise floor": noise_T}  # fmt: skip
    soundfile.write(tmp_path / "a.flac", np.stack([first_T, seconds[second]], axis=1), RATE_HZ)
    assert io.channels_differ(tmp_path / "a.flac") is differs


def test_a_speaker_who_begins_late_is_found(tmp_path):
    first_T = np.random.default_rng(0).normal(0, 0.1, 100 * RATE_HZ)
    late_T = np.where(np.arange(len(first_T)) > 95 * RATE_HZ, first_T[::-1], first_T)
    soundfile.write(tmp_path / "a.flac", np.stack([first_T, late_T], axis=1), RATE_HZ)
    assert io.channels_differ(tmp_path / "a.flac")
    assert not io.channels_differ(tmp_path / "gone.flac")


def test_prepare_manifest_counts_and_names_them(tmp_path, call, capsys):
    soundfile.write(tmp_path / "mono.wav", sides()[:, 0], RATE_HZ)
    out = tmp_path / "out.jsonl"
    assert main(["prepare", "manifest", str(tmp_path), "--from", "folder", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"1 of 2 files have channels that differ, e.g. {call}: the first channel is read alone" in said


def test_the_snippet_of_the_documentation_gives_each_channel_a_line(tmp_path, call, monkeypatch):
    page = (ROOT / "docs/data.md").read_text()
    script = tmp_path / "both_sides.py"
    script.write_text(page.split('```python title="both_sides.py"\n')[1].split("```")[0])
    source = manifest(tmp_path / "m.jsonl", {"audio_filepath": "call.wav"})
    monkeypatch.setattr(sys, "argv", [str(script), str(source), str(tmp_path / "both.jsonl")])
    runpy.run_path(str(script), run_name="__main__")
    made = read_manifest(tmp_path / "both.jsonl")
    assert [(u.channel, u.speaker) for u in made] == [(0, "call-0"), (1, "call-1")]


# --- everything that reads sound ----------------------------------------------------------------------------


@pytest.fixture
def codec(tmp_path):
    """A codec whose codebook holds the frames of both sides."""
    tokenizer = SpeechTokenizer.from_pretrained(made_up_codec(tmp_path / "drawn", codes=2 * 50))
    with torch.no_grad():
        frames_BND = tokenizer.frames(tokenizer.encoder, torch.from_numpy(sides().T.copy()))
        tokenizer.encoder.codebook.weight.copy_(frames_BND.flatten(0, 1))
    tokenizer.save_pretrained(tmp_path / "codec")
    return str(tmp_path / "codec")


@pytest.fixture
def mono(tmp_path) -> list[Path]:
    """The sides as files of their own."""
    for channel in range(2):
        soundfile.write(tmp_path / f"side{channel}.wav", sides()[:, channel], RATE_HZ, subtype="FLOAT")
    return [tmp_path / f"side{channel}.wav" for channel in range(2)]


def test_data_modules_and_clips_read_the_channel(tmp_path, call, mono):
    texts = {"text": "well", "duration": float(SECONDS)}
    lines = [{"audio_filepath": "call.wav", "channel": 1, **texts}, {"audio_filepath": "side1.wav", **texts}]
    source = manifest(tmp_path / "m.jsonl", *lines)
    data = SpeechDataModule([str(source)], [str(source)], batch_sec=20, min_sec=1, max_sec=20, workers=0)
    data.setup("fit")
    loaders = data.val_dataloader()
    [batch] = list(loaders[0] if isinstance(loaders, list) else loaders)
    assert torch.equal(batch.wave_BT[0], batch.wave_BT[1])
    assert [clip.channel for clip in read_clips(source)] == [1, None]


def test_crops_of_a_vocoder_are_of_the_channel(tmp_path, call, mono):
    lines = [{"audio_filepath": "call.wav", "channel": 1}, {"audio_filepath": "side1.wav"}]
    source = manifest(tmp_path / "m.jsonl", *({"duration": float(SECONDS), **line} for line in lines))
    data = VocoderDataModule([str(source)], [str(source)], workers=0)
    data.setup("fit")
    loaders = data.val_dataloader()
    [batch] = list(loaders[0] if isinstance(loaders, list) else loaders)
    assert torch.equal(batch.wave_BL[0], batch.wave_BL[1])


@pytest.mark.slow
def test_prompts_are_of_the_channel(tmp_path, call, mono, codec):
    lines = [{"audio_filepath": "call.wav", "channel": 1}, {"audio_filepath": "side1.wav"}]
    source = manifest(tmp_path / "p.jsonl", *lines)
    data = PromptDataModule([str(source)], str(backbone_folder(tmp_path / "backbone")), codec)
    data.setup("predict")
    [[of_call, of_file]] = list(data.predict_dataloader())
    assert of_call.rows == of_file.rows


def test_stages_that_listen_read_the_channel(call, mono):
    items = [{"audio_filepath": str(call), "channel": 1}, {"audio_filepath": str(mono[1])}]
    of_call, of_file = (transcribe._read(item)[1] for item in items)
    assert np.array_equal(of_call, of_file)
    stage = FilterStage(FilterOptions(), Storage(str(call.parent)))
    (of_call, _), (of_file, _) = map(stage._read, items)
    assert torch.equal(of_call, of_file)


def test_codes_are_of_the_channel(tmp_path, call, mono, codec):
    lines = [{"audio_filepath": "call.wav", "channel": c} for c in range(2)]
    lines += [{"audio_filepath": path.name} for path in mono]
    utterances = read_manifest(manifest(tmp_path / "m.jsonl", *lines))
    first, second, *alone = encode_utterances(utterances, NamedTokenizer(codec)).codes
    assert [first, second] == alone
    assert first != second
    # The same from the cache, and by the verb `tokenize`.
    assert encode_utterances(utterances[1:2], NamedTokenizer(codec)).codes == [second]
    words = ["tokenize", str(tmp_path / "m.jsonl"), "--speech-tokenizer", codec]
    assert main([*words, "--out", str(tmp_path / "codes.jsonl")]) == 0
    written = [json.loads(line) for line in (tmp_path / "codes.jsonl").read_text().splitlines()]
    assert [line["codes"] for line in written] == [first, second, *alone]
    assert [line.get("channel") for line in written] == [0, 1, None, None]


@pytest.mark.slow
def test_conversations_have_both_sides_of_one_file(tmp_path, call, mono, codec):
    backbone = str(backbone_folder(tmp_path / "backbone"))
    roles = ("user", "assistant")
    of_call = [{"role": r, "audio_filepath": "call.wav", "channel": c} for c, r in enumerate(roles)]
    of_files = [{"role": r, "audio_filepath": mono[c].name} for c, r in enumerate(roles)]
    source = manifest(tmp_path / "c.jsonl", {"messages": of_call}, {"messages": of_files})
    options = {"pairs": ["speech-speech"]}
    folder = make_documents("sft", [str(source)], "train", backbone, codec, options=options)
    found = read_documents(folder)
    assert found.rows(0).tolist() == found.rows(1).tolist()


@pytest.mark.slow
def test_a_chain_reads_the_channel_and_counts_files_that_lack_it(tmp_path, call, mono, codec, capsys):
    backbone = str(backbone_folder(tmp_path / "backbone"))
    steps = {
        "tokenize": {"speech_tokenizer": codec},
        "interleave": {"speech_tokenizer": codec, "backbone": backbone, "speech_share": 1.0},
    }
    text = {"text": "Well.", "lang": "en", "duration": float(SECONDS)}
    lines = [{"audio_filepath": "call.wav", "channel": c, **text} for c in range(2)]
    lines += [{"audio_filepath": path.name, **text} for path in mono]
    source = manifest(tmp_path / "m.jsonl", *lines)
    run_chain(Chain(out=str(tmp_path / "out"), steps=steps, sources=[str(source)], track=False))
    assert WARNING not in capsys.readouterr().err
    found = read_documents(tmp_path / "out/interleave/interleaved")
    rows = [found.rows(i).tolist() for i in range(len(found))]
    assert rows[:2] == rows[2:]
    assert rows[0] != rows[1]

    source = manifest(
        tmp_path / "plain.jsonl", *({k: v for k, v in i.items() if k != "channel"} for i in lines)
    )
    run_chain(Chain(out=str(tmp_path / "plain"), steps=steps, sources=[str(source)], track=False))
    said = capsys.readouterr().err
    assert f"tokenize: sounds whose channels differ: 2, e.g. {call}: of these {WARNING}" in said


@pytest.mark.slow
def test_segments_of_the_second_channel_are_its_own(tmp_path, corpus, capsys):
    waves = [io.read(path, RATE_HZ) for path in sorted((corpus / "audio").glob("*"))[:2]]
    pause = torch.zeros(RATE_HZ)
    first_T = torch.cat([waves[0], pause, torch.zeros(len(waves[1]))])
    second_T = torch.cat([torch.zeros(len(waves[0])), pause, waves[1]])
    stereo_TC = torch.stack([first_T, second_T], dim=1).numpy()
    soundfile.write(tmp_path / "talk.wav", stereo_TC, RATE_HZ, subtype="FLOAT")
    lines = [{"audio_filepath": "talk.wav", **part} for part in ({"channel": 0}, {"channel": 1}, {})]
    source = manifest(tmp_path / "m.jsonl", *lines)
    run_chain(Chain(out=str(tmp_path / "out"), steps={"vad": {}}, sources=[str(source)], track=False))
    lines = (tmp_path / "out/vad/manifest.jsonl").read_text().splitlines()
    segments = [(s["channel"], s["offset"], s["offset"] + s["duration"]) for s in map(json.loads, lines)]
    middle = len(waves[0]) / RATE_HZ + 0.5
    assert [channel for channel, *_ in segments] == [0, 1, 0]  # also where it was not stated
    assert segments[0][2] < middle < segments[1][1]
    assert f"vad: sounds whose channels differ: 1, e.g. {tmp_path}/talk.wav" in capsys.readouterr().err


def test_offsets_and_channels_are_of_one_utterance(tmp_path, call):
    u = read_manifest(
        manifest(tmp_path / "m.jsonl", {"audio_filepath": "call.wav", "offset": 1, "channel": 1})
    )
    assert u[0].id == "call@1.000#1"
    assert replace(u[0], channel=0).id == "call@1.000"
