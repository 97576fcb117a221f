"""Options of the study `talk`, and the names of its stages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.studies import talk_data
from lit_moss.errors import UserError
from lit_moss.llm.replies import FormName

CONF = Path(__file__).resolve().parents[2] / "conf" / "talk"
CHAINS = ("answers", "texts", "speech", "conversations", "questions", "align")
FITS = ("tokenizer", "decoder", "vocoder", "vocoder_tuned", "listen", "stage1", "stage2", "sft")
OTHERS = ("lists", "dialogues", "manifests", "export", "latency", "sounds")
# Evaluation -> benchmark; the recipes are conf/talk/NAME.yaml.
EVALUATIONS = {
    "resynthesis": "resynthesis",
    "paralinguistics": "paralinguistics",
    "qa": "spoken_qa",
    "gap": "modality_gap",
    "cloze": "cloze",
    "text": "text",
    "text_cloze": "cloze",
    "text_before": "text",
    "text_cloze_before": "cloze",
    "probe": "tokenizer_probe",
}
# Evaluations of the backbone before training, with the recipe of the same evaluation of the system.
BEFORE = {f"{name}_before": name for name in ("text", "text_cloze")}


@dataclass
class Options:
    """Options of the study.

    Args:
        name: Name of the study and of the MLflow experiment.
        data: Folder for lists, audio, model and report.
        run_root: Folder of all runs' files.
        backbone: Text model; null: that of the recipes.
        seed: Seed of the splits and of all trainings.
        workers: Number of processes for the chains of `prepare`.
        at_once: Maximum number of trainings and evaluations that run at the same time, each with an equal
            share of the cores, if they do not read each other's output; 1: one at a time.
        threads: Number of threads of each training and evaluation; null: its share of the cores.
        machine: Machine config of the trainings, such as conf/trainer/cpu.yaml; null: none.
        relations: Names of the relations of facts that are asked about; null: all.
        per_fact: Number of phrasings in which each fact is asked for in training.
        questions: Maximum number of training questions about facts; null: all.
        examples: Number of other facts with answers in the backbone's prompt when it answers a question.
        everyday: Add everyday questions and small talk, which have no reference answers.
        phrasings: Number of phrasings held out of each relation.
        facts: Fraction of the facts held out of each relation, at least 0 and below 1.
        texts: Number of texts that the backbone writes.
        most_texts: Maximum number of texts that are spoken, of all kinds; null: all.
        carriers: Number of fact-free sentences spoken for each entity or answer.
        voices: Number of questions that are also asked in the voices of `user_voices`.
        user_voices: User voices in training besides the usual one of the recipe; []: none.
        heldout_voices: User voices that are only used in the evaluation; []: none.
        heldout_phrasing: Maximum number of evaluation questions in held-out phrasings.
        heldout_fact: Maximum number of evaluation questions about held-out facts.
        heldout_voice: Maximum number of evaluation questions in held-out voices.
        heldout_seen: Maximum number of evaluation questions that were trained.
        validation_every: One out of this many texts and conversations is held out for validation.
        reply_form: Form of spoken replies: `direct`, `guided` or `interleaved`.
        other_forms: Further forms, each fine-tuned from the same stage 2 and asked the same questions.
        vocoder: Train a vocoder; otherwise Griffin-Lim converts mels to audio.
        evaluations: Evaluations to run: `resynthesis`, `paralinguistics`, `qa`, `gap`, `cloze`, `text`,
            `text_cloze` (perplexity), `text_before` and `text_cloze_before` (of the backbone), `probe` (of
            the codes); null: all whose recipe exists.
        latency: Number of timed questions, rounded up to even (a session has two turns); 0: skip.
        sounds: Number of held-out questions whose audio and spoken answers are stored; 0: skip.
        until: Last stage to run; null: all stages.
        set: Changes of recipes: STAGE.KEY -> value, such as stage1.trainer.max_steps.
    """

    name: str = "talk"
    data: str = "data/talk"
    run_root: str = "runs"
    backbone: str | None = None
    seed: int = 1
    workers: int = 2
    at_once: int = 2
    threads: int | None = None
    machine: str | None = None
    relations: list[str] | None = None
    per_fact: int = 5
    questions: int | None = None
    examples: int = 3
    everyday: bool = True
    phrasings: int = 3
    facts: float = 0.2
    texts: int = 1200
    most_texts: int | None = None
    carriers: int = 2
    voices: int = 300
    user_voices: list[str] = field(
        default_factory=lambda: [
            f"embedded:kokoro/{v}" for v in ("af_bella", "am_michael", "af_sarah", "am_fenrir")
        ]
    )
    heldout_voices: list[str] = field(
        default_factory=lambda: [
            f"embedded:kokoro/{v}" for v in ("af_nicole", "am_puck", "af_kore", "am_eric")
        ]
    )
    heldout_phrasing: int = 200
    heldout_fact: int = 120
    heldout_voice: int = 60
    heldout_seen: int = 60
    validation_every: int = 30
    reply_form: FormName = "direct"
    other_forms: list[FormName] = field(default_factory=list)
    vocoder: bool = True
    evaluations: list[str] | None = None
    latency: int = 20
    sounds: int = 10
    until: str | None = None
    set: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := set(self.user_voices) & set(self.heldout_voices):
            raise UserError(
                f"{', '.join(sorted(both))} in user_voices and heldout_voices: expected no voice in both"
            )
        names = (*CHAINS, *FITS, *(name for name in EVALUATIONS if name not in BEFORE))
        if wrong := [key for key in self.set if key.partition(".")[0] not in names or "." not in key]:
            raise UserError(
                f"set: {wrong[0]} names no key of a stage, expected STAGE.KEY with one of {', '.join(names)}"
            )
        if self.reply_form in self.other_forms or len({*self.other_forms}) < len(self.other_forms):
            raise UserError(
                f"reply_form is {self.reply_form} and other_forms {', '.join(self.other_forms)}: expected "
                "each form once"
            )
        if wrong := sorted({*(self.evaluations or ())} - set(EVALUATIONS)):
            raise UserError(f"evaluations: {', '.join(wrong)}, expected some of {', '.join(EVALUATIONS)}")
        if self.until is not None and self.until not in (
            known_stages := (*CHAINS, *OTHERS, *FITS, *EVALUATIONS)
        ):
            raise UserError(f"until is {self.until}, expected one of {', '.join(known_stages)}")
        if self.at_once < 1:
            raise UserError(f"at_once is {self.at_once}, expected 1 or more")
        if self.workers < 1 or self.validation_every < 2 or min(self.per_fact, self.texts) < 1:
            raise UserError(
                f"workers is {self.workers}, per_fact {self.per_fact}, texts {self.texts}, validation_every "
                f"{self.validation_every}: expected 1, 1, 1 and 2 or more"
            )
        _ = self.split.held

    @property
    def folder(self) -> Path:
        """Folder of lists, audio, model and report."""
        return Path(self.data).absolute()

    @property
    def lists(self) -> Path:
        """Folder of the lists."""
        return self.folder / "lists"

    @property
    def model(self) -> Path:
        """Folder of the exported model."""
        return self.folder / "model"

    def model_of(self, form: str) -> Path:
        """Folder of the exported model with another form of spoken replies; "" for the main form."""
        return self.folder / f"model-{form}" if form else self.model

    @property
    def split(self) -> talk_data.Split:
        """The split into training and held-out questions."""
        return talk_data.Split(self.relations, self.seed, self.phrasings, self.facts)
