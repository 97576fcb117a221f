"""The study `talk`: lists that hold out what they say, stages that are done once, the chain with kills."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.studies import stages as study_stages
from experiments.studies import talk, talk_data, talk_options, talk_report
from experiments.studies.stages import Stage, Stages
from lit_moss.corpora import facts
from lit_moss.errors import UserError
from lit_moss.runs.launch import RunError

ROOT = Path(__file__).resolve().parents[2]
SPLIT = talk_data.Split(["capital", "sum", "opposite"], seed=1)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- lists --------------------------------------------------------------------------------------------------


def write_lists(folder: Path) -> dict[str, list[dict]]:
    talk_data.write_questions(SPLIT, folder, per_fact=4, limit=None, examples=2, everyday=True, texts=30)
    talk_data.write_heldout(SPLIT, folder, ["some voice"], phrasing=40, fact=20, voice=10, seen=10)
    return {path.stem: lines(path) for path in folder.iterdir()}


@pytest.mark.slow
def test_the_evaluations_groups_hold_out_what_they_say(tmp_path):
    lists = write_lists(tmp_path)
    asked = [r for r in lists["train"] if r["group"] == "train"]
    trained_facts, trained = {r["fact"] for r in asked}, {(r["relation"], r["phrasing"]) for r in asked}
    by_group: dict[str, list[dict]] = {}
    for record in lists["heldout"] + lists["heldout_voices"]:
        by_group.setdefault(record["group"], []).append(record)
    assert {g: len(r) for g, r in by_group.items()} == {"phrasing": 40, "fact": 20, "seen": 10, "voice": 10}
    for group, records in by_group.items():
        for r in records:
            assert (r["fact"] in trained_facts) == (group != "fact")
            assert ((r["relation"], r["phrasing"]) in trained) == (group in ("fact", "seen"))
    ids = [r["id"] for records in by_group.values() for r in records]
    assert len(set(ids)) == len(ids)
    assert {r["question"] for r in asked}.isdisjoint(r["question"] for r in by_group["phrasing"])
    assert any(r["group"] == "everyday" for r in lists["train"])
    assert len(lists["prompts"]) == 30


@pytest.mark.slow
def test_the_same_seed_writes_the_same_lists(tmp_path):
    assert write_lists(tmp_path / "a") == write_lists(tmp_path / "b")


def answered(path: Path, items: list[tuple[str, str, str]]) -> Path:
    talk_data.write_lines(
        path,
        (
            {
                "id": name,
                "lang": "en",
                "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
            }
            for name, q, a in items
        ),
    )
    return path


@pytest.mark.slow
def test_no_text_states_a_held_out_fact(tmp_path):
    fact = next(fact for fact in SPLIT.held.facts if fact.relation == "capital")
    city, country = fact.answers[0], fact.entity
    stated = f"The sun shines today. {city} is in {country}. We like *tea*. I saw 3 birds. Then we go home!"
    texts = answered(tmp_path / "texts.jsonl", [("text-0", "Write.", stated)])
    dialogues = answered(
        tmp_path / "answers.jsonl", [("a", "Hello.", "Hello you."), ("b", f"{country}?", f"{city}, I say.")]
    )
    talk_data.write_dialogues(SPLIT, dialogues, tmp_path / "lists", voices=5)
    assert [r["id"] for r in lines(tmp_path / "lists/dialogues.jsonl")] == ["a"]
    assert [r["id"] for r in lines(tmp_path / "lists/dialogues_voices.jsonl")] == ["a-v"]
    talk_data.write_texts(
        SPLIT, texts, tmp_path / "lists/dialogues.jsonl", tmp_path / "lists", None, carriers=1
    )
    spoken = {r["id"]: r["text"] for r in lines(tmp_path / "lists/texts.jsonl")}
    assert spoken["text-0"] == "The sun shines today. Then we go home!"
    replay = [r["text"] for r in lines(tmp_path / "lists/replay.jsonl")]
    assert "Hello.\nHello you." in replay
    everything = " ".join(spoken.values())
    for held in SPLIT.held.facts:  # their words are heard, apart
        assert {held.entity in everything, held.answers[0] in everything} == {True}
    sentences = [s for text in [*spoken.values(), *replay] for s in talk_data._SENTENCE.findall(text)]
    assert all(SPLIT.held.states(s) is None for s in sentences)


def sound(folder: Path, name: str, speaker: str) -> dict:
    return {"audio_filepath": str(folder / f"{name}.flac"), "duration": 2.0, "speaker": speaker}


def test_texts_and_conversations_are_held_out_whole(tmp_path):
    made = tmp_path / "made"
    texts = [
        sound(made, f"t{i}-{j}", "hibari") | {"text": f"Text {i}.", "document": f"t{i}" + "+1" * (j == 2)}
        for i in range(10)
        for j in range(3)
    ]
    talks = [
        {
            "id": f"q{i}{ending}",
            "lang": "en",
            "messages": [
                {"role": "user", "content": "Is it 1?", "spoken": "Is it one?"}
                | sound(made, f"u{i}{ending}", voice),
                {"role": "assistant", "content": "Yes.", "spoken": "Yes."} | sound(made, f"a{i}", "hibari"),
            ],
        }
        for i in range(10)
        for ending, voice in (("", "hibari"), ("-v", "nova"))
    ]
    talk_data.write_lines(made / "texts.jsonl", texts)
    talk_data.write_lines(made / "talks.jsonl", talks)
    talk_data.write_manifests([made / "texts.jsonl"], [made / "talks.jsonl"], tmp_path / "lists", every=4)
    found = {path.stem: lines(path) for path in (tmp_path / "lists").iterdir()}
    assert len(found["train"]) + len(found["validation"]) == 30 + 40
    whole = {part: {r["document"].partition("+")[0] for r in found[part]} for part in ("train", "validation")}
    assert not whole["train"] & whole["validation"]
    held = {r["id"].removesuffix("-v") for r in found["sft_validation"]}
    assert len(held) == 3  # of 10, one in four, rounded up
    assert held.isdisjoint(r["id"].removesuffix("-v") for r in found["sft_train"])
    assert {r["speaker"] for r in found["voice_train"]} == {"hibari"}
    assert "Is it one?" in {r["text"] for r in found["train"]}  # as it is said
    assert all(not Path(r["audio_filepath"]).is_absolute() for r in found["train"])
    # The folder may be anywhere.
    (tmp_path / "elsewhere").mkdir()
    made.rename(tmp_path / "elsewhere/made")
    made = tmp_path / "elsewhere/made"
    for name in ("texts", "talks"):
        text = (made / f"{name}.jsonl").read_text().replace(str(tmp_path / "made"), str(made))
        (made / f"{name}.jsonl").write_text(text)
    talk_data.write_manifests(
        [made / "texts.jsonl"], [made / "talks.jsonl"], tmp_path / "elsewhere/lists", every=4
    )
    for name in found:
        assert lines(tmp_path / f"elsewhere/lists/{name}.jsonl") == found[name]


# --- report -------------------------------------------------------------------------------------------------


def test_what_crosses_from_text_to_speech_is_counted_of_what_is_known_in_text():
    relation = {"a": "capital", "b": "capital", "c": "sum"}
    answers = {"a": "Paris", "b": "Rome", "c": "seven | 7"}
    replies = {  # (text-text, speech-text)
        "a": ("It is Paris.", "It is Paris."),
        "b": ("It is Rome.", "It is Paris."),
        "c": ("It is 8.", "It is 7."),
    }
    rows = [
        {"id": i, "pair": pair, "group": "fact", "answers": answers[i], "reply": reply, "transcript": "",
         "match_norm": str(float(facts.has_answer(reply, answers[i].split(" | "))))}
        for i, both in replies.items()
        for pair, reply in zip(("text-text", "speech-text"), both, strict=True)
    ]  # fmt: skip
    text, speech = talk_report.crossing(rows, relation)
    assert (text["n"], text["known"], text["of known"], text["chance"]) == (3, 2, 1.0, 0.0)
    assert text["right"] == speech["right"] == pytest.approx(2 / 3)
    # Of two capitals one is right; the other reply would have been right about the first.
    assert (speech["known"], speech["of known"], speech["chance"]) == (2, 0.5, 0.5)


def test_aims_compare_the_system_with_its_backbone(tmp_path):
    found = {
        "text_cloze": {
            "manifests-validation/text-text/ppl": 5.0,  # sentences of the training's kind, no aim
            "stories-en/text-text/ppl": 13.0,
            "stories-en/text-text/whole-mean": 0.6,
        },
        "text_cloze_before": {
            "manifests-validation/text-text/ppl": 22.0,
            "stories-en/text-text/ppl": 12.5,
            "stories-en/text-text/whole-mean": 0.75,
        },
        "text": {"everyday_choices/acc": 0.95, "everyday_choices/acc_norm": 0.5},
        "latency": {"speech_to_speech/1/first_sound/p50": 812.0, "text_to_speech/1/first_sound/p50": 9.0},
        "resynthesis": {"codec": {"wer": 0.3}, "vocoder": {"wer": 0.1}},
    }
    for name, metrics in found.items():
        folder = tmp_path / "evaluations" / name
        folder.mkdir(parents=True)
        (folder / "report.md").write_text(f"# {name}")
        (folder / "result.json").write_text(json.dumps(metrics))
    text = talk_report.report(tmp_path, {name: 60.0 for name in [*found, "all"]}, cer=0.05)
    reached = {
        cells[1]: (cells[2], cells[3])
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 5
    }
    assert reached["text perplexity of stories over the backbone's"] == ("1.02 or less", "1.040")
    assert reached["text cloze of stories over the backbone's"] == ("0.98 or more", "0.800")
    assert float(reached["end of a spoken question -> first sound, ms, median"][1]) == 812
    assert reached["word errors of codes -> sound"][1] == "0.300"
    assert reached["the second over the first"] == ("1.5 or less", "3.000")
    assert "everyday choices over the backbone's" not in reached  # there is nothing to compare with


def test_forms_of_replies_are_compared_on_the_same_questions(tmp_path):
    def rows(heard, written=None):
        return [
            {"id": str(i), "pair": "speech-speech", "match_norm": str(float(right)),
             "text_match_norm": "" if written is None else str(float(written[i]))}
            for i, right in enumerate(heard)
        ]  # fmt: skip

    direct = rows([1, 0, 0, 0, 0, 0, 0])
    guided = rows([1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0])
    lines = talk_report.forms_table({"direct": direct, "guided": guided})
    own = {line["form"]: line for line in lines if line["pair"] == "speech-speech"}
    assert (own["direct"]["heard"], own["direct"]["written"], own["direct"]["p"]) == (1 / 7, None, 1.0)
    assert (own["guided"]["heard"], own["guided"]["written"]) == (1.0, 6 / 7)
    assert own["guided"]["p"] == pytest.approx(2 / 2**6)  # six questions differ, all one way


def test_another_form_is_trained_exported_and_asked_beside_the_first(tmp_path):
    options = talk_options.Options(data=str(tmp_path), other_forms=["guided"])
    study = talk.Talk(options, Stages(tmp_path), None)
    names = [plan.name for plan in study.all()]
    assert names[-3:] == ["sft-guided", "export-guided", "qa-guided"]
    for name, expected in (("sft", "direct"), ("sft-guided", "guided")):
        conversations, _ = study.recipe(name)["data"]["init_args"]["parts"]
        assert conversations["class_path"] == "lit_moss.data.SFTDataModule"
        assert conversations["init_args"]["reply_form"] == expected
    assert study.recipe_with_folders("qa")["model"] == str(tmp_path / "model")
    assert study.recipe_with_folders("qa-guided")["model"] == str(tmp_path / "model-guided")


# --- stages -------------------------------------------------------------------------------------------------


def run_all(work: Path, ran: list[str], a: int = 1, parity: bool = True) -> Stages:
    """Three stages in a row; what the second makes depends on whether `a` is odd."""
    stages = Stages(work)

    def stage(name, inputs, after, output):
        def run(_):
            ran.append(name)
            return output

        return Stage(name, inputs, after, run)

    stages.run(stage("first", a, (), a))
    stages.run(stage("second", None, ["first"], a % 2 if parity else a))
    stages.run(stage("third", None, ["second"], "end"))
    stages.run(stage("apart", None, (), "apart"))
    return stages


def test_a_changed_option_runs_what_depends_on_it_and_nothing_else(tmp_path):
    ran: list[str] = []
    run_all(tmp_path, ran)
    assert ran == ["first", "second", "third", "apart"]
    run_all(tmp_path, ran)
    assert len(ran) == 4
    run_all(tmp_path, ran, a=2)
    assert ran[4:] == ["first", "second", "third"]
    run_all(tmp_path, ran, a=4)  # what the second makes is the same
    assert ran[7:] == ["first", "second"]


def test_a_stage_that_failed_runs_again_and_keeps_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(study_stages, "_PERIOD_SEC", 0.02)

    def fail(_):
        time.sleep(0.2)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Stages(tmp_path).run(Stage("one", 1, (), fail))
    before = Stages(tmp_path).record("one")
    assert not before["done"]
    seconds = Stages(tmp_path).seconds(["one"])
    assert seconds >= 0.1
    stages = Stages(tmp_path)
    stages.run(Stage("one", 1, (), lambda _: "x"))
    after = stages.record("one")
    assert after["done"]
    assert stages.seconds(["one"]) >= seconds
    # What it has made is gone.
    there, ran = tmp_path / "file", []

    def make(_):
        ran.append(there.touch())

    for _ in range(2):
        Stages(tmp_path).run(Stage("file", 1, (), make, [there]))
    assert len(ran) == 1
    there.unlink()
    Stages(tmp_path).run(Stage("file", 1, (), make, [there]))
    assert len(ran) == 2
    with pytest.raises(UserError, match="expected stages before it"):
        stages.run(Stage("two", 1, ["missing"], lambda _: "x"))


def test_stages_run_beside_each_other_where_they_do_not_read_each_other(tmp_path):
    stages, events, both = Stages(tmp_path), [], threading.Barrier(2, timeout=30)

    def plan(name, after, alone=False, meets=False):
        def run(_):
            events.append(f"{name} begins")
            if meets:
                both.wait()  # falls unless two of them run at the same time
            events.append(f"{name} ends")
            return name

        return study_stages.Planned(name, after, lambda: Stage(name, None, after, run), alone)

    plans = [
        plan("lists", [], alone=True),
        plan("tokenizer", ["lists"], meets=True),
        plan("align", ["tokenizer"]),
        plan("decoder", ["tokenizer"], meets=True),
        plan("vocoder", ["lists"], meets=True),
        plan("listen", ["align"], meets=True),
        plan("tuned", ["decoder", "vocoder"]),
        plan("export", ["vocoder"], alone=True),
        plan("probe", ["lists"]),
    ]
    stages.run_all(plans, at_once=2)
    place = {event: i for i, event in enumerate(events)}
    assert len(place) == 2 * len(plans)
    for plan in plans:
        for read in plan.after:
            assert place[f"{read} ends"] < place[f"{plan.name} begins"]
        if plan.alone:
            assert place[f"{plan.name} ends"] == place[f"{plan.name} begins"] + 1
    assert place["lists begins"] == 0
    assert place["export ends"] < place["probe begins"]  # which would have delayed it
    events.clear()
    again = Stages(tmp_path)
    again.run_all(plans, at_once=2)  # all done
    assert not events
    whole = again.seconds([plan.name for plan in plans])
    assert 0 <= whole <= sum(again.seconds([plan.name]) for plan in plans) + 0.1 * len(plans)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_stage_that_fails_ends_the_study(tmp_path, at_once):
    def fail(_):
        raise RunError("broken")

    ran = []
    plans = [
        study_stages.Planned("one", [], lambda: Stage("one", 1, [], fail), alone=False),
        study_stages.Planned("two", ["one"], lambda: Stage("two", 1, ["one"], ran.append), alone=False),
    ]
    with pytest.raises(RunError, match="broken"):
        Stages(tmp_path).run_all(plans, at_once)
    assert not ran
    with pytest.raises(UserError, match="stage two reads one: expected stages before it"):
        Stages(tmp_path).run_all(plans[1:], at_once)


def test_time_in_which_two_stages_ran_counts_once():
    spans = [(10.0, 20.0), (12.0, 15.0), (18.0, 25.0), (30.0, 31.0)]
    assert study_stages.seconds_of(spans) == 16.0
    assert study_stages.seconds_of([]) == 0


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set.stage3.trainer.max_steps", "3"], "names no key of a stage"),
        (
            ["--user_voices", "[x, y]", "--heldout_voices", "[y]"],
            "y in user_voices and heldout_voices: expected no voice in both",
        ),
        (["--relations", "[weather]"], "no relation weather"),
        (["--until", "lunch"], "until is lunch, expected one of"),
        (["--per_fact", "0"], "per_fact 0"),
        (["--evaluations", "[taste]"], "evaluations: taste"),
        (["--other_forms", "[direct]"], "expected each form once"),
        (["--voicess", "3"], "unknown option"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert talk.main(["-c", str(ROOT / "conf/talk/smoke.yaml"), *words]) == 2
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["cpu", "gpu", "smoke"])
def test_every_scale_changes_keys_that_are_there(scale, tmp_path):
    from lit_moss.cli.yaml_options import OptionsParser

    file = ROOT / f"conf/talk/{scale}.yaml"
    options, _ = OptionsParser(talk_options.Options, "talk", None).read(
        ["-c", str(file), "--data", str(tmp_path)]
    )
    study = talk.Talk(options, Stages(tmp_path), None)
    for name in (*talk_options.CHAINS, *talk_options.FITS):
        if not name.startswith("vocoder") or study.options.vocoder:
            text = json.dumps(study.recipe_with_folders(name))
            assert "data/talk/" not in text.replace(str(tmp_path), "")
    assert set(options.user_voices).isdisjoint(options.heldout_voices)


def test_evaluations_read_the_studys_own_folders(tmp_path):
    """Also the codes of the probe's control, whose name has a prefix."""
    study = talk.Talk(talk_options.Options(data=str(tmp_path / "here")), Stages(tmp_path), None)
    study._folders["tokenizer"] = tmp_path / "tokenizer-1"
    codes = study.recipe_with_folders("probe")["codes"]
    assert codes[0] == str(tmp_path / "tokenizer-1")
    assert codes[2] == f"shuffled:{tmp_path / 'tokenizer-1'}"
    for name in talk_options.EVALUATIONS:
        text = json.dumps(study.recipe_with_folders(name))
        assert "data/talk/" not in text
        assert "runs/talk_" not in text


def test_the_documentation_names_every_stage(tmp_path):
    study = talk.Talk(talk_options.Options(data=str(tmp_path)), Stages(tmp_path), None)
    page = (ROOT / "docs/talk.md").read_text()
    of_page = [
        re.findall(r"`(\w+)`", row.split("|")[1]) for row in page.splitlines() if row.startswith("| `")
    ]
    named = [name for names in of_page for name in names]
    made = [plan.name for plan in study.all()]
    assert [name for name in named if name in made] == [n for n in made if n in named]
    assert set(made) - set(named) == {"text_cloze", "text_before", "text_cloze_before"}


# --- the whole chain ----------------------------------------------------------------------------------------


def study(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.studies.talk", "-c", "conf/talk/smoke.yaml",
               "--data", str(folder / "data"), "--run_root", str(folder / "runs"), *words]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.skipif(
    "LIT_MOSS_LONG_TESTS" not in os.environ, reason="half an hour or more; set LIT_MOSS_LONG_TESTS=1"
)
def test_three_kills_change_nothing(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert study(tmp_path / "whole").wait(3600) == 0
    for stage in ("speech", "tokenizer", "stage2"):
        process = study(tmp_path / "killed")
        record = tmp_path / "killed/data/stages" / f"{stage}.json"
        while not record.exists() and process.poll() is None:
            time.sleep(0.2)
        time.sleep(3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert study(tmp_path / "killed").wait(3600) == 0
    one, other = (tmp_path / name / "data" for name in ("whole", "killed"))
    weights = {f.relative_to(one): f.read_bytes() for f in sorted(one.rglob("model/**/*.safetensors"))}
    assert weights
    for name, content in weights.items():
        assert (other / name).read_bytes() == content
    for folder in ("lists", "manifests"):
        for file in (one / folder).iterdir():
            assert (other / folder / file.name).read_text() == file.read_text()
    start = time.monotonic()
    assert study(tmp_path / "killed").wait(300) == 0
    assert time.monotonic() - start < 60
