"""The model card of an exported folder: README.md with the header that the Hugging Face hub reads.

Filled from the run's folder (resolved configuration, results) and its MLflow run (commit, versions). What is
not recorded is said to be so. Paths of data and runs are written as names, see `public_names`.
Header: https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_moss import assets
from lit_moss.errors import UserError
from lit_moss.files import atomic_write
from lit_moss.hub.model_folder import CODEC, ModelRecord
from lit_moss.llm.config import MODEL_TYPE
from lit_moss.llm.folders import open_tensors, read_json, weight_files
from lit_moss.release.card_texts import CITATION, INTENDED_USE, LIMITS, SMALL, usage
from lit_moss.release.public_names import is_hub_id, part_name, public_value
from lit_moss.release.training_facts import Data, Stage, Training, training_of
from lit_moss.runs.folder import RunFolder

CARD = "README.md"
NOT_RECORDED = "Not recorded."
# Embedded part -> the repository that it is a copy of, and the key of its licence in `assets.EMBEDDED`.
_EMBEDDED = {
    "embedded:smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-gguf"),
    "embedded:whisper-tiny": ("openai/whisper-tiny", "whisper-tiny"),
    "embedded:whisper-tiny-kmeans": ("openai/whisper-tiny", "whisper-tiny"),
    "embedded:whisper-base": ("openai/whisper-base", "whisper-base"),
    "embedded:resemblyzer": ("", "resemblyzer"),
}
_PARTS = ("backbone", "encoder", "speech_tokenizer", "speaker", "start")  # settings that name pretrained parts
_NOT_SETTINGS = {"init_from", "train", "validation", "heldout", "parts", "epochs", *_PARTS}
_TRAINER = ("max_steps", "max_epochs", "precision", "devices", "num_nodes", "accumulate_grad_batches",
            "gradient_clip_val")  # fmt: skip
_SCHEDULES = ("StagedFreezing", "LearningRateSchedule", "ReverseUnfreeze", "EMAWeightAveraging")
_SMALL_PARAMETERS = 2_000_000_000
_GROUPS = {  # first words of a tensor's name -> row of the table of sizes
    "model.shared_block": "shared trunk",
    "model.text_block": "text tail",
    "model.text_norm": "text tail",
    "model.audio_block": "speech tail",
    "model.audio_norm": "speech tail",
    "model.embed_tokens": "text embeddings",
    "model.audio_embed": "speech embeddings",
    "text_lm_head": "text head",
    "audio_lm_head": "speech head",
}


def write_card(folder: Path, run: RunFolder | None) -> None:
    """Writes `README.md` of an exported folder; one that is there is replaced.

    MLflow is asked for the commit and the versions of the run, and left out if it does not answer.

    Args:
        folder: With `config.json`, its weights and `lit_moss.json`.
        run: The run that the weights come from; None for a folder from elsewhere.

    Raises:
        UserError: if `config.json` or `lit_moss.json` is damaged.
    """
    from huggingface_hub import ModelCard

    facts = _facts(folder, run)
    sections = {
        "Intended use": INTENDED_USE,
        "Training": _training(facts),
        "Data": _data(facts.training.stages),
        "Hyperparameters": _hyperparameters(facts.training.stages),
        "Size": _size(facts),
        "Results": _results(facts),
        "Limits": _limits(facts),
        "Licence": _licence(facts),
        "How to use": usage(facts.kind, facts.has_codec),
        "How to cite": CITATION.format(version=_version()),
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    card = ModelCard(f"---\n{_header(facts).to_yaml()}\n---\n\n# {facts.name}\n\n{_summary(facts)}\n\n{body}\n")
    with atomic_write(folder / CARD) as partial:
        partial.write_text(card.content, encoding="utf-8")


@dataclass(frozen=True)
class _Facts:
    """What the sections are written from.

    Args:
        name: Of the folder.
        kind: `language model`, `codec` or `speech tokenizer`.
        config: Content of `config.json`.
        record: Content of `lit_moss.json`.
        training: The runs.
        sizes: Part of the model -> number of its parameters; empty if there are no weights.
        dtypes: Of the weights.
        has_codec: Whether a codec is in the folder.
    """

    name: str
    kind: str
    config: dict[str, Any]
    record: ModelRecord
    training: Training
    sizes: dict[str, int]
    dtypes: tuple[str, ...]
    has_codec: bool

    @property
    def parameters(self) -> int:
        return sum(self.sizes.values())

    @property
    def parts(self) -> dict[str, str]:
        """Pretrained parts: what it is -> its name."""
        parts = {"backbone": part_name(self.record.backbone)} if self.record.backbone else {}
        if self.record.speech_tokenizer_name:
            parts["speech tokenizer"] = part_name(self.record.speech_tokenizer_name)
        for stage in self.training.stages:
            for owner in ("model", "data"):
                settings = stage.settings(owner)
                for key in _PARTS:
                    if isinstance(settings.get(key), str):
                        parts[key.replace("_", " ")] = part_name(settings[key], stage.run_root)
        if self.training.start:
            parts["started from"] = self.training.start
        return parts

    @property
    def license(self) -> str:
        """SPDX name of the weights' licence: as recorded, else the backbone's; "" if unknown."""
        return self.record.license or _licence_of(self.parts.get("backbone", ""))


def _facts(folder: Path, run: RunFolder | None) -> _Facts:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    has_flow = (folder / "flow" / "flow.pt").is_file()
    kind = "codec" if has_flow else "speech tokenizer"
    kind = "language model" if config.get("model_type") == MODEL_TYPE else kind
    sizes, dtypes = _weights(folder)
    return _Facts(folder.resolve().name, kind, config, ModelRecord.read(folder), training_of(run), sizes, dtypes,
                  has_flow or (folder / CODEC).is_dir())  # fmt: skip


def _weights(folder: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    sizes: dict[str, int] = {}
    dtypes = set()
    try:
        tensors = open_tensors(weight_files(folder))
    except UserError:  # written later, or flow/ alone
        return {}, ()
    for name, tensor in tensors.items():
        group = next((row for start, row in _GROUPS.items() if name.startswith(start)), "speech encoder")
        count = 1
        for length in tensor.get_shape():
            count *= length
        sizes[group] = sizes.get(group, 0) + count
        dtypes.add(tensor.get_dtype())
    return sizes, tuple(sorted(dtypes))


# --- header -------------------------------------------------------------------------------------------------


def _header(facts: _Facts) -> Any:
    from huggingface_hub import ModelCardData

    tags = ["speech-to-speech", "speech", "moss-speech", "arxiv:2510.00499"]
    base = [_repository_of(name) for name in facts.parts.values()]
    is_model = facts.kind == "language model"
    return ModelCardData(
        license=facts.license.lower() or "unknown",
        language=facts.training.languages or None,
        library_name="lit-moss",
        pipeline_tag="feature-extraction" if facts.kind == "speech tokenizer" else "audio-to-audio",
        tags=tags if is_model else ["speech-codec", *tags[1:]],
        base_model=sorted(set(filter(None, base))) or None,
    )


def _repository_of(name: str) -> str:
    """Hub id of a part; "" if it is none."""
    if name in _EMBEDDED:
        return _EMBEDDED[name][0]
    return name if is_hub_id(name) and name.count("/") == 1 else ""


def _licence_of(name: str) -> str:
    return assets.EMBEDDED[_EMBEDDED[name][1]].licence if name in _EMBEDDED else ""


# --- sections -----------------------------------------------------------------------------------------------


def _summary(facts: _Facts) -> str:
    backbone = facts.parts.get("backbone")
    text = {
        "language model": "A speech-to-speech language model of the MOSS-Speech kind: it takes speech or text "
        "and answers in speech or text. A shared trunk is followed by a text tail and a speech tail.",
        "codec": "A speech codec: a speech tokenizer (speech to codes, 12.5 a second) and a decoder (codes to "
        "speech at 24 kHz).",
        "speech tokenizer": "A speech tokenizer: speech to codes, 12.5 a second.",
    }[facts.kind]
    return (
        f"{text}{f' Its backbone is {backbone}.' if backbone else ''} Made with lit_moss {_version()}, code for "
        "the method of [arXiv:2510.00499](https://arxiv.org/abs/2510.00499)."
    )


def _training(facts: _Facts) -> str:
    stages, record = facts.training.stages, facts.record
    if not stages:
        names = f" Its stages were: {', '.join(map(part_name, record.stages))}." if record.stages else ""
        return NOT_RECORDED + names
    rows = []
    before = facts.training.start or "the backbone"
    for stage in stages:
        policy = stage.callbacks.get("StagedFreezing", {}).get("stages") or []
        trained = ", then ".join(str(p.get("policy", "")) for p in policy)
        if "ReverseUnfreeze" in stage.callbacks:
            trained = "layer by layer, last first"
        rows.append([stage.name, stage.run_name, before, trained, stage.steps])
        before = f"{stage.name}/{stage.run_name}"
    lines = [_table(["stage", "run", "started from", "what is trained", "optimizer steps"], rows)]
    if record.steps:
        mean = f", the mean of {record.averaged} checkpoints" if record.averaged > 1 else ""
        lines.append(f"These weights are those of step {record.steps:,} of the last stage{mean}.")
    lines.append(_provenance(stages[-1]))
    return "\n\n".join(lines)


def _provenance(stage: Stage) -> str:
    tags = stage.tags
    if not tags:
        return "Commit and versions of libraries: not recorded."
    commit = tags.get("mlflow.source.git.commit")
    changed = " with uncommitted changes" if tags.get("git.dirty") == "True" else ""
    versions = {key.removeprefix("version."): v for key, v in tags.items() if key.startswith("version.")}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    machine = f" Machine: {tags['machine']}." if "machine" in tags else ""
    where = f"commit {commit}{changed}" if commit else "a commit that is not recorded"
    return f"The last stage was trained with {where}; {listed or 'versions are not recorded'}.{machine}"


def _data(stages: Sequence[Stage]) -> str:
    rows = [
        [stage.name, data.part, data.name, data.kind, data.items, data.rows, data.hours,
         ", ".join(data.languages), data.epochs]
        for stage in stages
        for data in _once(stage.data())
    ]  # fmt: skip
    if not rows:
        return NOT_RECORDED
    titles = ["stage", "part", "data", "kind", "items", "rows", "hours of speech", "languages", "share"]
    text = _table(titles, rows, missing="not recorded")
    return f"{text}\n\nShare is how often a pass over the stage's mixture contains the data. A row is a text id or a code."


def _once(data: Iterable[Data]) -> list[Data]:
    return list(dict.fromkeys(data))


def _hyperparameters(stages: Sequence[Stage]) -> str:
    columns = [_settings(stage) for stage in stages]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return NOT_RECORDED
    rows = [[name, *(column.get(name) for column in columns)] for name in names]
    text = _table(["setting", *(stage.name for stage in stages)], rows)
    return f"{text}\n\nSettings that are off or left to their default of none are not listed."


def _settings(stage: Stage) -> dict[str, str]:
    found: dict[str, Any] = {"seed": stage.config.get("seed_everything")}
    found |= {f"model.{k}": v for k, v in stage.settings("model").items() if k not in _NOT_SETTINGS}
    found |= {f"data.{k}": v for k, v in stage.settings("data").items() if k not in _NOT_SETTINGS}
    trainer = stage.config.get("trainer") or {}
    found |= {f"trainer.{name}": trainer.get(name) for name in _TRAINER}
    found |= {name: stage.callbacks[name] for name in _SCHEDULES if name in stage.callbacks}
    return {name: public_value(v, stage.run_root) for name, v in found.items() if v not in (None, False, [], {})}


def _size(facts: _Facts) -> str:
    config = facts.config
    lines = []
    if facts.sizes:
        rows = [[name, count] for name, count in facts.sizes.items()]
        rows.append(["all", facts.parameters])
        lines.append(_table(["part", "parameters"], rows))
        lines.append(f"Stored as {', '.join(facts.dtypes)} safetensors.")
    if facts.kind == "language model":
        tails, layers = config.get("num_modality_layers"), config.get("num_hidden_layers")
        shared = config.get("num_shared_layers")
        lines.append(
            f"Width {config.get('hidden_size')}; {shared if shared is not None else 'all but the tails of'} "
            f"shared layers and {tails} layers in each tail ({layers} layers deep); text vocabulary "
            f"{config.get('vocab_size'):,}, speech vocabulary {config.get('audio_vocab_size'):,}, of which "
            f"{config.get('eosp_token_id'):,} are codes."
        )
    return "\n\n".join(lines) or NOT_RECORDED


def _results(facts: _Facts) -> str:
    stages = [stage for stage in facts.training.stages if stage.metrics()]
    if not stages:
        return NOT_RECORDED
    rows = [[stage.name, m.name, m.last, m.best] for stage in stages for m in stage.metrics()]
    notes = [
        "Measured on the validation data of each run, by the run itself, on its own checkpoints. Perplexities "
        "of different text or speech tokenizers cannot be compared."
    ]
    if facts.record.averaged > 1:
        notes.append("The averaged weights themselves were not validated.")
    if facts.training.stages[-1] not in stages:
        notes.append("The last stage has no recorded results.")
    return "\n\n".join([_table(["stage", "metric", "at the last validation", "best"], rows), *notes])


def _limits(facts: _Facts) -> str:
    lines = list(LIMITS[facts.kind])
    if facts.kind == "language model" and 0 < facts.parameters < _SMALL_PARAMETERS:
        lines.insert(0, SMALL.format(millions=facts.parameters / 1e6))
    if facts.kind == "language model" and not facts.has_codec:
        lines.append(
            "There is no codec in this folder: give the one of the training with `--codec`. Codes of another "
            "speech tokenizer are refused."
        )
    languages = facts.training.languages
    known = f"The training data state these languages: {', '.join(languages)}." if languages else (
        "The languages of the training data are not recorded."
    )  # fmt: skip
    lines.append(f"{known} Nothing is known about others.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(facts: _Facts) -> str:
    if facts.record.license:
        text = f"The weights are under {facts.license}."
    elif facts.license:
        text = (
            f"Whoever trained these weights has stated no licence; the backbone that they started from is "
            f"under {facts.license}."
        )
    else:
        text = "The licence of the weights is not recorded: ask whoever published them before you use them."
    parts = list(facts.parts.items())
    if not parts:
        return text
    rows = [[what, name, _repository_of(name), _licence_of(name) or "see there"] for what, name in parts]
    table = _table(["part", "name", "repository", "licence"], rows)
    return f"{text} They come from these parts, whose licences hold as well:\n\n{table}\n\nSo do those of the data above."


# --- writing ------------------------------------------------------------------------------------------------


def _version() -> str:
    try:
        return metadata.version("lit-moss")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]], missing: str = "–") -> str:
    """A Markdown table; columns without a value in any row are left out."""
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(titles)) if any(row[i] for row in cells)]
    lines = [[titles[i] for i in kept], ["---"] * len(kept)]
    lines += [[row[i] or missing for i in kept] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())
