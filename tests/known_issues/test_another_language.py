"""Conversations in German were rejected by `adapt` for "language", with a sentence as the value and nothing
that said which languages are accepted; no page named a way for another language.
"""

import json
import sys

import pytest
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.data.documents import read_documents
from lit_moss.prepare.adapt import AdaptOptions, AdaptStage
from lit_moss.prepare.align import AlignOptions, AlignStage
from lit_moss.prepare.chain import Chain, run_chain
from lit_moss.prepare.filter import FilterOptions, FilterStage
from lit_moss.prepare.stage import Result
from lit_moss.prepare.storage import Storage

QUESTION, ANSWER = "Wie lange muss ein Ei für das Frühstück kochen?", "Etwa sieben Minuten, und nicht länger."
PAIR = {"id": "ei", "question": QUESTION, "answer": ANSWER}
VOICE = """
import sys
import numpy as np, soundfile
text = open(sys.argv[1], encoding="utf-8").read()
assert sys.argv[3] == "de"
soundfile.write(sys.argv[2], 0.1 * np.sin(np.arange(800 * len(text)) / 5), 16000)
"""


@pytest.mark.parametrize(
    ("text", "detected"),
    [
        (QUESTION, "German"),
        ("Quelle est la couleur du ciel pour vous ?", "French"),
        ("¿Cómo está el tiempo en la ciudad?", "Spanish"),
        ("Qual é a cor do céu? Não sei, é uma pergunta.", "Portuguese"),
        ("Žluťoučký kůň příliš úpěl ďábelské ódy", "another language"),
        ("Сколько варить яйцо?", "Cyrillic script"),
    ],
)
def test_adapt_says_which_languages_it_takes_and_which_it_found(tmp_path, text, detected):
    stage = AdaptStage(AdaptOptions(), Storage(str(tmp_path)))
    stage.open()
    result: Result = stage.run([PAIR | {"question": text}])
    [rejected] = result.rejected
    assert (rejected.reason, rejected.threshold) == ("language", "only English and Chinese")
    assert rejected.value == f"{detected}: {text[:40]}"
    [note] = stage.notes(result.counts, result.examples)
    assert note.startswith(f"rejected for their language: 1, e.g. ei ({detected}: {text[:40]}): only English")


@pytest.mark.slow
def test_conversations_of_another_language_become_documents_without_adapt_and_filter(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "voice.py").write_text(VOICE)
    voice = f"command: {sys.executable} {tmp_path}/voice.py {{text_file}} {{out}} {{lang}}"
    codec, backbone = str(made_up_codec(tmp_path / "codec")), str(backbone_folder(tmp_path / "backbone"))
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    source = tmp_path / "pairs.jsonl"
    source.write_text(json.dumps({"id": "ei", "lang": "de", "messages": messages}) + "\n")
    steps = {
        "speak": {"user_voices": [voice], "assistant_voices": [voice]},
        "tokenize": {"speech_tokenizer": codec},
        "sft": {"speech_tokenizer": codec, "backbone": backbone},
    }
    out = tmp_path / "out"
    run_chain(Chain(out=str(out), steps=steps, sources=[str(source)], track=False))
    assert len(read_documents(out / "sft/sft")) == 4
    spoken = json.loads((out / "speak/manifest.jsonl").read_text())
    assert [m["spoken"] for m in spoken["messages"]] == [QUESTION, ANSWER]


def test_stages_of_two_languages_name_them(tmp_path):
    utterance = {"audio_filepath": "a.wav", "duration": 3.0, "text": QUESTION, "lang": "de"}
    aligned = AlignStage(AlignOptions(), Storage(str(tmp_path)))
    aligned.open()
    checked = FilterStage(FilterOptions(), Storage(str(tmp_path)))
    fault = checked._checked(utterance, "de").fault
    for found in (aligned.run([utterance]).rejected[0], fault):
        assert (found.reason, found.value, found.threshold) == (
            "language without spoken forms",
            "de",
            "en or zh",
        )
