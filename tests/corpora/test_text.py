"""Text lists in every format, as documents and as sentences."""

from lit_moss.corpora.text import read_sentences, read_texts


def test_texts_of_every_format(tmp_path):
    (tmp_path / "a.txt").write_text("One.\nStill one.\n \n\nTwo.\n")
    assert list(read_texts(tmp_path / "a.txt")) == [("a-0", "One.\nStill one."), ("a-1", "Two.")]
    lines = ["LJ001-0001|Mr. A|Mister A.", "LJ001-0002|Plain.|", "LJ002-0001|B|B.", ""]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    assert list(read_texts(tmp_path / "b.csv")) == [("LJ001-0", "Mister A. Plain."), ("LJ002-0", "B.")]
    (tmp_path / "c.jsonl").write_text('{"text": "audio_filepath is a word here"}\n\n{"text": "x\\ny"}\n')
    assert [t for _, t in read_texts(tmp_path / "c.jsonl")] == ["audio_filepath is a word here", "x\ny"]
    assert read_sentences(tmp_path / "b.csv")[1] == ("LJ001", "Plain.")
    assert [s for _, s in read_sentences(tmp_path / "a.txt")] == ["One.", "Still one.", "Two."]
