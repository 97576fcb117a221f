"""The model card of an exported folder: a README.md with the header that the Hugging Face hub reads.

It is filled from the run's folder (resolved configuration, results) and its MLflow run (commit, versions).
Missing information is marked as such. Paths of data and runs are replaced by names, see `public_names`.
Header: https://huggingface.co/docs/hub/model-cards
"""

import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_moss.files import atomic_write
from lit_moss.release.card_facts import PARTS, Facts, facts_of, licence_of, repository_of
from lit_moss.release.card_texts import CITATION, INTENDED_USE, LIMITS, SMALL, SUMMARY, usage
from lit_moss.release.public_names import part_name, public_value
from lit_moss.release.training_facts import Stage
from lit_moss.runs.folder import RunFolder

CARD = "README.md"
NOT_RECORDED = "Not recorded."
# Names of data and parts, which have their own sections, and settings that do not affect the weights.
_NOT_SETTINGS = {
    *("init_from", "train", "validation", "heldout", "parts", "epochs", "workers", "first_batch"),
    *("heldout_items", "max_bad_share", "validation_batch_size", "save_frozen", "max_new_tokens", "greedy"),
    *PARTS,
}
_TRAINER = ("max_steps", "max_epochs", "precision", "devices", "num_nodes", "accumulate_grad_batches",
            "gradient_clip_val")  # fmt: skip
_SCHEDULES = ("StagedFreezing", "LearningRateSchedule", "ReverseUnfreeze", "EMAWeightAveraging")
_SMALL_PARAMETERS = 1_000_000_000
_MADE_WITH = "Made with lit_moss"
_NO_CODEC = (
    "There is no codec in this folder: give the one of the training with `--codec`. Codes of another speech "
    "tokenizer are refused."
)


def write_card(folder: Path, run: RunFolder | None) -> None:
    """Writes the `README.md` of an exported folder, replacing an existing one.

    Commit and versions of the run are requested from MLflow, and omitted if it does not answer.

    Args:
        folder: Folder with `config.json`, weights and `lit_moss.json`.
        run: Run that the weights come from; None: a folder from elsewhere.

    Raises:
        UserError: if `config.json` or `lit_moss.json` is damaged.
    """
    from huggingface_hub import ModelCard

    facts = facts_of(folder, run)
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
    header = f"---\n{_header(facts).to_yaml()}\n---\n"
    card = ModelCard(f"{header}\n# {facts.name}\n\n{_summary(facts)}\n\n{body}\n")
    with atomic_write(folder / CARD) as partial:
        partial.write_text(card.content, encoding="utf-8")


def copy_card(source: Path, folder: Path, license: str | None) -> None:
    """Copies the card of a folder that is exported again; changes only what has become incorrect.

    Args:
        source: Folder of the existing card.
        folder: New folder, with its weights, `lit_moss.json` and codec.
        license: SPDX name of the weights' licence, if a new one was given; None: that of the card.

    Raises:
        UserError: if `config.json` or `lit_moss.json` is damaged.
    """
    text = (source / CARD).read_bytes().decode("utf-8", "surrogateescape")
    is_ours = f" {_MADE_WITH} " in text
    if license is not None:
        text = _with_license(text, license)
        if is_ours:
            own = r"(?<=\n## Licence\n\n).*?(?= They come from these parts|\n)"
            text = re.sub(own, lambda _: f"The weights are under {license}.", text, count=1)
    if is_ours:
        facts = facts_of(folder, None)
        stored = f"\nStored as {', '.join(facts.dtypes)} safetensors."
        text = re.sub(r"\nStored as [\w, ]+ safetensors\.", stored, text, count=1)
        if facts.has_codec:
            text = text.replace(f"- {_NO_CODEC}\n", "").replace(
                usage(facts.kind, False), usage(facts.kind, True)
            )
    (folder / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))


def _with_license(text: str, license: str) -> str:
    """Sets the licence in a card's header."""
    line = f"license: {license.lower()}"
    front = re.match(r"\s*---\r?\n(.*?)^---[ \t\r]*$", text, re.DOTALL | re.MULTILINE)
    if front is None:
        return f"---\n{line}\n---\n\n{text}"
    entry = r"^license:[^\r\n]*(?:\r?\n(?:[ \t]+|- )[^\r\n]*)*"  # also a list
    header, found = re.subn(entry, lambda _: line, front[1], count=1, flags=re.MULTILINE)
    header = header if found else f"{line}\n{header}"
    return f"{text[: front.start(1)]}{header}{text[front.end(1) :]}"


# --- header -------------------------------------------------------------------------------------------------


def _header(facts: Facts) -> Any:
    from huggingface_hub import ModelCardData

    tags = ["speech-to-speech", "speech", "moss-speech", "arxiv:2510.00499"]
    base = [repository_of(name) for name in facts.parts.values()]
    is_model = facts.kind == "language model"
    return ModelCardData(
        license=facts.record.license.lower() or "unknown",
        language=facts.training.languages or None,
        library_name="lit-moss",
        pipeline_tag="feature-extraction" if facts.kind == "speech tokenizer" else "audio-to-audio",
        tags=tags if is_model else ["speech-codec", *tags[1:]],
        base_model=sorted(set(filter(None, base))) or None,
    )


# --- sections -----------------------------------------------------------------------------------------------


def _summary(facts: Facts) -> str:
    backbone = repository_of(name := facts.parts.get("backbone", "")) or name
    return (
        f"{SUMMARY[facts.kind]}{f' Its backbone is {backbone}.' if backbone else ''} {_MADE_WITH} "
        f"{_version()}, code for the method of [arXiv:2510.00499](https://arxiv.org/abs/2510.00499)."
    )


def _training(facts: Facts) -> str:
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
        for data in dict.fromkeys(stage.data)
    ]  # fmt: skip
    if not rows:
        return NOT_RECORDED
    titles = ["stage", "part", "data", "kind", "items", "rows", "hours of speech", "languages", "share"]
    note = (
        "Share is how often a pass over the stage's mixture contains the data; a row is a text id or a code. "
        "–: not recorded, or there is none."
    )
    return f"{_table(titles, rows)}\n\n{note}"


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
    is_off = {name for name, value in found.items() if value is None or value is False or value in ([], {})}
    return {n: public_value(value, stage.run_root) for n, value in found.items() if n not in is_off}


def _size(facts: Facts) -> str:
    config = facts.config
    lines = []
    if facts.sizes:
        rows = [[name, count] for name, count in facts.sizes.items()]
        rows.append(["all", facts.parameters])
        lines.append(_table(["part", "parameters"], rows))
        lines.append(f"Stored as {', '.join(facts.dtypes)} safetensors.")
    if facts.kind == "language model":
        layers, tails = config["num_hidden_layers"], config["num_modality_layers"]
        lines.append(
            f"Width {config['hidden_size']:,}; {layers - tails} shared layers, then {tails} in each tail; "
            f"text vocabulary {config['vocab_size']:,}, speech vocabulary {config['audio_vocab_size']:,}, of "
            f"which {config['eosp_token_id']:,} are codes."
        )
    return "\n\n".join(lines) or NOT_RECORDED


def _results(facts: Facts) -> str:
    stages = [stage for stage in facts.training.stages if stage.metrics()]
    if not stages:
        return NOT_RECORDED
    rows = [[stage.name, m.name, m.last, m.best] for stage in stages for m in stage.metrics()]
    notes = [
        "Measured on the validation data of each run, by the run itself. Perplexities of different text or "
        "speech tokenizers cannot be compared."
    ]
    if facts.record.averaged > 1:
        notes.append("The averaged weights themselves were not validated.")
    if facts.training.stages[-1] not in stages:
        notes.append("The last stage has no recorded results.")
    return "\n\n".join([_table(["stage", "metric", "at the last validation", "best"], rows), *notes])


def _limits(facts: Facts) -> str:
    lines = list(LIMITS[facts.kind])
    if facts.kind == "language model" and 0 < facts.parameters < _SMALL_PARAMETERS:
        lines.insert(0, SMALL.format(millions=facts.parameters / 1e6))
    if facts.kind == "language model" and not facts.has_codec:
        lines.append(_NO_CODEC)
    languages = facts.training.languages
    known = f"The training data state these languages: {', '.join(languages)}." if languages else (
        "The languages of the training data are not recorded."
    )  # fmt: skip
    lines.append(f"{known} Nothing is known about others.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(facts: Facts) -> str:
    text = "The licence of the weights is not recorded: ask whoever published them before you use them."
    if facts.record.license:
        text = f"The weights are under {facts.record.license}."
    elif theirs := licence_of(facts.parts.get("backbone", "")):
        text = (
            "Whoever trained these weights has stated no licence; the backbone that they started from is "
            f"under {theirs}."
        )
    parts = list(facts.parts.items())
    if not parts:
        return text
    rows = [[what, name, repository_of(name), licence_of(name) or "see there"] for what, name in parts]
    table = _table(["part", "name", "repository", "licence"], rows)
    return (
        f"{text} They come from these parts, whose licences hold as well, as do those of the data above:\n\n"
        f"{table}"
    )


# --- writing ------------------------------------------------------------------------------------------------


def _version() -> str:
    try:
        return metadata.version("lit-moss")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table without the columns that are empty in all rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(titles)) if any(row[i] for row in cells)]
    lines = [[titles[i] for i in kept], ["---"] * len(kept)]
    lines += [[row[i] or "–" for i in kept] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())
