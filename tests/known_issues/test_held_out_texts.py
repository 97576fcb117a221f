"""A text that was held out as speech was trained as text: `synthesize` and `text` named it differently.

Without an `id` one took a hash and the other its place; after a piece that no voice can say, the rest of the
text was assigned to training or validation by itself.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.data.documents import read_documents
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.interleave import InterleaveOptions, InterleaveStage
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.synthesize import SynthesizeOptions
from lit_moss.prepare.text import TextOptions, TextStage

SPEAK = """
import sys, numpy as np, soundfile
rng = np.random.default_rng(len(open(sys.argv[1]).read()))
soundfile.write(sys.argv[2], rng.normal(0, 0.1, 8000), 16000)
"""


def texts(kind: str) -> list[dict]:
    """30 texts of three sentences; the second one of every third text cannot be said."""
    found = []
    for i in range(30):
        sign = "🎉" if i % 3 == 0 else "party"
        text = (
            f"Text number {i} is about a man. He had a {sign} at home that night. Then he went to bed again."
        )
        name = {"id": {"id": i}, "document": {"id": f"part {i}", "document": f"book {i // 2}"}}.get(kind, {})
        found.append(name | {"text": text, "lang": "en"})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "id", "document"])
def test_the_same_texts_are_held_out_as_speech_and_as_text(tmp_path, kind):
    (tmp_path / "speak.py").write_text(SPEAK)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in texts(kind)))
    voice = f"command: {sys.executable} {tmp_path}/speak.py {{text_file}} {{out}}"
    folder = str(tmp_path / "speech")
    options = SynthesizeOptions(voices=[voice], max_chars=40, min_words=1)
    run_step(Step("synthesize", "synthesize", options, (str(source),), folder, folder), Machine())
    speech = f"{folder}/manifest.jsonl"
    for items in (list(resolved_items([speech])), texts(kind)):
        assert len(items) > 20
    backbone = str(backbone_folder(tmp_path / "backbone"))
    codec = str(made_up_codec(tmp_path / "codec", codes=32))
    share = {"backbone": backbone, "validation_share": 0.3}
    TextStage(TextOptions(speech_tokenizer=None, **share), Storage(str(tmp_path / "text"))).run_all(
        [str(source)]
    )
    InterleaveStage(
        InterleaveOptions(speech_tokenizer=codec, **share), Storage(str(tmp_path / "interleave"))
    ).run_all([speech])
    held = [
        names(tmp_path / folder) for folder in ("text/text-validation", "interleave/interleaved-validation")
    ]
    trained = [names(tmp_path / folder) for folder in ("text/text", "interleave/interleaved")]
    assert held[0] == held[1]
    assert trained[0] == trained[1]
    assert len(held[0]) >= 3


def names(folder: Path) -> set[str]:
    documents = read_documents(folder)
    return {re.split("[+:]", documents.id(i))[0] for i in range(len(documents))}
