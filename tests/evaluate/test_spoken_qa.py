"""`evaluate spoken_qa` and `modality_gap` from end to end, with a tiny model and codec of random weights."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from prepare.chat_server import Answer, ChatServer
from spoken_model import spoken_model
from talker import model_folder, wave

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.evaluate import spoken_qa
from lit_moss.evaluate.answers import Answerer, Ears, ReplyOptions, pieces
from lit_moss.evaluate.matching import raw_tokens
from lit_moss.evaluate.questions import read_questions
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.serve.model import SpeechModel

pytest.importorskip("faster_whisper", reason="needs the extra `evaluate`")
ROWS = 16


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    """A folder with a model, and `questions.jsonl`: four questions with sounds of several lengths, one whose
    sound is not there."""
    folder = tmp_path_factory.mktemp("talker")
    prefer_letters(model_folder(folder / "model"))
    lines = []
    for n, seconds in enumerate((0.9, 0.4, 0.7, 0.5)):
        io.write(folder / f"{n}.wav", wave(seconds, 120 + 20 * n, 16_000), 16_000)
        lines.append({"id": f"q{n}", "question": "Who? " * (n + 1), "answers": ["nobody at all"],
                      "audio": f"{n}.wav", "group": "old" if n % 2 else "new"})  # fmt: skip
    lines.append({"id": "q4", "question": "Where?", "answers": ["here"], "audio": "4.wav", "group": "new"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def prefer_letters(folder):
    """Zeroes what the text head has for other bytes: control characters would be no text to match."""
    lm = SplitLM.from_pretrained(folder)
    tokenizer = load_text_tokenizer(lm.tokenizer_folder)
    letters = tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)["input_ids"]
    weight_VD = lm.branch_of("text").head.weight
    with torch.no_grad():
        others = [i for i in range(len(weight_VD)) if i not in letters]
        weight_VD[others] = 0.0
    lm.save_pretrained(folder, tokenizer)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def options(talker, **changes):
    return {"model": str(talker / "model"), "questions": [str(talker / "questions.jsonl")],
            "asr": "embedded:whisper-tiny", "max_new_tokens": ROWS, "device": "cpu"} | changes  # fmt: skip


def evaluate(name, path, content):
    path.write_text(yaml.safe_dump(content))
    return main(["evaluate", name, "-c", str(path)])


def replies(folder):
    (items,) = folder.glob("runs/spoken_qa/*/items.jsonl")
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    return {line["item"]: line["result"] for line in lines}


@pytest.mark.nightly
def test_text_replies_have_the_scores_that_their_words_give(talker, here):
    content = options(talker, pairs=["text-text", "speech-text"], batch_size=2)
    assert evaluate("spoken_qa", here / "conf.yaml", content) == 0
    first = replies(here)
    assert sum("failed" in result for result in first.values()) == 1  # the sound that is not there
    assert "no such file" in first["speech-text/q4"]["failed"]

    # Two of five questions get an answer that their own reply holds.
    lines = [json.loads(line) for line in (talker / "questions.jsonl").read_text().splitlines()]
    for line in lines:
        line["audio"] = str(talker / line["audio"])
        if line["id"] in ("q0", "q2"):
            line["answers"] = ["nobody", raw_tokens(first[f"text-text/{line['id']}"]["text"])[0]]
    (here / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"questions": [str(here / "known.jsonl")], "batch_size": 5, "name": "known"}
    metrics = spoken_qa.run(spoken_qa.Config(**content | changes))
    assert metrics["text-text/match_raw"] == 0.4
    assert metrics["text-text/group new/match_raw"] == pytest.approx(2 / 3)
    assert metrics["text-text/group old/match_raw"] == 0.0
    assert (metrics["text-text/n"], metrics["speech-text/n"], metrics["speech-text/failed"]) == (5, 5, 1)
    # Batches of two and of five give the same replies.
    (items,) = here.glob("runs/known/*/items.jsonl")
    again = {
        (record := json.loads(line))["item"]: record["result"] for line in items.read_text().splitlines()
    }
    assert {name: again[name]["text"] for name in again if "text" in again[name]} == {
        name: first[name]["text"] for name in first if "text" in first[name]
    }
    report = (items.parent / "report.md").read_text()
    assert "| group new | 3 | 0 |" in report
    assert "q4: " in report


@pytest.mark.nightly
def test_spoken_replies_are_decoded_heard_and_kept(talker, here, monkeypatch, capsys):
    content = options(talker, pairs=["speech-speech"], keep_sounds=2, batch_size=2, asr_of_questions=True)
    heard = []
    judge = Ears.judge

    def dies(self, wave_T, lang):
        heard.append(len(wave_T))
        if len(heard) == 4:
            raise KeyboardInterrupt
        return judge(self, wave_T, lang)

    monkeypatch.setattr(Ears, "judge", dies)
    assert evaluate("spoken_qa", here / "conf.yaml", content) == 130
    assert 0 < len(replies(here)) < 5
    monkeypatch.setattr(Ears, "judge", judge)
    assert evaluate("spoken_qa", here / "conf.yaml", content) == 0
    found = replies(here)
    assert set(found) >= {f"speech-speech/q{n}" for n in range(5)} | {f"heard/q{n}" for n in range(5)}
    for n in range(4):
        result = found[f"speech-speech/q{n}"]
        assert result["seconds"] == pytest.approx(0.08 * len(result["codes"]))
        assert result["rows"] <= ROWS
    (folder,) = here.glob("runs/spoken_qa/*/sounds")
    kept = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.flac"))
    spoken = [f"speech-speech/q{n}.flac" for n in range(2) if found[f"speech-speech/q{n}"]["codes"]]
    assert kept == ["questions/q0.flac", "questions/q1.flac", *spoken]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("spoken_qa").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["speech-speech/n"] == 5
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"items.json", "report.md", "sounds"}
    capsys.readouterr()
    assert evaluate("spoken_qa", here / "conf.yaml", content) == 0
    assert "done before" in capsys.readouterr().out


@pytest.mark.slow
def test_replies_of_both_channels_are_matched_both_ways(talker, tmp_path):
    model = SpeechModel.open(str(talker / "model"), device="cpu")
    questions = read_questions([str(talker / "questions.jsonl")], limit=2)
    with_text = Answerer(model, ReplyOptions("guided", 12), Ears("embedded:whisper-tiny"), folder=tmp_path)
    asks = with_text.asks(questions, ["text-speech"])
    prompt = model.text_tokenizer.decode([r for r in asks[0].rows if r < model.lm.format.text_vocab_size])
    assert "with text first, then with speech" in prompt
    f = model.lm.format
    text = with_text.renderer.ids("It is nobody at all.")
    rows = [*text, *f.speech([1, 2, 3]), f.im_end_id]
    result = with_text._result(asks[0], rows)
    assert (result["text"], result["codes"], result["ended"]) == ("It is nobody at all.", [1, 2, 3], True)
    row = spoken_qa.reply_row(asks[0], result | {"transcript": "it is no body"}, with_text)
    assert (row["match_norm"], row["text_match_norm"], row["other_language"]) == (0.0, 1.0, 0.0)
    assert (row["errors"], row["words"]) == (3, 5)  # "no body" for "nobody at", "all" left out
    summary = spoken_qa.summary([row])
    assert (summary["match_norm"], summary["wer"]) == (0.0, 0.6)
    direct = Answerer(model, ReplyOptions(None, 12), Ears("embedded:whisper-tiny"))
    row = spoken_qa.reply_row(asks[0], result, direct)
    assert "text_match_norm" not in row
    assert "other_language" not in row
    assert direct.asks(questions, ["text-speech"])[0].rows[-1] == f.sosp_token_id
    # Replies that end at once: no sound, which no recogniser is asked about.
    silent = direct._result(asks[0], [f.eosp_row, f.im_end_id])
    assert (silent["codes"], silent["transcript"], silent["seconds"]) == ([], "", 0.0)
    chinese = with_text._result(asks[0], [*with_text.renderer.ids("没有人"), f.im_end_id])
    assert spoken_qa.reply_row(asks[0], chinese, with_text)["other_language"] == 1.0


def test_the_form_of_replies_is_that_of_the_models_record(tmp_path):
    folder = spoken_model(tmp_path / "model", reply_form={"reply_form": "interleaved", "interleave_text": 3})
    model = SpeechModel.open(str(folder), device="cpu")
    assert (Answerer(model).form.name, Answerer(model).form.text) == ("interleaved", 3)
    assert Answerer(model, ReplyOptions("interleaved")).form.text == 3
    assert Answerer(model, ReplyOptions("direct")).form.name == "direct"


def test_pieces_are_cut_where_it_is_quiet():
    wave_T = torch.ones(70 * 16_000)
    wave_T[28 * 16_000 : 28 * 16_000 + 640] = 0.0
    parts = list(pieces(wave_T))
    assert sum(map(len, parts)) == len(wave_T)
    assert max(map(len, parts)) <= 30 * 16_000
    assert abs(len(parts[0]) - 28 * 16_000) <= 640
    assert [len(part) for part in pieces(torch.ones(5))] == [5]


def test_silence_is_never_given_to_the_recogniser():
    ears = Ears("no such model")  # opening it would be an error
    assert ears.judge(torch.zeros(0), "en") == {"transcript": ""}
    assert ears.judge(torch.full((48_000,), 1e-4), "en") == {"transcript": ""}


@pytest.mark.nightly
def test_speech_is_understood_in_pieces(corpus):
    from lit_moss.corpora.manifest import read_manifest
    from lit_moss.evaluate.matching import word_errors

    utterances = read_manifest(corpus / "train.jsonl")
    pause_T = torch.zeros(4000)
    waves = [part for u in utterances[:14] for part in (io.read(u.audio, 16_000), pause_T)]
    text, wave_T = " ".join(u.text for u in utterances[:14]), torch.cat(waves)
    assert len(wave_T) > 30 * 16_000
    errors, words = word_errors(text, Ears("embedded:whisper-tiny").transcript(wave_T, "en"))
    assert errors < 0.3 * words


def test_questions_without_sound_are_spoken_once(talker, here, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(here / "cache"))
    answerer = Answerer(SpeechModel.open(str(talker / "model"), device="cpu"))
    (here / "list.jsonl").write_text(
        '{"question": "What is five plus six?", "answers": ["11"]}\n{"question": "谁？", "answers": ["我"]}\n'
    )
    questions = read_questions([str(here / "list.jsonl")])
    english, chinese = answerer.sounds_of(questions)
    assert 0.5 < io.info(english.audio).duration_sec < 5
    assert "no voice for the language" in chinese
    before = english.audio.stat().st_mtime_ns
    assert answerer.sounds_of(questions)[0].audio.stat().st_mtime_ns == before
    first, second = answerer.asks(questions, ["speech-text"])
    assert (first.rows, second.question.lang) == (None, "en")
    assert "cannot be spoken" in first.fault


@pytest.mark.nightly
def test_a_judge_grades_replies(talker, here):
    def grade(body, n):
        asked = json.loads(body["messages"][1]["content"])
        right = asked["question"].strip() == "Who?"
        if asked["question"] == "Where?":
            return Answer("I cannot say")
        return Answer(json.dumps({"analysis": "", "judgment": "correct" if right else "incorrect"}))

    with ChatServer(grade) as server:
        content = options(talker, pairs=["text-text"], judge="m", judge_url=server.url, name="judged")
        metrics = spoken_qa.run(spoken_qa.Config(**content))
    assert metrics["text-text/judge"] == 0.2
    assert metrics["text-text/unparsable"] == 1
    (report,) = here.glob("runs/judged/*/report.md")
    assert "- q4: I cannot say" in report.read_text()


@pytest.mark.nightly
def test_gaps_of_the_same_questions(talker, here):
    content = options(talker, limit=2, keep_sounds=1)
    assert evaluate("modality_gap", here / "conf.yaml", content) == 0
    (folder,) = here.glob("runs/modality_gap/modality_gap-*")
    metrics = json.loads((folder / "result.json").read_text())
    for name in ("input gap", "output gap", "total", "cascade at the input", "cascade at the output"):
        assert {f"gap/{name}{end}" for end in ("", "_low", "_high", "_p")} <= set(metrics)
    assert metrics["gap/group new/total"] == 0.0
    assert 0 <= metrics["parts/answer spoken"] <= 1
    assert metrics["parts/answer spoken"] == 1.0  # "nobody at all", by the embedded voice
    assert metrics["parts/wer of question"] >= 0
    assert (folder / "modality_gap.png").stat().st_size > 1000
    report = (folder / "report.md").read_text()
    assert "## Gaps in points" in report
    assert "### group new" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "[text-smell]"], "pairs is ['text-smell'], expected some of speech-speech"),
        (["--pairs", "[]"], "expected some of"),
        (["--questions", "[none.jsonl]"], "no file none.jsonl"),
        (["--limit", "0"], "limit 0"),
        (["--utmos", "none"], "expected a checkout of tarepan/SpeechMOS"),
        (["--reply_form", "sung"], "reply_form is 'sung', expected"),
        (["--model", "none"], "none"),
        (["--judge", "m", "--judge_url", "ftp://x"], "base_url is 'ftp://x', expected http"),
        (["--voices", "[robot]", "--questions", "[embedded:questions]"], "no voice 'robot', expected"),
        (["--asr", "none", "--pairs", "[speech-speech]"], "Whisper 'none' cannot be opened"),
    ],
)
def test_mistakes_are_one_line(talker, here, capsys, words, message):
    path = here / "conf.yaml"
    path.write_text(yaml.safe_dump(options(talker)))
    assert main(["evaluate", "spoken_qa", "-c", str(path), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert "Traceback" not in "".join(error)
