"""The ablation of the paper's table 7: does freezing keep the text, does the split help?

    python -m experiments.studies.table7 --speech FOLDER --text TEXT.txt [--speech-tokenizer C] [--seeds 1 2 3] …

Five recipes from the same backbone, on the same rows in the same order, as many rows each: FP-Full, FP-Shared
and FP-Layerwise train stage 1 and go on with their stage 2; NF and NF-NoSplit train everything from the
start. FOLDER holds `train.jsonl` and `validation.jsonl` (`prepare speak` makes one), TEXT is the text of
which a tenth of an epoch is mixed in. Rates are those of `conf/`; warm-ups are a tenth of each run.

Clozes and perplexities are those of the held-out items (see `HeldOut`). "other text" is the perplexity of
text that no recipe trains on and no book resembles: Python's own language reference, which every installation
has.

Repeating the command continues where it stopped. Writes table7.md and table7.png into
runs/studies/table7/study, and into the study's MLflow run.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import RunError, run_fit
from lit_moss.runs.recipes import read_recipe, set_key
from lit_moss.runs.study_run import study_run

# Recipe of the paper -> the YAMLs of its stages.
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


def recipe(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The YAML of one run."""
    first, second = args.steps
    steps = {"stage1": first, "nf": first + second, "nf_nosplit": first + second}.get(kind, second)
    config = read_recipe([CONF / f"{kind}.yaml"])
    config["seed_everything"] = seed
    config["data"] = {
        "class_path": "lit_moss.data.MixtureDataModule",
        "init_args": {
            "backbone": "${model.init_args.backbone}",
            "speech_tokenizer": args.speech_tokenizer,
            "context": 1024,
            "batch_size": 1,
            "seed": "${seed_everything}",
            "first_batch": first if kind.startswith("stage2") else 0,
            "heldout_items": args.items,
            "epochs": [1.0, 0.1],
            "parts": [
                {
                    "class_path": "lit_moss.data.InterleavedDataModule",
                    "init_args": {
                        "train": [str(args.speech / "train.jsonl")],
                        "validation": [str(args.speech / "validation.jsonl")],
                    },
                },
                {"class_path": "lit_moss.data.TextDataModule", "init_args": {"train": [str(args.text)]}},
            ],
        },
    }
    changes: dict[str, Any] = {
        "model.init_args.first_validation": False,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.callbacks.Checkpoint.init_args.every_n_steps": steps,
    }
    if args.backbone:
        changes["model.init_args.backbone"] = args.backbone
    if args.log_mel:
        changes["data.init_args.log_mel"] = args.log_mel
    if kind.startswith("stage2"):
        changes["model.init_args.init_from"] = str(args.root / args.name / f"stage1-seed-{seed}")
    if kind == "stage2_layerwise":
        # Appendix D asks T >= (N - 1) k + w; k = 1 is its fastest.
        changes["trainer.callbacks.ReverseUnfreeze.init_args"] = {"k": args.k, "w": max(1, steps // 5)}
    else:
        changes["trainer.callbacks.LearningRateSchedule.init_args.warmup_steps"] = max(1, steps // 10)
    for key, value in changes.items():
        set_key(config, key, value)
    return config


@torch.no_grad()
def other_text_ppl(lm: Any, tokenizer: Any) -> float:
    """Perplexity of the first 8192 rows of Python's language reference, in chunks of 1024."""
    from pydoc_data.topics import topics

    ids = tokenizer("\n\n".join(topics[k] for k in sorted(topics)), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[:OTHER_TEXT_ROWS]).view(-1, OTHER_TEXT_CHUNK)
    nll = count = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        for chunk in rows:
            loss = lm.loss(chunk[None])
            nll, count = nll + float(loss.text * loss.text_count), count + float(loss.text_count)
    return math.exp(nll / count)


def measure(folder: Path) -> dict[str, float]:
    """A finished run's values: of its last validation, and what that does not measure (kept beside them)."""
    result = RunFolder(folder).result()
    assert result is not None, folder  # of a finished run
    kept = folder / f"other_text-{result['step']}.json"
    if not kept.exists():
        from lit_moss.llm.backbone import load_text_tokenizer
        from lit_moss.modules.split_llm import model_of_run

        init = RunFolder(folder).config()["model"]["init_args"]
        value = other_text_ppl(model_of_run(folder), load_text_tokenizer(init["backbone"]))
        write_json(kept, {"other_text_ppl": value})
    return result["metrics"] | json.loads(kept.read_text())


def measure_before(config: dict[str, Any]) -> dict[str, float]:
    """The same of the split model before any training."""
    from lit_moss.data.cloze import make_cloze
    from lit_moss.hub import open_tokenizer
    from lit_moss.llm import SplitLM
    from lit_moss.llm.backbone import load_text_tokenizer, row_format
    from lit_moss.llm.heldout import HeldOut
    from lit_moss.llm.rows import audio_vocab_for

    model, data = config["model"]["init_args"], config["data"]["init_args"]
    tokenizer = load_text_tokenizer(model["backbone"])
    log_mel = data.get("log_mel")
    size = open_tokenizer(data["speech_tokenizer"], log_mel).config.quantize_vocab_size
    form = row_format(tokenizer, audio_vocab_for(size), eosp=size)
    torch.manual_seed(config["seed_everything"])
    lm = SplitLM.from_backbone(
        model["backbone"], model["num_modality_layers"], form.audio_vocab_size, row_format=form
    ).eval()
    held_out = data["parts"][0]["init_args"]["validation"]
    count = data["heldout_items"]
    items = make_cloze(
        held_out, "validation", model["backbone"], data["speech_tokenizer"], count, log_mel=log_mel
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = {f"heldout/{k}": v for k, v in HeldOut(items, form).measure(lm, "cpu").items()}
    return found | {"other_text_ppl": other_text_ppl(lm, tokenizer)}


def table(before: dict[str, float], found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    lines = ["| recipe | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    lines.append("| before | – | " + " | ".join(f"{before[key]:.4g}" for key in COLUMNS.values()) + " |")
    for name, values in found.items():
        cells = [_spread([v[key] for v in values]) for key in COLUMNS.values()]
        lines.append(f"| {name} | {len(values)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def picture(before: dict[str, float], found: dict[str, list[dict[str, float]]]) -> Any:
    """A panel a column: a point a seed, a bar for the mean and its deviation, a line for the value before."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(3.1 * len(COLUMNS), 3.4))
    for axis, (title, key) in zip(axes, COLUMNS.items(), strict=True):
        for i, values in enumerate(found.values()):
            points = [v[key] for v in values]
            axis.plot([i] * len(points), points, "o", color="0.6", markersize=4)
            deviation = stdev(points) if len(points) > 1 else 0.0
            axis.errorbar(i, mean(points), deviation, fmt="_", color="C0", markersize=14, capsize=4)
        if key != "heldout/speech_ppl":  # some thousand, before
            axis.axhline(before[key], color="0.4", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xticks(range(len(found)), list(found), rotation=60, fontsize="small")
        axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Runs what is missing, prints the table; 2 for what the user can mend, 1 if a run failed."""
    from lit_moss.cli.options import add_log_mel_argument

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speech", type=Path, required=True, help="folder with the speech manifests")
    parser.add_argument("--text", type=Path, required=True, help="text of the mixed-in tenth of an epoch")
    parser.add_argument("--speech-tokenizer", default="embedded:whisper-tiny-kmeans")
    add_log_mel_argument(parser)
    parser.add_argument("--backbone", help="in place of the recipes' own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, nargs=2, default=[60, 40], help="of stage 1 and stage 2")
    parser.add_argument("--k", type=int, default=1, help="steps between two layers of FP-Layerwise")
    parser.add_argument("--items", type=int, default=80, help="held-out items of each modality")
    parser.add_argument("--name", default="table7")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    args = parser.parse_args(arguments)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}")
        return 2
    except RunError as error:
        print(f"error: {error}; repeat the command to continue")
        return 1


def _run(args: argparse.Namespace) -> int:
    for file in (args.speech / "train.jsonl", args.speech / "validation.jsonl", args.text):
        if not file.is_file():
            raise UserError(f"no {'text' if file == args.text else 'manifest'} {file}: see --help")
    args.root = args.root.absolute()
    study = study_run(args.name, args.root)
    state = "interrupted"
    try:
        text = _study(args, study)
        state = "success"
    finally:
        study.finalize(state)
    print(text + f"{study.run_dir}/table7.md, table7.png")
    return 0


def _study(args: argparse.Namespace, study: Any) -> str:
    parent = {"mlflow.parentRunId": str(study.run_id)}
    found: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for name, stages in RECIPES.items():
            for kind in stages:
                folder = args.root / args.name / f"{kind.replace('_', '-')}-seed-{seed}"
                print(f"seed {seed}, {name}: {folder.name}", flush=True)
                run_fit(recipe(kind, seed, args), folder, parent | {"recipe": name, "seed": str(seed)})
            found.setdefault(name, []).append(measure(folder))
    start = recipe("stage1", args.seeds[0], args)
    asked = hashlib.sha256(json.dumps([start["model"], start["data"]]).encode()).hexdigest()[:12]
    before_file = study.run_dir / f"before-{asked}.json"
    if not before_file.exists():
        write_json(before_file, measure_before(start))
    before = json.loads(before_file.read_text())
    text = table(before, found)
    (study.run_dir / "table7.md").write_text(text)
    figure = picture(before, found)
    figure.savefig(study.run_dir / "table7.png", dpi=110)
    study.log_text(text, "table7.md")
    study.log_figure(figure, "table7.png")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
