"""Manifests without recordings, with null messages, or with fields of other types ended in a traceback, or
had every line rejected without a word; a manifest that was named twice stopped every stage.
"""

import json
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.item_keys import check_item, check_needs
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.tokenize import TokenizeOptions, TokenizeStage

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
from counting import CountingOptions

UTTERANCE = {"audio_filepath": "a.wav", "duration": 1.0, "text": "hello world", "lang": "en"}
CHUNK = [0, 1, 0.0, 0.5, "hello"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(16_000, np.float32), 16_000)
    return tmp_path


def manifest(*items: object, name: str = "items.jsonl") -> str:
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return name


def failing(capsys, *words: str) -> str:
    """The message of a call that the user has to correct; nothing was written."""
    assert main(["prepare", *words, "--out", "out", "--track", "false"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


# --- what a stage needs -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lacking", [{}, {"audio_filepath": None}, {"audio_filepath": ""}])
@pytest.mark.parametrize("stage", ["vad", "align", "tokenize", "filter"])
def test_an_item_without_a_recording_names_its_line(capsys, stage, lacking):
    item = {"id": "b", "text": "hello"} | lacking
    message = failing(capsys, stage, manifest(UTTERANCE, item))
    assert "items.jsonl, line 2: " in message
    assert "audio_filepath" in message
    assert f"expected recordings: got the keys {', '.join(item)}" in message


@pytest.mark.parametrize("stage", ["tokenize", "filter"])
def test_null_messages_are_no_messages(capsys, stage):
    message = failing(capsys, stage, manifest({"text": "x", "messages": None}))
    assert "items.jsonl, line 1: neither audio_filepath nor messages, expected recordings" in message


def test_an_utterance_with_null_messages_is_an_utterance(monkeypatch, tmp_path):
    """As pandas writes it, where other rows are conversations."""

    class Cache:
        def entries(self, utterances):
            from lit_moss.hub.recordings import Entry

            return [Entry(np.arange(13)) for _ in utterances]

    stage = TokenizeStage.__new__(TokenizeStage)
    stage.options, stage.storage, stage._cache = TokenizeOptions(), Storage(str(tmp_path)), Cache()
    spoken = {"role": "user", "audio_filepath": "a.wav"}
    result = stage.run([UTTERANCE | {"messages": None}, {"audio_filepath": None, "messages": [spoken]}])
    assert result.items[0]["codes"] == 13
    assert result.items[1]["messages"] == [spoken | {"codes": 13}]
    assert result.counts == {"codes": 26}


def test_needs_are_met_by_one_key():
    check_needs({}, (), "x")
    check_needs({"messages": []}, ("audio_filepath", "messages"), "x")
    with pytest.raises(UserError, match="x: no words, expected one in every line: got the keys text"):
        check_needs({"text": "a"}, ("words",), "x")


# --- fields of other types ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"avg_logprob": "-0.2"},
        {"lang_prob": "0.9"},
        {"no_speech_prob": [0.1]},
        {"no_speech_prob": True},
        {"avg_logprob": float("nan")},
        {"score": "high"},
        {"text_id": 1.5},
        {"answers": "Paris"},
        {"answers": [1]},
        {"words": "x y"},
        {"words": [["hello", 0.1]]},
        {"words": [["hello", "0.1", 0.2]]},
        {"chunks": "x y"},
        {"chunks": [[0, 1], [1, 2]]},
        {"chunks": [[*CHUNK[:4], 5]]},
        {"chunks": [["0", *CHUNK[1:]]]},
        {"chunks": [[*CHUNK, "both"]]},
        {"chunks": {"0": CHUNK}},
        {"use": "Speech"},
        {"use": True},
        {"use": ["speech"]},
        {"messages": [{"role": "user", "content": "x", "score": "high"}]},
    ],
)
def test_fields_of_other_types_name_line_and_field(capsys, wrong):
    message = failing(capsys, "check-transcripts", manifest(UTTERANCE, UTTERANCE | wrong))
    assert "items.jsonl, line 2: " in message
    assert f"{next(iter(wrong))} is " in message or "messages[0].score is 'high'" in message
    assert ", expected " in message


def test_fields_as_stages_write_them_are_no_mistake():
    check_item(
        {
            "avg_logprob": -0.2, "lang_prob": 1, "no_speech_prob": 0.0, "score": 3.5, "text_id": 7,
            "answers": ["a"], "words": [["hello", 0.1, None], ["you", 2, 3.0]], "use": "interleave",
            "chunks": [CHUNK, [1, 2, 0.5, 1, "you", "speech"], [1, 2, 0.5, 1, "", None]],
        },
        "x",
    )  # fmt: skip
    keys = ("avg_logprob", "score", "answers", "words", "chunks", "use", "text_id")
    check_item(dict.fromkeys(keys), "x")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"chunks": "x y"}, "chunks is 'x y', expected a list of [first word, stop word, start, end, text]"),
        ({"chunks": [[0, 1], [1, 2]]}, "chunks is [[0, 1], [1, 2]], expected a list of"),
        ({"chunks": [[*CHUNK, "both"]]}, "expected text or speech after the text of each chunk"),
        ({"use": "Speech"}, "use is 'Speech', expected one of interleave, speech"),
    ],
)
def test_manifests_of_training_name_them_too(wrong, said):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest(UTTERANCE, UTTERANCE | wrong))
    assert str(caught.value).startswith("items.jsonl, line 2: ")
    assert said in str(caught.value)


@pytest.mark.slow
def test_documents_of_malformed_chunks_are_one_line(capsys):
    chunks = manifest(UTTERANCE | {"chunks": [[0, 1], [1, 2]]})
    assert "items.jsonl, line 1: chunks is [[0, 1]" in failing(capsys, "interleave", chunks)


# --- sources ------------------------------------------------------------------------------------------------


def test_a_source_that_is_named_twice_is_one_line(capsys, folder):
    source = manifest(UTTERANCE)
    (folder / "linked.jsonl").symlink_to(folder / source)
    for again in (source, f"./{source}", str(folder / source), "linked.jsonl"):
        message = failing(capsys, "check-transcripts", source, again)
        assert "is given twice, expected each source once: leave one out" in message
    (folder / "other.jsonl").write_text((folder / source).read_text())
    words = ["prepare", "check-transcripts", source, "other.jsonl", "--out", "both", "--track", "false"]
    assert main(words) == 0  # another file may say the same


def test_a_manifest_that_loses_lines_meanwhile_is_one_line(folder, monkeypatch):
    from lit_moss.prepare import step as steps

    source = folder / manifest(*({"id": str(i), "text": "a"} for i in range(4)))
    run_shard = steps.run_shard

    def cut_before(*args, **options):
        source.write_text('{"id": "0", "text": "a"}\n')
        return run_shard(*args, **options)

    monkeypatch.setattr(steps, "run_shard", cut_before)
    counting = "counting.CountingStage"
    step = Step(
        counting, counting, CountingOptions(batch=4), (str(source),), str(folder / "o"), str(folder / "o")
    )
    with pytest.raises(UserError, match=r"items\.jsonl: has lost lines since the step began"):
        run_step(step, Machine())
