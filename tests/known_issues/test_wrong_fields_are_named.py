"""A field of wrong type in any file of records ends in one line: file, line number, field, got, expected."""

import json

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec, small_flow
from lm_recipe import backbone_folder

from lit_moss.cli.main import main
from lit_moss.errors import UserError

NAN, INFINITY = float("nan"), float("inf")
GOOD = {
    "manifest": {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"},
    "conversation": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "prompt": {"id": "p", "text": "a"},
    "codes": {"id": "c", "codes": [1, 2]},
    "text": {"text": "a"},
}
TIMES = ["1.0", True, NAN, INFINITY, -1, -0.5, [1.0], {"sec": 1}, 10**400]
STRINGS = [1, 1.5, NAN, False, ["a"], {"a": "b"}, "\ud800"]


def spoken(**fields):
    user = {"role": "user", "audio_filepath": "a.wav"} | fields
    return {"messages": [user, {"role": "assistant", "content": "Yo", "audio_filepath": "a.wav"}]}


TEXTS, PLACES = ("text", "speaker", "lang"), ("offset", "duration")
NOT_PATHS = (1, True, ["a"], NAN)
CASES = [
    *[("manifest", {"audio_filepath": "a.wav", key: t}, key) for key in PLACES for t in TIMES],
    *[("manifest", {"audio_filepath": "a.wav", key: s}, key) for key in TEXTS for s in STRINGS],
    *[("manifest", {"audio_filepath": path}, "audio_filepath") for path in (*NOT_PATHS, None, "", "a\0b")],
    *[("manifest", {"audio_filepath": "a.wav", "words": w}, "words")
      for w in ("a", [["a", 0]], [["a", "0", 1]], [["a", 0, NAN]], [[1, 0, 1]], [["a", -1, 1]], 3, True)],
    *[("manifest", {"audio_filepath": "a.wav", "document": d}, "document") for d in (NAN, 1.5, True, ["a"])],
    *[("conversation", spoken(**{key: t}), f"messages[0].{key}") for key in PLACES for t in TIMES],
    *[("conversation", spoken(content=s), "messages[0].content") for s in STRINGS],
    *[("conversation", spoken(role=r), "messages[0].role") for r in ("tool", None, 1, ["user"], "User")],
    *[("conversation", spoken(audio_filepath=a), "messages[0].audio_filepath") for a in NOT_PATHS],
    *[("conversation", {"messages": m}, "messages") for m in (None, "a", {}, [], 1)],
    *[("conversation", {"messages": [m]}, "messages[0]") for m in ("a", None, 1, [])],
    ("conversation", {"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ("conversation", {"messages": [{"role": "user", "content": "a"}]}, "messages"),
    *[("prompt", {"text": "a", "id": i}, "id") for i in (1.5, True, NAN, ["a"], {})],
    *[("prompt", {"text": s}, "text") for s in STRINGS],
    *[("prompt", {"text": "a", "system": s}, "system") for s in STRINGS],
    *[("prompt", {"text": "a", "reply": r}, "reply") for r in ("song", 1, True, ["text"], "")],
    *[("prompt", {"audio_filepath": a}, "audio_filepath") for a in NOT_PATHS],
    *[("prompt", {"audio_filepath": "a.wav", "duration": t}, "duration") for t in TIMES],
    *[("codes", {"codes": c}, "codes") for c in (None, "1 2", 1, {"0": 1}, NAN, True)],
    *[("codes", {"codes": [1, c]}, "codes[1]") for c in (1.0, True, "1", None, -1, NAN, [1])],
    *[("codes", {"codes": [1], "id": i}, "id") for i in (1.5, True, NAN, ["a"], {})],
    *[("codes", {"codes": [1], "speech_tokenizer": c}, "speech_tokenizer") for c in (1, True, ["a"])],
    *[("codes", {"codes": [1], "audio_filepath": a}, "audio_filepath") for a in (1, True, ["a"])],
    *[("codes", {"codes": [1], key: t}, key) for key in PLACES for t in TIMES],
    *[("text", {"text": s}, "text") for s in (*STRINGS, None)],
]  # fmt: skip


def read(kind, path):
    """Reads a file as the verb for its kind does."""
    from lit_moss.corpora.conversations import read_conversations
    from lit_moss.corpora.manifest import read_manifest
    from lit_moss.corpora.text import read_texts
    from lit_moss.data.prompts import PromptDataModule
    from lit_moss.hub.codes_to_audio import read_code_lines

    if kind == "prompt":
        data = PromptDataModule([str(path)], str(backbone_folder(path.parent / "b")), "none")
        data.tokenizer, data._format = _tokenizer(path.parent / "b")
        return data.predict_dataloader()
    readers = {"manifest": read_manifest, "conversation": read_conversations, "codes": read_code_lines}
    return readers.get(kind, lambda p: list(read_texts(p)))(path)


def _tokenizer(folder):
    from lit_moss.llm.backbone import load_text_tokenizer, row_format

    tokenizer = load_text_tokenizer(str(folder))
    return tokenizer, row_format(tokenizer, 128, eosp=64)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "line", "field"), CASES)
def test_file_line_field_got_and_expected_stand_in_one_line(tmp_path, kind, line, field):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD[kind], line])) + "\n")
    with pytest.raises(UserError) as refused:
        read(kind, path)
    said = str(refused.value)
    assert said.startswith(f"{path}, line 2: {field} is ")
    assert ", expected " in said
    assert "\n" not in said
    assert len(said) < len(str(path)) + 250


@pytest.mark.parametrize("kind", list(GOOD))
@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "3", '"text"', "null", "NaN", "true", "{oops", "9" * 5000, "[" * 100_000, '{"a": 1} {}'],
)
def test_a_line_that_is_not_an_object_is_named(tmp_path, kind, line):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(GOOD[kind]) + "\n\n" + line + "\n")
    with pytest.raises(UserError) as refused:
        read(kind, path)
    assert str(refused.value).startswith(f"{path}, line 3: ")
    assert "expected " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", list(GOOD))
@pytest.mark.parametrize(
    "content", [b'{"text": "caf\xe9"}\n', "{}".encode("utf-16"), b"fLaC\x00\xff\xfe\x80"]
)
def test_what_is_not_utf8_is_named_by_its_line(tmp_path, kind, content):
    path = tmp_path / "in.jsonl"
    path.write_bytes(json.dumps(GOOD[kind]).encode() + b"\n" + content)
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: not UTF-8 text"):
        read(kind, path)


# Through the command line.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    made_up_codec(tmp_path / "codec")
    backbone_folder(tmp_path / "backbone")
    return tmp_path


def one_line(capsys):
    (said,) = capsys.readouterr().err.strip().splitlines()
    return said


def test_a_duration_in_quotes_is_exit_code_2(folder, capsys):
    """Was a traceback out of the reader of sound, after minutes of encoding."""
    (folder / "chat.jsonl").write_text(json.dumps(spoken(duration="1.0")) + "\n")
    words = [
        "prepare",
        "documents",
        str(folder / "chat.jsonl"),
        "--kind",
        "sft",
        "--speech-tokenizer",
        str(folder / "codec"),
    ]
    assert main([*words, "--backbone", str(folder / "backbone"), "--out", str(folder / "docs")]) == 2
    said = one_line(capsys)
    assert f"{folder / 'chat.jsonl'}, line 1: messages[0].duration is '1.0', expected seconds" in said


def codec_with_decoder(folder):
    from lit_moss.codec import Codec, SpeechTokenizer

    Codec(SpeechTokenizer.from_pretrained(folder / "codec"), small_flow()).save_pretrained(folder / "decoder")
    return folder / "decoder"


@pytest.mark.slow
def test_ids_of_zero_and_null_name_files(folder):
    """0 was taken for no id, and a prompt's null became `None`."""
    from lit_moss.hub.codes_to_audio import read_code_lines

    sound = {"audio_filepath": "x/y.wav"}
    rows = [{"id": 0}, {"id": 7}, {"id": None}, {"id": "0"}, {"id": ""}, sound | {"id": None},
            sound | {"id": 0}, {"id": "a/b\n"}, {"id": "é" * 300}, {"id": ".."}]  # fmt: skip
    lines = "\n".join(json.dumps(row | {"codes": [1, 2]}) for row in rows)
    (folder / "codes.jsonl").write_text(lines)
    names = [line.name for line in read_code_lines(folder / "codes.jsonl")]
    assert names == ["0", "7", "00003", "0-2", "00005", "y", "0-3", "a_b_", "é" * 100, "__"]
    words = ["synthesize", str(folder / "codes.jsonl"), "--codec", str(codec_with_decoder(folder))]
    assert main([*words, "--out", str(folder / "out"), "--device", "cpu"]) == 0
    assert {path.stem for path in (folder / "out").iterdir()} == set(names)


def test_ids_of_prompts_are_names(folder):
    from lit_moss.data.prompts import PromptDataModule

    rows = [{"id": 0}, {"id": None}, {"id": "x"}, {}, {"id": ""}]
    (folder / "p.jsonl").write_text("\n".join(json.dumps(row | {"text": "Hi."}) for row in rows))
    data = PromptDataModule([str(folder / "p.jsonl")], str(folder / "backbone"), str(folder / "codec"))
    data.setup("predict")
    assert [p.id for batch in data.predict_dataloader() for p in batch] == ["0", "p-2", "x", "p-4", "p-5"]


def test_a_code_outside_the_codebook_is_named_by_its_line(folder, capsys):
    (folder / "codes.jsonl").write_text('{"codes": [1]}\n{"codes": [1, 64]}\n')
    words = ["synthesize", str(folder / "codes.jsonl"), "--codec", str(codec_with_decoder(folder))]
    assert main([*words, "--out", str(folder / "out"), "--device", "cpu"]) == 2
    assert "codes.jsonl, line 2: 00002 has code 64, this decoder takes 0 to 63" in one_line(capsys)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"start": "1.0"}, "start"),
        ({"start": NAN}, "start"),
        ({"duration": None}, "duration"),
        ({"duration": True}, "duration"),
        ({"supervisions": [{"text": NAN}]}, "supervisions[0].text"),
        ({"supervisions": [{"text": ["a"]}]}, "supervisions[0].text"),
        ({"supervisions": [{"speaker": 1.5}]}, "supervisions[0].speaker"),
        ({"supervisions": ["a"]}, "supervisions[0]"),
        (
            {"recording": {"sources": [{"type": "file", "channels": [0], "source": 1}]}},
            "recording.sources[0].source",
        ),
    ],
)
def test_fields_of_lhotse_cuts_are_named(folder, capsys, changes, field):
    recording = {"sources": [{"type": "file", "channels": [0], "source": "a.wav"}]}
    cut = {"type": "MonoCut", "start": 0, "duration": 1.0, "channel": 0, "recording": recording} | changes
    (folder / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    words = ["prepare", "manifest", "--from", "lhotse", str(folder / "cuts.jsonl")]
    assert main([*words, "--out", str(folder / "out.jsonl")]) == 2
    assert f"{folder / 'cuts.jsonl'}, line 1: {field} is " in capsys.readouterr().err


@pytest.mark.parametrize("words", [[["a", 0, 1], ["b", 1e308, 1e308]], [["a", 1, 0.5]]])
def test_times_of_words_that_cannot_be(folder, capsys, words):
    line = {"audio_filepath": "a.wav", "text": "a b", "words": words}
    (folder / "m.jsonl").write_text(json.dumps(line) + "\n")
    words = ["prepare", "documents", str(folder / "m.jsonl"), "--kind", "interleaved"]
    words += ["--speech-tokenizer", str(folder / "codec"), "--backbone", str(folder / "backbone")]
    assert main([*words, "--out", str(folder / "docs")]) == 2
    assert "a: words are no list of [word, start, end] in seconds" in one_line(capsys)


@pytest.mark.parametrize("name", ["x/" * 3000 + "a.wav", "y" * 300 + ".wav"])
def test_a_path_that_no_file_can_have_is_left_out_by_name(folder, capsys, name):
    (folder / "m.jsonl").write_text(json.dumps({"audio_filepath": name}) + "\n")
    words = [
        "tokenize",
        str(folder / "m.jsonl"),
        "--speech-tokenizer",
        str(folder / "codec"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(folder / "codes.jsonl")])
    assert ended.value.code == 1
    assert "no such file" in one_line(capsys)
