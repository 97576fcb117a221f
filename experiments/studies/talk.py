"""Trains a small system that listens and answers aloud, starting from a text model, on two cores.

    python -m experiments.studies.talk -c conf/talk/cpu.yaml [--KEY VALUE …]

    lists ─ answers, texts ─ dialogues ─ speech, conversations, questions ─ manifests ─ tokenizer ─┐
    ┌──────────────────────────────────────────────────────────────────────────────────────────────┘
    └ align ─ decoder ─ vocoders ─ listen ─ stage1 ─ stage2 ─ sft ─ export ─ evaluations ─ sounds

The backbone answers simple questions and writes short texts, and a voice speaks both; everything else is
learnt from these. `align` adds word times by the tokenizer. Each stage is a recipe in conf/talk, which can
also be run by itself, and an MLflow run below that of the study. Repeat the command after a kill: finished
stages are kept, fits continue from their checkpoints. If an option has changed, the stages that depend on it
run again. Writes report.md to DATA and to the study's MLflow run, and the model to DATA/model.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from experiments.studies import talk_data, talk_report
from experiments.studies.command import run_study
from experiments.studies.evaluations import run_benchmark
from experiments.studies.stages import Planned, Stage, Stages, file_digest, run_module, run_verb
from experiments.studies.talk_options import BEFORE, EVALUATIONS, FITS, Options
from experiments.studies.talk_recipes import recipe_of, with_folders
from lit_moss.corpora import facts as known
from lit_moss.errors import UserError
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import run_fit
from lit_moss.runs.study_run import study_run
from lit_moss.runs.tracking import Tracker

_SOURCES = Path(known.__file__).parent
# Stages that each stage reads; the others read the exported model, and the questions and their audio.
_READS: dict[str, list[str]] = {
    "lists": [],
    "answers": ["lists"],
    "texts": ["lists"],
    "dialogues": ["lists", "answers", "texts"],
    "speech": ["dialogues"],
    "conversations": ["dialogues"],
    "questions": ["lists"],
    "manifests": ["speech", "conversations", "questions"],
    "tokenizer": ["manifests"],
    "align": ["manifests", "tokenizer"],
    "decoder": ["manifests", "tokenizer"],
    "vocoder": ["manifests"],
    "vocoder_tuned": ["manifests", "decoder", "vocoder"],
    "listen": ["align", "tokenizer"],
    "stage1": ["align", "tokenizer", "listen"],
    "stage2": ["align", "dialogues", "tokenizer", "stage1"],
    "sft": ["manifests", "dialogues", "tokenizer", "stage2"],
    "probe": ["align", "tokenizer"],
    **{name: ["manifests"] for name in BEFORE},
}
# These may run at the same time: on two cores, two trainings with one thread each do 1.26 times the work of
# one with two threads (experiments/LOG.md, 2026-11-27). The others are timed, or use all cores themselves.
_BESIDE = ("align", *FITS, *EVALUATIONS)
_CODE = [Path(known.__file__), Path(talk_data.__file__)]  # changed code may make other lists


class Talk:
    """The stages with their recipes.

    Args:
        options: Options of the study.
        stages: Runs and records the stages.
        study: MLflow run of the study.
    """

    def __init__(self, options: Options, stages: Stages, study: Tracker) -> None:
        self.options, self.stages, self.study = options, stages, study
        self._folders: dict[str, Path] = {}  # folders of fits, by name

    def all(self) -> list[Planned]:
        """All stages, in order."""
        o = self.options
        named: dict[str, Callable[[], Stage]] = {
            "lists": self._lists,
            "answers": partial(self._chain, "answers", "adapt"),
            "texts": partial(self._chain, "texts", "self-answer"),
            "dialogues": self._dialogues,
            "speech": partial(self._chain, "speech", "synthesize"),
            "conversations": partial(self._chain, "conversations"),
            "questions": partial(self._chain, "questions"),
            "manifests": self._manifests,
            "tokenizer": partial(self._fit, "tokenizer"),
            "align": partial(self._chain, "align"),
            "decoder": partial(self._fit, "decoder"),
        }
        if self.options.vocoder:
            named |= {name: partial(self._fit, name) for name in ("vocoder", "vocoder_tuned")}
        named |= {name: partial(self._fit, name) for name in ("listen", "stage1", "stage2", "sft")}
        named["export"] = self._export
        named |= {name: partial(self._evaluate, name) for name in self._evaluations()}
        if o.latency:
            named["latency"] = self._latency
        if o.sounds:
            named["sounds"] = self._sounds
        # By kind, not by form, so that the questions of all forms can be asked at the same time.
        named |= {f"sft-{form}": partial(self._fit, f"sft-{form}") for form in o.other_forms}
        named |= {f"export-{form}": partial(self._export, form) for form in o.other_forms}
        named |= {f"qa-{form}": partial(self._evaluate, f"qa-{form}") for form in o.other_forms}
        if o.until is not None and o.until not in named:
            raise UserError(f"until is {o.until}, which is switched off: expected one of {', '.join(named)}")
        upto = len(named) if o.until is None else list(named).index(o.until) + 1
        return [
            Planned(name, self.reads(name), build, alone=name.partition("-")[0] not in _BESIDE)
            for name, build in list(named.items())[:upto]
        ]

    def reads(self, name: str) -> list[str]:
        """Stages that a stage reads; NAME-FORM reads those of its form."""
        kind, dash, form = name.partition("-")
        if kind == "export":
            return [f"sft{dash}{form}", "decoder", *(["vocoder_tuned"] if self.options.vocoder else [])]
        return _READS.get(kind, [f"export{dash}{form}", "manifests"])

    def threads(self, name: str) -> int | None:
        """Threads of a training or evaluation: its share of the cores if others may run at the same time."""
        o = self.options
        if o.threads or o.at_once == 1 or name.partition("-")[0] not in _BESIDE:
            return o.threads
        return max(1, (os.cpu_count() or 1) // o.at_once)

    def _evaluations(self) -> list[str]:
        return list(EVALUATIONS) if self.options.evaluations is None else self.options.evaluations

    def lowest(self, name: str, metric: str) -> float | None:
        """Lowest value of a metric of a fit; None if it was not trained or not measured."""
        result = RunFolder(self._folders[name]).result() if name in self._folders else None
        return None if result is None else result["lowest"].get(metric)

    # --- recipes --------------------------------------------------------------------------------------------

    def recipe(self, name: str) -> dict[str, Any]:
        """The recipe of a stage, see `recipe_of`."""
        return recipe_of(self.options, name)

    def recipe_with_folders(self, name: str) -> dict[str, Any]:
        """The recipe of a stage with the study's folders."""
        return with_folders(self.recipe(name), self.options, name, self._folders)

    def _tags(self, stage: str) -> dict[str, str]:
        return {"mlflow.parentRunId": str(self.study.run_id), "stage": stage}

    # --- stages ---------------------------------------------------------------------------------------------

    def _lists(self) -> Stage:
        o = self.options

        def run(_: str) -> Any:
            talk_data.write_questions(
                o.split, o.lists, per_fact=o.per_fact, limit=o.questions, examples=o.examples,
                everyday=o.everyday, texts=o.texts,
            )  # fmt: skip
            talk_data.write_heldout(
                o.split, o.lists, o.heldout_voices, phrasing=o.heldout_phrasing, fact=o.heldout_fact,
                voice=o.heldout_voice, seen=o.heldout_seen,
            )  # fmt: skip
            return file_digest(*made)

        made = [o.lists / f"{name}.jsonl" for name in ("train", "prompts", "heldout", "heldout_voices")]
        counts = [o.per_fact, o.questions, o.examples, o.everyday, o.texts, bool(o.heldout_voices)]
        counts += [o.heldout_phrasing, o.heldout_fact, o.heldout_voice, o.heldout_seen]
        files = [
            *sorted(_SOURCES.glob("*_en.txt")),
            _SOURCES / "facts_en.yaml",
            _SOURCES / "questions_en_zh.jsonl",
            *_CODE,
        ]
        return Stage("lists", [asdict(o.split), counts, file_digest(*files)], self.reads("lists"), run, made)

    def _chain(self, name: str, last: str | None = None) -> Stage:
        """A chain of `prepare`; its output is the manifest of step `last`, or those of all steps."""
        o, config = self.options, self.recipe(name)
        steps = [last] if last else list(config["steps"])

        def run(_: str) -> Any:
            workers = max(1, o.workers // o.at_once) if name in _BESIDE else o.workers
            whole = self.recipe_with_folders(name) | {"name": o.name, "workers": workers}
            file = o.folder / "recipes" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
            run_verb(["prepare", "-c", str(file)], o.folder / "logs" / f"{name}.log", self._tags(name))
            return file_digest(*made)

        made = self._manifests_of(name, steps)
        return Stage(name, config, self.reads(name), run, made)

    def _manifests_of(self, name: str, steps: Sequence[str]) -> list[Path]:
        return [self.options.folder / name / step / "manifest.jsonl" for step in steps]

    def _dialogues(self) -> Stage:
        o = self.options

        def run(_: str) -> Any:
            (answers,) = self._manifests_of("answers", ["adapt"])
            (texts,) = self._manifests_of("texts", ["self-answer"])
            talk_data.write_dialogues(o.split, answers, o.lists, o.voices)
            talk_data.write_texts(
                o.split, texts, o.lists / "dialogues.jsonl", o.lists, o.most_texts, o.carriers
            )
            return file_digest(*made)

        made = [o.lists / f"{n}.jsonl" for n in ("dialogues", "dialogues_voices", "texts", "replay")]
        inputs = [asdict(o.split), o.voices, o.most_texts, o.carriers, file_digest(*_CODE)]
        return Stage("dialogues", inputs, self.reads("dialogues"), run, made)

    def _manifests(self) -> Stage:
        o = self.options

        def run(_: str) -> Any:
            speech = self._manifests_of("speech", ["synthesize"])
            conversations, folder = self._all_manifests_of("conversations"), o.folder / "manifests"
            talk_data.write_manifests(speech, conversations, folder, o.validation_every)
            talk_data.write_spoken_list(self._all_manifests_of("questions"), o.lists / "qa.jsonl")
            return file_digest(*made)

        parts = [f"{kind}{part}" for kind in ("", "voice_", "sft_") for part in ("train", "validation")]
        made = [*(o.folder / "manifests" / f"{part}.jsonl" for part in parts), o.lists / "qa.jsonl"]
        inputs = [o.validation_every, file_digest(*_CODE)]
        return Stage("manifests", inputs, self.reads("manifests"), run, made)

    def _all_manifests_of(self, name: str) -> list[Path]:
        return self._manifests_of(name, list(self.recipe(name)["steps"]))

    def _fit(self, name: str) -> Stage:
        config = self.recipe_with_folders(name)
        stage = Stage(
            name, self.recipe(name), self.reads(name), lambda digest: self._train(name, config, digest)
        )
        folder = self._folders[name] = self._run_folder(name, self.stages.digest(stage))
        return replace(stage, made=[folder / "result.json"])

    def _run_folder(self, name: str, digest: str) -> Path:
        return Path(self.options.run_root).absolute() / self.options.name / f"{name}-{digest}"

    def _train(self, name: str, config: dict[str, Any], digest: str) -> Any:
        folder = self._run_folder(name, digest)
        run_fit(config, folder, self._tags(name), self.threads(name))
        return folder.name

    def _export(self, form: str = "") -> Stage:
        o, model = self.options, self.options.model_of(form)
        sft, name = (f"{stage}-{form}" if form else stage for stage in ("sft", "export"))

        def run(_: str) -> Any:
            words = ["export", str(self._folders[sft]), "--out", str(model), "--force"]
            words += ["--codec", str(self._folders["decoder"])]
            if self.options.vocoder:
                words += ["--vocoder", str(self._folders["vocoder_tuned"])]
            run_verb(words, o.folder / "logs" / f"{name}.log")
            return file_digest(*sorted(model.rglob("*.safetensors")))

        return Stage(name, None, self.reads(name), run, [model / "config.json"])

    def _evaluate(self, name: str) -> Stage:
        o, config = self.options, self.recipe_with_folders(name)
        kind = name.partition("-")[0]

        def run(_: str) -> Any:
            file, log = o.folder / "recipes" / f"{name}.yaml", o.folder / "logs" / f"{name}.log"
            kept, study = o.folder / "evaluations" / name, (o.name, o.run_root)
            tags, threads = self._tags(name), self.threads(name)
            return run_benchmark(EVALUATIONS[kind], config, file, log, kept, study, tags, threads)

        made = [o.folder / "evaluations" / name / "report.md"]
        return Stage(name, self.recipe(name), self.reads(name), run, made)

    def _latency(self) -> Stage:
        o = self.options

        def run(_: str) -> Any:
            words = ["--model", str(o.model), "--questions", str(o.lists / "qa.jsonl"), "--sessions", "1"]
            words += ["--repeats", str(-(-o.latency // 2)), "--rows", "100", "--out", str(folder)]
            run_module("experiments.benches.serve_latency", words, o.folder / "logs" / "latency.log")
            return file_digest(folder / "result.json")

        folder = o.folder / "evaluations" / "latency"
        return Stage("latency", o.latency, self.reads("latency"), run, [folder / "report.md"])

    def _sounds(self) -> Stage:
        o = self.options

        def run(_: str) -> Any:
            talk_report.answer_aloud(o.lists / "qa.jsonl", o.model, o.folder / "sounds", o.sounds, self._ask)
            return file_digest(*sorted((o.folder / "sounds").glob("*.jsonl")))

        made = [o.folder / "sounds" / "sounds.jsonl"]
        return Stage("sounds", o.sounds, self.reads("sounds"), run, made)

    def _ask(self, question: Path, answer: Path) -> None:
        words = ["chat", "--model", str(self.options.model), "--once", str(question), "--out", str(answer)]
        # A reply that does not end would be 40 s long. Ten of 8 s and their questions take about 1 MB.
        words += ["--temperature", "0", "--seed", "1", "--max-new-tokens", "100", "--force"]
        run_verb(words, self.options.folder / "logs" / "sounds.log")


def main(words: Sequence[str]) -> int:
    """Runs what is missing and prints the report; returns 2 for user errors, 1 if a stage failed."""
    return run_study(words, Options, "python -m experiments.studies.talk", __doc__, _run)


def _run(options: Options) -> str:
    stages = Stages(options.folder)
    with stages.held():
        study = study_run(options.name, Path(options.run_root).absolute())
        state = "interrupted"
        try:
            talk = Talk(options, stages, study)
            plans = talk.all()
            stages.run_all(plans, options.at_once)
            names = [plan.name for plan in plans]
            seconds = {name: stages.seconds([name]) for name in names} | {"all": stages.seconds(names)}
            text = talk_report.report(options.folder, seconds, talk.lowest("tokenizer", "val/cer"))
            study.log_text(text, "report.md")
            if "sounds" in names:
                study.log_folder(options.folder / "sounds", "sounds")
            state = "success"
        finally:
            study.finalize(state)
    if "export" not in names:
        return text
    return f"{text}\nTo talk to it:\n    python -m lit_moss chat --model {options.data}/model\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
