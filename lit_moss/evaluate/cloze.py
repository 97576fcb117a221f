"""Cloze by likelihood: the true continuation should be more likely than another one (paper, table 5).

A pair is right if the true continuation has the higher score, and half right for equal scores.

    whole-mean    mean of log p over all rows of context and ending (SlamKit's; the default)
    ending-sum    sum of log p over the rows of the ending
    ending-mean   mean of log p over the rows of the ending

For the formats of pairs see `lit_moss.evaluate.cloze_sets`. From other files, texts and corpora, items are
made in the manner of StoryCloze: a sentence, the next sentence, and another one.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from lit_moss.errors import UserError
from lit_moss.evaluate.cloze_options import Config
from lit_moss.evaluate.cloze_report import outcome, results_of, summary
from lit_moss.evaluate.cloze_scorer import Item, Rows, Scorer
from lit_moss.evaluate.cloze_sets import (
    MODALITIES,
    Format,
    Modalities,
    Pair,
    PairSet,
    Part,
    format_of,
    read_pairs,
    set_name,
)
from lit_moss.evaluate.evaluation import Evaluation
from lit_moss.evaluate.spoken_texts import SpokenTexts
from lit_moss.prepare.answer_checks import language_of
from lit_moss.prepare.voice_protocol import CannotSay
from lit_moss.records import unique_name

__all__ = ["Config", "run"]

_DOCUMENT_ITEMS = 64  # number of items of a corpus if no limit is given
_MADE: tuple[Modalities, ...] = ("speech-speech", "text-text")  # modalities that items of a corpus can have


def run(config: Config) -> dict[str, float]:
    """Scores all pairs; returns and writes the accuracies.

    Another score, or a comparison, is computed from the same results and written to a separate report; the
    evaluation's result keeps the intervals of the default score.

    Raises:
        UserError: if the items, the model or the codec cannot be used, or no pair could be scored.
    """
    against = results_of(config.against) if config.against else None
    plain = replace(config, against=None, score="whole-mean")  # neither changes what is computed
    sources = [config.model, config.codec, config.speech_tokenizer, *config.items]
    with Evaluation("cloze", plain, sources, config.again) as evaluation:
        if config.score == plain.score and against is None and (known := evaluation.done()) is not None:
            return known
        scorer = Scorer(config)
        items = list(read_items(config, scorer))
        results = evaluation.results(items, scorer, config.batch_size)
        outcomes = [outcome(item, result) for item, result in zip(items, results, strict=True)]
        if all(o.failed for o in outcomes):
            raise UserError(f"none of the {len(items)} items could be scored, first: {outcomes[0].failed}")
        if config.score == plain.score and against is None:
            return evaluation.finish(*summary(plain, outcomes))
        if not evaluation.is_done:
            evaluation.finish(*summary(plain, outcomes), say=False)
        metrics, report, *_ = summary(config, outcomes, against)
        compared = f"-against-{Path(config.against).resolve().name}" if config.against else ""
        evaluation.add_report(f"report-{config.score}{compared}.md", report)
        return metrics


# --- items --------------------------------------------------------------------------------------------------


def read_items(config: Config, scorer: "Scorer") -> Iterator[Item]:
    """Yields all items, set by set; the modalities of a pair are consecutive."""
    names: set[str] = set()
    for source in config.items:
        form: Format = format_of(source) if config.format == "auto" else config.format
        if form == "documents":
            made = list(_made_items(config, source, unique_name(set_name(source), names), scorer))
            if not made:
                wanted = ", ".join(config.modalities or _MADE)
                raise UserError(
                    f"{source} gives no items of {wanted}, expected three sentences or more that follow each "
                    "other, for speech-speech recordings; conversations give none: give other modalities, or "
                    "leave it out"
                )
            yield from made
            continue
        for one in read_pairs(source, form):
            if config.voices and any("speech" in m for m in config.modalities or MODALITIES):
                one = spoken_set(one.first(config.limit), SpokenTexts(config.voices))
            chosen = config.modalities or one.modalities()
            if not set(chosen) & set(one.modalities()):
                raise UserError(
                    f"{source} has pairs of {', '.join(one.modalities()) or 'no modality'}: modalities is "
                    f"{', '.join(chosen)}"
                )
            part = PairSet(unique_name(one.name, names), one.pairs).first(config.limit)
            for pair in part.pairs:
                for modalities in chosen:
                    yield Item(part.name, pair, modalities)


def spoken_set(one: PairSet, voice: SpokenTexts) -> PairSet:
    """Adds audio to texts without audio; texts that cannot be spoken stay text."""

    def spoken(part: Part | None) -> Part | None:
        if part is None or part.audio is not None or not part.text:
            return part
        try:
            return replace(part, audio=voice.said(part.text, language_of(part.text)).audio)
        except CannotSay:
            return part

    pairs = [
        replace(pair, prompt=spoken(pair.prompt), good=spoken(pair.good), bad=spoken(pair.bad))
        for pair in tqdm(one.pairs, desc=f"spoken {one.name}", unit="pair", disable=None)
    ]
    return PairSet(one.name, pairs)


def _made_items(config: Config, source: str, name: str, scorer: "Scorer") -> Iterator[Item]:
    """Items made from a corpus, see `make_cloze`."""
    from lit_moss.data.cloze import make_cloze

    speech = config.speech_tokenizer or scorer.tokenizer_name()
    speech = None if speech == "none" else speech
    folder = str(scorer.model.lm.tokenizer_folder)
    if speech:
        scorer.check_speech(speech)
    made = make_cloze(
        [source], config.part, folder, speech, config.limit or _DOCUMENT_ITEMS, config.seed, config.log_mel
    )
    wanted = set(config.modalities or _MADE)
    form = scorer.model.lm.format
    for number, item in enumerate(made):
        modalities: Modalities = "speech-speech" if item.modality == "speech" else "text-text"
        if modalities not in wanted:
            continue
        if item.modality == "speech" and item.true[-1] != form.eosp_row:
            raise UserError(
                f"{speech} has other codes than {config.model}, which has {form.eosp_token_id}: give the "
                "speech tokenizer of its training (--speech_tokenizer)"
            )
        good, bad = (Rows([*item.context, *ending], len(item.context)) for ending in (item.true, item.other))
        yield Item(name, Pair(str(number), Part(), Part(), Part(), str(number)), modalities, (good, bad))
