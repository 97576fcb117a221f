"""The language model's options in whole runs: codes from the codebook, CTC on the trunk, transcripts."""

import pytest
import torch
from lm_recipe import CODES, backbone_folder, lm_recipe
from recording import assert_equal, checkpoints, curves, fit, seen

from lit_moss.codec import SpeechTokenizer
from lit_moss.hub.tokenizer import speech_tokenizer_fingerprint
from lit_moss.llm import SplitLM
from lit_moss.llm.init_codes import project
from lit_moss.modules import SplitLLM

FULL = [{"policy": "full"}]
TEXT = ["--data.init_args.speech_text", "true"]


@pytest.fixture
def tokenizer(tmp_path, tiny_encoder):
    """Folder of a speech tokenizer with the recipe's number of codes, and its fingerprint."""
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=CODES)).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer"), speech_tokenizer_fingerprint(str(tmp_path / "tokenizer"))


@pytest.mark.nightly
@pytest.mark.parametrize("vocab", ["text", "chars"])
def test_a_run_with_ctc_and_short_documents_first_resumes_to_the_bit(tmp_path, vocab):
    options = {"stages": FULL, "kind": "transcripts", "ctc": {"vocab": vocab, "layer": 2}}
    more = [*TEXT, "--data.init_args.short_first_batches", "7"]
    fit(tmp_path / "whole", lm_recipe(tmp_path / "whole", 15, **options), *more)
    for stop in (5, 15):
        resume = ["--ckpt_path", "last"] if stop > 5 else []
        fit(tmp_path / "parts", lm_recipe(tmp_path / "parts", stop, **options), *more, *resume)
    ours, theirs = (checkpoints(tmp_path / f)["step-0000015.ckpt"] for f in ("parts", "whole"))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step", "ctc"):
        assert_equal(ours[part], theirs[part], part)
    assert any(name.startswith("ctc_head.") for name in ours["state_dict"])
    assert seen(tmp_path / "parts") == seen(tmp_path / "whole")
    found = curves(tmp_path / "whole")
    assert found["train/ctc"][-1][1] < found["train/ctc"][0][1]
    assert {"val/ctc", "val/ctc_error", "val/ctc_skipped", "train/ctc_skipped"} <= set(found)


@pytest.mark.nightly
def test_codes_start_at_the_codebook_once_and_later_stages_keep_them(tmp_path, tokenizer, caplog):
    folder, fingerprint = tokenizer
    one = tmp_path / "one"
    options = {"kind": "transcripts", "speech_tokenizer": fingerprint, "init_codes": "codebook", "lr": 0.0}
    tokens = ["--data.init_args.speech_tokenizer", folder]
    fit(one, lm_recipe(one, 5, **options), *tokens)
    state = checkpoints(one)["step-0000005.ckpt"]["state_dict"]
    codebook = SpeechTokenizer.from_pretrained(folder).encoder.codebook.weight
    want = project(codebook, 32)
    words = state["lm.model.embed_tokens.weight"]
    assert torch.allclose(
        state["lm.model.audio_embed.weight"][:CODES], want * words.std() / want.std(), rtol=1e-5
    )
    assert not state["lm.audio_lm_head.weight"].any()
    assert "embeddings of 32 codes start at the codebook" in caplog.text
    caplog.clear()
    # The next stage takes over what the first has made, CTC or not; nothing is computed again.
    two = tmp_path / "two"
    later = options | {"stages": FULL, "init_from": str(one / "runs/tiny"), "ctc": {}, "init_codes": "text"}
    fit(two, lm_recipe(two, 5, **later), *tokens, *TEXT)
    found = checkpoints(two)["step-0000005.ckpt"]["state_dict"]
    assert_equal({k: found[k] for k in state}, dict(state))
    assert "start at" not in caplog.text


@pytest.mark.nightly
def test_codes_start_at_their_text_and_a_resume_does_not_do_it_again(tmp_path, tokenizer, caplog):
    folder, fingerprint = tokenizer
    one = tmp_path / "one"
    options = {"kind": "transcripts", "speech_tokenizer": fingerprint, "init_codes": "text", "stages": FULL}
    words = ["--data.init_args.speech_tokenizer", folder, *TEXT]
    fit(one, lm_recipe(one, 5, **options), *words)
    assert "codes start at the mean of the text" in caplog.text
    caplog.clear()
    fit(one, lm_recipe(one, 6, **options), *words, "--ckpt_path", "last")
    assert "start at the mean" not in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({"ctc": {}}, [], "model.ctc needs the text of the speech"),
        ({"ctc": {"layer": 9}}, TEXT, "model.ctc.layer is 9, the trunk has 3 layers"),
        ({"init_codes": "codebook"}, [], "data.speech_tokenizer is not set, but model.init_codes needs"),
        ({"lr_factors": {"ctc_head": 2.0}}, [], "lr_factors names ['ctc_head']"),
    ],
)
def test_what_an_option_lacks_is_said_in_one_line(tmp_path, capsys, model, more, message):
    config = lm_recipe(tmp_path / "run", 3, kind="transcripts", stages=FULL, **model)
    fit(tmp_path / "run", config, *more, expected=2)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.nightly
def test_ctc_is_not_switched_in_a_resume_and_not_in_the_model(tmp_path, capsys):
    one = tmp_path / "one"
    options = {"kind": "transcripts", "stages": FULL, "save_frozen": False}
    fit(one, lm_recipe(one, 5, ctc={}, **options), *TEXT)
    fit(one, lm_recipe(one, 6, **options), "--ckpt_path", "last", expected=2)
    assert "the checkpoint has a head for CTC, model.ctc is off" in capsys.readouterr().err
    checkpoint = checkpoints(one)["step-0000005.ckpt"]
    from lit_moss.llm.stages import model_of_checkpoint

    lm = model_of_checkpoint(checkpoint, backbone_folder(tmp_path / "backbone"), "here")
    assert isinstance(lm, SplitLM)
    assert not any("ctc" in name for name in lm.state_dict())


def test_options_are_off_by_default():
    module = SplitLLM()
    assert (module.init_codes, module.ctc, module.ctc_head) == ("random", None, None)
