"""Token data modules: batches are right at every border, and a function of the documents and n."""

import io
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_moss.data import (
    InterleavedDataModule,
    MixtureDataModule,
    SFTDataModule,
    TextDataModule,
    TokenBatch,
    UnsupervisedDataModule,
)
from lit_moss.data.documents import DocumentWriter
from lit_moss.data.packing import Packs
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat

V = 100  # text ids
FORMAT = RowFormat(
    text_vocab_size=V,
    audio_vocab_size=50,
    sosp_token_id=98,
    eosp_token_id=48,
    modality_pad_token_id=99,
    audio_pad_token_id=0,
    end_id=7,
)
TOKENIZERS = {"text_tokenizer": "t1", "speech_tokenizer": "c1"}
META = {"kind": "interleaved", "options": {}, "format": FORMAT.to_dict()} | TOKENIZERS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


def write(folder, documents, **meta):
    """documents: name -> rows, or (rows, loss mask)."""
    with DocumentWriter(folder, META | meta) as writer:
        for name, rows in documents.items():
            rows, mask = rows if isinstance(rows, tuple) else (rows, None)
            writer.add(name, rows, mask, meta.get("kind", "interleaved"), "en", 0.0)
    return str(folder)


def random_documents(prefix, count, seed, longest=50, top=150):
    rng = np.random.default_rng(seed)
    return {f"{prefix}{i}": rng.integers(0, top, int(rng.integers(2, longest))) for i in range(count)}


@pytest.fixture
def speech(tmp_path):
    return write(tmp_path / "speech", random_documents("s", 120, 0))


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "text", random_documents("t", 90, 1, top=V), kind="text", speech_tokenizer=None)


def ready(kind=InterleavedDataModule, **options):
    options = {"context": 64, "batch_size": 2, "heldout_items": 0, "speech_tokenizer": "c"} | options
    data = kind(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data, count):
    return list(islice(iter(data.train_dataloader()), count))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.ids, x.speech_rows, x.lengths) == (y.ids, y.speech_rows, y.lengths)
        for name in ("rows_BL", "document_ids_BL", "loss_mask_BL"):
            assert torch.equal(getattr(x, name), getattr(y, name))


def test_a_stage_may_start_where_another_stopped(speech):
    """`first_batch` 3 gives what a run has left that took 3, also under a resume of its own."""
    whole, second = ready(train=[speech]), ready(train=[speech], first_batch=3)
    assert_same(batches(whole, 8)[3:], batches(second, 5))
    second.advance(2)
    resumed = ready(train=[speech], first_batch=3)
    resumed.load_state_dict(second.state_dict())
    assert_same(batches(whole, 8)[5:], batches(resumed, 3))
    with pytest.raises(UserError, match="first_batch is -1"):
        ready(train=[speech], first_batch=-1)


# What a batch holds.


def strings(batch, b=0):
    """Rows as letters (s speech, t text, . filler), documents as digits, targets as x."""
    rows, ids, mask = (x[b] for x in (batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL))
    kinds = [
        "." if i < 0 else "s" if r >= V else "t" for r, i in zip(rows.tolist(), ids.tolist(), strict=True)
    ]
    return (
        "".join(kinds),
        "".join("." if i < 0 else str(i) for i in ids.tolist()),
        "".join("x" if m else "-" for m in mask.tolist()),
    )


@pytest.mark.parametrize(
    ("documents", "context", "want"),
    [
        (
            {"a": [98, V + 1, V + 2, V + 48, 7], "b": [1, 2, 3]},
            10,
            ("tssstttt..", "00000111..", "-xxxx-xx--"),
        ),
        # The loss mask is the document's, but its first row is never a target.
        (
            {"a": ([1, 2, 3, 4, 5], [True, True, False, True, False]), "b": ([6, V], [True, True])},
            8,
            ("tttttts.", "0000011.", "-x-x--x-"),
        ),
        ({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, 6, ("tttttt", "001122", "-x-x-x")),
        ({"a": [1, 2, 3]}, 3, ("ttt", "000", "-xx")),
    ],
)
def test_packs_spelled_out(tmp_path, documents, context, want):
    data = ready(train=[write(tmp_path / "d", documents)], context=context, batch_size=1)
    (batch,) = batches(data, 1)
    assert strings(batch) == want
    assert batch.ids == list(documents)
    assert batch.rows_BL.dtype == torch.int64
    assert batch.document_ids_BL.dtype == torch.int32
    assert batch.loss_mask_BL.dtype == torch.bool


def test_counts_of_a_batch(tmp_path):
    data = ready(
        train=[write(tmp_path / "d", {"a": [98, V + 1, V + 2, V + 48, 7], "b": [1, 2, 3]})],
        context=10,
        batch_size=1,
    )
    (batch,) = batches(data, 1)
    assert len(batch) == 1
    assert (batch.real_rows, batch.speech_rows, batch.lengths) == (8, 3, [5, 3])
    assert batch.audio_sec == pytest.approx(3 * 0.08)
    assert batch.lengths == [5, 3]
    assert batch.skipped == []
    assert batch.rows_BL[0, 8:].tolist() == [7, 7]


def test_lengths_are_counted_where_they_are_not_given():
    ids = torch.tensor([[0, 0, 1, -1], [-1, -1, -1, -1], [0, 1, 1, 2]], dtype=torch.int32)
    batch = TokenBatch(torch.zeros(3, 4, dtype=torch.long), ids, ids >= 0, [], 0)
    assert batch.lengths == [2, 1, 1, 2, 1]
    assert batch.real_rows == 7


def test_every_row_of_a_round_is_a_target_once_and_keeps_its_place(speech):
    data = ready(train=[speech], context=32, batch_size=1)  # shorter than the longest documents
    documents = random_documents("s", 120, 0)
    seen = Counter()
    for batch in batches(data, int(data.order.packs_per_round)):
        at = 0
        for name, length in zip(batch.ids, batch.lengths, strict=True):
            name, _, start = name.partition("+")
            here = slice(at, at + length)
            first = int(start or 0)
            assert batch.rows_BL[0, here].tolist() == documents[name][first : first + length].tolist()
            assert batch.document_ids_BL[0, here].unique().numel() == 1
            assert batch.loss_mask_BL[0, here].tolist() == [False] + [True] * (length - 1)
            seen.update((name, row) for row in range(first + 1, first + length))
            at += length
        assert (batch.document_ids_BL[0, at:] == -1).all()
        assert not batch.loss_mask_BL[0, at:].any()
    assert seen == {(name, row): 1 for name, rows in documents.items() for row in range(1, len(rows))}


# Order.


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_change_nothing(speech, workers):
    assert_same(batches(ready(train=[speech], workers=workers), 25), batches(ready(train=[speech]), 25))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [1, 7, 24])
def test_setting_next_batch_continues_from_there(speech, first, workers):
    data = ready(train=[speech], workers=workers)
    data.next_batch = first
    assert_same(batches(data, 25 - first), batches(ready(train=[speech]), 25)[first:])


def test_changing_numbers_of_ranks_continue_one_order(speech):
    whole, found, consumed = batches(ready(train=[speech]), 5 + 2 * 6 + 3 * 2 + 4), [], 0
    for ranks, steps in ((1, 5), (2, 6), (3, 2), (1, 4)):
        dealt = []
        for rank in range(ranks):
            data = ready(train=[speech])
            data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
            data.next_batch = consumed
            dealt.append(batches(data, steps))
        found += [batch for step in zip(*dealt, strict=True) for batch in step]
        consumed += ranks * steps
    assert_same(found, whole)


def test_loading_does_not_draw_from_the_random_numbers_of_training(speech):
    data = ready(train=[speech], workers=1)
    before = torch.get_rng_state()
    batches(data, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(speech):
    one, other = (batches(ready(train=[speech], seed=seed), 3) for seed in (1, 2))
    assert [b.ids for b in one] != [b.ids for b in other]


def test_a_mixture_gives_each_source_its_share(speech, text):
    parts = [InterleavedDataModule(train=[speech]), TextDataModule(train=[text])]
    data = ready(MixtureDataModule, parts=parts, epochs=[1.0, 0.5], batch_size=1)
    sizes = [len(s.packs) for s in data.sources]
    found = batches(data, 2 * (sizes[0] + sizes[1] // 2) + 1)
    names = Counter(name for batch in found[: 2 * sizes[0] + sizes[1]] for name in batch.ids)
    assert {name.partition("+")[0] for name in names} == {f"s{i}" for i in range(120)} | {
        f"t{i}" for i in range(90)
    }
    assert all(count == 2 for name, count in names.items() if name[0] == "s")
    assert all(count == 1 for name, count in names.items() if name[0] == "t")
    assert data.order.shares == [sizes[0], sizes[1] / 2]
    for batch in found:  # a pack is of one source
        assert len({name[0] for name in batch.ids}) == 1


def test_a_part_takes_the_context_of_its_mixture(speech, text):
    parts = [InterleavedDataModule(train=[speech], context=16), TextDataModule(train=[text])]
    data = ready(MixtureDataModule, parts=parts, context=48)
    assert {s.packs.context for s in data.sources} == {48}
    assert batches(data, 1)[0].rows_BL.shape == (2, 48)


# Validation.


def test_validation_is_complete_and_whole(speech):
    data = ready(train=[speech], validation=[speech], validation_batch_size=3)
    found = list(data.val_dataloader())
    assert sorted(name for batch in found for name in batch.ids) == sorted(f"s{i}" for i in range(120))
    assert_same(found, list(data.val_dataloader()))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_validation_of_two_ranks_is_that_of_one(speech, size):
    whole = list(ready(train=[speech], validation=[speech], validation_batch_size=size).val_dataloader())
    dealt = []
    for rank in (0, 1):
        data = ready(train=[speech], validation=[speech], validation_batch_size=size)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        dealt.append(list(data.val_dataloader()))
    assert len(dealt[0]) == len(dealt[1])  # sharded strategies talk at each forward
    found = [batch for step in zip(*dealt, strict=True) for batch in step]
    assert_same(found[: len(whole)], whole)
    for filler in found[len(whole) :]:
        assert filler.ids == []
        assert filler.real_rows == 0
        assert filler.rows_BL.shape == (1, 64)
        assert not filler.loss_mask_BL.any()


def test_validation_of_a_mixture_is_its_parts(speech, text):
    parts = [
        InterleavedDataModule(train=[speech], validation=[speech]),
        TextDataModule(train=[text], validation=[text]),
    ]
    data = ready(MixtureDataModule, parts=parts)
    names = [name[0] for batch in data.val_dataloader() for name in batch.ids]
    assert Counter(names) == {"s": 120, "t": 90}


def test_without_validation_there_is_no_loader(speech):
    assert ready(train=[speech]).val_dataloader() == []


def test_validation_alone_needs_no_training_data(speech):
    data = InterleavedDataModule(validation=[speech], context=64, heldout_items=0)
    data.setup("validate")
    assert len(list(data.val_dataloader()))
    data.load_state_dict({"next_batch": 3, "skipped": {}, "fingerprints": {}, "ranks": 1})
    assert data.next_batch == 0


# Resume and fingerprints.


def test_a_state_continues_with_the_same_data(speech):
    one = ready(train=[speech])
    one.next_batch = 17
    other = ready(train=[speech])
    other.load_state_dict(one.state_dict())
    assert other.next_batch == 17


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"context": 65}, "data"),
        ({"batch_size": 3}, "order"),
        ({"seed": 2}, "order"),
        ({"min_fill": 0.0}, None),
    ],
)
def test_a_state_of_other_data_is_refused_with_both_fingerprints(speech, options, what):
    state = ready(train=[speech], context=64, min_fill=0.0).state_dict()
    other = ready(train=[speech], **({"min_fill": 0.0} | options))
    if what is None:
        other.load_state_dict(state)
        return
    with pytest.raises(UserError, match=f"other {what}") as error:
        other.load_state_dict(state)
    assert state["fingerprints"][what] in str(error.value)
    assert other.fingerprints()[what] in str(error.value)


def test_a_state_of_other_documents_is_refused(tmp_path, speech):
    other = write(tmp_path / "other", random_documents("s", 120, 5))
    with pytest.raises(UserError, match="other data"):
        ready(train=[other]).load_state_dict(ready(train=[speech]).state_dict())


def test_fingerprints_of_a_mixture(speech, text):
    parts = [TextDataModule(train=[text]), InterleavedDataModule(train=[speech], validation=[speech])]
    found = ready(MixtureDataModule, parts=parts).fingerprints()
    assert found.keys() == {"data", "order", "validation", "speech_tokenizer", "text_tokenizer", "format"}
    assert all(isinstance(value, str) for value in found.values())
    assert (found["speech_tokenizer"], found["text_tokenizer"]) == ("c1", "t1")
    assert found["format"] == FORMAT.fingerprint


def test_the_state_has_plain_types_only(speech):
    state = ready(train=[speech]).state_dict()
    torch.save(state, file := io.BytesIO())
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=True) == state


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"text_tokenizer": "t2"}, "text tokenizers: .* has t1, .* has t2"),
        ({"speech_tokenizer": "c2"}, "speech tokenizers: .* has c1, .* has c2"),
        ({"format": FORMAT.to_dict() | {"end_id": 8}}, "formats"),
    ],
)
def test_sources_with_different_meanings_of_a_row_are_refused(tmp_path, speech, changes, what):
    other = write(tmp_path / "other", random_documents("o", 20, 5), **changes)
    with pytest.raises(UserError, match=what):
        ready(train=[speech, other])
    with pytest.raises(UserError, match=what):
        ready(train=[speech], validation=[other])


def test_text_made_without_a_speech_tokenizer_fits_any(tmp_path, speech):
    row_format = FORMAT.to_dict() | {"audio_vocab_size": 1152, "eosp_token_id": 1024}
    meta = {"kind": "text", "speech_tokenizer": None, "format": row_format}
    text = write(tmp_path / "text", random_documents("t", 30, 1, top=V), **meta)
    data = ready(
        MixtureDataModule, parts=[TextDataModule(train=[text]), InterleavedDataModule(train=[speech])]
    )
    assert data.format == FORMAT


# Damage, packs, texts.


def test_damaged_shards_are_named_in_skipped(tmp_path):
    folder = tmp_path / "d"
    with DocumentWriter(folder, META, shard_rows=20) as writer:
        for i in range(400):
            writer.add(f"d{i}", [i % 150, 2, 3, 4, 5])
    (folder / "00003.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match="4 of 400"):
        data = ready(train=[str(folder)])
    assert data.skipped == {str(folder / "00003.parquet"): "00003.parquet: 4 documents, the file is empty"}
    assert data.utterances == 396


def test_packs_are_stored_beside_the_shards_and_reused(tmp_path, speech, monkeypatch):
    first = ready(train=[speech])
    (kept,) = (tmp_path / "speech/packs").iterdir()
    monkeypatch.setattr("lit_moss.data.packed_documents.pack", lambda *_: pytest.fail("packed again"))
    assert ready(train=[speech]).fingerprints() == first.fingerprints()
    monkeypatch.undo()
    kept.write_bytes(b"")
    assert ready(train=[speech]).fingerprints() == first.fingerprints()


def test_documents_in_a_read_only_folder_are_packed(speech, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Packs, "save", refuse)
    assert batches(ready(train=[speech]), 1)


def test_setup_logs_documents_and_packs(speech, caplog):
    with caplog.at_level("INFO"):
        data = ready(train=[speech])
    said = "\n".join(record.message for record in caplog.records)
    rows = sum(len(rows) for rows in random_documents("s", 120, 0).values())
    assert f"train: speech: 120 documents of kind interleaved, {rows} rows, 0.00 h of speech" in said
    assert f"{len(data.sources[0].packs)} packs {data.fill_rate:.1%} full" in said
    assert "of 128 rows (per rank and micro-batch)" in said


def test_the_fill_rate_is_that_of_the_batches(speech, text):
    parts = [InterleavedDataModule(train=[speech], min_fill=0.0), TextDataModule(train=[text], min_fill=0.0)]
    data = ready(MixtureDataModule, parts=parts, epochs=[1.0, 2.0], batch_size=1)
    found = batches(data, int(data.order.packs_per_round))
    assert data.fill_rate == pytest.approx(sum(b.real_rows for b in found) / (64 * len(found)))


# Making documents, and mistakes.


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Calls of `make_documents`; each makes a folder."""
    from lit_moss.data import make_documents as documents

    calls = []

    def make(kind, sources, part, backbone, speech_tokenizer, options, log_mel, max_bad_share):
        calls.append((kind, list(sources), part, backbone, speech_tokenizer, options))
        folder = tmp_path / f"made{len(calls)}"
        write(folder, random_documents("m", 20, len(calls)), kind=kind)
        return folder

    monkeypatch.setattr(documents, "make_documents", make)
    return calls


def test_manifests_are_made_into_documents_once(made):
    data = InterleavedDataModule(
        train=["a.jsonl"], validation=["embedded:x"], backbone="b", speech_tokenizer="c", context=64,
        heldout_items=0, speech_share=0.7, document_seed=3, seed=9,
    )  # fmt: skip
    for _ in range(2):  # the command line prepares first, the trainer again
        data.prepare_data()
        data.setup("fit")
    options = {"speech_share": 0.7, "alternate": False, "document_sec": 60.0, "seed": 3}
    assert made == [
        ("interleaved", ["a.jsonl"], "train", "b", "c", options),
        ("interleaved", ["embedded:x"], "validation", "b", "c", options),
    ]


@pytest.mark.parametrize(
    ("kind", "options", "want"),
    [
        (UnsupervisedDataModule, {"document_sec": 30.0}, ("unsupervised", {"document_sec": 30.0})),
        (TextDataModule, {}, ("text", {})),
        (
            SFTDataModule,
            {"pairs": ["text-speech"], "train_on": "all"},
            ("sft", {"pairs": ["text-speech"], "train_on": "all"}),
        ),
    ],
)
def test_each_kind_passes_its_options_on(made, kind, options, want):
    ready(kind, train=["a.jsonl"], **options)
    assert [(call[0], call[5]) for call in made] == [want]


def test_parts_take_backbone_and_speech_tokenizer_of_their_mixture(made):
    parts = [UnsupervisedDataModule(train=["a.jsonl"]), TextDataModule(train=["b.txt"])]
    ready(MixtureDataModule, parts=parts, backbone="b", speech_tokenizer="c")
    assert [(call[0], call[3], call[4]) for call in made] == [("unsupervised", "b", "c"), ("text", "b", "c")]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (InterleavedDataModule, {}, "data.train of InterleavedDataModule is empty"),
        (InterleavedDataModule, {"context": 1}, "expected 2 rows"),
        (InterleavedDataModule, {"batch_size": 0}, "batch_size 0"),
        (InterleavedDataModule, {"min_fill": 1.5}, "min_fill is 1.5"),
        (InterleavedDataModule, {"speech_share": 1.5}, "speech_share is 1.5"),
        (SFTDataModule, {"pairs": ["speech-dance"]}, "speech-dance"),
        (MixtureDataModule, {"parts": []}, "0 parts"),
        (MixtureDataModule, {"parts": [TextDataModule()], "epochs": [1.0, 2.0]}, "1 parts"),
        (MixtureDataModule, {"parts": [TextDataModule()], "epochs": [0.0]}, "above 0"),
        (MixtureDataModule, {"parts": [TextDataModule()], "train": ["x"]}, "belong into its parts"),
        (MixtureDataModule, {"parts": [MixtureDataModule([TextDataModule()])]}, "outer one"),
    ],
)
def test_mistakes_are_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        ready(kind, **options)


def test_a_folder_without_documents_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a folder without meta\.json"):
        ready(train=[str(tmp_path)])
