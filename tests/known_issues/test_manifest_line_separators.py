"""`read_manifest` split a file by `str.splitlines`, which also breaks at U+2028, U+2029, U+0085 and others.

JSON leaves them as they are inside a string: a transcript with one of them was torn into two broken lines.
"""

import json

import pytest

from lit_moss.corpora.manifest import Utterance, read_manifest, write_manifest


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\n", "\r\n"]
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_text_with_a_line_separator_is_one_line(tmp_path, separator, ascii_only):
    text = f"before{separator}after"
    path = tmp_path / "m.jsonl"
    path.write_text(
        json.dumps({"audio_filepath": "a.wav", "text": text}, ensure_ascii=ascii_only) + "\n",
        encoding="utf-8",
    )
    assert [u.text for u in read_manifest(path)] == [text]
    write_manifest(path, [Utterance(tmp_path / "a.wav", text=text), Utterance(tmp_path / "b.wav")])
    assert [u.text for u in read_manifest(path)] == [text, None]
