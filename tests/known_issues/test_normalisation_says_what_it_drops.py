"""Japanese lost its kana before CTC and Russian was "no transcripts", without a word."""

import json

import numpy as np
import pytest
import soundfile
import torch
from recording import checkpoints, fit, recipe

from lit_moss.cli.main import main
from lit_moss.data.speech_data import SpeechDataModule
from lit_moss.data.transcripts import lost_letters, normalise, report_losses
from lit_moss.errors import UserError

JAPANESE = ["これはテストです。", "東京タワーへ、行きます", "がぎぐげご"]
RUSSIAN = ["Привет, мир!", "Ёлка и йод", "Как дела?"]
AUTO = [
    ("これは テストです。", "これはテストです"),
    ("東京タワー、が", "東京タワーが"),
    ("Привет, мир! Ёлка Й", "привет мир ёлка й"),
    ("हिन्दी में ५", "हिन्दी में ५"),
    ("مَرحبا", "مَرحبا"),
    ("한국어 텍스트", "한국어 텍스트"),
    ("Größe, Łódź, Tiếng Việt", "größe łódź tiếng việt"),
    ("об’єкт 'так' don’t 'n'", "об'єкт так don't n"),
    ("ﾃｽﾄ ＡＢＣ", "テストabc"),
    ("你 好 world", "你好world"),
    ("cafe\u0301 a\u00adb 🙂 — !", "café ab"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), AUTO)
def test_auto_keeps_every_letter_and_mark(text, expected):
    assert normalise(text, "auto") == expected
    assert normalise(expected, "auto") == expected
    assert lost_letters(text, "auto") == ""


def test_what_the_default_drops_is_counted():
    assert lost_letters("東京タワーへ") == "タワーへ"
    assert lost_letters("Привет 5") == "привет"
    assert lost_letters("Größe, naïve! 你好 №5 x²") == ""
    assert report_losses(["plain words", "你好"], "m") is None
    said = report_losses(["a" * 999, "ж"], "m.jsonl")
    assert said == "m.jsonl: charset latin_chinese drops 1 of 1000 letters of the transcripts (0.10%), " + (
        "most often ж 1"
    )
    assert (
        report_losses(["à la carte é"], "m") == "m: charset latin_chinese drops 2 accents of the transcripts"
    )
    with pytest.raises(UserError, match=r"m: .*drops 20 of 120 letters .*\(16\.67%\).* at most 1\.00%.*auto"):
        report_losses(["a" * 100, "ж" * 20], "m")
    assert report_losses(["a" * 100, "ж" * 20], "m", max_share=0.2)


def corpus(folder, texts, name="train"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    lines = []
    for i, text in enumerate(texts):
        soundfile.write(folder / f"{name}{i}.wav", rng.normal(0, 0.1, 32_000), 16_000)
        lines.append({"audio_filepath": f"{name}{i}.wav", "duration": 2.0, "text": text})
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_every_manifest_is_counted_by_itself(tmp_path):
    """A Russian manifest beside a large English one loses all of its text, not a small share of it."""
    corpus(tmp_path, ["plain words " * 99] * 3, "english")
    corpus(tmp_path, RUSSIAN, "russian")
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("english", "russian")]
    with pytest.raises(UserError, match=r"russian\.jsonl: charset latin_chinese drops 24 of 24 letters"):
        SpeechDataModule(train=paths, workers=0).setup("fit")
    data = SpeechDataModule(train=paths, workers=0, charset="auto")
    data.setup("fit")
    assert data.train_texts()[3] == "привет мир"
    kept = SpeechDataModule(train=paths, workers=0, max_lost_share=1.0)
    kept.setup("fit")
    assert kept.train_texts()[3:] == ["", "", ""]


def test_a_validation_manifest_is_checked_too(tmp_path):
    corpus(tmp_path, JAPANESE, "validation")
    with pytest.raises(UserError, match=r"validation\.jsonl: charset latin_chinese drops"):
        SpeechDataModule(validation=[str(tmp_path / "validation.jsonl")], workers=0).setup("validate")


@pytest.mark.nightly
@pytest.mark.parametrize("texts", [JAPANESE, RUSSIAN])
def test_a_tokenizer_learns_other_scripts_with_a_charset_of_their_own(tmp_path, capsys, texts):
    corpus(tmp_path / "in", texts * 2), corpus(tmp_path / "in", texts, "validation")
    config = recipe(tmp_path, tmp_path / "in", 5, trainer__val_check_interval=5)
    fit(tmp_path, config, expected=2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ".jsonl: charset latin_chinese drops " in said
    assert "set data.charset to auto" in said
    assert not list(tmp_path.glob("runs/tiny/*/checkpoints/*"))

    fit(tmp_path, config, "--data.init_args.charset", "auto")
    saved = max(checkpoints(tmp_path).items())[1]["speech_tokenizer"]
    assert saved["charset"] == "auto"
    assert set(saved["characters"]) == set("".join(normalise(text, "auto") for text in texts))
    # Resumed, and validated, by the same set alone.
    for more in (["--data.init_args.max_lost_share", "1.0"], []):
        capsys.readouterr()
        fit(tmp_path, config, "--ckpt_path", "last", "--trainer.max_steps", "7", *more, expected=2)
    last = str(next(tmp_path.glob("runs/tiny/*/checkpoints/*.ckpt")))
    words = ["validate", "-c", str(config), "--ckpt_path", last, "--data.init_args.max_lost_share", "1.0"]
    assert main(words) == 2
    assert "trained with data.charset auto, this run has latin_chinese" in capsys.readouterr().err
    fit(
        tmp_path,
        config,
        "--ckpt_path",
        "last",
        "--trainer.max_steps",
        "6",
        "--data.init_args.charset",
        "auto",
    )


def test_checkpoints_without_a_charset_are_of_the_default():
    from lit_moss.codec.encoder import EncoderConfig
    from lit_moss.modules import CodecEncoder

    sizes = EncoderConfig(num_mel_bins=80, d_model=64, encoder_attention_heads=2, encoder_ffn_dim=128,
                          quantize_position=2, quantize_vocab_size=16)  # fmt: skip
    torch.manual_seed(0)
    module = CodecEncoder(init_from=None, encoder=sizes, head_layers=1, head_width=64)
    module.on_load_checkpoint({"speech_tokenizer": {"characters": "ab"}})
    assert module.charset == "latin_chinese"
    module.charset = "auto"
    with pytest.raises(UserError, match=r"trained with data\.charset latin_chinese, this run has auto"):
        module.on_load_checkpoint({"speech_tokenizer": {"characters": "ab"}})
