"""A step counted as done though its documents had been removed: the same call said so and made nothing."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.prepare.chain import Chain, run_chain

RATE_HZ = 16_000


@pytest.mark.slow
def test_what_is_gone_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    models = {
        "speech_tokenizer": str(made_up_codec(tmp_path / "codec", codes=32)),
        "backbone": str(backbone_folder(tmp_path / "backbone")),
    }
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4 * RATE_HZ), RATE_HZ)
    talk, texts = tmp_path / "talk.jsonl", tmp_path / "texts.jsonl"
    items = [
        {"audio_filepath": str(tmp_path / "a.wav"), "offset": float(i), "duration": 1.0, "document": f"d{i}",
         "text": "one two"}
        for i in range(4)
    ]  # fmt: skip
    talk.write_text("".join(json.dumps(item) + "\n" for item in items))
    texts.write_text("".join(json.dumps({"id": f"t{i}", "text": f"text {i}"}) + "\n" for i in range(4)))
    messages = [
        {"role": "user", "content": "one", "audio_filepath": str(tmp_path / "a.wav"), "duration": 1.0},
        {"role": "assistant", "content": "two"},
    ]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"id": f"c{i}", "messages": messages}) + "\n" for i in range(4)))
    steps = {
        "interleave": models | {"input": [str(talk)], "validation_share": 0.3, "unsupervised": "all"},
        "text": models | {"input": [str(texts)]},
        "sft": models | {"input": [str(chats)]},
        "report": {},
    }
    out = tmp_path / "out"

    def ran() -> list[str]:
        results = run_chain(Chain(out=str(out), steps=steps, track=False))
        return [result.step for result in results if result.items_run]

    assert ran()[:3] == ["interleave", "text", "sft"]
    assert ran() == []
    for gone, step in [
        ("interleave/interleaved", "interleave"),
        ("interleave/unsupervised-validation", "interleave"),
        ("interleave/manifest.jsonl", "interleave"),
        ("text/text", "text"),
        ("sft/sft", "sft"),
        ("report/report.md", "report"),
    ]:
        path = out / gone
        content = [p.read_bytes() for p in sorted(path.iterdir())] if path.is_dir() else path.read_bytes()
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        ran()
        assert path.exists(), step
        made = [p.read_bytes() for p in sorted(path.iterdir())] if path.is_dir() else path.read_bytes()
        assert made == content, gone
    assert ran() == []
