"""`predict`: the four modality pairs from text and audio files to text and codes."""

import json
import os
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from lm_recipe import CODES, backbone_folder, lm_recipe

from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.data.prompts import PromptDataModule
from lit_moss.errors import UserError
from lit_moss.hub import speech_tokenizer_fingerprint
from lit_moss.llm import SplitLM


@pytest.fixture
def codec(tmp_path, tiny_encoder) -> Path:
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=CODES)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def run(folder, *words, expected=0):
    before = Path.cwd()
    os.chdir(folder)
    os.environ.pop("LIT_MOSS_RUN", None)
    try:
        assert main([str(w) for w in words]) == expected
    finally:
        os.chdir(before)


def prompts_file(folder, speech, lines) -> Path:
    soundfile.write(folder / "a.wav", speech[0].numpy()[:16_000], 16_000)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


FOUR = [
    {"id": "tt", "text": "hello", "reply": "text"},
    {"id": "ts", "text": "hello", "reply": "speech"},
    {"id": "st", "audio_filepath": "a.wav", "reply": "text"},
    {"id": "ss", "audio_filepath": "a.wav", "reply": "speech"},
]


def test_prompts_are_rows_up_to_the_reply(tmp_path, codec, speech):
    backbone = backbone_folder(tmp_path / "backbone")
    data = PromptDataModule([str(prompts_file(tmp_path, speech, FOUR))], str(backbone), str(codec))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    form = data.format
    assert [p.id for p in batch] == ["tt", "ts", "st", "ss"]
    for prompt in batch:
        spoken = [r for r in prompt.rows if r >= form.text_vocab_size]
        assert bool(spoken) == prompt.id.startswith("s")
        assert (prompt.rows[-1] == form.sosp_token_id) == prompt.id.endswith("s")
        if spoken:
            assert spoken[-1] == form.eosp_row
            assert len(spoken) == 13 + 1  # 1 s is 12.5 codes, the last one begun
    assert batch[2].rows[: len(batch[2].rows)] != batch[3].rows[: len(batch[2].rows)]  # other system prompts


@pytest.mark.nightly
def test_predict_answers_all_four_pairs(tmp_path, codec, speech):
    folder = tmp_path / "run"
    made_by = speech_tokenizer_fingerprint(str(codec))
    options = {"max_new_tokens": 12, "greedy": True}
    config = lm_recipe(folder, 5, stages=[{"policy": "full"}], speech_tokenizer=made_by, **options)
    run(folder, "fit", "-c", config)
    predict = tmp_path / "predict.yaml"
    prompts = prompts_file(tmp_path, speech, FOUR)
    predict.write_text(
        yaml.safe_dump(
            {
                "data": {
                    "class_path": "lit_moss.data.PromptDataModule",
                    "init_args": {
                        "backbone": str(folder.parent / "backbone"),
                        "speech_tokenizer": str(codec),
                        "prompts": [str(prompts)],
                    },
                }
            }
        )
    )
    run(folder, "predict", "-c", config, "-c", predict, "--ckpt_path", "last")
    (out,) = folder.glob("runs/tiny/*/predictions.jsonl")
    replies = {r["id"]: r for r in map(json.loads, out.read_text().splitlines())}
    assert set(replies) == {"tt", "ts", "st", "ss"}
    # The same as asking the model itself.
    (checkpoint,) = folder.glob("runs/tiny/*/checkpoints/*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    data = PromptDataModule([str(prompts)], str(folder.parent / "backbone"), str(codec))
    data.setup("predict")
    lm = SplitLM.from_backbone(folder.parent / "backbone", 1, 128, row_format=data.format).eval()
    lm.load_state_dict({k.removeprefix("lm."): v for k, v in state.items()})
    (batch,) = data.predict_dataloader()
    for prompt in batch:
        rows = lm.generate(prompt.rows, max_new_tokens=12, greedy=True)
        V, eosp = lm.format.text_vocab_size, lm.format.eosp_row
        assert replies[prompt.id]["codes"] == [r - V for r in rows if V <= r < eosp]
        assert replies[prompt.id]["reply"] == prompt.reply
        assert (rows[0] >= V) == (prompt.reply == "speech")


@pytest.mark.parametrize(
    "line", [{"reply": "text"}, {"text": "a", "audio_filepath": "a.wav"}, {"text": "a", "reply": "song"}]
)
def test_a_bad_line_is_named(tmp_path, codec, speech, line):
    backbone = backbone_folder(tmp_path / "backbone")
    data = PromptDataModule([str(prompts_file(tmp_path, speech, [line]))], str(backbone), str(codec))
    data.setup("predict")
    with pytest.raises(UserError, match="line 1"):
        data.predict_dataloader()
