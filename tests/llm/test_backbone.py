"""Backbones: a GGUF becomes a Hugging Face folder without loss; special tokens find or get their ids."""

import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from backbones import backbone_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_moss.errors import UserError
from lit_moss.llm.backbone import (
    SMOLLM2,
    convert_llama_gguf,
    load_text_tokenizer,
    resolve_backbone,
    row_format,
    text_tokenizer_fingerprint,
)

TEXTS = [
    "Hello, it's 2024!",
    "  two  spaces\tand\n\nlines ",
    "Ünïcode 中文 😀",
    "DON'T we'll",
    "def f(x):\n    return x**2\n",
]


def tokenizer_of(*special, words=()):
    """Bytes, some merges, special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    vocabulary = [*special, *letters, *(a + b for a, b in merges), *words]
    bpe = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(vocabulary)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(w, special=True) for w in special])
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def write_gguf(path, model, tokenizer, kind=None):
    """As llama.cpp writes a Llama: q and k with the two halves of every rotated pair side by side."""
    config, inner = model.config, gguf.GGUFWriter(path, "llama")
    inner.add_embedding_length(config.hidden_size)
    inner.add_feed_forward_length(config.intermediate_size)
    inner.add_block_count(config.num_hidden_layers)
    inner.add_head_count(config.num_attention_heads)
    inner.add_head_count_kv(config.num_key_value_heads)
    inner.add_context_length(config.max_position_embeddings)
    inner.add_layer_norm_rms_eps(config.rms_norm_eps)
    inner.add_rope_freq_base(config.rope_parameters["rope_theta"])
    inner.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])
    control = set(tokenizer.get_added_vocab())
    inner.add_token_list([w for w, _ in words])
    inner.add_token_types([3 if w in control else 1 for w, _ in words])
    inner.add_token_merges([" ".join(m) for m in content["model"]["merges"]])
    inner.add_bos_token_id(1)
    inner.add_eos_token_id(2)
    inner.add_pad_token_id(2)
    inner.add_unk_token_id(0)
    inner.add_chat_template("{{ messages }}")
    ours = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        array = value.numpy()
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            heads = {
                "self_attn.q_proj": config.num_attention_heads,
                "self_attn.k_proj": config.num_key_value_heads,
            }.get(part)
            if heads is not None:
                pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
            theirs = f"blk.{layer}.{ours[part]}.weight"
        elif name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        else:
            theirs = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        if kind is not None and array.ndim == 2:
            inner.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            inner.add_tensor(theirs, array)
    inner.write_header_to_file()
    inner.write_kv_data_to_file()
    inner.write_tensors_to_file()
    inner.close()


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_becomes_the_model_that_it_was_written_from(tmp_path, tied):
    tokenizer = tokenizer_of(*SPECIAL)
    model = backbone_of("llama", vocab_size=len(tokenizer), tie_word_embeddings=tied, rms_norm_eps=1e-5,
                        rope_parameters={"rope_type": "default", "rope_theta": 5000.0})  # fmt: skip
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    convert_llama_gguf(tmp_path / "model.gguf", tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).eval()
    assert made.config.rms_norm_eps == 1e-5  # not the float32 next to it
    assert made.config.rope_parameters["rope_theta"] == 5000.0
    assert made.config.tie_word_embeddings == tied
    assert not hasattr(made.config, "quantization_config")
    assert (made.lm_head.weight.data_ptr() == made.model.embed_tokens.weight.data_ptr()) == tied
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, model(ids).logits)
    theirs = load_text_tokenizer(tmp_path / "made")
    for text in TEXTS:
        assert theirs.decode(theirs.encode(text)) == text
    assert [theirs.encode(s) for s in SPECIAL] == [[0], [1], [2]]
    assert theirs.encode("hello") == [theirs.get_vocab()["hell"], theirs.get_vocab()["o"]]
    assert theirs.encode("2024") == [theirs.get_vocab()[d] for d in "2024"]
    assert theirs.chat_template == "{{ messages }}"


def test_quantized_tables_come_out_as_the_gguf_package_reads_them(tmp_path):
    tokenizer = tokenizer_of(*SPECIAL)
    model = backbone_of("llama", vocab_size=len(tokenizer), tie_word_embeddings=True)
    write_gguf(tmp_path / "model.gguf", model, tokenizer, gguf.GGMLQuantizationType.Q4_1)
    convert_llama_gguf(tmp_path / "model.gguf", tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).state_dict()
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, value in model.state_dict().items():
        array = value.numpy()
        if array.ndim == 2:  # scales are of rows, which the order of rows does not touch
            array = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        assert torch.equal(made[name], torch.from_numpy(array)), name


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="is a bert, expected a llama"):
        convert_llama_gguf(tmp_path / "model.gguf", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_missing_tokens_are_added_at_the_end(tmp_path):
    plain = tokenizer_of(*SPECIAL)
    plain.save_pretrained(tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    size = len(plain)
    form = row_format(tokenizer, 1152)
    assert (form.sosp_token_id, form.modality_pad_token_id) == (size, size + 1)
    assert form.text_vocab_size == 384  # 262 + 2 rounded up to whole 128
    assert (form.audio_vocab_size, form.eosp_token_id, form.audio_pad_token_id) == (1152, 1024, 512)
    assert (form.im_start_id, form.im_end_id, form.end_id) == (1, 2, 0)
    assert tokenizer.encode("hi<|object_ref_start|>")[-1] == size


def test_tokens_that_are_there_keep_their_ids_as_in_qwen3(tmp_path):
    names = (*SPECIAL, "<|object_ref_start|>", "<think>")
    tokenizer_of(*names).save_pretrained(tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    form = row_format(tokenizer, 16_512)
    assert (form.sosp_token_id, form.modality_pad_token_id) == (3, 4)
    assert form.eosp_token_id == 16_384
    assert len(tokenizer) == len(tokenizer_of(*names))


def test_an_own_modality_pad_comes_before_think(tmp_path):
    tokenizer_of(*SPECIAL, "<think>", "<|modality_pad|>").save_pretrained(tmp_path)
    assert row_format(load_text_tokenizer(tmp_path), 128).modality_pad_token_id == 4


def test_sizes_and_ids_can_be_given_and_are_checked(tmp_path):
    tokenizer_of(*SPECIAL).save_pretrained(tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    form = row_format(tokenizer, 256, text_vocab_size=1000, eosp=200)
    assert (form.text_vocab_size, form.eosp_token_id, form.audio_pad_token_id) == (1000, 200, 0)
    with pytest.raises(UserError, match="text_vocab_size 200 leaves out words"):
        row_format(tokenizer, 256, text_vocab_size=200)
    with pytest.raises(UserError, match="eosp 256 with audio_vocab_size 256"):
        row_format(tokenizer, 256, eosp=256)


def test_a_tokenizer_that_cannot_end_a_document_is_refused(tmp_path):
    tokenizer_of("<s>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="could end a document"):
        row_format(load_text_tokenizer(tmp_path), 128)
    with pytest.raises(UserError, match="open it by load_text_tokenizer"):
        row_format(tokenizer_of(*SPECIAL), 128)


@pytest.mark.nightly
def test_the_fingerprint_is_that_of_the_tokenizer_and_nothing_else(tmp_path):
    tokenizer_of(*SPECIAL).save_pretrained(tmp_path / "a")
    tokenizer = load_text_tokenizer(tmp_path / "a")
    print_a = text_tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer(["hello", "a longer one"], padding=True, truncation=True, max_length=6)
    assert text_tokenizer_fingerprint(tokenizer) == print_a
    tokenizer.save_pretrained(tmp_path / "b")
    assert text_tokenizer_fingerprint(load_text_tokenizer(tmp_path / "b")) == print_a
    command = (
        "from lit_moss.llm.backbone import *; "
        f"print(text_tokenizer_fingerprint(load_text_tokenizer({str(tmp_path / 'a')!r})))"
    )
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", command], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.strip() == print_a, done.stderr
    tokenizer_of(*SPECIAL, words=("hello",)).save_pretrained(tmp_path / "c")
    assert text_tokenizer_fingerprint(load_text_tokenizer(tmp_path / "c")) != print_a


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:smollm3", "no embedded backbone 'embedded:smollm3', expected embedded:smollm2-135m"),
        ("no/such/folder", "no pretrained part"),
        (None, "holds no config.json"),
    ],
)
def test_what_is_no_backbone_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        resolve_backbone(name or str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    backbone_of("llama").config.save_pretrained(tmp_path)
    assert resolve_backbone(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_text_tokenizer(tmp_path)


# --- the real one -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    folder = resolve_backbone(SMOLLM2)
    return folder, load_text_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_is_a_plain_folder_with_the_known_sizes(smollm2):
    folder, _ = smollm2
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    sizes = [config[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps")]
    assert sizes == [576, 30, 49_152, 1e-5]
    assert config["tie_word_embeddings"]
    assert resolve_backbone(SMOLLM2) == folder


@pytest.mark.network
def test_smollm2s_tokenizer(smollm2):
    _, tokenizer = smollm2
    assert [tokenizer.encode(s) for s in SPECIAL] == [[0], [1], [2]]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # Ids that transformers' own reading of the GGUF gives.
    chat = "<|im_start|>user\nWhat is 12 + 3?<|im_end|>\n"
    assert tokenizer.encode(chat) == CHAT_IDS
    form = row_format(tokenizer, 1152)
    ids = (form.sosp_token_id, form.modality_pad_token_id, form.text_vocab_size)
    assert ids == (49_152, 49_153, 49_280)
    assert (form.im_start_id, form.im_end_id, form.end_id) == (1, 2, 0)


CHAT_IDS = [1, 4093, 198, 1780, 314, 216, 33, 34, 1232, 216, 35, 47, 2, 198]


@pytest.mark.network
@pytest.mark.nightly
def test_smollm2_knows_the_capital_of_france(smollm2):
    folder, tokenizer = smollm2
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
    assert said.startswith("The capital of France is Paris")
