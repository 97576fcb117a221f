"""`prepare tokenize`, `interleave` and `sft` on made-up sounds, with small tokenizers of speech and text."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.codec import SpeechTokenizer
from lit_moss.data import InterleavedDataModule
from lit_moss.data.documents import read_documents
from lit_moss.errors import UserError
from lit_moss.hub.recordings import PART
from lit_moss.llm.replies import split_reply
from lit_moss.prepare import document_folders
from lit_moss.prepare.chain import Chain, run_chain
from lit_moss.prepare.document_folders import Split
from lit_moss.prepare.interleave import InterleaveOptions, InterleaveStage
from lit_moss.prepare.storage import Storage

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "speech_tokenizer": str(made_up_codec(folder / "codec", codes=32)),
        "backbone": str(backbone_folder(folder / "backbone")),
    }


@pytest.fixture
def encoded(monkeypatch):
    """Waves of each call of `SpeechTokenizer.encode`."""
    calls, encode = [], SpeechTokenizer.encode
    monkeypatch.setattr(
        SpeechTokenizer, "encode", lambda self, *args: calls.append(len(args[0])) or encode(self, *args)
    )
    return calls


def utterances(folder: Path, recordings=4, each=3) -> list[dict]:
    """Utterances of 4 s with eight words."""
    folder.mkdir(exist_ok=True)
    items = []
    for r in range(recordings):
        wave = np.random.default_rng(r).normal(0, 0.1, 4 * RATE_HZ * each)
        soundfile.write(folder / f"talk{r}.wav", wave, RATE_HZ)
        for i in range(each):
            words = [[f"w{r}{i}{k}", 0.5 * k, 0.5 * k + 0.4] for k in range(8)]
            items.append({
                "audio_filepath": str(folder / f"talk{r}.wav"), "offset": 4.0 * i, "duration": 4.0,
                "document": f"talk{r}", "text": " ".join(w for w, *_ in words), "words": words, "lang": "en",
            })  # fmt: skip
    return items


def manifest(path: Path, items) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def run(out: Path, source: str, **steps):
    return run_chain(Chain(out=str(out), steps=steps, sources=[source], track=False))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(models, **interleave):
    codec = {"speech_tokenizer": models["speech_tokenizer"]}
    chunk = {"method": "words", "min_text_words": 2, "max_text_words": 3, "min_speech_words": 2,
             "max_speech_words": 3}  # fmt: skip
    return {"chunk": chunk, "tokenize": codec, "interleave": models | interleave}


# --- tokenize -----------------------------------------------------------------------------------------------


def test_codes_are_found_by_another_grouping(tmp_path, models, encoded, monkeypatch):
    from lit_moss.prepare import tokenize

    monkeypatch.setattr(tokenize, "_UNIT_ITEMS", 5)
    run(tmp_path / "out", manifest(tmp_path / "m.jsonl", utterances(tmp_path / "a")), **steps_of(models))
    assert sum(encoded) == 12
    assert PART > 12  # what `interleave` asks for is one list, of other recordings than any unit
    out = lines(tmp_path / "out/tokenize/manifest.jsonl")
    assert [item["codes"] for item in out] == [50] * 12


def test_an_unreadable_recording_is_one_rejection(tmp_path, models):
    items = utterances(tmp_path / "a", recordings=2, each=3)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    items.insert(2, items[0] | {"audio_filepath": str(tmp_path / "broken.wav")})
    (result,) = run(tmp_path / "out", manifest(tmp_path / "m.jsonl", items),
                    tokenize={"speech_tokenizer": models["speech_tokenizer"]})  # fmt: skip
    assert (result.counts.items_out, result.counts.rejected) == (6, {"unreadable audio": 1})
    assert "broken.wav" in lines(tmp_path / "out/tokenize/rejected.jsonl")[0]["value"]


# --- interleave ---------------------------------------------------------------------------------------------


def test_chunks_with_a_modality_are_taken_as_they_are(tmp_path, models):
    run(tmp_path / "out", manifest(tmp_path / "m.jsonl", utterances(tmp_path / "a")), **steps_of(models))
    found = read_documents(tmp_path / "out/interleave/interleaved")
    assert len(found) == 4
    from lit_moss.llm.backbone import load_text_tokenizer

    tokenizer = load_text_tokenizer(models["backbone"])
    chunks = [c for item in lines(tmp_path / "out/chunk/manifest.jsonl") for c in item["chunks"]]
    parts = [part for i in range(4) for part in split_reply(found.rows(i).tolist(), found.format)]
    text = " ".join(tokenizer.decode(ids).strip() for kind, ids in parts if kind == "text")
    assert text == " ".join(c[4] for c in chunks if c[5] == "text")
    codes = sum(len(ids) for kind, ids in parts if kind == "speech")
    assert codes == sum(round((c[3] - c[2]) / 0.08) for c in chunks if c[5] == "speech")


@pytest.mark.slow
def test_speech_of_untrusted_transcripts_is_never_interleaved(tmp_path, models, capsys):
    items = utterances(tmp_path / "a")
    items[1]["use"] = "speech"
    del items[2]["words"]
    source = manifest(tmp_path / "m.jsonl", items)
    for choice, hours in (("none", None), ("rest", 4.0), ("all", 48.0)):
        out = tmp_path / choice
        *_, result = run(out, source, **steps_of(models, unsupervised=choice, context=16))
        interleaved = read_documents(out / "interleave/interleaved")
        assert result.counts.counts["without_word_times"] == interleaved.meta["without_word_times"] == 1
        assert result.counts.counts["longer_than_context"] == (interleaved.lengths > 16).sum() > 0
        assert (out / "interleave/unsupervised").exists() == (choice != "none")
        if hours is not None:
            assert read_documents(out / "interleave/unsupervised").speech_sec == pytest.approx(hours)
        told = capsys.readouterr().err
        assert "interleaved: 1 of 11 utterances have no word times" in told
        assert "longer than the context of 16 rows" in told
        assert not (out / "interleave/blocks").exists()


@pytest.mark.slow
def test_the_same_bytes_in_another_folder_and_in_small_blocks(tmp_path, models, monkeypatch):
    options = {"validation_share": 0.3, "unsupervised": "all"}
    for name, block in (("a", 2000), ("b", 1)):
        monkeypatch.setattr(document_folders, "BLOCK_ITEMS", block)
        items = utterances(tmp_path / name, recordings=6)
        run(
            tmp_path / f"out-{name}",
            manifest(tmp_path / f"{name}.jsonl", items),
            **steps_of(models, **options),
        )
    documents = []
    for out in (tmp_path / "out-a/interleave", tmp_path / "out-b/interleave"):
        documents.append({str(p.relative_to(out)): p.read_bytes() for p in out.glob("*/*") if p.is_file()})
    assert documents[0] == documents[1]
    assert {Path(k).parent.name for k in documents[0]} == {
        "interleaved", "interleaved-validation", "unsupervised", "unsupervised-validation",
    }  # fmt: skip


def test_a_data_module_takes_the_folders(tmp_path, models, caplog):
    items = utterances(tmp_path / "a")
    del items[0]["words"]
    source = manifest(tmp_path / "m.jsonl", items)
    run(tmp_path / "out", source, **steps_of(models, unsupervised="all", validation_share=0.3))
    folders = [str(tmp_path / "out/interleave" / kind) for kind in ("interleaved", "unsupervised")]
    data = InterleavedDataModule(
        train=folders, validation=[f"{folders[0]}-validation"], backbone=models["backbone"], context=64
    )
    data.prepare_data()
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert data.left_out == 0
    assert "longer than the context of 64 rows" in caplog.text
    assert "1 utterances have no word times" in caplog.text
    assert len(next(iter(data.train_dataloader()))) == 1


def test_documents_go_to_a_store(tmp_path, models):
    stage = InterleaveStage(InterleaveOptions(**models), Storage("memory://bucket/interleave"))
    stage.run_all([manifest(tmp_path / "m.jsonl", utterances(tmp_path / "a"))])
    fsspec.filesystem("memory").get("/bucket/interleave/interleaved", str(tmp_path / "copy"), recursive=True)
    assert len(read_documents(tmp_path / "copy")) == 4


def test_a_split_holds_out_at_least_one_of_two():
    for names in (["a", "b"], [f"r{i}" for i in range(7)], [f"r{i}" for i in range(1000)]):
        split = Split(names, 0.1)
        held = [name for name in names if split.is_held_out(name)]
        assert 1 <= len(held) < len(names)
    assert 70 < len(held) < 130
    assert not Split(["a"], 0.5).is_held_out("a")
    assert not any(Split(names, 0.0).is_held_out(name) for name in names)


@pytest.mark.parametrize("options", [{"validation_share": 1.0}, {"context": 1}, {"unsupervised": "some"}])
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match="expected"):
        InterleaveOptions(**options)


# --- sft ----------------------------------------------------------------------------------------------------


def conversations(folder: Path, count=6) -> list[dict]:
    items = utterances(folder, recordings=count, each=2)
    return [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "user", "content": "Hi", **_sound(items[2 * i])},
                {"role": "assistant", "content": "Well. " * (i + 1), **_sound(items[2 * i + 1])},
            ],
        }
        for i in range(count)
    ]


def _sound(item):
    return {key: item[key] for key in ("audio_filepath", "offset", "duration")}


def test_conversations_in_pairs_and_forms(tmp_path, models):
    items = conversations(tmp_path / "a")
    del items[5]["messages"][1]["audio_filepath"]
    source = manifest(tmp_path / "c.jsonl", items)
    tokenize = {"speech_tokenizer": models["speech_tokenizer"]}
    for form in ("direct", "interleaved"):
        options = models | {"reply_form": form, "validation_share": 0.2}
        *_, result = run(tmp_path / form, source, tokenize=tokenize, sft=options)
        train, held = (read_documents(tmp_path / form / "sft" / name) for name in ("sft", "sft-validation"))
        assert len(train) + len(held) == 6 * 4 - 2
        assert result.counts.counts["without_modality"] == 2
        names = [{d.id(i).split("/")[0] for i in range(len(d))} for d in (train, held)]
        assert names[0].isdisjoint(names[1])
        assert names[0] | names[1] == {f"c{i}" for i in range(6)}
    out = lines(tmp_path / "direct/tokenize/manifest.jsonl")
    assert [m.get("codes") for m in out[0]["messages"]] == [50, 50]
    assert [m.get("codes") for m in out[5]["messages"]] == [50, None]


def test_a_conversation_that_does_not_fit_is_left_out_and_listed(tmp_path, models, capsys):
    source = manifest(tmp_path / "c.jsonl", conversations(tmp_path / "a"))
    everything = read_documents(_sft(tmp_path / "all", source, models))
    context = int(np.sort(everything.lengths)[12])
    capsys.readouterr()
    fitting = read_documents(_sft(tmp_path / "some", source, models, context=context))
    longer = [everything.id(i) for i in np.flatnonzero(everything.lengths > context)]
    rejected = lines(tmp_path / "some/sft/rejected.jsonl")
    assert sorted(f"{r['item']['id']}/{r['item']['pair']}" for r in rejected) == sorted(longer)
    assert {r["reason"] for r in rejected} == {"longer than the context"}
    assert all(r["value"] > r["threshold"] == context for r in rejected)
    assert len(fitting) == len(everything) - len(longer) == (everything.lengths <= context).sum()
    share = everything.lengths[everything.lengths > context].sum() / everything.lengths.sum()
    assert f"sft: {len(longer)} of 24 documents, {share:.1%} of the rows" in capsys.readouterr().err


def _sft(out: Path, source: str, models, **options) -> Path:
    run(out, source, sft=models | options)
    return out / "sft/sft"


def test_lines_without_messages_are_named(tmp_path, models):
    source = manifest(tmp_path / "m.jsonl", utterances(tmp_path / "a"))
    with pytest.raises(UserError, match="no messages, expected conversations"):
        run(tmp_path / "out", source, sft=models)
