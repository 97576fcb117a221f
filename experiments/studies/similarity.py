"""Layer-wise similarity of text and speech (paper, appendix C, figures 2 and 4), and a proposed split depth.

    python -m experiments.studies.similarity RUN --speech MANIFEST [--speech-tokenizer C] [--samples 40] …

RUN is the folder of a run, or one written by `save_pretrained`. A sample consists of a few neighbouring
utterances of the manifest, as text and as speech. Words are aligned if the manifest has their times,
otherwise whole utterances. The control is the same split of the same backbone without any training. The split
depth is proposed where the curve of the trained model starts to fall; its uncertainty is estimated by
resampling the samples (bootstrap). Besides the paper's score, a centred one is given: the mean of each layer
and modality is subtracted and row 0 is left out, because raw cosines of unrelated texts are already high and
cannot show whether the modalities fuse. Writes similarity.md and plots to runs/studies/similarity-RUN/study
and to its MLflow run.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_moss.devices import has_fast_bf16
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.branches import Modality
from lit_moss.llm.similarity import (
    Alignment,
    LayerMeans,
    Pair,
    align,
    cosine_matrix,
    dtw_path,
    hidden_states,
    proposed_depth,
    similarity_score,
    without_first_row,
)
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.study_run import study_run

DRAWS = 500


@dataclass
class Sample:
    """Rows of the same content in both modalities, and the pairs of spans that correspond to each other."""

    text: Tensor
    speech: Tensor
    pairs: list[Pair]


def samples(
    manifest: str,
    speech_tokenizer: str,
    lm: SplitLM,
    tokenizer: Any,
    count: int,
    utterances: int,
    log_mel: str | None = None,
) -> list[Sample]:
    """Returns samples of `utterances` neighbours; `log_mel` selects features of the speech tokenizer.

    Raises:
        UserError: if the manifest yields no sample.
    """
    from lit_moss.corpora.manifest import read_manifest
    from lit_moss.data.grouping import document_key
    from lit_moss.hub import NamedTokenizer
    from lit_moss.hub.code_cache import encode_utterances

    spoken = [u for u in read_manifest(Path(manifest)) if u.text]
    codes_of = encode_utterances(spoken, NamedTokenizer(speech_tokenizer, log_mel)).codes
    groups: list[list[tuple[Any, list[int]]]] = []
    for u, codes in zip(spoken, codes_of, strict=True):
        if not codes:  # cannot be read
            continue
        if not groups or len(groups[-1]) == utterances or document_key(groups[-1][0][0]) != document_key(u):
            groups.append([])
        groups[-1].append((u, codes))
    made = [_sample(g, lm, tokenizer) for g in groups if len(g) == utterances][:count]
    usable = [s for s in made if len(without_first_row(s.pairs)) > 1]  # one pair has no background
    if not usable:
        raise UserError(f"{manifest} has no {utterances} neighbouring utterances with text: give another one")
    return usable


def _sample(members: Sequence[tuple[Any, list[int]]], lm: SplitLM, tokenizer: Any) -> Sample:
    text: list[int] = []
    speech: list[int] = []
    pairs: list[Pair] = []
    for u, codes in members:
        words = u.extra.get("words") or [[u.text.strip(), 0.0, len(codes) * 0.08]]
        for word, start_sec, end_sec in words:
            ids = tokenizer(" " + word if text else word, add_special_tokens=False)["input_ids"]
            first, stop = (
                round(start_sec / 0.08),
                min(len(codes), max(round(start_sec / 0.08) + 1, round(end_sec / 0.08))),
            )
            if ids and first < stop:
                at = 1 + len(speech)  # after sosp
                pairs.append((slice(len(text), len(text) + len(ids)), slice(at + first, at + stop)))
            text += ids
        speech += codes
    return Sample(torch.tensor(text), torch.tensor(lm.format.speech(speech)), pairs)


@torch.no_grad()
def measure(lm: SplitLM, given: Sequence[Sample]) -> tuple[list[Alignment], list[Alignment]]:
    """Alignments of every sample in all layers: those of the paper, and centred ones without row 0."""

    def states() -> Iterator[tuple[Sample, Tensor, Tensor]]:
        # Two passes through the model, because keeping all states of 40 samples would need 12 GB at 8B.
        for s in given:
            yield s, _states(lm, s.text, "text"), _states(lm, s.speech, "speech")

    text_mean, speech_mean = LayerMeans(), LayerMeans()
    raw, centred = [], []
    for s, text_KnE, speech_KmE in states():
        text_mean.add(text_KnE)
        speech_mean.add(speech_KmE)
        raw.append(align(text_KnE, speech_KmE, s.pairs))
    for s, text_KnE, speech_KmE in states():
        text_KnE, speech_KmE = text_mean.remove(text_KnE), speech_mean.remove(speech_KmE)
        centred.append(align(text_KnE, speech_KmE, without_first_row(s.pairs), first_row=1))
    return raw, centred


def _states(lm: SplitLM, rows_L: Tensor, modality: Modality) -> Tensor:
    """Hidden states, computed on the model's device, in bfloat16 autocast if that is fast there."""
    device = next(lm.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type)):
        return hidden_states(lm, rows_L.to(device), modality)


def bootstrap(alignments: Sequence[Alignment]) -> tuple[Counter, Tensor]:
    """Proposed depths of DRAWS bootstrap samples, and the 10th and 90th percentile of their scores."""
    rng = random.Random(1)
    scores = torch.stack([similarity_score(rng.choices(alignments, k=len(alignments))) for _ in range(DRAWS)])
    depths = Counter(proposed_depth(score) for score in scores)
    return depths, torch.quantile(scores, torch.tensor([0.1, 0.9], dtype=scores.dtype), dim=0)


def curves_picture(curves: dict[str, tuple[Tensor, Tensor]], trunk: int) -> Any:
    """Plots the score by layer, with the band between the percentiles."""
    plt = _plt()
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    for name, (score, band) in curves.items():
        axis.plot(score, marker="o", markersize=3, label=name)
        axis.fill_between(range(len(score)), band[0], band[1], alpha=0.2)
    axis.axvline(trunk - 0.5, color="0.5", linestyle=":")
    axis.annotate("tails", (trunk - 0.4, axis.get_ylim()[0]), fontsize="small", va="bottom")
    axis.set(xlabel="layer", ylabel="similarity score (mean over pairs)")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def heatmaps_picture(lm: SplitLM, sample: Sample, layers: Sequence[int]) -> Any:
    """Plots the cosine matrices of one sample at some layers, with the warping path."""
    plt = _plt()
    text, speech = _states(lm, sample.text, "text"), _states(lm, sample.speech, "speech")
    figure, axes = plt.subplots(1, len(layers), figsize=(3.6 * len(layers), 3.2), squeeze=False)
    for axis, layer in zip(axes[0], layers, strict=True):
        matrix = cosine_matrix(text[layer], speech[layer, 1:-1]).cpu()
        shown = axis.imshow(matrix, aspect="auto", origin="lower", cmap="viridis")
        axis.plot(*zip(*[(v, u) for u, v in dtw_path(matrix)], strict=True), ".", color="gold", markersize=2)
        axis.set(title=f"layer {layer}", xlabel="speech row (80 ms)", ylabel="text row")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    figure.tight_layout()
    return figure


def _plt() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def load(
    source: Path, backbone: str | None, speech_tokenizer: str | None, log_mel: str | None = None
) -> tuple[SplitLM, SplitLM, str, str, str | None]:
    """Returns the model, its untrained twin, and the names of backbone, speech tokenizer and features.

    Names that are None are taken from the configuration of the run.

    Raises:
        UserError: if a saved model is given without a backbone or a speech tokenizer.
    """
    from lit_moss.hub.lm import open_lm

    run = RunFolder(source)
    if run.is_run():
        config = run.config()
        lm = open_lm(source)
        backbone = backbone or config["model"]["init_args"]["backbone"]
        speech_tokenizer = speech_tokenizer or config["data"]["init_args"].get("speech_tokenizer")
        log_mel = log_mel or config["data"]["init_args"].get("log_mel")
    else:
        lm = SplitLM.from_pretrained(source)
    if not backbone or not speech_tokenizer:
        raise UserError(f"{source} names no backbone and codec: give --backbone and --speech-tokenizer")
    own = lm.config
    torch.manual_seed(0)
    twin = SplitLM.from_backbone(
        backbone, own.num_modality_layers, own.audio_vocab_size, own.joint, row_format=lm.format
    )
    return lm, twin.eval(), backbone, speech_tokenizer, log_mel


def main(arguments: list[str] | None = None) -> int:
    """Prints the curve and the proposed depth; returns 2 for user errors."""
    from lit_moss.cli.options import add_log_mel_argument

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a saved model's")
    parser.add_argument("--speech", required=True, help="manifest with text")
    parser.add_argument("--speech-tokenizer", help="the run's own, if not given")
    parser.add_argument("--backbone", help="of the control; the run's own, if not given")
    add_log_mel_argument(parser)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--utterances", type=int, default=4, help="of a sample")
    parser.add_argument("--layers", type=int, nargs="+", help="of the heat maps")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    args = parser.parse_args(arguments)
    try:
        print(_run(args))
    except UserError as error:
        print(f"error: {error}")
        return 2
    return 0


def _run(args: argparse.Namespace) -> str:
    from lit_moss.llm.backbone import load_text_tokenizer

    lm, twin, backbone, speech_tokenizer, log_mel = load(
        args.run, args.backbone, args.speech_tokenizer, args.log_mel
    )
    layers, trunk = lm.config.num_hidden_layers, lm.config.num_shared_layers
    chosen = args.layers or sorted({0, layers // 3, 2 * layers // 3, layers - 1})
    if not all(0 <= i < layers for i in chosen):
        raise UserError(f"--layers is {chosen}, expected 0 to {layers - 1}")
    tokenizer = load_text_tokenizer(backbone)
    given = samples(args.speech, speech_tokenizer, lm, tokenizer, args.samples, args.utterances, log_mel)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    alignments_of: dict[str, list[Alignment]] = {}
    heatmaps: dict[str, Any] = {}
    for name, model in (("trained", lm), ("untrained", twin)):
        alignments_of[name], alignments_of[f"{name}, centred"] = measure(model.to(device), given)
        heatmaps[f"heatmaps_{name}.png"] = heatmaps_picture(model, given[0], chosen)
        model.to("cpu")  # one at a time: at 8B each needs 38 GB
    curves, lines = {}, []
    for name, alignments in alignments_of.items():
        depths, band = bootstrap(alignments)
        curves[name] = (similarity_score(alignments), band)
        depth = proposed_depth(curves[name][0])
        lines.append(
            f"{name}: {depth} layers for each tail, in {depths[depth] / DRAWS:.0%} of {DRAWS} redrawn sets "
            f"(10th to 90th percentile {_percentile(depths, 0.1)} to {_percentile(depths, 0.9)})"
        )
    lines += ["", "| layer | " + " | ".join(alignments_of) + " |", "|---" * (len(alignments_of) + 1) + "|"]
    lines += [
        f"| {i} | " + " | ".join(f"{score[i]:.4f}" for score, _ in curves.values()) + " |"
        for i in range(layers)
    ]
    study = study_run(f"similarity-{args.run.resolve().name}", args.root.absolute())
    text = (
        f"{args.run}, {len(given)} samples, {sum(len(s.pairs) for s in given)} pairs\n\n"
        + "\n".join(lines)
        + "\n"
    )
    pictures = {
        "similarity.png": curves_picture({k: v for k, v in curves.items() if "centred" not in k}, trunk),
        "similarity_centred.png": curves_picture({k: v for k, v in curves.items() if "centred" in k}, trunk),
        **heatmaps,
    }
    for name, figure in pictures.items():
        figure.savefig(study.run_dir / name, dpi=110)
        study.log_figure(figure, name)
    (study.run_dir / "similarity.md").write_text(text)
    study.log_text(text, "similarity.md")
    # Not log_metrics, which keeps the first value of a step, because the study may be repeated with other
    # options.
    study.experiment.log_metric(study.run_id, "proposed_depth", proposed_depth(curves["trained"][0]))
    study.finalize("success")
    return text + f"{study.run_dir}/similarity.md"


def _percentile(depths: Counter, share: float) -> int:
    every = sorted(depths.elements())
    return every[min(len(every) - 1, int(share * len(every)))]


if __name__ == "__main__":
    raise SystemExit(main())
