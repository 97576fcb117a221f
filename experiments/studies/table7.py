"""Ablation of the paper's table 7: does freezing preserve the text ability, and does the split help?

    python -m experiments.studies.table7 --speech FOLDER --text TEXT.txt [-c FILE] [--KEY VALUE …]

Five recipes start from the same backbone and see the same rows in the same order, with equal numbers of rows
each: FP-Full, FP-Shared and FP-Layerwise train stage 1 and continue with their stage 2; NF and NF-NoSplit
train everything from the start. Learning rates are those of `conf/`; warm-up takes a tenth of a run.

Clozes and perplexities are measured on held-out items (see `HeldOut`). "other text" is the perplexity of text
that no recipe trains on and that does not resemble a book: Python's language reference, which every Python
installation contains.

Repeat the command to continue after an interruption. Writes table7.md and table7.png to
RUN_ROOT/studies/NAME/study, and to the study's MLflow run.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from experiments.studies.command import run_study
from experiments.studies.compare import spread
from experiments.studies.parallel import run_all
from lit_moss.devices import has_fast_bf16
from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.hub.recordings import local_device
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import run_fit
from lit_moss.runs.recipes import read_recipe, set_key
from lit_moss.runs.study_run import study_run
from lit_moss.runs.tracking import Tracker

# Recipe of the paper -> YAML files of its stages.
RECIPES = {
    "FP-Full": ("stage1", "stage2_full"),
    "FP-Layerwise": ("stage1", "stage2_layerwise"),
    "FP-Shared": ("stage1", "stage2_shared"),
    "NF": ("nf",),
    "NF-NoSplit": ("nf_nosplit",),
}
COLUMNS = {
    "text cloze": "heldout/text_cloze",
    "speech cloze": "heldout/speech_cloze",
    "speech ppl": "heldout/speech_ppl",
    "text ppl": "heldout/text_ppl",
    "other text ppl": "other_text_ppl",
}
CONF = Path(__file__).resolve().parents[2] / "conf"
OTHER_TEXT_ROWS, OTHER_TEXT_CHUNK = 8192, 1024


@dataclass
class Options:
    """Options of the study.

    Args:
        speech: Folder with the manifests train.jsonl and validation.jsonl, as written by `prepare speak`, or
            train/manifest.jsonl and validation/manifest.jsonl, as written by a chain. Speech and text
            alternate in chunks of 3 to 6 s if the manifests have word times, otherwise by utterance.
        text: Text file; each round contains a tenth of it.
        speech_tokenizer: Speech tokenizer of all recipes.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`; null: those that it states.
        backbone: Backbone of all recipes; null: that of each recipe.
        seeds: Seeds; each recipe is run once per seed.
        stage1_steps: Number of steps of stage 1.
        stage2_steps: Number of steps of stage 2; NF and NF-NoSplit train for the steps of both stages.
        init_codes: Initial embeddings of codes, `random` or `codebook`, see `model.init_codes`.
        code_rate: Factor on the learning rates of audio embedding and audio head, in recipes with a split.
        k: Number of steps between two layers of FP-Layerwise (paper, appendix D).
        items: Number of held-out items per modality.
        jobs: Maximum number of concurrent runs.
        name: Name of the study.
        run_root: Folder of all runs' files.
    """

    speech: str
    text: str
    speech_tokenizer: str = "embedded:whisper-tiny-kmeans"
    log_mel: Literal["causal", "whisper"] | None = None
    backbone: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    stage1_steps: int = 60
    stage2_steps: int = 40
    init_codes: Literal["random", "codebook"] = "random"
    code_rate: float = 1.0
    k: int = 1
    items: int = 80
    jobs: int = 1
    name: str = "table7"
    run_root: str = "runs"

    def __post_init__(self) -> None:
        if not self.seeds or self.jobs < 1:
            raise UserError(
                f"seeds is {self.seeds} and jobs {self.jobs}, expected one seed or more and 1 or more"
            )

    @property
    def runs(self) -> Path:
        """Folder of the study's runs."""
        return Path(self.run_root).absolute() / self.name

    def manifest(self, part: str) -> Path:
        """Returns the manifest of `train` or `validation`."""
        folder = Path(self.speech)
        made = folder / part / "manifest.jsonl"
        return made if made.is_file() else folder / f"{part}.jsonl"

    def steps(self, kind: str) -> int:
        """Number of steps of a run of `conf/KIND.yaml`."""
        both = self.stage1_steps + self.stage2_steps
        return {"stage1": self.stage1_steps, "nf": both, "nf_nosplit": both}.get(kind, self.stage2_steps)


def recipe(kind: str, seed: int, options: Options) -> dict[str, Any]:
    """Builds the recipe of one run.

    Args:
        kind: Name of the file in conf/ that the recipe is based on.
        seed: Seed of the run.
        options: Options of the study.
    """
    steps = options.steps(kind)
    config = read_recipe([CONF / f"{kind}.yaml"])
    config["seed_everything"] = seed
    config["data"] = {
        "class_path": "lit_moss.data.MixtureDataModule",
        "init_args": {
            "backbone": "${model.init_args.backbone}",
            "speech_tokenizer": options.speech_tokenizer,
            "context": 1024,
            "batch_size": 1,
            "seed": "${seed_everything}",
            "first_batch": options.stage1_steps if kind.startswith("stage2") else 0,
            "heldout_items": options.items,
            "epochs": [1.0, 0.1],
            "parts": [
                {
                    "class_path": "lit_moss.data.InterleavedDataModule",
                    "init_args": {
                        "train": [str(options.manifest("train"))],
                        "validation": [str(options.manifest("validation"))],
                    },
                },
                {"class_path": "lit_moss.data.TextDataModule", "init_args": {"train": [options.text]}},
            ],
        },
    }
    changes: dict[str, Any] = {
        "first_validation": False,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.callbacks.Checkpoint.init_args.every_n_steps": steps,
    }
    if options.backbone:
        changes["model.init_args.backbone"] = options.backbone
    if options.log_mel:
        changes["data.init_args.log_mel"] = options.log_mel
    if options.code_rate != 1.0 and kind != "nf_nosplit":
        factors = dict.fromkeys(("audio_embedding", "audio_head"), options.code_rate)
        changes["model.init_args.lr_factors"] = factors
    if not kind.startswith("stage2"):
        changes["model.init_args.init_codes"] = options.init_codes
    else:
        changes["model.init_args.init_from"] = str(options.runs / f"stage1-seed-{seed}")
    if kind == "stage2_layerwise":
        # Appendix D requires T >= (N - 1) k + w; k = 1 is the fastest schedule.
        changes["trainer.callbacks.ReverseUnfreeze.init_args"] = {"k": options.k, "w": max(1, steps // 5)}
    else:
        changes["trainer.callbacks.LearningRateSchedule.init_args.warmup_steps"] = max(1, steps // 10)
    for key, value in changes.items():
        set_key(config, key, value)
    return config


@torch.no_grad()
def other_text_ppl(lm: Any, tokenizer: Any, device: torch.device) -> float:
    """Perplexity of the first 8192 rows of Python's language reference, in chunks of 1024."""
    from pydoc_data.topics import topics

    ids = tokenizer("\n\n".join(topics[k] for k in sorted(topics)), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[:OTHER_TEXT_ROWS], device=device).view(-1, OTHER_TEXT_CHUNK)
    nll = count = 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type)):
        for chunk in rows:
            loss = lm.loss(chunk[None])
            nll, count = nll + float(loss.text * loss.text_count), count + float(loss.text_count)
    return math.exp(nll / count)


def measure(folder: Path) -> dict[str, float]:
    """Metrics of a finished run: last validation, and perplexity of other text, which is kept in a file."""
    result = RunFolder(folder).result()
    assert result is not None, folder  # set, because the run is finished
    kept = folder / f"other_text-{result['step']}.json"
    if not kept.exists():
        from lit_moss.hub.lm import open_lm
        from lit_moss.llm.backbone import load_text_tokenizer

        init = RunFolder(folder).config()["model"]["init_args"]
        device = local_device()
        value = other_text_ppl(open_lm(folder).to(device), load_text_tokenizer(init["backbone"]), device)
        write_json(kept, {"other_text_ppl": value})
    return result["metrics"] | json.loads(kept.read_text())


def measure_before(config: dict[str, Any]) -> dict[str, float]:
    """The metrics of `measure` for the split model before any training."""
    from lit_moss.data.cloze import make_cloze
    from lit_moss.hub import open_tokenizer
    from lit_moss.llm import SplitLM
    from lit_moss.llm.backbone import load_text_tokenizer, row_format
    from lit_moss.llm.heldout import HeldOut
    from lit_moss.llm.init_codes import start_at_codebook
    from lit_moss.llm.rows import audio_vocab_for

    model, data = config["model"]["init_args"], config["data"]["init_args"]
    tokenizer = load_text_tokenizer(model["backbone"])
    log_mel = data.get("log_mel")
    speech_tokenizer = open_tokenizer(data["speech_tokenizer"], log_mel)
    size = speech_tokenizer.config.quantize_vocab_size
    form = row_format(tokenizer, audio_vocab_for(size), eosp=size)
    torch.manual_seed(config["seed_everything"])
    lm = SplitLM.from_backbone(
        model["backbone"], model["num_modality_layers"], form.audio_vocab_size, row_format=form
    ).eval()
    if model.get("init_codes") == "codebook":
        start_at_codebook(lm, speech_tokenizer.encoder.codebook.weight.float())
    held_out = data["parts"][0]["init_args"]["validation"]
    count = data["heldout_items"]
    items = make_cloze(
        held_out, "validation", model["backbone"], data["speech_tokenizer"], count, log_mel=log_mel
    )
    device = local_device()
    lm.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type)):
        metrics = {f"heldout/{k}": v for k, v in HeldOut(items, form).measure(lm, device).items()}
    return metrics | {"other_text_ppl": other_text_ppl(lm, tokenizer, device)}


def table(before: dict[str, float], values_of: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table: mean and standard deviation over the seeds, for each recipe."""
    lines = ["| recipe | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    # An audio head initialised with zeros gives all codes the same probability, so no cloze item is correct.
    known = [f"{before[key]:.4g}" if before[key] else "–" for key in COLUMNS.values()]
    lines.append("| before | – | " + " | ".join(known) + " |")
    for name, values in values_of.items():
        cells = [spread([v[key] for v in values]) for key in COLUMNS.values()]
        lines.append(f"| {name} | {len(values)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(before: dict[str, float], values_of: dict[str, list[dict[str, float]]]) -> Any:
    """Plots each column: points for seeds, a bar for mean and deviation, a line for the value before."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(3.1 * len(COLUMNS), 3.4))
    for axis, (title, key) in zip(axes, COLUMNS.items(), strict=True):
        for i, values in enumerate(values_of.values()):
            points = [v[key] for v in values]
            axis.plot([i] * len(points), points, "o", color="0.6", markersize=4)
            deviation = stdev(points) if len(points) > 1 else 0.0
            axis.errorbar(i, mean(points), deviation, fmt="_", color="C0", markersize=14, capsize=4)
        if key != "heldout/speech_ppl" and before[key]:  # several thousand before training; see `table`
            axis.axhline(before[key], color="0.4", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xticks(range(len(values_of)), list(values_of), rotation=60, fontsize="small")
        axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    return figure


def main(words: Sequence[str]) -> int:
    """Runs what is missing and prints the table; returns 2 for user errors, 1 if a run failed."""
    return run_study(words, Options, "python -m experiments.studies.table7", __doc__, _run)


def _run(options: Options) -> str:
    manifests = [("manifest", options.manifest(part)) for part in ("train", "validation")]
    for what, file in (*manifests, ("text", Path(options.text))):
        if not file.is_file():
            raise UserError(f"no {what} {file}: see --help for what --speech and --text are")
    study = study_run(options.name, Path(options.run_root).absolute())
    state = "interrupted"
    try:
        text = _study(options, study)
        state = "success"
    finally:
        study.finalize(state)
    return text + f"{study.run_dir}/table7.md, table7.png"


def _study(options: Options, study: Tracker) -> str:
    parent = {"mlflow.parentRunId": str(study.run_id)}
    # Runs that wait for stage 1 come last, so that they do not block runs that could start.
    recipes = [(seed, name, kind) for seed in options.seeds for late in (False, True) for name in RECIPES
               for kind in RECIPES[name] if kind.startswith("stage2") == late]  # fmt: skip
    fits: dict[tuple[str, int], Callable[[], dict[str, float]]] = {}
    for seed, name, kind in recipes:  # three recipes share a stage 1, trained under the name of the first
        tags = parent | {"recipe": name, "seed": str(seed)}
        fits.setdefault((kind, seed), partial(_fit, kind, seed, options, tags))
    after = {(kind, seed): ("stage1", seed) for kind, seed in fits if kind.startswith("stage2")}
    found = run_all(fits, after, options.jobs)
    values = {name: [found[kinds[-1], seed] for seed in options.seeds] for name, kinds in RECIPES.items()}
    before = _before(recipe("stage1", options.seeds[0], options), study.run_dir)
    text = table(before, values)
    (study.run_dir / "table7.md").write_text(text)
    figure = picture(before, values)
    figure.savefig(study.run_dir / "table7.png", dpi=110)
    study.log_text(text, "table7.md")
    study.log_figure(figure, "table7.png")
    return text


def _fit(kind: str, seed: int, options: Options, tags: dict[str, str]) -> dict[str, float]:
    """Trains a run and measures it; stage 1 is not measured, because it is not a recipe of its own."""
    folder = options.runs / f"{kind.replace('_', '-')}-seed-{seed}"
    print(f"seed {seed}: {folder.name}", flush=True)
    run_fit(recipe(kind, seed, options), folder, tags)
    return {} if kind == "stage1" else measure(folder)


def _before(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """`measure_before`, kept in a file for each combination of model and data."""
    settings = json.dumps([config["model"], config["data"]])
    file = folder / f"before-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"
    if not file.exists():
        write_json(file, measure_before(config))
    return json.loads(file.read_text())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
