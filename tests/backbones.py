"""Small random backbones of three kinds, as configs and as folders."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # large, so that every difference shows
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def config_of(kind: str, **changes):
    sizes = SIZES | changes
    if kind == "qwen3":
        return Qwen3Config(**sizes, head_dim=16)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**sizes)


def backbone_of(kind: str, **changes):
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_of(kind, **changes)).eval()
    with torch.no_grad():  # norms and biases of ones and zeros would hide mistakes
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape))
    return model


def folder_of(path, kind: str, **changes):
    model = backbone_of(kind, **changes)
    model.save_pretrained(path)
    return path, model


def mixed_rows(lm, batch: int, length: int, seed: int = 0):
    """Random rows, half of them speech."""
    g = torch.Generator().manual_seed(seed)
    V, A = lm.format.text_vocab_size, lm.format.eosp_token_id
    text = torch.randint(0, V - 2, (batch, length), generator=g)
    speech = torch.randint(V, V + A, (batch, length), generator=g)
    return torch.where(torch.rand(batch, length, generator=g) < 0.5, text, speech)


def other_config(kind: str, **changes):
    """A small config of any kind that transformers has; options that it lacks are left out."""
    of_kind = CONFIG_MAPPING[kind]
    known = of_kind().to_dict()
    experts = {
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
    sizes = (
        SIZES | {"num_hidden_layers": 3, "head_dim": 16, "bos_token_id": 1, "sliding_window": None} | experts
    )
    fields = {k: v for k, v in sizes.items() if k in known} | changes
    return of_kind(**fields)
