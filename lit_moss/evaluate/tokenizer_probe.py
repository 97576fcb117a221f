"""Measures how well words can be recovered from the codes of a speech tokenizer (the paper's table 3), by
training a small language model to transcribe codes.

For each kind of codes a model starts from the same backbone, with new code embeddings, and is trained on the
same utterances in the same order. Word errors are pooled over a list, with both sides in lower case and
without punctuation. The lowest word error on the dev list during training selects the weights: selecting on a
test list, as is often done, is optimistic. The report also has the codes per second and the bits per second:
log2 of the number of codes, and the entropy of their frequencies, times that rate.

    embedded:whisper-tiny-kmeans    codes of an untrained tokenizer
    runs/codec_encoder              codes of a trained tokenizer
    shuffled:…                      control with codes of other utterances: measures the language prior
    FILE.jsonl                      codes of any codec, see `lit_moss.evaluate.probe_codes`

The paper fine-tunes Qwen3-0.6B on 960 hours for 100,000 steps. Word errors of a small probe show which codes
are easier to learn from; they are not those of a good recogniser.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.data.transcripts import normalise
from lit_moss.devices import has_fast_bf16
from lit_moss.errors import UserError
from lit_moss.evaluate.evaluation import FAILED, Evaluation, Result, markdown_table, named
from lit_moss.evaluate.intervals import pooled_interval
from lit_moss.evaluate.judges import word_errors
from lit_moss.evaluate.probe_codes import SHUFFLED, CodeSource, entropy_bits, open_codes
from lit_moss.evaluate.probe_training import RANDOM, Probe, ProbeOptions, Spoken, train_probe
from lit_moss.hub.kmeans import KMEANS
from lit_moss.hub.recordings import local_device

DEV = "dev"


@dataclass
class Config:
    """Options of `evaluate tokenizer_probe`.

    Args:
        train: Manifests with transcripts to train on.
        dev: Manifest whose word errors select the weights.
        test: Manifests to evaluate with these weights, such as LibriSpeech's test-clean and test-other.
        codes: Kinds of codes, see `lit_moss.evaluate.probe_codes`.
        log_mel: Features of speech tokenizers: causal or whisper. null: as stated by the tokenizers.
        probe_from: Backbone of the probe: embedded:smollm2-135m, a folder or an id of a text model; or
            random, a small model that reads and writes characters, for short trainings on little data.
        layers: Number of layers of `random`.
        width: Width of `random`, a multiple of 64.
        steps: Number of training steps.
        batch_rows: Rows (codes and text) per step; longer utterances are left out.
        lr: Peak learning rate; linear warm-up over a twentieth of the steps, then cosine decay to a tenth.
            The paper uses 1e-4.
        eval_every: Number of steps between decodings of the dev list.
        dev_items: Number of utterances of the dev list, from the first. null: all.
        limit: Number of utterances per test list, from the first. null: all.
        train_items: Number of training utterances, from the first. null: all.
        language: Language of the transcripts; for Chinese, characters are counted.
        ctc: Weight of an auxiliary CTC loss on the probe's states at codes (Watanabe et al. 2017); 0: none.
            The probe recognises with its text rows in both cases.
        bf16: Train in mixed precision. null: if that is faster on the device.
        seed: Seed of new weights, the order of utterances, and the exchange of codes.
        batch_size: Number of utterances decoded together.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Start over if results exist.
    """

    train: list[str]
    dev: str
    test: list[str]
    codes: list[str] = field(default_factory=lambda: [KMEANS, SHUFFLED + KMEANS])
    log_mel: Literal["causal", "whisper"] | None = None
    probe_from: str = "embedded:smollm2-135m"
    layers: int = 4
    width: int = 256
    steps: int = 200
    batch_rows: int = 1024
    lr: float = 4e-4
    eval_every: int = 50
    dev_items: int | None = 64
    limit: int | None = None
    train_items: int | None = None
    language: Literal["en", "zh"] = "en"
    ctc: float = 0.0
    bf16: bool | None = None
    seed: int = 1
    batch_size: int = 16
    device: str = "auto"
    name: str = "tokenizer_probe"
    run_root: str = "runs"
    again: bool = False

    def __post_init__(self) -> None:
        for key in ("train", "test", "codes"):
            if not getattr(self, key):
                raise UserError(f"{key} is empty, expected one or more")
        if len(set(self.codes)) < len(self.codes):
            raise UserError(f"codes is {self.codes}, expected each kind once")
        for key in ("steps", "batch_rows", "eval_every", "batch_size", "layers", "width"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}, expected 1 or more")
        if self.ctc < 0:
            raise UserError(f"ctc is {self.ctc}, expected 0 (off) or more")
        for key in ("dev_items", "limit", "train_items"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key} is {value}, expected 1 or more, or null for all")

    def options(self) -> ProbeOptions:
        """The options of a probe."""
        device = str(local_device(self.device))
        return ProbeOptions(
            self.probe_from, self.layers, self.width, self.steps, self.batch_rows, self.lr, self.seed,
            self.eval_every, self.language, self.batch_size, device,
            has_fast_bf16(device) if self.bf16 is None else self.bf16, self.ctc,
        )  # fmt: skip


@dataclass(frozen=True)
class Item:
    """An utterance of a list with one kind of codes."""

    kind: str
    split: str
    utterance: int

    @property
    def id(self) -> str:
        """Unique id."""
        return f"{self.kind}|{self.split}|{self.utterance}"


@dataclass
class Lists:
    """Utterances of each list that have words in their transcripts."""

    of: dict[str, list[Utterance]]

    @classmethod
    def read(cls, config: Config) -> "Lists":
        """Reads all lists of a configuration; that of the training is called `train`.

        Raises:
            UserError: if a manifest has no transcripts.
        """
        wanted = {"train": config.train, DEV: [config.dev]}
        most = {"train": config.train_items, DEV: config.dev_items}
        for name, path in zip(_names(config.test), config.test, strict=True):
            wanted[name], most[name] = [path], config.limit
        found = {}
        for name, manifests in wanted.items():
            spoken = [u for path in manifests for u in read_manifest(path) if normalise(u.text or "")]
            if not spoken:
                raise UserError(f"{', '.join(manifests)} has no transcripts: expected a `text` on each line")
            found[name] = spoken[: most[name]]
        return cls(found)

    def spoken(self, source: CodeSource, seed: int) -> dict[str, list[Spoken]]:
        """Codes and text of each list's utterances."""
        return {
            name: [
                Spoken(codes, normalise(u.text or ""))
                for u, codes in zip(utterances, source.codes(utterances, seed), strict=True)
            ]
            for name, utterances in self.of.items()
        }


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of test lists: file names, with folder names if those are not unique."""
    stems = [Path(path).stem for path in paths]
    if len({DEV, "train", *stems}) < len(stems) + 2:
        stems = [f"{Path(path).parent.name}/{Path(path).stem}" for path in paths]
    if len({DEV, "train", *stems}) < len(stems) + 2:
        raise UserError(f"test is {list(paths)}, expected files or folders with different names")
    return stems


def run(config: Config) -> dict[str, float]:
    """Trains and evaluates a probe for each kind of codes; returns and writes the word errors.

    Raises:
        UserError: if lists or codes cannot be opened.
    """
    files = [name.removeprefix(SHUFFLED) for name in config.codes]
    sources = [*config.train, config.dev, *config.test, *dict.fromkeys(files), config.probe_from]
    with Evaluation("tokenizer_probe", config, sources, config.again) as evaluation:
        if (metrics := evaluation.done()) is not None:
            return metrics
        states = evaluation.folder / "probes"
        if config.again:
            shutil.rmtree(states, ignore_errors=True)
        lists = Lists.read(config)
        splits = [name for name in lists.of if name != "train"]
        judged, facts = [], []
        for number, kind in enumerate(config.codes):
            runner = Runner(config, lists, kind, states / str(number))
            items = [Item(kind, split, i) for split in splits for i in range(len(lists.of[split]))]
            results = evaluation.results(items, runner.judge, config.batch_size)
            facts.append(runner.facts())
            judged += list(zip(items, results, strict=True))
        metrics, table = summary(config, lists, judged, facts)
        text = report(config, lists, table, judged)
        rows = [
            {"codes": item.kind, "list": item.split, "utterance": lists.of[item.split][item.utterance].id}
            | result
            for item, result in judged
        ]
        found = evaluation.finish(metrics, text, rows, {"dev_wer.png": picture(config, facts)})
        shutil.rmtree(states, ignore_errors=True)  # gigabytes, for larger backbones
        return found


class Runner:
    """One kind of codes; trains its probe when the first utterance has to be evaluated.

    Args:
        config: Options of the benchmark.
        lists: All lists.
        kind: Name of the codes.
        folder: Folder of the training's state.
    """

    def __init__(self, config: Config, lists: Lists, kind: str, folder: Path) -> None:
        self.config, self.kind, self.folder = config, kind, folder
        self.source = open_codes(kind, config.log_mel)
        self.spoken = lists.spoken(self.source, config.seed)
        self._probe: Probe | None = None

    @property
    def probe(self) -> Probe:
        """The probe with its best weights."""
        if self._probe is None:
            train = self.spoken["train"]
            self._probe = probe = Probe.open(self.config.options(), self.source.num_codes, train)
            best = train_probe(probe, train, self.spoken[DEV], self.folder, self.kind)
            probe.lm.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
        return self._probe

    def judge(self, batch: Sequence[Item]) -> list[Result]:
        """Reference, transcript, errors and words of each utterance."""
        spoken = [self.spoken[item.split][item.utterance] for item in batch]
        results = []
        for own, hypothesis in zip(spoken, self.probe.transcripts(spoken), strict=True):
            errors, words = word_errors(own.text, hypothesis, self.config.language)
            result: Result = {
                "reference": own.text,
                "hypothesis": hypothesis,
                "errors": errors,
                "words": words,
            }
            results.append(result if own.codes else result | {FAILED: "it has no codes"})
        return results

    def facts(self) -> dict[str, Any]:
        """Information about the codes and the training."""
        codes = [u.codes for u in self.spoken["train"] if u.codes]
        return {
            "codes": self.kind,
            "frame_rate_hz": self.source.frame_rate_hz,
            "num_codes": self.source.num_codes,
            "bits_per_second": self.source.bits_per_second,
            "entropy_bits_per_second": entropy_bits(codes) * self.source.frame_rate_hz,
            "train_utterances": len(codes),
            "history": self.probe.history,
        }


def summary(
    config: Config, lists: Lists, judged: Sequence[tuple[Item, Result]], facts: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics, named `KIND/MEASURE`, and a line per kind of codes."""
    metrics: dict[str, float] = {}
    table = []
    for fact in facts:
        best = min(fact["history"], key=lambda entry: entry["dev_wer"])
        line = {"codes": fact["codes"], "codes/s": fact["frame_rate_hz"], "number": fact["num_codes"],
                "bit/s": fact["bits_per_second"], "bit/s by entropy": fact["entropy_bits_per_second"],
                "best step": best["step"]}  # fmt: skip
        label = _label(fact["codes"])
        for split in lists.of:
            own = [result for item, result in judged if (item.kind, item.split) == (fact["codes"], split)]
            if own:
                rate, low, high = pooled_with_interval(own)
                line[f"WER {split}"] = f"{rate:.3f} ({low:.3f} to {high:.3f})"
                metrics[f"{label}/{split}_wer"] = rate
        metrics[f"{label}/bits_per_second"] = fact["bits_per_second"]
        metrics[f"{label}/entropy_bits_per_second"] = fact["entropy_bits_per_second"]
        metrics[f"{label}/best_step"] = best["step"]
        table.append(line)
    return metrics | {"failures": sum(FAILED in result for _, result in judged)}, table


def _label(kind: str) -> str:
    """A metric name that MLflow accepts."""
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in kind)


def pooled_with_interval(results: Sequence[Result]) -> tuple[float, float, float]:
    """Total errors divided by total words, with the 95 % interval."""
    errors, words = [result["errors"] for result in results], [result["words"] for result in results]
    return sum(errors) / max(1, sum(words)), *pooled_interval(errors, words)


def report(
    config: Config, lists: Lists, table: Sequence[dict[str, Any]], judged: Sequence[tuple[Item, Result]]
) -> str:
    """The report in Markdown."""
    failed = {
        f"{item.id} ({lists.of[item.split][item.utterance].id})": result[FAILED]
        for item, result in judged
        if FAILED in result
    }
    counts = ", ".join(f"{name} {len(utterances)}" for name, utterances in lists.of.items())
    size = f" ({config.layers} layers of {config.width}, characters)" if config.probe_from == RANDOM else ""
    unit = "character" if config.language == "zh" else "word"
    ctc = f", CTC {config.ctc}" if config.ctc else ""
    return (
        f"# Tokenizer probe from {config.probe_from}{size}\n\n{config.steps} steps of {config.batch_rows} "
        f"rows, seed {config.seed}{ctc}; utterances: {counts}; {len(failed)} failures; {unit} errors pooled, "
        "lower case without punctuation; weights of the lowest dev error; 95 % intervals by a bootstrap over "
        f"utterances\n\n{markdown_table(table)}"
        + "\n".join(["", *named("Failed, counted as not recognised", failed)])
    )


def picture(config: Config, facts: Sequence[dict[str, Any]]) -> Any:
    """Word errors on the dev list over steps, one line per kind of codes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for fact in facts:
        steps, rates = zip(*((e["step"], e["dev_wer"]) for e in fact["history"]), strict=True)
        axis.plot(steps, rates, marker="o", markersize=3, label=fact["codes"])
    axis.set_xlabel("step")
    axis.set_ylabel(f"{'character' if config.language == 'zh' else 'word'} errors, dev")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure
