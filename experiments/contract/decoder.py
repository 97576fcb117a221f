"""The decoder part of `check_contract`: flow, HiFT, and the released streaming scheme that combines them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.contract.released_streaming import released_sample, released_stream
from lit_moss.audio import rates
from lit_moss.codec import flow_matching
from lit_moss.codec.conformer import LOOKAHEAD_CODES, Offsets
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_network import Prompt
from lit_moss.codec.flow_training import Draws, FlowBatch, velocities
from lit_moss.codec.hift import HiFT, HiFTConfig
from lit_moss.codec.stream_cache import Chunks, seen_keys
from lit_moss.codec.unet import Conditions, time_embedding

# Name, computed value, recorded value, tolerance (0: equality).
Line = tuple[str, Tensor, Tensor, float]
FLOW, F0_HZ, SOURCE, WAVE_GIVEN_SOURCE, WAVE = 2e-5, 1e-3, 1e-4, 1e-4, 2e-3
RATIO = rates.FRAMES_PER_CODE_DECODER


def released_config(config: dict[str, Any]) -> FlowConfig:
    """Reads the sizes in the released decoder's nested configuration (`encoder`, `estimator`, `cfm`).

    Raises:
        ValueError: if the network here does not support the configuration.
    """
    encoder, unet, cfm = config["encoder"], config["estimator"], config["cfm"]
    if len(unet["channels"]) != 1:
        raise ValueError(f"estimator.channels is {unet['channels']}, only one resolution is supported")
    if (encoder["upsample_stride"], config["mel"]) != (RATIO, rates.DECODER_MEL_BINS):
        raise ValueError("expected upsample_stride 4 and 80 mel bands")
    return FlowConfig(
        vocab_size=config["vocab_size"], hidden=config["hidden"], speaker_dim=config["spk_embed_dim"],
        encoder_heads=encoder["attention_heads"], encoder_inner=encoder["linear_units"],
        encoder_layers=encoder["num_blocks"], channels=unet["channels"][0], heads=unet["num_heads"],
        head_width=unet["attention_head_dim"], blocks=unet["n_blocks"], mid_stages=unet["num_mid_blocks"],
        chunk_codes=encoder["static_chunk_size"], dropout=encoder["dropout_rate"],
        unconditioned_share=cfm["training_cfg_rate"], guidance=cfm["inference_cfg_rate"],
    )  # fmt: skip


@contextmanager
def released_padding(flow: Flow) -> Iterator[None]:
    """Within the block, the look-ahead sees padding as in the released training code: as embedded zeros.

    This project's encoder sets padding to zero after embedding, so that an item's frames do not depend on its
    batch.
    """
    encoder, embedded = flow.encoder, []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        embedded.append(output)

    def swap(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BND = embedded[0]  # of the codes; the embeddings of the look-ahead, if any, come second
        embedded.clear()
        return x_BND, *inputs[1:]

    handles = [
        encoder.embed.register_forward_hook(keep),
        encoder.pre_lookahead_layer.register_forward_pre_hook(swap),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load_flow(folder: Path) -> Flow:
    """Loads the recorded flow, in eval mode."""
    flow = Flow(released_config(json.loads((folder / "config.json").read_text()))).eval()
    flow.load_state_dict(load_file(folder / "weights.safetensors"))
    return flow


def load_recorded_hift(folder: Path) -> HiFT:
    """Loads the recorded vocoder, in eval mode."""
    config = json.loads((folder / "config.json").read_text())
    hift = HiFT(HiFTConfig(config["base_channels"], config["f0_predictor"]["cond_channels"])).eval()
    hift.load_state_dict(load_file(folder / "weights.safetensors"))
    return hift


class _Recorder:
    """Keeps module outputs of the next forward by their recorded names, using hooks."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def keep(
        self, name: str, module: nn.Module, take: Callable[[Tensor], Tensor] = lambda x: x, at: int = 0
    ) -> None:
        """Keeps the output of call number `at` of the module."""
        calls = 0

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal calls
            if calls == at:
                self.seen[name] = take(output)
            calls += 1

        self._handles.append(module.register_forward_hook(hook))

    def lines(self, io: dict[str, Tensor], prefix: str, tolerance: float) -> Iterator[Line]:
        """Yields one line for each recorded output; removes the hooks."""
        for name in sorted(self.seen):
            if prefix + name in io:
                yield prefix + name, self.seen[name], io[prefix + name], tolerance
        for handle in self._handles:
            handle.remove()


def check_flow(folder: Path) -> Iterator[Line]:
    """Encoder, velocity network, loss with its gradients, sampler; with full and streaming masks."""
    io, flow = load_file(folder / "io.safetensors"), load_flow(folder)
    codes, lengths = io["token"], io["token_len"]
    frames = RATIO * codes.shape[1]
    yield "token_embedding_masked", flow.embed(codes, lengths), io["token_embedding_masked"], FLOW
    yield "spks", flow.project_speaker(io["spk_embedding"]), io["spks"], FLOW
    chunk = flow.config.chunk_codes
    for name, size, length in (("enc", chunk, codes.shape[1]), ("up", chunk * RATIO, frames)):
        if f"mask.{name}_stream" in io:
            seen = Chunks(size).mask(length, codes.device)[None].expand(len(codes), -1, -1)
            valid = torch.arange(length)[None] < (lengths * (length // codes.shape[1]))[:, None]
            yield f"mask.{name}_stream", seen & valid[:, None], io[f"mask.{name}_stream"], 0
    if "enc_full.pos_emb" in io:
        table = Offsets.within(codes.shape[1], flow.input_embedding.weight).table_UD
        yield "enc_full.pos_emb", table[None], io["enc_full.pos_emb"], FLOW
    for masks in ("full", "stream"):
        yield from _check_encoder(flow, io, masks)
        yield from _check_unet(flow, io, masks)
    yield from _check_losses(flow, io)
    yield from _check_sampler(flow, io)


def _check_encoder(flow: Flow, io: dict[str, Tensor], masks: str) -> Iterator[Line]:
    codes, lengths, prefix = io["token"], io["token_len"], f"enc_{masks}."
    encoder, recorder = flow.encoder, _Recorder()
    parts: dict[str, nn.Module] = {
        "embed_out": encoder.embed, "pre_lookahead_out": encoder.pre_lookahead_layer,
        "up_embed_out": encoder.up_embed, "after_norm_out": encoder.after_norm,
    }  # fmt: skip
    for stage, layers in (("enc", encoder.encoders), ("up_enc", encoder.up_encoders)):
        for n, layer in enumerate(layers):
            parts[f"{stage}_layer{n}_out"] = layer
            parts[f"{stage}_layer{n}_attn_out"] = layer.get_submodule("self_attn")
    for name, module in parts.items():
        recorder.keep(name, module)
    recorder.keep("up_layer_out", encoder.up_layer, lambda x: x.transpose(1, 2))
    chunks = flow.chunks() if masks == "stream" else None
    with released_padding(flow):
        yield prefix + "mu", flow.encode(codes, lengths, chunks), io[prefix + "mu"], FLOW
    yield from recorder.lines(io, prefix, FLOW)
    name = f"enc_context_{masks}.after_norm_out"
    if name in io:
        recorder = _Recorder()
        recorder.keep("after_norm_out", encoder.after_norm)
        n = io[name].shape[1] // RATIO
        item = codes[:1, : n + LOOKAHEAD_CODES]
        flow.encode(item[:, :n], torch.tensor([n]), chunks, ahead_BA=item[:, n:])
        yield from recorder.lines(io, f"enc_context_{masks}.", FLOW)


def _check_unet(flow: Flow, io: dict[str, Tensor], masks: str) -> Iterator[Line]:
    unet, recorder, prefix = flow.decoder.estimator, _Recorder(), f"est_{masks}."
    stages = {"down0": unet.down_blocks[0], "up0": unet.up_blocks[0]}
    stages |= {f"mid{n}": stage for n, stage in enumerate(unet.mid_blocks)}
    for name, stage in stages.items():
        parts = list(stage.children())
        blocks = list(parts[1].children())
        recorder.keep(f"{name}_resnet", parts[0])
        recorder.keep(f"{name}_block1", parts[0].get_submodule("block1"))
        recorder.keep(f"{name}_tf0", blocks[0])
        recorder.keep(f"{name}_tf0_attn", blocks[0].get_submodule("attn1"))
        recorder.keep(f"{name}_tf_last", blocks[-1])
    recorder.keep("down0_downsample", list(unet.down_blocks[0].children())[2])
    recorder.keep("up0_upsample", list(unet.up_blocks[0].children())[2])
    recorder.keep("final_block", unet.final_block)
    recorder.keep("time_mlp", unet.time_mlp)
    frames_B = io["est.mask"].sum(dim=(1, 2)).long()
    chunks = flow.chunks().times(RATIO) if masks == "stream" else None
    seen = seen_keys(frames_B, io["est.x"].shape[-1], chunks)
    conditions = Conditions(io["est.mask"], io["est.mu"], io["spks"], io["est.cond"], seen)
    velocity = unet(io["est.x"], io["est.t"], conditions)
    yield prefix + "out", velocity, io[prefix + "out"], FLOW
    yield from recorder.lines(io, prefix, FLOW)
    if prefix + "sinusoidal" in io:
        ours = time_embedding(io["est.t"], io[prefix + "sinusoidal"].shape[1])
        yield prefix + "sinusoidal", ours, io[prefix + "sinusoidal"], FLOW


@torch.enable_grad()
def _check_losses(flow: Flow, io: dict[str, Tensor]) -> Iterator[Line]:
    """Losses with the recorded random draws. The released training code uses the streaming masks."""
    target = io["loss.feat"].transpose(1, 2)
    for name in sorted({key.split(".")[0] for key in io if key.startswith("loss_")}):
        t = flow_matching.cosine_time(io[f"{name}.t_uniform_draw"])
        yield f"{name}.t_after_cosine", t, io[f"{name}.t_after_cosine"], FLOW
        keep = io[f"{name}.cfg_uniform_draw"] > flow.config.unconditioned_share
        draws = Draws(t, io[f"{name}.z"], keep, io[f"{name}.cond_prefix_len"])
        flow.zero_grad()
        batch = FlowBatch(io["token"], io["token_len"], target, io["spk_embedding"])
        with released_padding(flow):
            loss = velocities(flow, batch, draws, streaming=True).loss()
        loss.backward()
        yield f"{name}.loss", loss.detach().view(1), io[f"{name}.loss"], FLOW
        for key in sorted(key for key in io if key.startswith(f"{name}.grad.")):
            gradient = flow.get_parameter(key.removeprefix(f"{name}.grad.")).grad
            assert gradient is not None
            yield key, gradient, io[key], FLOW


def _check_sampler(flow: Flow, io: dict[str, Tensor]) -> Iterator[Line]:
    times = torch.tensor(flow_matching.schedule(flow.config.steps))
    yield "infer.t_span", times, io["infer.t_span"], 1e-6
    prompt = Prompt(
        io["infer.prompt_token"][0], io["infer.prompt_feat"][0].T, io["infer.spk_embedding"][0]
    )  # fmt: skip
    noise = io["infer.rand_noise"]
    for masks in ("full", "stream"):
        for final in (True, False):
            name = f"infer_{masks}_{'final' if final else 'nonfinal'}"
            recorder = _Recorder()
            recorder.keep("velocity_step0_cond_uncond", flow.decoder.estimator)
            mel = released_sample(flow, io["infer.token"], prompt, noise, masks == "stream", final)
            yield f"{name}.mel", mel, io[f"{name}.mel"], FLOW
            yield from recorder.lines(io, f"{name}.", FLOW)
    mel = released_sample(flow, io["infer.token"], Prompt.none(), noise)
    yield "infer_noprompt_zero_spk.mel", mel, io["infer_noprompt_zero_spk.mel"], FLOW


def check_hift(folder: Path) -> Iterator[Line]:
    """Pitch, excitation, network with its inner activations, and the complete vocoder."""
    io, hift = load_file(folder / "io.safetensors"), load_recorded_hift(folder)
    for name, module in {"conv_pre": hift.conv_pre, "ups0": hift.ups[0]}.items():
        weight = cast(Tensor, module.weight)
        yield f"weightnorm.{name}.weight", weight, io[f"weightnorm.{name}.weight"], 1e-6
    recorder = _Recorder()
    recorder.keep("f0_condnet_out", hift.f0_predictor.condnet, lambda x: x.transpose(1, 2))
    recorder.keep("f0_condnet_step1", hift.f0_predictor.condnet[1])
    pitch = hift.f0_predictor(io["mel"])
    yield "f0", pitch, io["f0"], F0_HZ
    yield from recorder.lines(io, "", FLOW)
    source = hift.source(io["f0"], io["src.noise_draw_normal"]).wave_B1L
    yield "src.source", source, io["src.source"], SOURCE
    recorder = _Recorder()
    parts: dict[str, nn.Module] = {"conv_pre": hift.conv_pre, "conv_post": hift.conv_post}
    for n in range(3):
        parts |= {
            f"ups{n}": hift.ups[n], f"source_down{n}": hift.source_downs[n],
            f"source_resblock{n}": hift.source_resblocks[n], f"resblock{3 * n}": hift.resblocks[3 * n],
        }  # fmt: skip
    for name, module in parts.items():
        recorder.keep(name, module)
    yield "wav given source", hift.decode(io["mel"], io["src.source"]), io["wav"], WAVE_GIVEN_SOURCE
    # Inner activations; some are as large as 100.
    yield from recorder.lines(io, "dec.", 1e-4)
    yield "wav", hift(io["mel"], io["src.noise_draw_normal"])[0], io["wav"], WAVE
    if "cache.cache_source" in io:
        n = len(io["cache.wav"])
        wave, source = hift(io["mel"][:n], io["cache.noise_draw_normal"], io["cache.cache_source"])
        yield "cache.source", source, io["cache.source"], SOURCE
        yield "cache.wav", wave, io["cache.wav"], WAVE


def check_streaming_decode(folder: Path) -> Iterator[Line]:
    """The released scheme, chunk by chunk and offline; weights are those of the neighbouring folders."""
    flow_folder = folder.parent / "flow"
    flow, hift = load_flow(flow_folder), load_recorded_hift(folder.parent / "hift")
    given, io = load_file(flow_folder / "io.safetensors"), load_file(folder / "io.safetensors")
    prompt = Prompt(
        given["infer.prompt_token"][0], given["infer.prompt_feat"][0].T, given["infer.spk_embedding"][0]
    )  # fmt: skip
    mel = released_sample(flow, io["token"], prompt, io["rand_noise"])
    yield "offline.mel", mel, io["offline.mel"], FLOW
    yield "offline.wav", hift(mel)[0], io["offline.wav"], WAVE
    chunks = list(released_stream(flow, hift, io["token"], prompt, io["rand_noise"]))
    yield "cache8.n_chunks", torch.tensor([len(chunks)]), io["cache8.n_chunks"], 0
    for n, chunk in enumerate(chunks[: int(io["cache8.n_chunks"])]):
        places = torch.tensor([chunk.codes_in, chunk.first_code])
        yield f"chunk{n}.n_tokens_in_and_offset", places, io[f"chunk{n}.n_tokens_in_and_offset"], 0
        yield f"chunk{n}.fresh_mel", chunk.mel_1MT, io[f"chunk{n}.fresh_mel"], FLOW
        yield f"cache8.chunk{n}.wav", chunk.wave_1L, io[f"cache8.chunk{n}.wav"], WAVE
