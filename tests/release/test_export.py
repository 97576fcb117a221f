"""Export of language models: one tensor at a time, in the released layout, whole or not at all."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
import torch
from backbones import config_of
from lm_recipe import CODES, backbone_folder, lm_recipe
from model_folders import run_folder
from safetensors.torch import load_file, save_file

from lit_moss.data.chat_template import chat_template
from lit_moss.data.conversation import PAIRS, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.hub import open_lm
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.folders import INDEX
from lit_moss.llm.lora import Lora
from lit_moss.llm.stages import hash_record
from lit_moss.release.export import export
from lit_moss.release.weights import mean_of, plan_shards, write_weights
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.checkpoints import load_checkpoint
from lit_moss.runs.stored import StoredTensor

MANIFEST = Path(__file__).resolve().parents[3] / "shared/contract/moss_speech_lm_manifest.json"


def stored(state):
    return {name: StoredTensor(tuple(v.shape), v.dtype, v.clone) for name, v in state.items()}


def weights_of(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def files_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- files of weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_is_that_of_the_safetensors_library(tmp_path, dtype):
    state = {"b": torch.randn(3, 5), "a.ü": torch.randn(7), "one": torch.tensor(2.0), "none": torch.zeros(0)}
    write_weights(tmp_path, stored(state), dtype, "5GB")
    save_file({k: v.to(dtype) for k, v in state.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_are_those_of_save_pretrained(tmp_path):
    lm = SplitLM.from_backbone(config_of("llama"), 2, 40)
    lm.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    (tmp_path / "ours").mkdir()
    write_weights(tmp_path / "ours", stored(lm.state_dict()), torch.float32, "60KB")
    theirs = files_of(tmp_path / "theirs")
    theirs.pop("config.json")
    ours = files_of(tmp_path / "ours")
    assert len(ours) > 4
    assert json.loads(ours.pop(INDEX)) == json.loads(theirs.pop(INDEX))
    assert ours == theirs


@pytest.mark.parametrize("size", ["0GB", "0.0MB", "-5GB", "nanGB", "5", "5GiB", ""])
def test_a_size_of_files_is_checked_before_anything_is_read(tmp_path, size):
    with pytest.raises(UserError, match="expected such as 5GB"):
        export("no-such-model", tmp_path / "out", max_shard_size=size)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    with pytest.raises(UserError, match="w holds NaN or inf"):
        write_weights(tmp_path, stored({"w": torch.tensor([1.0, bad])}), torch.float32, "5GB")


def test_mean_of_checkpoints_is_that_of_float64_and_exact_for_equal_ones():
    states = [{"w": torch.randn(1000)} for _ in range(5)]
    mean = mean_of([stored(s) for s in states])["w"].read()
    exact = torch.stack([s["w"] for s in states]).double().mean(0)
    assert (mean.double() - exact).abs().max() < 5e-7
    assert torch.equal(mean_of([stored(states[0])] * 3)["w"].read(), states[0]["w"])


def test_official_size_is_planned_with_the_released_names_and_shapes():
    # arXiv:2510.00499 on Qwen3-8B; no weight is made.
    config = config_of("qwen3", vocab_size=151680, hidden_size=4096, intermediate_size=12288,
                       num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8)  # fmt: skip
    config.head_dim = 128
    with torch.device("meta"):
        lm = SplitLM.from_backbone(config, 4, 16512)
    tensors = stored(lm.state_dict())
    plan = plan_shards(tensors, torch.bfloat16, "5GB")
    assert len(plan.tensor_to_filename) == len(tensors) == 446
    assert sum(t.numel for t in tensors.values()) == 9_095_723_008 or MANIFEST.is_file()
    largest = max(sum(tensors[n].numel * 2 for n in names) for names in plan.filename_to_tensors.values())
    assert largest <= 5e9
    if MANIFEST.is_file():
        listed = json.loads(MANIFEST.read_text())["tensors"]
        shapes = {entry["name"]: tuple(entry["shape"]) for entry in listed}
        assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


# --- folders ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_and_its_folder_hold_the_same_model(tmp_path):
    run = run_folder(tmp_path)
    made = export(str(run), tmp_path / "out", max_shard_size="40KB", license="mit")
    theirs = load_checkpoint(run / "checkpoints/step-0000005.ckpt")["state_dict"]
    assert_same(weights_of(made.folder), {k.removeprefix("lm."): v for k, v in theirs.items()})
    assert (made.folder / INDEX).is_file()
    assert not [f for f in made.folder.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    for lm in (SplitLM.from_pretrained(made.folder), open_lm(made.folder)):
        assert lm.format == open_lm(run).format
        assert_same(lm.state_dict(), open_lm(run).state_dict())
    ours, before = load_text_tokenizer(made.folder), load_text_tokenizer(tmp_path / "backbone")
    assert text_tokenizer_fingerprint(ours) == text_tokenizer_fingerprint(before)
    record = ModelRecord.read(made.folder)
    assert record == made.record
    assert (record.stages, record.steps, record.license) == (["tiny"], 5, "mit")
    generation = json.loads((made.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(open_lm(run).stop_ids)
    assert str(tmp_path) not in "".join(
        f.read_text() for f in made.folder.iterdir() if f.suffix in (".json", ".md", ".jinja")
    )


def test_an_export_of_an_export_is_the_same_in_every_byte(tmp_path):
    export(str(run_folder(tmp_path)), tmp_path / "a", max_shard_size="40KB")
    export(str(tmp_path / "a"), tmp_path / "b", max_shard_size="40KB")
    template = (tmp_path / "a/chat_template.jinja").read_bytes().decode()
    assert template == chat_template(load_text_tokenizer(tmp_path / "a"))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_bfloat16_rounds_each_number_once(tmp_path):
    run = run_folder(tmp_path)
    export(str(run), tmp_path / "out", dtype="bfloat16")
    state = {k: v.to(torch.bfloat16) for k, v in open_lm(run).state_dict().items()}
    assert_same(weights_of(tmp_path / "out"), state)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_average_of_the_last_states_and_too_few_of_them(tmp_path):
    run = run_folder(tmp_path, steps=(5, 10, 15, 20))
    export(str(run), tmp_path / "out", average=3)
    states = [load_checkpoint(run / f"checkpoints/step-{n:07d}.ckpt")["state_dict"] for n in (10, 15, 20)]
    for name, value in weights_of(tmp_path / "out").items():
        mean = torch.stack([state[f"lm.{name}"] for state in states]).double().mean(0)
        torch.testing.assert_close(value.double(), mean, atol=1e-6, rtol=0)
    assert ModelRecord.read(tmp_path / "out").averaged == 3
    upto = run / "checkpoints/step-0000010.ckpt"
    with pytest.raises(UserError, match="has 2 whole states up to step 10"):
        export(str(upto), tmp_path / "other", average=3)
    with pytest.raises(UserError, match="is a model's folder"):
        export(str(tmp_path / "out"), tmp_path / "other", average=2)


def test_weights_left_out_come_from_the_backbone_and_another_one_is_refused(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    form = row_format(load_text_tokenizer(backbone), 128, eosp=CODES)
    lm = SplitLM.from_backbone(backbone, 1, 128, row_format=form)
    state = lm.state_dict()
    left = {k: v for k, v in state.items() if "audio" not in k}
    left = {k: v.bfloat16() if v.dim() > 1 else v for k, v in left.items()}
    run = run_folder(tmp_path, frozen={"backbone": str(backbone), "init_from": None, **hash_record(left)})
    path = run / "checkpoints/step-0000005.ckpt"
    content = load_checkpoint(path)
    content["state_dict"] = {f"lm.{k}": v for k, v in state.items() if k not in left}
    AtomicCheckpointIO().save_checkpoint(content, path)
    export(str(run), tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), state | {k: v.float() for k, v in left.items()})
    assert_same(weights_of(tmp_path / "out"), dict(open_lm(tmp_path / "out").state_dict()))
    shutil.rmtree(backbone)
    torch.manual_seed(4)
    SplitLM.from_backbone(config_of("llama"), 1, 40)  # other numbers
    other = backbone_folder(tmp_path / "other/backbone")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    other.rename(backbone)
    with pytest.raises(UserError, match=r"this backbone's are"):
        export(str(run), tmp_path / "again")


def test_adapters_are_added_to_their_weights(tmp_path):
    record = Lora(rank=2, alpha=3.0).record()
    run = run_folder(tmp_path, lora=record)
    path, name = run / "checkpoints/step-0000005.ckpt", "lm.model.shared_block.layers.0.self_attn.q_proj"
    content = load_checkpoint(path)
    weight = content["state_dict"].pop(f"{name}.weight")
    a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    content["state_dict"] |= {f"{name}.base_layer.weight": weight, f"{name}.lora_A.default.weight": a,
                              f"{name}.lora_B.default.weight": b}  # fmt: skip
    AtomicCheckpointIO().save_checkpoint(content, path)
    export(str(run), tmp_path / "out")
    found = weights_of(tmp_path / "out")[f"{name.removeprefix('lm.')}.weight"]
    torch.testing.assert_close(found, weight + 1.5 * b @ a)
    assert_same(weights_of(tmp_path / "out"), dict(open_lm(run).state_dict()))


def test_stages_follow_init_from(tmp_path):
    first = run_folder(tmp_path, name="stage1")
    second = run_folder(tmp_path, name="stage2", model={"init_from": str(first)})
    export(str(second), tmp_path / "second")
    assert ModelRecord.read(tmp_path / "second").stages == ["stage1", "stage2"]
    third = run_folder(tmp_path, name="sft", model={"init_from": str(tmp_path / "second")},
                       data={"reply_form": "guided"})  # fmt: skip
    export(str(third), tmp_path / "third")
    record = ModelRecord.read(tmp_path / "third")
    assert record.stages == ["stage1", "stage2", "sft"]
    assert record.form.name == "guided"
    assert "text first" in (tmp_path / "third/chat_template.jinja").read_text()


# --- errors -------------------------------------------------------------------------------------------------


def test_what_is_at_the_target_is_kept(tmp_path):
    run = run_folder(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="mine"):
            export(str(run), tmp_path / "mine", force=force)
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"
    export(str(run), tmp_path / "out")
    with pytest.raises(UserError, match="--force"):
        export(str(run), tmp_path / "out")
    export(str(run), tmp_path / "out", force=True)
    with pytest.raises(UserError, match="own folder"):
        export(str(tmp_path / "out"), tmp_path / "out", force=True)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "half", "no weights", "another shape", "no model"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    run = run_folder(tmp_path)
    path = run / "checkpoints/step-0000005.ckpt"
    content = load_checkpoint(path)
    key = "lm.model.text_norm.weight"
    if damage == "another shape":
        content["state_dict"][key] = torch.ones(3)
    elif damage == "no weights":
        del content["state_dict"][key]
    elif damage == "no model":
        del content["split_config"]
    AtomicCheckpointIO().save_checkpoint(content, path)
    data = bytearray(path.read_bytes())
    if damage == "half":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        export(str(path), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_another_text_tokenizer_is_refused(tmp_path):
    run = run_folder(tmp_path, made_by={"text_tokenizer": "0123456789abcdef", "speech_tokenizer": None})
    with pytest.raises(UserError, match=r"0123456789abcdef.*this one is [0-9a-f]{16}"):
        export(str(run), tmp_path / "out")


def test_another_template_is_refused(tmp_path):
    export(str(run_folder(tmp_path)), tmp_path / "a")
    template = tmp_path / "a/chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "rude"))
    with pytest.raises(UserError, match="trained with the template"):
        export(str(tmp_path / "a"), tmp_path / "b")


@pytest.mark.nightly
@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path):
    run = run_folder(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "from lit_moss.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        f"sys.exit(main(['export', {str(run)!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error:" in done.stderr
    assert "could not be written (File too large)" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("out*"))


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    run = run_folder(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs 0\.00 GB"):
        export(str(run), tmp_path / "out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    run = run_folder(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        export(str(run), tmp_path / "closed/out")


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path):
    run = run_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        export(str(run), tmp_path / "file/out")


# --- processes ----------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path):
    run = run_folder(tmp_path)
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        started = launch.start(tmp_path, "export", str(run), "--out", "out")
        deadline = time.monotonic() + 60
        before = set(tmp_path.glob("out*"))
        while not set(tmp_path.glob("out*")) - before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(started.pid, signal.SIGKILL)
        started.wait()
        if (tmp_path / "out").exists():  # it was done before
            assert_same(weights_of(tmp_path / "out"), dict(open_lm(run).state_dict()))
            shutil.rmtree(tmp_path / "out")
    done = launch.run(tmp_path, "export", str(run), "--out", "out")
    assert done.returncode == 0, done.stderr
    assert_same(dict(SplitLM.from_pretrained(tmp_path / "out").state_dict()), dict(open_lm(run).state_dict()))


@pytest.mark.nightly
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    form = row_format(load_text_tokenizer(backbone), 128, eosp=CODES)
    config = config_of("llama", vocab_size=form.text_vocab_size, hidden_size=1024, intermediate_size=4096,
                       num_hidden_layers=12, num_attention_heads=8)  # fmt: skip
    lm = SplitLM.from_config(SplitConfig(config, form, 1), torch.float32)
    run = run_folder(tmp_path, lm=lm)
    size = sum(v.nbytes for v in lm.state_dict().values())
    largest = max(v.nbytes for v in lm.state_dict().values())
    del lm
    assert size > 700e6 > 20 * largest
    code = (
        "from lit_moss.release.export import export\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith('VmHWM'))\n"
        f"export({str(tmp_path / 'warm')!r}, {str(tmp_path / 'warm2')!r})\n"
        f"before = peak(); export({str(run)!r}, {str(tmp_path / 'out')!r}); print(peak() - before)\n"
    )
    export(str(run_folder(tmp_path / "small")), tmp_path / "warm")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 4 * largest + 50e6


@pytest.mark.nightly
def test_a_trained_model_answers_the_same_after_export_in_all_modality_pairs(tmp_path):
    conf = lm_recipe(tmp_path / "run", 12, kind="sft", stages=[{"policy": "full"}])
    trained = launch.run(conf.parent, "fit", "-c", "conf.yaml")
    assert trained.returncode == 0, trained.stderr
    done = launch.run(conf.parent, "export", "runs/tiny", "--out", "out")
    assert done.returncode == 0, done.stderr
    folder = conf.parent / "out"
    before, after = open_lm(conf.parent / "runs/tiny"), SplitLM.from_pretrained(folder)
    renderer = Renderer(load_text_tokenizer(folder), after.format, ModelRecord.read(folder).form)
    turn = Turn("user", "abcdef", [1, 4, 13, 8])
    for user, reply in PAIRS.values():
        rows = renderer.prompt([turn], user, reply)
        replies = [lm.generate([rows], max_new_tokens=32, greedy=True) for lm in (before, after)]
        assert replies[0] == replies[1], (user, reply)
        assert len(replies[0][0]) >= 1
