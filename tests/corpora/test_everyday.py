"""`embedded:everyday-en`: the same to the byte wherever it is made."""

import re

import pytest
import soundfile

from lit_moss.corpora.everyday import everyday_corpus, sentences
from lit_moss.corpora.manifest import read_manifest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    def use(name):
        monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / name))
        return tmp_path / name

    return use


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.slow
def test_made_twice_it_is_the_same_to_the_byte_and_then_kept(cache):
    folders = []
    for name in ("one", "two"):
        root = cache(name)
        folders.append(everyday_corpus(limit=3))
        assert folders[-1].parent == root / "corpora"
        # Nothing but its lock is left beside it.
        assert {p.name for p in folders[-1].parent.iterdir() if p.suffix != ".lock"} == {folders[-1].name}
    assert re.fullmatch("everyday-en-[0-9a-f]{12}", folders[0].name)
    assert folders[0].name == folders[1].name
    first, second = map(contents, folders)
    assert first.keys() == {
        "train.jsonl",
        "validation.jsonl",
        *(f"audio/everyday-{i:04d}.flac" for i in range(3)),
    }
    assert first == second
    made = folders[1].stat().st_mtime_ns
    assert everyday_corpus(limit=3) == folders[1]
    assert folders[1].stat().st_mtime_ns == made


@pytest.mark.slow
def test_other_sentences_are_another_folder(cache):
    cache("one")
    assert everyday_corpus(limit=1) != everyday_corpus(limit=2)


def test_the_manifests_split_the_sentences_and_tell_lengths_and_words(corpus):
    train, validation = (read_manifest(corpus / f"{part}.jsonl") for part in ("train", "validation"))
    assert train
    assert validation
    assert not {u.audio for u in train} & {u.audio for u in validation}
    spoken = sorted(train + validation, key=lambda u: u.id)
    assert [u.text for u in spoken] == sentences()[: len(spoken)]
    for u in spoken:
        header = soundfile.info(u.audio)
        assert u.duration_sec == pytest.approx(header.frames / header.samplerate, abs=1e-4)
        assert 0.5 < u.duration_sec < 20
        assert (u.offset_sec, u.lang) == (0.0, "en")
        assert u.audio.parent == corpus / "audio"


def test_the_shipped_sentences_are_many_and_different():
    texts = sentences()
    assert len(texts) >= 24
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and text.isascii() for text in texts)


@pytest.mark.nightly
@pytest.mark.network
def test_the_corpus_of_several_voices_names_its_speakers():
    from lit_moss.corpora.everyday import VOICES

    folder = everyday_corpus(limit=2, name=VOICES)
    utterances = read_manifest(folder / "train.jsonl")
    assert [u.speaker for u in utterances] == ["kokoro-af_bella", "kokoro-am_michael"]
    assert all(0.2 < u.duration_sec / len(u.text.split()) < 1.0 for u in utterances)
