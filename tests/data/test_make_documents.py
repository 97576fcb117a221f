"""`prepare documents`: manifests and text to token documents, with small tokenizers of speech and text."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.cli.prepare import documents
from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.everyday import sentences
from lit_moss.corpora.manifest import Utterance, read_manifest, write_manifest
from lit_moss.data.cloze import make_cloze
from lit_moss.data.documents import read_documents
from lit_moss.data.make_documents import OPTIONS, make_documents
from lit_moss.errors import UserError
from lit_moss.llm.backbone import load_text_tokenizer, row_format

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a byte-level BPE tokenizer of 600 words that knows ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    folder = tmp_path_factory.mktemp("backbone")
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def speech_tokenizer(tmp_path, tiny_encoder):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def manifest(tmp_path):
    """Twelve utterances of two chapters, of 0.5 to 1.6 s."""
    rng = np.random.default_rng(0)
    found = []
    for i, text in enumerate(sentences()[:12]):
        path = tmp_path / "wavs" / f"LJ00{i // 7 + 1}-{i + 1:04d}.wav"
        path.parent.mkdir(exist_ok=True)
        duration_sec = 0.5 + 0.1 * i
        soundfile.write(path, rng.normal(0, 0.1, round(duration_sec * RATE_HZ)), RATE_HZ)
        found.append(Utterance(path, 0.0, duration_sec, text, "linda", "en"))
    write_manifest(tmp_path / "train.jsonl", found)
    return tmp_path / "train.jsonl"


def changed(manifest, change):
    """The manifest with each utterance replaced by `change(number, utterance)`."""
    write_manifest(manifest, [change(i, u) for i, u in enumerate(read_manifest(manifest))])
    return manifest


def make(kind, manifest, backbone, speech_tokenizer, out=None, **options):
    return read_documents(
        make_documents(kind, [str(manifest)], "train", backbone, speech_tokenizer, out, options)
    )


def all_rows(found):
    return [found.rows(i).tolist() for i in range(len(found))]


def spelled(rows, form, backbone):
    """Text as it is, `<7>` for a stretch of 7 codes, `.` for the document's end."""
    tokenizer, text, count = load_text_tokenizer(backbone), "", 0
    for r in rows:
        if r > form.text_vocab_size and r == form.eosp_row:
            text, count = text + f"{count}>", 0
        elif r >= form.text_vocab_size:
            count += 1
        else:
            text += {form.sosp_token_id: "<", form.end_id: "."}.get(r) or tokenizer.decode([r])
    return text


def encoded(manifest, speech_tokenizer):
    """Codes of every utterance, one by one."""
    from lit_moss.audio import io

    tok = SpeechTokenizer.from_pretrained(speech_tokenizer)
    return [tok.encode(io.read(u.audio, RATE_HZ), RATE_HZ).tolist() for u in read_manifest(manifest)]


# --- kinds --------------------------------------------------------------------------------------------------


def test_interleaved_groups_chapters_and_frames_speech(manifest, backbone, speech_tokenizer):
    found = make("interleaved", manifest, backbone, speech_tokenizer)
    assert [found.id(i) for i in range(len(found))] == ["LJ001:LJ001-0001", "LJ002:LJ002-0008"]
    text, lengths = sentences()[:12], [len(c) for c in encoded(manifest, speech_tokenizer)]
    rest = [spelled(rows, found.format, backbone) for rows in all_rows(found)]
    for document, members in zip(rest, (range(7), range(7, 12)), strict=True):
        # Read off which utterance came in which modality, and spell the document again from that.
        spoken = [text[i] not in document for i in members]
        expected, run = "", 0
        for i, speech in zip(members, spoken, strict=True):
            if speech:
                run += lengths[i]
                continue
            expected += (f"<{run}>" if run else "") + (" " if i != members[0] else "") + text[i]
            run = 0
        assert document == expected + (f"<{run}>" if run else "") + "."
    assert found.meta["speech_tokenizer"]
    assert found.format.eosp_token_id == 256
    assert found.format.audio_vocab_size == 384


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unsupervised", "interleaved"])
def test_no_code_is_lost_or_doubled(manifest, backbone, speech_tokenizer, kind):
    options = {"speech_share": 1.0} if kind == "interleaved" else {}
    found = make(kind, manifest, backbone, speech_tokenizer, **options)
    V, eosp = found.format.text_vocab_size, found.format.eosp_row
    codes_of = [r - V for rows in all_rows(found) for r in rows if r >= V and r != eosp]
    expected = [c for one in encoded(manifest, speech_tokenizer) for c in one]
    assert codes_of == expected
    assert found.speech_sec == pytest.approx(0.08 * len(expected))
    assert [spelled(r, found.format, backbone).count("<") for r in all_rows(found)] == [1, 1]


def test_only_text_is_the_transcript(manifest, backbone, speech_tokenizer):
    interleaved = make("interleaved", manifest, backbone, speech_tokenizer, speech_share=0.0)
    text = make("text", manifest, backbone, None)
    expected = [" ".join(sentences()[:7]) + ".", " ".join(sentences()[7:12]) + "."]
    for found in (interleaved, text):
        assert [spelled(rows, found.format, backbone) for rows in all_rows(found)] == expected
        assert found.speech_sec == 0


def test_documents_hold_no_more_seconds_than_asked_for(manifest, backbone, speech_tokenizer):
    found = make("unsupervised", manifest, backbone, speech_tokenizer, document_sec=2.0)
    assert max(found.lengths) <= 25 + 3  # and sosp, eosp, end
    assert len(found) == 9


def test_words_make_chunks_with_the_transcripts_spelling(manifest, backbone, speech_tokenizer, tmp_path):
    path = tmp_path / "wavs" / "talk.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 40 * RATE_HZ), RATE_HZ)
    words = [[f"w{i}", 0.5 * i, 0.5 * i + 0.4] for i in range(80)]
    text = " ".join(f"W{i}," for i in range(80))
    write_manifest(manifest, [Utterance(path, 0.0, 40.0, text, extra={"words": words})])
    found = make("interleaved", manifest, backbone, speech_tokenizer, alternate=True)
    document = spelled(all_rows(found)[0], found.format, backbone)
    stretches = [int(part.split(">")[0]) for part in document.split("<")[1:]]
    assert all(3 <= 0.08 * n <= 6 for n in stretches[:-1])
    assert len(stretches) >= 3
    told = [
        w for part in document.replace("<", " <").split() for w in [part.rstrip(".")] if w.startswith("W")
    ]
    assert 20 < len(told) < 60
    assert set(told) <= set(text.split())

    whole = make("interleaved", manifest, backbone, speech_tokenizer, speech_share=0.0)
    assert spelled(all_rows(whole)[0], whole.format, backbone) == text + "."
    # A recording longer than a document is cut between chunks.
    parts = make("interleaved", manifest, backbone, speech_tokenizer, speech_share=1.0, document_sec=15.0)
    assert [parts.id(i) for i in range(len(parts))][:2] == ["talk:talk", "talk:talk+1"]
    assert sum(parts.lengths) == 500 + 3 * len(parts)
    assert max(parts.lengths) <= 15 / 0.08 + 3

    changed(manifest, lambda _, u: replace(u, extra={"words": [["b", 2.0, 1.0]]}))
    with pytest.raises(UserError, match="talk: words are no list"):
        make("interleaved", manifest, backbone, speech_tokenizer)


def test_a_manifest_stands_in_for_conversations(manifest, backbone, speech_tokenizer):
    found = make("sft", manifest, backbone, speech_tokenizer)
    assert len(found) == 12 * 4
    assert found.id(1) == "LJ001-0001/speech-text"
    n = len(encoded(manifest, speech_tokenizer)[0])
    document = spelled(found.rows(1).tolist(), found.format, backbone)
    assert (
        f"<|im_start|>user\n<{n}><|im_end|>\n<|im_start|>assistant\n{sentences()[0]}<|im_end|>\n" in document
    )
    assert "with text. Repeat what the user says.<|im_end|>" in document
    counted = spelled(found.rows(1)[found.loss_mask(1)].tolist(), found.format, backbone)
    assert counted == sentences()[0] + "<|im_end|>"


def test_conversations_from_a_file(manifest, backbone, speech_tokenizer, tmp_path, capsys):
    first, second = (u.audio.relative_to(tmp_path) for u in read_manifest(manifest)[:2])
    lines = [
        {"messages": [{"role": "user", "content": "Hi.", "audio_filepath": str(first)},
                      {"role": "assistant", "content": "Hello.", "audio_filepath": str(second)}]},
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Only written."}]},
        {"messages": [{"role": "user", "audio_filepath": str(first), "offset": 0.16, "duration": 0.08},
                      {"role": "assistant", "content": "Heard."}]},
    ]  # fmt: skip
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = make("sft", path, backbone, speech_tokenizer)
    assert [found.id(i) for i in range(len(found))] == [
        *(f"chat-1/{pair}" for pair in OPTIONS["sft"]["pairs"]),
        "chat-2/text-text",
        "chat-3/speech-text",
    ]
    assert "6 conversations lack a modality" in capsys.readouterr().err
    lengths = [len(c) for c in encoded(manifest, speech_tokenizer)]
    assert f"user\n<{lengths[0]}><|im_end|>" in spelled(found.rows(0).tolist(), found.format, backbone)
    assert f"assistant\n<{lengths[1]}><|im_end|>" in spelled(found.rows(0).tolist(), found.format, backbone)
    assert "user\n<1><|im_end|>" in spelled(found.rows(5).tolist(), found.format, backbone)


@pytest.mark.parametrize(
    "line",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "Hi."}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": ["x"]}]},
        {"messages": "x"},
    ],
)
def test_a_line_that_is_no_conversation_is_named(backbone, speech_tokenizer, tmp_path, line):
    good = {"messages": [{"role": "assistant", "content": "x"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"chat.jsonl, line 2: messages.* is .*, expected "):
        make("sft", tmp_path / "chat.jsonl", backbone, speech_tokenizer)


# --- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "no json\n", "line 1: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: got"),
        ("a.jsonl", '{"words": 1}\n', "line 1: keys words, expected"),
        ("a.jsonl", '{"text": "a"}\n{"text": 1}\n', "line 2: text is 1, expected a string"),
        ("a.jsonl", "", "has no lines"),
        ("a.csv", "only text\n", "line 1: got 'only text', expected id"),
        ("a.txt", "", "no document came out"),
        ("a.jsonl", '{"messages": []}\n', "take kind sft"),
    ],
)
def test_text_that_is_none_is_refused_in_one_line(tmp_path, backbone, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        make("text", tmp_path / name, backbone, None)
    assert "\n" not in str(refused.value)


def test_a_missing_transcript_is_counted_and_many_are_refused(manifest, backbone, speech_tokenizer):
    changed(manifest, lambda i, u: replace(u, text=None if i == 3 else u.text))
    found = make("interleaved", manifest, backbone, speech_tokenizer)
    assert found.meta["skipped"] == ["LJ001-0004"]
    changed(manifest, lambda _, u: replace(u, text=None))
    with pytest.raises(UserError, match=r"12 of 12 utterances have no transcript, e\.g\. LJ001-0001"):
        make("interleaved", manifest, backbone, speech_tokenizer)
    assert len(make("unsupervised", manifest, backbone, speech_tokenizer)) == 2


@pytest.mark.parametrize("kind", ["interleaved", "transcripts"])
def test_untrusted_transcripts_are_left_out(manifest, backbone, speech_tokenizer, capsys, kind):
    def marked(i, u):
        return replace(u, extra=u.extra | {"use": "speech" if i in (2, 5) else "interleave"})

    trusted = [u for i, u in enumerate(read_manifest(manifest)) if i not in (2, 5)]
    write_manifest(manifest.with_name("trusted.jsonl"), trusted)
    expected = all_rows(make(kind, manifest.with_name("trusted.jsonl"), backbone, speech_tokenizer))
    whole = all_rows(make(kind, manifest, backbone, speech_tokenizer))
    changed(manifest, marked)
    assert all_rows(make(kind, manifest, backbone, speech_tokenizer)) == expected != whole
    assert "2 of 12 utterances have `use: speech`" in capsys.readouterr().err
    assert len(all_rows(make("unsupervised", manifest, backbone, speech_tokenizer))) == 2
    changed(manifest, lambda _, u: replace(u, extra={"use": "speech"}))
    with pytest.raises(UserError, match="no utterance for kind"):
        make(kind, manifest, backbone, speech_tokenizer)


# --- codes and the cache ------------------------------------------------------------------------------------


def test_one_bad_recording_is_named_and_many_are_refused(manifest, backbone, speech_tokenizer, capsys):
    paths = [u.audio for u in read_manifest(manifest)]
    paths[2].write_bytes(b"")
    for _ in range(2):  # made, and from the cache
        found = make("unsupervised", manifest, backbone, speech_tokenizer, document_sec=60.0)
        assert found.meta["skipped"] == ["LJ001-0003"]
    assert "1 of 12 left out" in capsys.readouterr().err
    paths[5].write_bytes(b"no sound")
    found = make_documents(
        "unsupervised", [str(manifest)], "train", backbone, speech_tokenizer, max_bad_share=0.2
    )
    assert read_documents(found).meta["skipped"] == ["LJ001-0003", "LJ001-0006"]
    changed(manifest, lambda i, u: replace(u, text=f"{u.text}!"))  # another source, made again
    with pytest.raises(UserError, match=r"2 of 12 recordings cannot be read, more than 1% \(max_bad_share\)"):
        make("unsupervised", manifest, backbone, speech_tokenizer)


def test_codes_are_made_once_for_all_kinds_and_again_for_changed_sound(
    manifest, backbone, speech_tokenizer, monkeypatch
):
    calls = []
    encode = SpeechTokenizer.encode
    monkeypatch.setattr(
        SpeechTokenizer, "encode", lambda self, *args: calls.append(len(args[0])) or encode(self, *args)
    )
    first = all_rows(make("unsupervised", manifest, backbone, speech_tokenizer))
    make("interleaved", manifest, backbone, speech_tokenizer)
    make("sft", manifest, backbone, speech_tokenizer)
    make_cloze([str(manifest)], "train", backbone, speech_tokenizer, items=4)
    assert calls == [12]
    path = read_manifest(manifest)[0].audio
    soundfile.write(path, np.random.default_rng(9).normal(0, 0.2, RATE_HZ // 2), RATE_HZ)
    assert all_rows(make("unsupervised", manifest, backbone, speech_tokenizer)) != first
    assert calls == [12, 1]


def test_documents_are_made_once_and_named_by_all_inputs(manifest, backbone, speech_tokenizer, cache):
    def folder(kind="interleaved", **options):
        return make_documents(kind, [str(manifest)], "train", backbone, speech_tokenizer, None, options)

    first = folder()
    made = {p: p.stat().st_mtime_ns for p in first.iterdir()}
    assert folder(seed=1, speech_share=0.5) == first  # the defaults, given
    assert {p: p.stat().st_mtime_ns for p in first.iterdir()} == made
    others = [folder(seed=2), folder(speech_share=0.3), folder(alternate=True), folder("unsupervised")]
    changed(manifest, lambda i, u: replace(u, text="Other." if i == 0 else u.text))
    assert len({first, *others, folder()}) == 6
    assert {p.name for p in (cache / "documents").iterdir()} == {p.name for p in [first, *others, folder()]}


def test_the_same_twice_is_the_same_and_no_random_number_is_drawn(
    manifest, backbone, speech_tokenizer, tmp_path
):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one, two = (make("interleaved", manifest, backbone, speech_tokenizer, tmp_path / name) for name in "ab")
    assert all_rows(one) == all_rows(two)
    assert one.fingerprint == two.fingerprint
    make_cloze([str(manifest)], "train", backbone, speech_tokenizer)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert make("interleaved", manifest, backbone, speech_tokenizer, seed=2).fingerprint != one.fingerprint


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("interleaved", {"speech_share": 1.5}, "speech_share is 1.5, expected 0 to 1"),
        ("interleaved", {"document_sec": 0.0}, "document_sec is 0.0"),
        ("unsupervised", {"speech_share": 0.5}, "have no option speech_share, expected document_sec"),
        ("text", {"seed": 1}, "have no option seed, expected none"),
        ("sft", {"pairs": ["speech-song"]}, "pairs has speech-song, expected some of speech-speech"),
        ("sft", {"train_on": "user"}, "train_on is 'user'"),
        ("chunks", {}, "no kind 'chunks'"),
    ],
)
def test_options_of_a_kind_are_checked(manifest, backbone, speech_tokenizer, kind, options, message):
    with pytest.raises(UserError, match=message):
        make(kind, manifest, backbone, speech_tokenizer, **options)


def test_mistakes_are_told(manifest, backbone, speech_tokenizer, tmp_path):
    with pytest.raises(UserError, match="kind sft hold speech: give a speech tokenizer"):
        make("sft", manifest, backbone, None)
    with pytest.raises(UserError, match=r"no source gone\.jsonl"):
        make("text", "gone.jsonl", backbone, None)
    with pytest.raises(UserError, match="exists: documents are never rewritten"):
        make("text", manifest, backbone, None, tmp_path)
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(UserError, match="holds text, expected a manifest"):
        make("unsupervised", tmp_path / "a.txt", backbone, speech_tokenizer)


def test_the_verb_makes_a_folder_and_says_what_is_in_it(
    manifest, backbone, speech_tokenizer, tmp_path, capsys
):
    parser = argparse.ArgumentParser()
    documents.add_arguments(parser)
    command = [str(manifest), "--kind", "interleaved",
               "--speech-tokenizer", speech_tokenizer, "--backbone", backbone,
               "--out", str(tmp_path / "docs"), "--speech-share", "1.0", "--document-sec", "3"]  # fmt: skip
    documents.main(parser.parse_args(command))
    found = read_documents(tmp_path / "docs")
    assert found.meta["options"] == {"speech_share": 1.0, "alternate": False, "document_sec": 3.0, "seed": 1}
    rows = int(found.lengths.sum())
    assert (
        f"{tmp_path / 'docs'}: {len(found)} documents, {rows} rows of kind interleaved"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="have no option"):
        documents.main(parser.parse_args([*command[:-4], "--out", str(tmp_path / "x"), "--train-on", "all"]))


# --- cloze --------------------------------------------------------------------------------------------------


def test_cloze_items_are_neighbours_against_a_sentence_of_another_chapter(
    manifest, backbone, speech_tokenizer
):
    items = make_cloze([str(manifest)], "validation", backbone, speech_tokenizer)
    assert items == make_cloze([str(manifest)], "validation", backbone, speech_tokenizer)
    tokenizer = load_text_tokenizer(backbone)
    form = row_format(tokenizer, 384, eosp=256)
    text = sentences()[:12]
    spoken = encoded(manifest, speech_tokenizer)
    written = [i for i in items if i.modality == "text"]
    assert len(written) == 10  # each sentence but the first of its chapter
    for item in written:
        at = text.index(tokenizer.decode(item.true)[1:])
        assert tokenizer.decode(item.true)[0] == " "
        first = max(0 if at < 7 else 7, at - 2)
        assert tokenizer.decode(item.context) == " ".join(text[first:at])
        other = text.index(tokenizer.decode(item.other)[1:])
        assert (other < 7) != (at < 7)
        far = range(7, 12) if at < 7 else range(7)
        lengths = [len(tokenizer.encode(" " + text[j])) for j in far]
        assert abs(len(item.other) - len(item.true)) == min(abs(n - len(item.true)) for n in lengths)
    V = form.text_vocab_size
    for item in (heard := [i for i in items if i.modality == "speech"]):
        at = spoken.index([r - V for r in item.true[:-1]])
        first = max(0 if at < 7 else 7, at - 2)
        assert [*item.context, form.eosp_row] == form.speech([c for codes in spoken[first:at] for c in codes])
        assert item.true[-1] == item.other[-1] == form.eosp_row
    assert len(heard) == 10


def test_cloze_without_a_codec_or_speech_has_text_items_alone(manifest, backbone, tmp_path):
    assert {i.modality for i in make_cloze([str(manifest)], "train", backbone, None)} == {"text"}
    (tmp_path / "a.txt").write_text(
        "This is a story. It goes on a while.\n\nOther things happened. They were odd."
    )
    items = make_cloze([str(tmp_path / "a.txt")], "train", backbone, None)
    tokenizer = load_text_tokenizer(backbone)
    assert sorted(tokenizer.decode(i.context) for i in items) == [
        "Other things happened.",
        "This is a story.",
    ]
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "assistant", "content": "x"}]}))
    assert make_cloze([str(chat)], "train", backbone, None) == []
