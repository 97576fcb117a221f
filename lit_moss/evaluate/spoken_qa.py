"""Questions answered in text or speech, compared with reference answers (the paper's table 6).

    pair             question   reply     what is compared
    text-text        text       text      the reply's text
    speech-text      audio      text      the reply's text
    text-speech      text       audio     its transcript by a recogniser, and the text of replies that also
    speech-speech    audio      audio     contain text (guided, interleaved)

`match_norm` is the main score; `match_raw` (UltraEval-Audio's rule) and a language model as a judge are also
reported, since published numbers use either (`lit_moss/evaluate/matching.py`). Lists of questions are
described in `lit_moss/evaluate/questions.py`. An item without a reply counts as wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.conversation import PAIRS
from lit_moss.errors import UserError
from lit_moss.evaluate.answers import Answerer, Ask
from lit_moss.evaluate.evaluation import (
    FAILED,
    Evaluation,
    Result,
    local_parts,
    markdown_table,
    named,
    wilson,
)
from lit_moss.evaluate.matching import NORMALISER, match_norm, match_raw, word_errors
from lit_moss.evaluate.qa_judge import Judged, QAJudge
from lit_moss.evaluate.question_options import QuestionOptions
from lit_moss.evaluate.questions import Question, read_questions
from lit_moss.evaluate.utmos import Utmos
from lit_moss.prepare.answer_checks import language_of
from lit_moss.prepare.endpoint import Answers, ChatEndpoint, Server
from lit_moss.records import file_name

Row = dict[str, Any]
RULES = ("match_norm", "match_raw", "judge")
OWN_TEXT = "text_"  # prefix of the columns for the own text of spoken replies


@dataclass
class Config(QuestionOptions):
    """Options of `evaluate spoken_qa`.

    Args:
        pairs: Modalities of question and reply: some of text-text, speech-text, text-speech, speech-speech.
        asr_of_questions: Also transcribe the audio of questions, and report word errors.
        dnsmos: Compute DNSMOS of spoken replies (about 2 s each).
        utmos: Checkout of github.com/tarepan/SpeechMOS with its weights, for UTMOS of spoken replies. null:
            not computed.
        judge: Model on an OpenAI-compatible server that also grades replies. null: none.
        judge_url: Address of the server, http(s)://HOST[:PORT]/v1. null: that of OpenAI.
        judge_api_key_env: Environment variable that contains the server's API key.
        judge_response_format: json_schema, or for servers without it: json_object or none.
        judge_max_requests: Maximum number of requests to the judge. null: unlimited.
        name: MLflow experiment, and folder below `run_root`.
    """

    pairs: list[str] = field(default_factory=lambda: ["speech-text", "speech-speech"])
    asr_of_questions: bool = False
    dnsmos: bool = False
    utmos: str | None = None
    judge: str | None = None
    judge_url: str | None = None
    judge_api_key_env: str = "OPENAI_API_KEY"
    judge_response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    judge_max_requests: int | None = None
    name: str = "spoken_qa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pairs or set(self.pairs) - set(PAIRS) or len(set(self.pairs)) < len(self.pairs):
            raise UserError(f"pairs is {self.pairs}, expected some of {', '.join(PAIRS)}, each once")


def run(config: Config) -> dict[str, float]:
    """Asks all questions in all pairs; returns and writes the scores.

    Raises:
        UserError: if the model, codec, a list, the recogniser or the judge cannot be used.
    """
    questions = read_questions(config.questions, config.limit, config.lang)
    with ExitStack() as stack:
        sources = [*config.sources, *local_parts(config.utmos)]
        evaluation = stack.enter_context(Evaluation("spoken_qa", config, sources, config.again))
        if (metrics := evaluation.done()) is not None:
            return metrics
        utmos = stack.enter_context(Utmos(config.utmos)) if config.utmos else None
        endpoint = open_judge(config, evaluation.folder)
        answerer = config.answerer(config.dnsmos, utmos)
        rows = ask_all(evaluation, answerer, questions, config, endpoint)
        evaluation.tracker.log_folder(evaluation.folder / "sounds", "sounds")
        return evaluation.finish(metrics_of(rows), report(rows, config, answerer), rows)


def open_judge(config: Config, folder: Path) -> QAJudge | None:
    """Opens the judge given by the options, or returns None. Its answers are stored in the evaluation's
    folder until it is repeated (`again`).

    Raises:
        UserError: if the judge is not reachable.
    """
    if config.judge is None:
        return None
    server = Server(
        config.judge,
        config.judge_url,
        config.judge_api_key_env,
        response_format=config.judge_response_format,
    )
    kept = folder / "judge.sqlite"
    if config.again:  # the journal first: otherwise it would be replayed into the new file
        for file in (kept.with_name(f"{kept.name}-journal"), kept):
            file.unlink(missing_ok=True)
    answers = Answers(kept)
    limit = config.judge_max_requests
    return QAJudge(ChatEndpoint(server, answers, "spoken_qa", limit, prefix="judge_"))


def ask_all(
    evaluation: Evaluation,
    answerer: Answerer,
    questions: Sequence[Question],
    config: Config,
    judge: QAJudge | None = None,
) -> list[Row]:
    """A row per question and pair, in the order of the options and lists."""
    answerer.check(config.pairs)
    if any(PAIRS[p][0] == "text" for p in config.pairs) and not any(q.question for q in questions):
        raise UserError("pairs has questions in text, but the lists have sounds alone: leave those pairs out")
    answerer.folder = evaluation.folder / "sounds"
    answerer.folder.mkdir(exist_ok=True)
    asks = answerer.asks(questions, config.pairs, config.keep_sounds)
    replies = evaluation.results(asks, answerer.answer, config.batch_size)
    result_of = {ask.id: result for ask, result in zip(asks, replies, strict=True)}
    rows = [reply_row(ask, result_of[ask.id], answerer) for ask in asks]
    if any(PAIRS[pair][0] == "speech" for pair in config.pairs):
        keep_questions(answerer, questions[: config.keep_sounds])
        if config.asr_of_questions:
            heard = hear_questions(evaluation, answerer, questions)
            for row in rows:
                if PAIRS[row["pair"]][0] == "speech":
                    row |= heard[row["id"]]
    if judge is not None:
        add_verdicts(evaluation, judge, rows, {question.id: question.answers for question in questions})
    place = {question.id: i for i, question in enumerate(questions)}
    return sorted(rows, key=lambda row: (config.pairs.index(row["pair"]), place[row["id"]]))


def keep_questions(answerer: Answerer, questions: Sequence[Question]) -> None:
    """Saves the audio of questions next to that of their replies."""
    for question, sound in zip(questions, answerer.sounds_of(questions), strict=True):
        if isinstance(sound, Utterance):
            try:
                wave_T = io.read(sound.audio, rates.DECODER_RATE_HZ)
            except io.UnreadableAudio:
                continue  # reported in its row
            answerer.keep(wave_T, rates.DECODER_RATE_HZ, f"questions/{file_name(question.id)}")


def hear_questions(
    evaluation: Evaluation, answerer: Answerer, questions: Sequence[Question]
) -> dict[str, Row]:
    """Question -> `heard`, and `heard_errors` of `heard_words`, if its audio can be read."""
    ears = answerer.ears
    assert ears is not None

    def hear(batch: Sequence[Question]) -> list[Result]:
        (question,) = batch
        (sound,) = answerer.sounds_of([question])
        if isinstance(sound, str):
            return [{FAILED: sound}]
        try:
            wave_T = io.read(sound.audio, rates.TOKENIZER_RATE_HZ)
        except io.UnreadableAudio as error:
            return [{FAILED: str(error)}]
        return [{"heard": ears.transcript(wave_T, question.lang)}]

    results = evaluation.results(questions, hear, key=lambda question: f"heard/{question.id}")
    found: dict[str, Row] = {}
    for question, result in zip(questions, results, strict=True):
        row = found[question.id] = {"heard": result.get("heard")}
        if "heard" in result and question.question:
            errors = word_errors(question.question, result["heard"], question.lang)
            row["heard_errors"], row["heard_words"] = errors
    return found


def reply_row(ask: Ask, result: Result, answerer: Answerer) -> Row:
    """Columns of a reply and its matches; `text_` marks those of the own text of a spoken reply."""
    question, lang = ask.question, ask.question.lang
    is_spoken = PAIRS[ask.pair][1] == "speech"
    own, said = result.get("text", ""), result.get("transcript", "")
    has_text = is_spoken and answerer.form.has_text
    row: Row = {
        "id": question.id, "pair": ask.pair, "source": question.source, "group": question.group,
        "lang": lang, "voice": question.voice, "question": question.question,
        "answers": " | ".join(question.answers), "reply": own, "transcript": said if is_spoken else None,
        "failed": result.get(FAILED),
    }  # fmt: skip
    scored = {"": said if is_spoken else own} | ({OWN_TEXT: own} if has_text else {})
    for prefix, reply in scored.items():
        row[f"{prefix}match_norm"] = float(match_norm(reply, question.answers, lang))
        row[f"{prefix}match_raw"] = float(match_raw(reply, question.answers, lang))
    if FAILED in result:
        return row
    row |= {"rows": result["rows"], "hit_limit": float(not result["ended"])}
    row["empty"] = float(not scored[""].strip())
    # A recogniser with a fixed language writes that language, whatever it hears.
    written = own if has_text or not is_spoken else ""
    if written:
        row["other_language"] = float(language_of(written) not in ("", lang))
    if has_text and own:
        row["errors"], row["words"] = word_errors(own, said, lang)
    row |= {key: result[key] for key in ("seconds", "dnsmos", "utmos") if key in result}
    return row


def add_verdicts(
    evaluation: Evaluation, judge: QAJudge, rows: Sequence[Row], answers: Mapping[str, Sequence[str]]
) -> None:
    """Adds the judge's verdicts to rows that have a reply; the others are wrong.

    Args:
        evaluation: Stores the verdicts.
        judge: Judge that grades.
        rows: Rows, as returned by `reply_row`.
        answers: Reference answers of each question.
    """
    items: dict[str, tuple[Row, str, Judged]] = {}
    for row in rows:
        for prefix in ("", OWN_TEXT):
            if f"{prefix}match_norm" not in row:
                continue
            row[f"{prefix}judge"] = 0.0
            if row["failed"] is None:
                reply = row["reply"] if prefix or row["transcript"] is None else row["transcript"]
                name = f"judge/{prefix}{row['pair']}/{row['id']}"
                items[name] = (row, prefix, Judged(name, row["question"], answers[row["id"]], reply))
    judged = [item for _, _, item in items.values()]
    for item, result in zip(judged, evaluation.results(judged, judge, 4 * judge.parallel), strict=True):
        row, prefix, _ = items[item.id]
        row |= {f"{prefix}judge": float(result["right"]), f"{prefix}judge_why": result["why"]}
        if result.get("unparsable"):
            row[f"{prefix}unparsable"] = 1.0


# --- scores -------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], prefix: str = "") -> dict[str, float]:
    """Fractions and means over rows of one pair; measures that were not computed are omitted.

    Args:
        rows: Rows, as returned by `reply_row`.
        prefix: "" for what is scored, `OWN_TEXT` for the own text of spoken replies.
    """
    own = [row for row in rows if f"{prefix}match_norm" in row]
    found: dict[str, float] = {"n": float(len(own))}
    if not own:
        return found
    found["failed"] = float(sum(row["failed"] is not None for row in own))
    for rule in RULES:
        if f"{prefix}{rule}" in own[0]:
            found[rule] = _mean(row[f"{prefix}{rule}"] for row in own)
    found["unparsable"] = float(sum(f"{prefix}unparsable" in row for row in own))
    if "judge" not in found:
        del found["unparsable"]
    for key in () if prefix else ("other_language", "hit_limit", "empty", "seconds", "dnsmos", "utmos"):
        values = [row[key] for row in own if row.get(key) is not None]
        if values:
            found[key] = _mean(values)
    for key, errors, words in (("wer", "errors", "words"), ("heard_wer", "heard_errors", "heard_words")):
        total = sum(row.get(words) or 0 for row in own)
        if total and not prefix:
            found[key] = sum(row.get(errors) or 0 for row in own) / total
    return found


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def parts_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by list, group, language and voice, for columns with several values.

    A group gets its own line even if it is the only one.
    """
    parts: dict[str, list[Row]] = {}
    for column in ("source", "group", "lang", "voice"):
        values = list(dict.fromkeys(row[column] for row in rows))
        if len(values) > 1 or (column == "group" and values != [""]):
            for value in values:
                parts[f"{column} {value or 'none'}"] = [row for row in rows if row[column] == value]
    return parts


def metrics_of(rows: Sequence[Row]) -> dict[str, float]:
    """`PAIR/NAME` over all rows, and `PAIR/PART/NAME` for the scores of each part."""
    metrics: dict[str, float] = {}
    for pair, own in by_pair(rows).items():
        for prefix in ("", OWN_TEXT):
            found = summary(own, prefix)
            if found["n"]:
                metrics |= {f"{pair}/{prefix}{key}": value for key, value in found.items()}
                for part, some in parts_of(own).items():
                    scores = summary(some, prefix)
                    names = [name for name in ("n", *RULES) if name in scores]
                    metrics |= {f"{pair}/{part}/{prefix}{name}": scores[name] for name in names}
    return metrics


def by_pair(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by pair."""
    return {
        pair: [row for row in rows if row["pair"] == pair] for pair in dict.fromkeys(r["pair"] for r in rows)
    }


# --- report -------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], config: Config, answerer: Answerer) -> str:
    """Markdown: scores, statistics of replies, scores of each part, and failures."""
    lines = [f"# Spoken question answering: {config.model}", "", *settings(config, answerer), ""]
    lines += ["## Scores", "", score_table(by_pair(rows)), "## Replies", "", _reply_table(by_pair(rows))]
    for pair, own in by_pair(rows).items():
        if parts := parts_of(own):
            lines += [f"## Parts of {pair}", "", score_table(parts)]
    several = len(config.pairs) > 1

    def name(row: Row) -> str:
        return f"{row['pair']}/{row['id']}" if several else row["id"]

    lines += named("Failed, counted as wrong", {name(row): row["failed"] for row in rows if row["failed"]})
    for prefix in ("", OWN_TEXT):
        unparsed = {name(row): row[f"{prefix}judge_why"] for row in rows if f"{prefix}unparsable" in row}
        what = "own text, without" if prefix else "Without"
        lines += named(f"{what.capitalize()} a verdict of the judge, counted as wrong", unparsed)
    return "\n".join(lines).rstrip() + "\n"


def settings(config: Any, answerer: Answerer) -> list[str]:
    """Lines that describe how the scores were computed."""
    how = "the most likely ones" if config.greedy else f"drawn with seed {config.seed}"
    judge = f"{config.judge} ({config.judge_url or 'OpenAI'})" if config.judge else "none"
    return [
        f"Lists {', '.join(config.questions)}; replies {how}, at most {config.max_new_tokens} rows, spoken "
        f"ones {answerer.form.name}; ASR {config.asr}, its language fixed, pieces of at most 30 s; "
        f"judge {judge}.",
        f"match_norm: {NORMALISER}. match_raw: UltraEval-Audio's qa-exist-match, characters in Chinese. "
        "Intervals: 95 % (Wilson).",
    ]


def score_table(parts: Mapping[str, Sequence[Row]]) -> str:
    """A line per part, and another one for the own text of its spoken replies."""
    lines = []
    for name, own in parts.items():
        for prefix in ("", OWN_TEXT):
            found = summary(own, prefix)
            if not found["n"]:
                continue
            low, high = wilson(found["match_norm"] * found["n"], int(found["n"]))
            lines.append(
                {
                    "": f"{name}, own text" if prefix else name,
                    "n": int(found["n"]),
                    "failed": int(found["failed"]),
                    "match_norm": found["match_norm"],
                    "95 %": f"{low:.3f}–{high:.3f}",
                    "match_raw": found["match_raw"],
                    "judge": found.get("judge"),
                    "unparsable": int(found["unparsable"]) if "unparsable" in found else None,
                }
            )
    return markdown_table(_filled(lines))


def _reply_table(parts: Mapping[str, Sequence[Row]]) -> str:
    names = {
        "other_language": "another language", "hit_limit": "hit the limit", "empty": "empty",
        "wer": "WER to own text", "seconds": "seconds", "dnsmos": "DNSMOS", "utmos": "UTMOS",
        "heard_wer": "WER of questions",
    }  # fmt: skip
    lines = []
    for name, own in parts.items():
        found = summary(own)
        lines.append({"": name} | {head: found.get(key) for key, head in names.items()})
    return markdown_table(_filled(lines))


def _filled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without columns that are empty in all of them."""
    heads = [head for head in (lines[0] if lines else ()) if any(line[head] is not None for line in lines)]
    return [{head: line[head] for head in heads} for line in lines]
