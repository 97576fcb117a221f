"""`chunk` rejected every utterance that states no duration, which a manifest need not and `align` does not
add; and recordings whose names are not UTF-8 ended it, a validation share and the report in a traceback.
"""

import numpy as np
import soundfile

from lit_moss.prepare.chunk import ChunkOptions, ChunkStage
from lit_moss.prepare.document_folders import Split
from lit_moss.prepare.report_sounds import Sounds
from lit_moss.prepare.stage import Result
from lit_moss.prepare.storage import Storage

TEXT = "one two three four five six seven eight"
ITEM = {"text": TEXT, "words": [[word, float(i), i + 0.8] for i, word in enumerate(TEXT.split())]}


def chunked(item: dict) -> Result:
    return ChunkStage(ChunkOptions(), Storage("/nowhere")).run([item])


def test_an_utterance_without_a_duration_ends_with_its_file(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(9 * 16000, np.float32), 16000)
    (stated,) = chunked(ITEM | {"audio_filepath": str(path), "offset": 0.5, "duration": 8.5}).items
    (made,) = chunked(ITEM | {"audio_filepath": str(path), "offset": 0.5}).items
    assert made == stated
    assert made["chunks"][-1][3] == 8.56  # whole codes of 80 ms


def test_without_a_duration_and_a_recording_there_are_no_chunks():
    assert chunked(ITEM).rejected[0].reason == "word times"


def test_names_that_are_not_utf_8(tmp_path):
    item = ITEM | {"audio_filepath": "/in/caf\udce9.wav", "duration": 8.5}
    assert chunked(item).items[0]["chunks"]
    split = Split(["caf\udce9", "b", "c"], 0.5)
    assert {split.is_held_out(name) for name in ("caf\udce9", "b", "c")} == {True, False}
    assert Sounds(Storage(str(tmp_path)), 1, 30.0, 1)._order(item)
