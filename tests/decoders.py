"""A small random decoder for tests."""

import torch
import yaml
from recording import recipe

from lit_moss.codec.flow import Flow, FlowConfig, Prompt
from lit_moss.codec.hift import HiFT, HiFTConfig

SMALL = FlowConfig(
    vocab_size=256, hidden=32, speaker_dim=8, encoder_heads=2, encoder_inner=64, encoder_layers=2,
    channels=16, heads=2, head_width=16, blocks=1, mid_stages=2, dropout=0.1,
)  # fmt: skip


def small_flow(seed=0, **changes) -> Flow:
    from dataclasses import replace

    torch.manual_seed(seed)
    flow = Flow(replace(SMALL, **changes)).eval()
    with torch.no_grad():  # as initialised, its output hardly depends on anything
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    return flow


def small_hift(seed=0) -> HiFT:
    torch.manual_seed(seed)
    hift = HiFT(HiFTConfig(32, 24)).eval()
    with torch.no_grad():
        hift.f0_predictor.classifier.bias.fill_(150.0)
        hift.m_source.l_linear.weight.fill_(1.0)
    return hift


def small_prompt(codes=7, seed=0) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    return Prompt(
        torch.randint(0, 256, (codes,), generator=generator),
        torch.randn(80, 4 * codes, generator=generator),
        torch.randn(8, generator=generator),
    )


def made_up_codec(folder, codes=64, seed=0):
    """A tokenizer with random weights, whose codebook is drawn from its own frames."""
    from lit_moss.codec import SpeechTokenizer
    from lit_moss.codec.encoder import CausalEncoder, EncoderConfig

    torch.manual_seed(seed)
    encoder = CausalEncoder(
        EncoderConfig(
            num_mel_bins=80, d_model=64, encoder_attention_heads=2, encoder_ffn_dim=128, quantize_position=2,
            quantize_vocab_size=codes,
        )
    )  # fmt: skip
    with torch.no_grad():
        encoder.codebook.weight.copy_(encoder.pool(encoder(torch.randn(1, 80, 8 * codes)))[0])
    SpeechTokenizer(encoder).save_pretrained(folder)
    return folder


def made_up_manifest(folder, clips=24):
    """Sweeps of 2 to 4 s with overtones, the same on every machine."""
    import json

    import numpy as np

    from lit_moss.audio import io

    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for n in range(clips):
        t = np.arange(int(24_000 * rng.uniform(2, 4))) / 24_000
        pitch = rng.uniform(80, 200) + rng.uniform(-20, 40) * t
        phase = 2 * np.pi * np.cumsum(pitch) / 24_000
        wave = sum(np.sin(k * phase) * rng.uniform(0, 0.2) / k for k in range(1, 9)) + rng.normal(
            0, 0.01, len(t)
        )
        io.write(folder / f"{n:02d}.wav", torch.from_numpy(wave).float(), 24_000)
        lines.append(json.dumps({"audio_filepath": f"{n:02d}.wav", "duration": len(t) / 24_000}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


def decoder_recipe(folder, corpus, codec, steps, **changes):
    """The tiny recipe of the other stages with this stage's model and data."""
    sizes = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | {"vocab_size": 64}
    path = recipe(
        folder, corpus, steps,
        model={"class_path": "lit_moss.modules.FlowDecoder",
               "init_args": {"flow": sizes, "examples": 2, "lr": 3e-3}},
        data={"class_path": "lit_moss.data.DecoderDataModule",
              "init_args": {"train": [str(corpus / "train.jsonl")], "speech_tokenizer": str(codec),
                            "validation": [str(corpus / "validation.jsonl")], "workers": 0,
                            "seed": 1, "batch_sec": 12, "max_sec": 10}},
        **changes,
    )  # fmt: skip
    content = yaml.safe_load(path.read_text())
    callbacks = [c for c in content["trainer"]["callbacks"] if "val/cer" not in str(c)]
    callbacks += [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        {"class_path": "callbacks.DecoderReport"},
        {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/loss"}},
    ]
    content["trainer"]["callbacks"] = callbacks
    path.write_text(yaml.safe_dump(content))
    return path
