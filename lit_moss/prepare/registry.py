"""Stages by name. Their modules are imported on request, because some load large libraries."""

import importlib
from typing import TYPE_CHECKING

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.prepare.stage import Stage, WholeStage

# Name -> (module, class, one line of help), in the order of a chain.
STAGES: dict[str, tuple[str, str, str]] = {
    "vad": ("lit_moss.prepare.vad", "VadStage", "recordings -> segments of speech"),
    "transcribe": ("lit_moss.prepare.transcribe", "TranscribeStage", "segments -> transcripts, by ASR"),
    "check-transcripts": (
        "lit_moss.prepare.check_transcripts",
        "CheckTranscriptsStage",
        "drop transcripts of what was never said",
    ),
    "dedup": ("lit_moss.prepare.dedup", "DedupStage", "drop texts that exist already"),
    "synthesize": (
        "lit_moss.prepare.synthesize",
        "SynthesizeStage",
        "texts -> utterances, by text to speech",
    ),
    "align": ("lit_moss.prepare.align", "AlignStage", "times of words, by CTC"),
    "chunk": ("lit_moss.prepare.chunk", "ChunkStage", "chunks of 3 to 6 s at borders of words"),
    "tokenize": ("lit_moss.prepare.tokenize", "TokenizeStage", "codes, into the cache"),
    "interleave": ("lit_moss.prepare.interleave", "InterleaveStage", "interleaved and speech-only documents"),
    "text": ("lit_moss.prepare.text", "TextStage", "text-only documents"),
    "adapt": ("lit_moss.prepare.adapt", "AdaptStage", "questions and answers -> speakable conversations"),
    "self-answer": ("lit_moss.prepare.self_answer", "SelfAnswerStage", "prompts -> the backbone's answers"),
    "speak": ("lit_moss.prepare.speak", "SpeakStage", "conversations -> spoken conversations"),
    "filter": ("lit_moss.prepare.filter", "FilterStage", "drop speech that ASR does not understand"),
    "sft": ("lit_moss.prepare.sft", "SftStage", "conversations -> documents in four modality pairs"),
    "report": ("lit_moss.prepare.report", "ReportStage", "tables, pictures and sounds of what was made"),
}


def stage_class(name: str) -> "type[Stage] | type[WholeStage]":
    """The class of a stage.

    Args:
        name: One of `STAGES`, or the dotted path of a user's class, such as `my_package.MyStage`.

    Raises:
        UserError: if there is no such stage.
    """
    if "." in name:
        module, _, attribute = name.rpartition(".")
    elif name in STAGES:
        module, attribute, _ = STAGES[name]
    else:
        raise UserError(
            f"no stage {name!r}, expected one of {', '.join(STAGES)}, or the path of a class: package.MyStage"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        if name in STAGES:
            raise
        raise UserError(
            f"no stage {name!r} ({error}): expected the path of a class: package.MyStage"
        ) from error
    if name not in STAGES:
        from lit_moss.prepare.stage import Stage, WholeStage

        if not (isinstance(found, type) and issubclass(found, (Stage, WholeStage))):
            raise UserError(f"{name} is no stage: expected a subclass of lit_moss.prepare.stage.Stage")
    return found
