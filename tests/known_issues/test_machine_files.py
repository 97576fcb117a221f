"""Strategies of conf/trainer: what they cannot do is refused, frozen weights may be bfloat16, hashed once."""

import json
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn
from lm_recipe import backbone_folder, lm_recipe
from recording import ROOT, checkpoints, curves, fit
from safetensors.torch import load_file, save_file

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM, stages
from lit_moss.modules import split_llm
from lit_moss.modules.parallel import FSDP2, check_strategy
from lit_moss.runs.recipes import read_recipe


def trainer(strategy, **options):
    return pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False, **options)


@pytest.mark.parametrize("kind", ["fsdp2", "deepspeed"])
def test_frozen_weights_cannot_be_left_out_of_shards(kind):
    if kind == "fsdp2":
        strategy = FSDP2(process_group_backend="gloo")
    else:
        pytest.importorskip("deepspeed")
        from sharded import OnCPU

        strategy = OnCPU(stage=2)
    run = trainer(strategy)
    with pytest.raises(UserError, match="save_frozen is false, but"):
        check_strategy(run, save_frozen=False)
    check_strategy(run, save_frozen=True)
    check_strategy(trainer("ddp"), save_frozen=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: p.stem)
def test_deepspeed_in_a_recipe_sums_in_float32_and_leaves_nothing_out(path):
    config = yaml.safe_load(path.read_text()) or {}
    strategy = (config.get("trainer") or {}).get("strategy")
    assert not str(strategy).startswith("deepspeed"), "a name alone accumulates in bfloat16"
    if isinstance(strategy, dict) and "DeepSpeed" in strategy["class_path"]:
        assert strategy["init_args"]["config"]["data_types"]["grad_accum_dtype"] == "fp32"
        assert strategy["init_args"]["config"]["train_micro_batch_size_per_gpu"]
        assert config.get("model", {}).get("init_args", {}).get("save_frozen", True)


@pytest.mark.nightly
@pytest.mark.parametrize("path", sorted((ROOT / "conf/paper").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_machine_file_names_its_strategy(path):
    """Laid over a recipe for DeepSpeed, one that names none would keep DeepSpeed's, also on a CPU."""
    for file in sorted((ROOT / "conf/trainer").glob("*.yaml")):
        assert read_recipe([path, file])["trainer"]["strategy"] == read_recipe([file])["trainer"]["strategy"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with GPUs")
@pytest.mark.parametrize("file", ["ddp", "fsdp2", "gpu"])
def test_a_machine_without_the_devices_asked_for_is_one_line(tmp_path, capsys, file):
    fit(
        tmp_path / "run",
        lm_recipe(tmp_path / "run", 1),
        "-c",
        str(ROOT / f"conf/trainer/{file}.yaml"),
        expected=2,
    )
    assert "No supported gpu backend" in capsys.readouterr().err.splitlines()[-1]


def test_tensor_parallelism_is_refused():
    """What `auto` means to Lightning's strategy: ranks would train on data of their own and never meet."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        for sizes in ((1, 2), (2, 1)):
            mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data_parallel", "tensor_parallel"))
            module = SimpleNamespace(device_mesh=mesh)
            found = SimpleNamespace(strategy=trainer("auto").strategy, lightning_module=module)
            if sizes == (2, 1):
                check_strategy(found, True)
            else:
                with pytest.raises(UserError, match="tensor_parallel_size 2, expected 1"):
                    check_strategy(found, True)
    finally:
        dist.destroy_process_group()


def test_weights_are_read_on_the_cpu_whatever_device_the_strategy_builds_on(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    form = SplitLM.from_backbone(backbone, 1, 128).format
    module = split_llm.SplitLLM(str(backbone), 1)
    run = trainer("auto")
    run.datamodule = SimpleNamespace(format=form)  # pyright: ignore
    module.trainer = run
    with torch.device("meta"):  # stands for a GPU: Lightning opens such a context around configure_model
        module.configure_model()
    tensors = [*module.lm.parameters(), *module.lm.buffers()]
    assert {t.device.type for t in tensors} == {"cpu"}


def test_shards_are_gathered_on_the_cpu_too(tmp_path):
    from torch.distributed.checkpoint import save

    from lit_moss.runs.checkpoints import load_checkpoint, seal_folder

    save({"state_dict": {"lm.a": torch.arange(6.0)}}, checkpoint_id=tmp_path / "a.ckpt", no_dist=True)
    seal_folder(tmp_path / "a.ckpt")
    with torch.device("meta"):
        found = load_checkpoint(tmp_path / "a.ckpt")["state_dict"]
    assert torch.equal(found["lm.a"], torch.arange(6.0))


# Frozen weights.


def recipe(folder, steps, precision="bf16-mixed", **model):
    """A run on a backbone that is stored in bfloat16."""
    path = lm_recipe(folder, steps, **model)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["precision"] = precision
    path.write_text(yaml.safe_dump(config))
    backbone = folder.parent / "backbone"
    size = 384  # as large as the row format asks for: no rows are added to its tables
    stored = {k: v.bfloat16() for k, v in load_file(backbone / "model.safetensors").items()}
    for name, value in stored.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            stored[name] = torch.cat([value, value[: size - len(value)]])
    save_file(stored, backbone / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Stage 1 with frozen weights in float32, in bfloat16, and in bfloat16 and left out."""
    top = tmp_path_factory.mktemp("frozen")
    options = {"float32": {}, "bfloat16": {"frozen_dtype": "bfloat16"},
               "left out": {"frozen_dtype": "bfloat16", "save_frozen": False}}  # fmt: skip
    hashed, real = [], stages.sha256_of_tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "sha256_of_tensors", lambda t: hashed.append(t) or real(t))
        for name, model in options.items():
            fit(top / name, recipe(top / name, 10, **model))
    (top / "hashed").write_text(str(len(hashed)))
    return top


def newest(folder):
    return checkpoints(folder)["step-0000010.ckpt"]


@pytest.mark.nightly
def test_frozen_bfloat16_changes_no_bit_of_the_training(runs):
    timed = ("train/tflops", "train/memory_gib")
    kept = {name: {k: v for k, v in curves(runs / name).items() if k not in timed}
            for name in ("float32", "bfloat16", "left out")}  # fmt: skip
    assert kept["bfloat16"] == kept["float32"] == kept["left out"]
    wide, narrow = (newest(runs / name)["state_dict"] for name in ("float32", "bfloat16"))
    assert wide.keys() == narrow.keys()
    for name, value in wide.items():
        frozen_matrix = "audio" not in name and value.dim() > 1
        assert narrow[name].dtype == (torch.bfloat16 if frozen_matrix else torch.float32), name
        assert torch.equal(narrow[name].float(), value), name
    # Half of the memory of the frozen weights.
    sizes = [sum(v.nbytes for k, v in state.items() if "audio" not in k) for state in (narrow, wide)]
    assert sizes[0] < 0.51 * sizes[1]


@pytest.mark.slow
def test_text_logits_are_the_backbones(runs):
    found = SplitLM.from_backbone(runs / "backbone", 1, 128).eval()
    start = SplitLM.from_backbone(runs / "backbone", 1, 128).eval()
    found.load_state_dict(
        {k.removeprefix("lm."): v for k, v in newest(runs / "bfloat16")["state_dict"].items()}
    )
    rows = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(start(rows).text_logits, found(rows).text_logits)


@pytest.mark.nightly
def test_the_next_stage_takes_them_from_the_same_backbone_in_another_dtype(runs):
    (source,) = (runs / "left out/runs/tiny").iterdir()
    fit(
        runs / "next", recipe(runs / "next", 10, stages=[{"policy": "shared"}], init_from=str(source), lr=0.0)
    )
    assert newest(runs / "next")["state_dict"].keys() == newest(runs / "float32")["state_dict"].keys()


@pytest.mark.slow
def test_a_resume_takes_them_from_the_backbone(runs):
    fit(runs / "left out", recipe(runs / "left out", 12, frozen_dtype="bfloat16", save_frozen=False),
        "--ckpt_path", "last")  # fmt: skip


def test_replies_of_a_run_with_frozen_bfloat16(runs):
    """Replies are made without autocast, which multiplied weights of both dtypes in training."""
    for name in ("bfloat16", "left out"):
        config = yaml.safe_load((runs / name / "conf.yaml").read_text())
        module = split_llm.SplitLLM(**config["model"]["init_args"])
        run = trainer("auto", precision="bf16-mixed")
        run.state.fn = TrainerFn.PREDICTING
        form = SplitLM.from_backbone(runs / "backbone", 1, 128).format
        run.datamodule = SimpleNamespace(format=form)  # pyright: ignore
        module.trainer = run
        module.configure_model()
        checkpoint = dict(newest(runs / name))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        with torch.autocast("cpu", torch.bfloat16):
            assert module.lm.eval().generate([5, 6, 7], "speech", max_new_tokens=4, greedy=True)


@pytest.mark.slow
def test_another_backbone_is_refused(runs, tmp_path, capsys):
    (source,) = (runs / "left out/runs/tiny").iterdir()
    config = recipe(tmp_path / "run", 10, init_from=str(source))
    weights = tmp_path / "backbone/model.safetensors"
    other = load_file(weights)
    other["model.norm.weight"] += 0.5
    save_file(other, weights, metadata={"format": "pt"})
    fit(tmp_path / "run", config, expected=2)
    assert "give the same backbone" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_frozen_bfloat16_needs_autocast(tmp_path, capsys):
    fit(tmp_path / "run", recipe(tmp_path / "run", 1, "32-true", frozen_dtype="bfloat16"), expected=2)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "trainer.precision 32-true: expected bf16-mixed" in line


def test_frozen_weights_are_hashed_once_a_run(runs):
    found = checkpoints(runs / "left out")
    assert len(found) >= 2
    assert (runs / "hashed").read_text() == "1"
    assert len({json.dumps(c["frozen"], sort_keys=True) for c in found.values()}) == 1
