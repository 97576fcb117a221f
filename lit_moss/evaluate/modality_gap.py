"""Measures the accuracy lost when questions are asked and answered in speech instead of text.

    input gap    text-text - speech-text        loss by listening
    output gap   speech-text - speech-speech    loss by speaking
    total        text-text - speech-speech

Gaps are in percentage points of match_norm, on the same questions, with 95 % intervals (paired bootstrap) and
McNemar's exact p. The parts around the model are also measured separately, to attribute a gap to them:

    question ─ ASR                                          word errors of the question's audio
    question ─ codes ─ decoder ─ ASR                        loss by tokenizer and decoder
    answer ─ voice ─ ASR                                    loss by the recogniser
    answer ─ voice ─ codes ─ decoder ─ ASR                  upper bound for spoken replies
    question ─ ASR ─ text-text                              cascade at the input
    question ─ codes ─ decoder ─ ASR ─ text-text            as above, after tokenizer and decoder
    question ─ text-text ─ voice ─ codes ─ decoder ─ ASR    cascade at the output
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_moss.audio import io, rates
from lit_moss.data.conversation import PAIRS
from lit_moss.evaluate import spoken_qa
from lit_moss.evaluate.answers import Answerer, at_16khz
from lit_moss.evaluate.evaluation import FAILED, Evaluation, Result, markdown_table, named, wilson
from lit_moss.evaluate.matching import match_norm, word_errors
from lit_moss.evaluate.question_options import QuestionOptions
from lit_moss.evaluate.questions import Question, read_questions
from lit_moss.evaluate.spoken_qa import Row
from lit_moss.evaluate.statistics import bootstrap_interval, mcnemar
from lit_moss.prepare.voice_protocol import CannotSay

# Name -> better side, worse side; the names of sides are columns of `_rights`.
GAPS = {
    "input gap": ("text-text", "speech-text"),
    "output gap": ("speech-text", "speech-speech"),
    "total": ("text-text", "speech-speech"),
    "output gap of typed questions": ("text-text", "text-speech"),
    "own text - its sound": ("speech-speech, own text", "speech-speech"),
    "cascade at the input": ("text-text", "ASR of question"),
    "cascade on codes": ("text-text", "ASR of codes of question"),
    "cascade at the output": ("text-text", "reply spoken by codec"),
}
CASCADES = {"ASR of question": "heard", "ASR of codes of question": "heard_codec"}


@dataclass
class Config(QuestionOptions):
    """Options of `evaluate modality_gap`.

    Args:
        parts: Measure the parts separately, and the cascades.
        name: MLflow experiment, and folder below `run_root`.
    """

    parts: bool = True
    name: str = "modality_gap"

    def of_qa(self) -> spoken_qa.Config:
        """The corresponding options of `spoken_qa`, with all four pairs."""
        same = {key: value for key, value in vars(self).items() if key not in ("parts", "again")}
        return spoken_qa.Config(**same, pairs=list(PAIRS), asr_of_questions=self.parts)


def run(config: Config) -> dict[str, float]:
    """Asks all questions in all four pairs; returns and writes scores, gaps and the losses of the parts.

    Raises:
        UserError: if the model, codec, a list or the recogniser cannot be used.
    """
    questions = read_questions(config.questions, config.limit, config.lang)
    with Evaluation("modality_gap", config, config.sources, config.again) as evaluation:
        if (metrics := evaluation.done()) is not None:
            return metrics
        qa = config.of_qa()
        answerer = config.answerer()
        rows = spoken_qa.ask_all(evaluation, answerer, questions, qa)
        parts = measure_parts(evaluation, answerer, questions, rows, config) if config.parts else []
        rights = rights_of(questions, rows, parts)
        found = gaps_of(questions, rights)
        metrics = spoken_qa.metrics_of(rows) | metrics_of(found, parts, rights)
        evaluation.tracker.log_folder(evaluation.folder / "sounds", "sounds")
        text = report(config, answerer, rows, parts, rights, found)
        figures = {"modality_gap.png": picture(rights)}
        return evaluation.finish(metrics, text, [*rows, *parts], figures)


# --- parts --------------------------------------------------------------------------------------------------


def measure_parts(
    evaluation: Evaluation,
    answerer: Answerer,
    questions: Sequence[Question],
    rows: Sequence[Row],
    config: Config,
) -> list[Row]:
    """A row per question with the results of its audio, its codes, its answer, and the cascades."""
    speech_rows = {row["id"]: row for row in rows if row["pair"] == "speech-text"}
    text_rows = {row["id"]: row for row in rows if row["pair"] == "text-text"}
    codes = answerer.encoded(answerer.sounds_of(questions))
    codes_of = {question.id: found for question, found in zip(questions, codes, strict=True)}
    of_question = evaluation.results(
        questions, lambda batch: [_resynthesised(answerer, q, codes_of[q.id]) for q in batch],
        key=lambda question: f"codes/{question.id}",
    )  # fmt: skip
    of_answer = evaluation.results(
        questions, lambda batch: [_spoken(answerer, q, q.answers[0]) for q in batch],
        key=lambda question: f"answer/{question.id}",
    )  # fmt: skip
    of_reply = evaluation.results(
        questions, lambda batch: [_spoken(answerer, q, text_rows[q.id]["reply"]) for q in batch],
        key=lambda question: f"reply/{question.id}",
    )  # fmt: skip
    parts: list[Row] = []
    for question, codes, answer, reply in zip(questions, of_question, of_answer, of_reply, strict=True):
        source = speech_rows[question.id]
        keys = ("id", "source", "group", "lang", "voice", "question", "answers")
        row = {key: source[key] for key in keys} | {"pair": "parts"}
        row["heard"], row["heard_codec"] = source.get("heard"), codes.get("transcript")
        for name in ("heard", "heard_codec"):
            if row[name] is not None and question.question:
                row[f"{name}_errors"], row[f"{name}_words"] = word_errors(
                    question.question, row[name], question.lang
                )
        for name, result in (("answer", answer), ("reply", reply)):
            row[f"{name}_spoken"], row[f"{name}_codec"] = result.get("spoken"), result.get("codec")
            for way in ("spoken", "codec"):
                said = result.get(way, "")
                row[f"{name}_{way}_right"] = float(match_norm(said, question.answers, question.lang))
        failed = {"codes": codes.get(FAILED), "answer": answer.get(FAILED), "reply": reply.get(FAILED)}
        row["failed"] = "; ".join(f"{name}: {why}" for name, why in failed.items() if why) or None
        parts.append(row)
    for name, column in CASCADES.items():
        add_cascade(evaluation, answerer, questions, parts, name, column, config.batch_size)
    return parts


def add_cascade(
    evaluation: Evaluation,
    answerer: Answerer,
    questions: Sequence[Question],
    parts: Sequence[Row],
    name: str,
    column: str,
    batch_size: int,
) -> None:
    """Adds the text reply to the recogniser's transcript of each question, and whether it is right."""
    heard = [
        replace(question, question=row[column] or "") for question, row in zip(questions, parts, strict=True)
    ]
    asks = answerer.asks(heard, ["text-text"], prefix=f"{column}/")
    results = evaluation.results(asks, answerer.answer, batch_size)
    text_of = {ask.question.id: result.get("text", "") for ask, result in zip(asks, results, strict=True)}
    for question, row in zip(questions, parts, strict=True):
        row[f"cascade {column}"] = text_of[question.id]
        row[name] = float(match_norm(text_of[question.id], question.answers, question.lang))


def _resynthesised(answerer: Answerer, question: Question, codes: list[int] | str) -> Result:
    """Transcript of a question's decoded codes."""
    if isinstance(codes, str):
        return {FAILED: codes}
    assert answerer.ears is not None
    return {"transcript": answerer.ears.transcript(at_16khz(answerer.decoded(codes)), question.lang)}


def _spoken(answerer: Answerer, question: Question, text: str) -> Result:
    """Transcript of a text spoken by a voice (`spoken`), and of its decoded codes (`codec`)."""
    assert answerer.ears is not None
    if not text.strip():
        return {"spoken": "", "codec": ""}
    try:
        sound = answerer.said(text, question.lang)
    except CannotSay as error:
        return {FAILED: f"{text[:60]!r} cannot be spoken ({error})"}
    wave_T = io.read(sound.audio, rates.TOKENIZER_RATE_HZ)
    (codes_N,) = answerer.encode([wave_T])
    decoded_T = at_16khz(answerer.decoded(codes_N.tolist()))
    spoken, codec = (answerer.ears.transcript(w, question.lang) for w in (wave_T, decoded_T))
    return {"spoken": spoken, "codec": codec}


# --- gaps ---------------------------------------------------------------------------------------------------


def rights_of(
    questions: Sequence[Question], rows: Sequence[Row], parts: Sequence[Row]
) -> dict[str, list[bool]]:
    """Side of a gap -> whether each question is right."""
    place = {question.id: i for i, question in enumerate(questions)}
    rights: dict[str, list[bool]] = {}

    def add(name: str, own: Sequence[Row], column: str) -> None:
        found = {row["id"]: bool(row[column]) for row in own if column in row}
        if len(found) == len(place):
            rights[name] = [found[question.id] for question in questions]

    for pair, own in spoken_qa.by_pair(rows).items():
        add(pair, own, "match_norm")
        add(f"{pair}, own text", own, f"{spoken_qa.OWN_TEXT}match_norm")
    for name in CASCADES:
        add(name, parts, name)
    add("reply spoken by codec", parts, "reply_codec_right")
    add("answer spoken", parts, "answer_spoken_right")
    add("answer spoken by codec", parts, "answer_codec_right")
    return rights


@dataclass(frozen=True)
class Gap:
    """Paired difference of two sides on the same questions, in percentage points.

    Args:
        n: Number of questions.
        points: Better side minus worse side, -100 to 100.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        p: p-value of McNemar's test.
    """

    n: int
    points: float
    low: float
    high: float
    p: float


def gap(better: Sequence[bool], worse: Sequence[bool]) -> Gap:
    """The paired difference of two sides."""
    differences = [100.0 * (a - b) for a, b in zip(better, worse, strict=True)]
    points = sum(differences) / len(differences) if differences else math.nan
    return Gap(len(differences), points, *bootstrap_interval(differences), mcnemar(better, worse).p)


def gaps_of(questions: Sequence[Question], rights: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Gap]]:
    """Part ("all", and each group, language, list and voice if there are several) -> name -> gap."""
    as_rows = [
        {"place": i, "source": q.source, "group": q.group, "lang": q.lang, "voice": q.voice}
        for i, q in enumerate(questions)
    ]
    found: dict[str, dict[str, Gap]] = {}
    for part, own in ({"all": as_rows} | spoken_qa.parts_of(as_rows)).items():
        places = [row["place"] for row in own]
        found[part] = {
            name: gap([rights[a][i] for i in places], [rights[b][i] for i in places])
            for name, (a, b) in GAPS.items()
            if a in rights and b in rights
        }
    return found


def metrics_of(
    found: Mapping[str, Mapping[str, Gap]], parts: Sequence[Row], rights: Mapping[str, Sequence[bool]]
) -> dict[str, float]:
    """`gap/NAME` in percentage points with `_low`, `_high` and `_p`, and the losses of the parts."""
    metrics: dict[str, float] = {}
    for part, gaps in found.items():
        start = "gap" if part == "all" else f"gap/{part}"
        for name, one in gaps.items():
            values = {"": one.points, "_low": one.low, "_high": one.high, "_p": one.p}
            metrics |= {f"{start}/{name}{end}": value for end, value in values.items()}
    for name in (*CASCADES, "reply spoken by codec", "answer spoken", "answer spoken by codec"):
        if name in rights:
            metrics[f"parts/{name}"] = sum(rights[name]) / len(rights[name])
    return metrics | {f"parts/{name}": value for name, value in part_errors(parts).items()}


def part_errors(parts: Sequence[Row]) -> dict[str, float]:
    """Word errors of the questions' audio, directly and through tokenizer and decoder."""
    found = {}
    for name, head in (("heard", "wer of question"), ("heard_codec", "wer of codes of question")):
        words = sum(row.get(f"{name}_words") or 0 for row in parts)
        if words:
            found[head] = sum(row.get(f"{name}_errors") or 0 for row in parts) / words
    return found


# --- report -------------------------------------------------------------------------------------------------


def report(
    config: Config,
    answerer: Answerer,
    rows: Sequence[Row],
    parts: Sequence[Row],
    rights: Mapping[str, Sequence[bool]],
    found: Mapping[str, Mapping[str, Gap]],
) -> str:
    """Markdown: scores of the pairs, gaps, and losses of the parts."""
    lines = [f"# Modality gap: {config.model}", "", *spoken_qa.settings(config.of_qa(), answerer), ""]
    lines += ["## Scores", "", spoken_qa.score_table(spoken_qa.by_pair(rows)), "## Gaps in points", ""]
    for part, gaps in found.items():
        if part != "all":
            lines += [f"### {part}", ""]
        lines.append(markdown_table([_gap_line(name, one) for name, one in gaps.items()], digits=1))
    if parts:
        lines += ["## Parts alone", "", *_part_lines(parts, rights)]
    spoken = spoken_qa.summary([row for row in rows if row["pair"] == "speech-speech"])
    if "wer" in spoken:
        lines += [f"Word errors of spoken replies against their own text: {spoken['wer']:.3f}.", ""]
    failed = {f"{row['pair']}/{row['id']}": row["failed"] for row in [*rows, *parts] if row["failed"]}
    lines += named("Failed, counted as wrong", failed)
    return "\n".join(lines).rstrip() + "\n"


def _gap_line(name: str, one: Gap) -> dict[str, Any]:
    better, worse = GAPS[name]
    return {
        "": name,
        "of": f"{better} − {worse}",
        "n": one.n,
        "points": one.points,
        "95 %": f"{one.low:.1f} to {one.high:.1f}",
        "McNemar p": f"{one.p:.2g}",
    }


def _part_lines(parts: Sequence[Row], rights: Mapping[str, Sequence[bool]]) -> list[str]:
    shares = []
    for name in ("answer spoken", "answer spoken by codec", *CASCADES, "reply spoken by codec"):
        if name in rights:
            n, right = len(rights[name]), sum(rights[name])
            low, high = wilson(right, n)
            shares.append({"": name, "n": n, "match_norm": right / n, "95 %": f"{low:.3f}–{high:.3f}"})
    errors = [{"": name, "WER": value} for name, value in part_errors(parts).items()]
    return [markdown_table(shares), markdown_table(errors)]


def picture(rights: Mapping[str, Sequence[bool]]) -> Any:
    """Bars of all sides with 95 % intervals."""
    import matplotlib.pyplot as plt

    names = list(rights)
    shares = [sum(right) / len(right) for right in rights.values()]
    ends = [wilson(sum(right), len(right)) for right in rights.values()]
    below = [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)]
    above = [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)]
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(names) + 1))
    colours = ["tab:blue" if name.partition(",")[0] in PAIRS else "tab:gray" for name in names]
    axes.barh(range(len(names)), shares, xerr=[below, above], color=colours, capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"match_norm, {len(next(iter(rights.values())))} questions")
    return figure
