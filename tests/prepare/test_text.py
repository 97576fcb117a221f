"""`prepare text`: the same texts as documents of text alone."""

import json

import pytest

from lit_moss.data.documents import read_documents
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.text import TextOptions


def run(items: list[dict], folder, **options):
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    values = TextOptions(speech_tokenizer=None, **options)
    return run_step(Step("text", "text", values, (str(source),), str(folder), str(folder)), Machine()).counts


@pytest.mark.slow
def test_texts_become_documents_and_utterances_of_one_document_are_joined(tmp_path):
    items = [
        {"id": "a", "text": "A text of its own."},
        {"id": "low", "text": "Not good enough.", "score": 2.0},
        {"id": "b-0", "document": "b", "text": "First part."},
        {"id": "b-1", "document": "b", "text": "Second part."},
        {"id": "c-0", "document": "c", "text": "你好，"},
        {"id": "c-1", "document": "c", "text": "世界。"},
    ]
    counts = run(items, tmp_path / "out", context=6)
    documents = read_documents(tmp_path / "out" / "text")
    tokenizer = load_text_tokenizer("embedded:smollm2-135m")
    texts = {documents.id(i): tokenizer.decode(documents.rows(i)[:-1]) for i in range(len(documents))}
    assert texts == {"a": "A text of its own.", "b": "First part. Second part.", "c": "你好，世界。"}
    assert counts.rejected == {"score": 1}
    lengths = documents.lengths.tolist()
    assert counts.counts == {
        "text documents": 3,
        "text rows": sum(lengths),
        "longer_than_context": sum(n > 6 for n in lengths),
        "rows_longer_than_context": sum(n for n in lengths if n > 6),
    }
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == ""


@pytest.mark.slow
def test_a_share_is_held_out(tmp_path):
    run(
        [{"id": f"t{i}", "text": f"Text number {i}."} for i in range(40)],
        tmp_path / "out",
        validation_share=0.2,
    )
    train, validation = (read_documents(tmp_path / "out" / n) for n in ("text", "text-validation"))
    assert len(train) + len(validation) == 40
    assert 2 <= len(validation) <= 16


@pytest.mark.nightly
def test_rows_have_the_format_of_the_speech_beside_them(tmp_path, corpus):
    from lit_moss.data.make_documents import make_documents

    tokenizer = "embedded:whisper-tiny-kmeans"
    speech = make_documents(
        "unsupervised", [str(corpus / "validation.jsonl")], "train", "embedded:smollm2-135m", tokenizer
    )
    source = tmp_path / "t.jsonl"
    source.write_text('{"id": "a", "text": "A text."}\n')
    folder = str(tmp_path / "out")
    run_step(
        Step("text", "text", TextOptions(speech_tokenizer=tokenizer), (str(source),), folder, folder),
        Machine(),
    )
    text = read_documents(f"{folder}/text")
    assert text.format == read_documents(speech).format
