"""Which utterances belong together in one document."""

from lit_moss.corpora.manifest import Utterance, write_manifest
from lit_moss.data.grouping import document_key, group, text_documents


def test_what_utterances_belong_to(tmp_path):
    def key(stem, **known):
        return document_key(Utterance(tmp_path / f"{stem}.flac", **known))

    assert key("LJ001-0001") == "LJ001"
    assert key("103-1240-0000", speaker="103") == "103-1240"
    assert key("clip7", speaker="linda") == "linda"
    assert key("clip7") == "clip7"
    assert key("LJ001-0001", extra={"document": 5}) == "5"


def test_groups_are_neighbours_of_one_key(tmp_path):
    names = ["a-1", "a-2", "a-3", "b-1", "a-4"]
    members = [(Utterance(tmp_path / f"{n}.wav"), n, 4.0) for n in names]
    assert [(name, [v for _, v in held]) for name, held in group(members, 8.0)] == [
        ("a:a-1", ["a-1", "a-2"]), ("a:a-3", ["a-3"]), ("b:b-1", ["b-1"]), ("a:a-4", ["a-4"])
    ]  # fmt: skip
    assert [len(held) for _, held in group(members, 1.0)] == [1] * 5


def test_transcripts_of_a_manifest_are_grouped_like_its_speech(tmp_path):
    names = ["LJ001-0001", "LJ001-0002", "LJ002-0001", "LJ002-0002"]
    texts = ["One.", " two", None, "Four."]
    write_manifest(
        tmp_path / "m.jsonl",
        [Utterance(tmp_path / f"{n}.wav", 0.0, 2.0, t) for n, t in zip(names, texts, strict=True)],
    )
    documents = [("LJ001:LJ001-0001", "One. two"), ("LJ002:LJ002-0002", "Four.")]
    assert list(text_documents(tmp_path / "m.jsonl")) == documents
    (tmp_path / "a.txt").write_text("Text.")
    assert list(text_documents(tmp_path / "a.txt")) == [("a-0", "Text.")]
