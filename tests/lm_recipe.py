"""A tiny language model run: random backbone with a tokenizer of bytes, synthetic documents, one YAML."""

from pathlib import Path

import numpy as np
import torch
import yaml
from backbones import config_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_moss.data.documents import DocumentWriter
from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint

CODES = 32


def tokenizer_of_bytes() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(special + letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(w, special=True) for w in special])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def backbone_folder(path: Path, kind: str = "llama") -> Path:
    if not path.exists():
        torch.manual_seed(3)
        config = config_of(kind, vocab_size=260, num_hidden_layers=4, hidden_size=32, intermediate_size=48,
                           initializer_range=0.05)  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tokenizer_of_bytes().save_pretrained(path)
    return path


def documents_folder(
    path: Path, backbone: Path, kind: str, count: int = 40, seed: int = 0, speech_tokenizer: str = "made up"
) -> Path:
    """Documents whose codes follow each other by a rule, so that there is something to learn."""
    if path.exists():
        return path
    tokenizer = load_text_tokenizer(backbone)
    form = row_format(tokenizer, 128, eosp=CODES)
    rng = np.random.default_rng(seed)
    spoken = kind == "transcripts"
    meta = {"kind": kind, "options": {"speech_text": True} if spoken else {},
            "text_tokenizer": text_tokenizer_fingerprint(tokenizer), "speech_tokenizer": speech_tokenizer,
            "format": form.to_dict(), "version": 1,
            "sources": [str(seed)]}  # fmt: skip
    with DocumentWriter(path, meta) as writer:
        for i in range(count):
            codes = [int(rng.integers(CODES))]
            while len(codes) < rng.integers(8, 30):
                codes.append((codes[-1] * 3 + 1) % CODES)
            text = tokenizer.encode("abcdefghij"[: int(rng.integers(3, 10))])
            rows = {
                "text": text * 3,
                "unsupervised": form.speech(codes),
                "transcripts": [*form.speech(codes), *text],
            }.get(kind, [*text, *form.speech(codes)])
            rows = [*rows, form.end_id]
            mask = [j >= len(text) for j in range(len(rows))] if kind == "sft" else None
            said = [(1, 1 + len(codes), text)] if spoken else None
            writer.add(f"{kind}{seed}-{i}", rows, mask, kind, None, 0.08 * len(codes), said)
    return path


def conversations(path, backbone, lengths, masks=None, kind="sft"):
    """Documents whose last 5 rows are the reply, unless `masks` says otherwise."""
    tokenizer = load_text_tokenizer(backbone)
    form = row_format(tokenizer, 128, eosp=32)
    meta = {"kind": kind, "options": {}, "text_tokenizer": text_tokenizer_fingerprint(tokenizer),
            "speech_tokenizer": "made up", "format": form.to_dict(), "version": 1,
            "sources": ["0"]}  # fmt: skip
    with DocumentWriter(path, meta, shard_rows=300) as writer:
        for i, n in enumerate(lengths):
            mask = [j >= n - 5 for j in range(n)] if masks is None else masks[i]
            writer.add(f"talk-{i}", [4 + (i + j) % 200 for j in range(n)], mask, kind)
    return path


MODULES = {
    "interleaved": "InterleavedDataModule",
    "unsupervised": "UnsupervisedDataModule",
    "sft": "SFTDataModule",
    "text": "TextDataModule",
    "transcripts": "TranscriptDataModule",
}


def lm_recipe(
    folder: Path,
    steps: int,
    *,
    stages=None,
    kind="interleaved",
    rates=None,
    extra=(),
    speech_tokenizer="made up",
    **model,
) -> Path:
    """A YAML of a tiny run in `folder`; backbone and documents beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = folder.parent
    backbone = backbone_folder(shared / "backbone")
    train = documents_folder(shared / f"{kind}-train", backbone, kind, speech_tokenizer=speech_tokenizer)
    validation = documents_folder(shared / f"{kind}-validation", backbone, kind, 6, 1, speech_tokenizer)
    config = {
        "name": "tiny",
        "seed_everything": 7,
        "model": {
            "class_path": "lit_moss.modules.SplitLLM",
            "init_args": {"backbone": str(backbone), "num_modality_layers": 1, "lr": 3e-3} | model,
        },
        "data": {
            "class_path": f"lit_moss.data.{MODULES[kind]}",
            "init_args": {
                "train": [str(train)],
                "validation": [str(validation)],
                "backbone": str(backbone),
                "context": 96,
                "batch_size": 2,
                "workers": 0,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_steps": steps,
            "val_check_interval": 8,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "gradient_clip_val": 1.0,
            "callbacks": [
                {
                    "class_path": "callbacks.StagedFreezing",
                    "init_args": {"stages": stages or [{"policy": "stage1"}]},
                },
                rates
                or {
                    "class_path": "callbacks.LearningRateSchedule",
                    "init_args": {"warmup_steps": 3, "total_steps": 20},
                },
                {"class_path": "callbacks.ExactResume"},
                {"class_path": "callbacks.Progress", "init_args": {"every_n_sec": 600.0}},  # reads the device
                {"class_path": "callbacks.Throughput", "init_args": {"every_n_steps": 1}},
                {"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 5, "keep": 9}},
                {"class_path": "recording.RecordIds", "init_args": {"path": str(folder / "ids")}},
                {"class_path": "recording.DrawNumbers"},
                *extra,
            ],
        },
    }
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
