"""Every part on a stand-in for a GPU (`standin.py`): tensors made on the wrong device raise, results are the
CPU's, and the host waits for the device no more often than is written down here."""

import copy
from functools import cache

import pytest
import torch
import yaml
from backbones import folder_of, mixed_rows
from decoders import SMALL, made_up_codec, small_flow, small_hift, small_prompt
from lm_recipe import lm_recipe
from recording import recipe
from standin import StandIn, standin
from standin_trainer import fit_on
from vocoders import vocoder_recipe

from lit_moss.codec import Codec, SpeechTokenizer, ctc
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder
from lit_moss.llm import SplitLM
from lit_moss.llm.attention import Segments
from lit_moss.llm.generate import Sampling
from lit_moss.llm.rows import RowFormat

DEVICE = "standin:0"

# --- the stand-in itself ------------------------------------------------------------------------------------


def test_operations_on_both_devices_are_refused():
    with standin():
        here, there = torch.ones(3, device=DEVICE), torch.ones(3)
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: torch.stack([here[0], there[0]]),
            lambda: torch.where(here > 0, there, here),
            lambda: there.add_(here),
            lambda: there[0].add_(here[0]),
            lambda: torch.nn.functional.linear(here, torch.ones(2, 3)),
            lambda: there[here > 0],
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())
        with pytest.raises(RuntimeError, match="numpy"):
            here.numpy()


def test_what_cuda_allows_is_allowed():
    with standin() as waits:
        here = torch.ones(3, device=DEVICE)
        assert isinstance(here * torch.tensor(2.0), StandIn)
        assert isinstance(torch.where(here > 0, torch.tensor(1.0), here), StandIn)
        assert isinstance(torch.rand(3, device=DEVICE, generator=torch.Generator(DEVICE)), StandIn)
        here[1:] += 1
        assert not waits, str(waits)
        assert here[torch.tensor([0, 2])].tolist() == [1.0, 2.0]


def test_waits_of_the_host_are_counted_with_their_place():
    with standin() as waits:
        here = torch.arange(4.0, device=DEVICE)
        asks = (
            lambda: here.sum().item(), lambda: bool(here.any()), lambda: int(here[0]), lambda: here.tolist(),
            lambda: here.cpu(), here.nonzero, lambda: here[here > 1], lambda: torch.zeros(4).copy_(here),
        )  # fmt: skip
        for ask in asks:
            waits.clear()
            ask()
            assert (len(waits.to_host), len(waits.to_device)) == (1, 0), str(waits)
        for upload in (lambda: torch.tensor([1, 2], device=DEVICE), lambda: here.copy_(torch.ones(4))):
            waits.clear()
            upload()
            assert (len(waits.to_host), len(waits.to_device)) == (0, 1), str(waits)
        waits.clear()
        torch.ones(4).to(DEVICE, non_blocking=True)
        assert not waits
        inputs = torch.rand(1, 5, 3, device=DEVICE), torch.tensor([5], device=DEVICE)
        waits.clear()
        ctc.greedy(*inputs)
        assert waits
        assert all(w.where.startswith("lit_moss/codec/ctc.py:") for w in waits), str(waits)


def test_modules_keep_their_parameters_and_train_as_on_the_cpu():
    def trained(device):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
        model[2].weight = model[0].weight
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model.to(device)  # after the optimizer was made
        assert model[2].weight is model[0].weight
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4, device=device)).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return {name: value.cpu() for name, value in model.state_dict().items()}

    on_cpu = trained("cpu")
    with standin():
        torch.testing.assert_close(trained(DEVICE), on_cpu)


# --- training -----------------------------------------------------------------------------------------------


def tokenizer(folder, corpus, steps):
    config = recipe(folder, corpus, steps)
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["quantize_from_step"] = 2
    content["trainer"]["val_check_interval"] = 4
    config.write_text(yaml.safe_dump(content))
    return config


def decoder(folder, corpus, steps):
    sizes = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | {
        "vocab_size": 64,
        "steps": 2,
    }
    config = recipe(
        folder, corpus, steps,
        model={"class_path": "lit_moss.modules.FlowDecoder",
               "init_args": {"flow": sizes, "examples": 1, "lr": 3e-3, "prior_weight": 1.0}},
        data={"class_path": "lit_moss.data.DecoderDataModule",
              "init_args": {"train": [str(corpus / "train.jsonl")],
                            "speech_tokenizer": str(made_up_codec(folder.parent / "codec")),
                            "validation": [str(corpus / "validation.jsonl")], "workers": 0,
                            "batch_sec": 12, "max_sec": 10}},
        trainer__val_check_interval=4,
    )  # fmt: skip
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] = [c for c in content["trainer"]["callbacks"] if "val/cer" not in str(c)]
    config.write_text(yaml.safe_dump(content))
    return config


def vocoder(folder, corpus, steps):
    config = vocoder_recipe(folder, corpus, steps, 2, trainer__val_check_interval=4)
    content = yaml.safe_load(config.read_text())
    kept = ("VocoderReport", "EMAWeightAveraging", "val/loss")
    callbacks = content["trainer"]["callbacks"]
    content["trainer"]["callbacks"] = [c for c in callbacks if not any(name in str(c) for name in kept)]
    config.write_text(yaml.safe_dump(content))
    return config


def language_model(folder, corpus, steps, **options):
    config = lm_recipe(folder, steps, **options)
    content = yaml.safe_load(config.read_text())
    content["trainer"]["val_check_interval"] = 4
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.Throughput":
            callback["init_args"]["every_n_steps"] = 1000
    config.write_text(yaml.safe_dump(content))
    return config


def stages(folder, corpus, steps):
    return language_model(
        folder, corpus, steps, stages=[{"policy": "stage1", "until_step": 3}, {"policy": "full"}]
    )


# Recipe -> most waits of a training step for the device: whether the gradients are finite, one of Lightning's
# for each number beside the progress bar, and the language model's for where documents and targets are.
LIMITS = {tokenizer: 2, decoder: 2, vocoder: 2, stages: 4}
STEPS, COUNTED = 7, (1, 5)  # k-means before step 2, a validation after 3, a checkpoint after 4


@pytest.fixture(scope="module")
def run_on(tmp_path_factory, corpus):
    """A recipe's run on a device; each is made once."""

    @cache
    def run(device, make):
        return fit_on(device, make(tmp_path_factory.mktemp(device) / "run", corpus, STEPS))

    return run


@pytest.mark.nightly
@pytest.mark.parametrize("make", LIMITS)
def test_training_computes_the_cpus_losses(run_on, make):
    on_standin, on_cpu = run_on("standin", make), run_on("cpu", make)
    assert len(on_standin.losses) == STEPS
    assert on_standin.losses == pytest.approx(on_cpu.losses, rel=2e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("make", LIMITS)
def test_a_training_step_seldom_waits_for_the_device(run_on, make):
    on_standin = run_on("standin", make)
    for step in COUNTED:
        waits = on_standin.waits[step]
        assert len(waits.to_host) <= LIMITS[make], f"step {step}{waits}"
        assert not waits.to_device, f"step {step}{waits}"


@pytest.mark.nightly
def test_a_resumed_run_on_the_device_is_the_uninterrupted_one(run_on, tmp_path, corpus):
    fit_on("standin", stages(tmp_path / "parts", corpus, 5))
    rest = fit_on("standin", stages(tmp_path / "parts", corpus, STEPS), "--ckpt_path", "last")
    assert rest.losses == run_on("standin", stages).losses[5:]


# --- the language model -------------------------------------------------------------------------------------

FORM = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
PROMPTS = [[4, 9, 60, 3], [4, 9, 190], [17]]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder, _ = folder_of(tmp_path_factory.mktemp("lm"), "qwen3")
    torch.manual_seed(5)
    return SplitLM.from_backbone(folder, 2, 40, row_format=FORM).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segments", "mask"])
@pytest.mark.parametrize("modality", ["both", "text"])
def test_losses_and_gradients_are_the_cpus(lm, kind, modality):
    rows = mixed_rows(lm, 2, 40)
    if modality == "text":
        rows = rows.clamp(max=180)
    ids = torch.arange(40).expand(2, -1) // 17

    def measured(device):
        model = copy.deepcopy(lm).train().to(device)
        model.attention = kind
        loss = model.loss(rows.to(device), ids.to(device))
        loss.total.backward()
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        return loss.nll_BL.cpu(), loss.text_correct.cpu(), gradients

    on_cpu = measured("cpu")
    with standin():
        torch.testing.assert_close(measured(DEVICE), on_cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["segments", "mask", "varlen"])
def test_documents_of_known_borders_are_described_without_waiting(kind):
    ids = torch.arange(40).expand(2, -1) // 17
    wanted = Segments.of(ids, kind)
    with standin() as waits:
        there = ids.to(DEVICE)
        waits.clear()
        found = Segments.of(there, kind, borders=wanted.borders)
        assert not waits, str(waits)
        for name in ("positions_BL", "same_BLL", "offsets"):
            ours, theirs = getattr(found, name), getattr(wanted, name)
            assert ours is theirs is None or torch.equal(ours.cpu(), theirs), name


@pytest.mark.slow
def test_generated_rows_seldom_wait_for_the_device(lm):
    greedy = lm.generate(PROMPTS, max_new_tokens=12, greedy=True)
    with standin() as waits:
        model = copy.deepcopy(lm).to(DEVICE)
        counts = []
        for rows in (4, 12):
            waits.clear()
            found = model.generate(PROMPTS, max_new_tokens=rows, greedy=True)
            counts.append((len(waits.to_host), len(waits.to_device)))
        assert found == greedy
        assert max(map(len, found)) == 12
        per_row = [(b - a) / 8 for a, b in zip(*counts, strict=True)]
        assert per_row[0] <= 0.25, str(waits)  # several rows are looked at together
        assert not per_row[1], str(waits)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"prompt_chunk": 2}, {"min_new_tokens": 3}])
def test_sampled_generation_runs(lm, options):
    how = Sampling(temperature=1.0, top_k=10)
    with standin():
        model = copy.deepcopy(lm).to(DEVICE)
        drawn = [
            model.generate(
                PROMPTS, max_new_tokens=6, text=how, speech=how,
                generator=torch.Generator(DEVICE).manual_seed(1),
                **options,
            )
            for _ in range(2)
        ]  # fmt: skip
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_a_cpu_generator_serves_a_model_on_the_device(lm):
    with standin():
        model = copy.deepcopy(lm).to(DEVICE)
        drawn = [
            model.generate([4, 9], max_new_tokens=6, generator=torch.Generator().manual_seed(1))
            for _ in range(2)
        ]
    assert drawn[0] == drawn[1]


# --- tokenizer and decoder ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_codes_are_the_cpus_whole_and_live(tiny_encoder, speech, exact):
    waves = [wave[:40_000] for wave in speech[:3]]
    on_cpu = SpeechTokenizer(tiny_encoder(), exact).encode(waves, 16_000)
    with standin() as waits:
        speaker = SpeechTokenizer(tiny_encoder(), exact).to(DEVICE)
        assert all(torch.equal(a, b) for a, b in zip(speaker.encode(waves, 16_000), on_cpu, strict=True))
        waits.clear()
        speaker.encode(waves[0], 16_000)
        assert len(waits.to_host) <= 1, str(waits)  # the codes
        assert len(waits.to_device) <= 1, str(waits)
        stream, found = speaker.stream(), []
        for i, piece in enumerate(waves[0].split(1280)):
            waits.clear()
            found.append(stream.push(piece))
            if i > 2:
                assert len(waits.to_host) <= 1, str(waits)
                assert len(waits.to_device) <= 1, str(waits)
        found.append(stream.flush())
    assert torch.equal(torch.cat(found), on_cpu[0])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["hift", "griffin-lim"])
def test_decoder_streams_on_the_device(kind):
    codes = torch.randint(0, 256, (30,), generator=torch.Generator().manual_seed(0))

    def codec():
        return Codec(
            None, small_flow(steps=3), HiFTVocoder(small_hift()) if kind == "hift" else GriffinLim(5)
        )

    on_cpu = codec().decode(codes, small_prompt(), streaming=True)
    with standin() as waits:
        player_codec = codec().to(DEVICE)
        whole = player_codec.decode(codes, small_prompt(), streaming=True)
        player, found = player_codec.stream(small_prompt()), []
        for i, chunk in enumerate(codes.split(5)):
            waits.clear()
            found.append(player.push(chunk))
            if i > 3:  # one chunk of 0.4 s
                assert len(waits.to_host) <= 2, str(waits)  # the samples; torch.istft looks at its window
                assert len(waits.to_device) <= 2, str(waits)
        found.append(player.flush())
    streamed = torch.cat(found)
    assert streamed.shape == whole.shape == on_cpu.shape
    if kind == "hift":  # Griffin-Lim's phases are chaotic: attention sums in another order
        assert (whole - on_cpu).abs().max() < 1e-3
        assert (streamed - whole).abs().mean() < 1e-2


@pytest.mark.slow
def test_prompts_of_recordings_on_the_device(tmp_path, speech):
    with standin():
        codec = Codec(
            SpeechTokenizer.from_pretrained(made_up_codec(tmp_path)), small_flow(steps=3), GriffinLim(3)
        )
        codec.to(DEVICE)
        prompt = codec.prompt(speech[0], 16_000)
        assert codec.decode([1, 2, 3], prompt).shape == (3 * 1920,)
