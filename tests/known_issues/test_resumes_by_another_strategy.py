"""Resuming by another strategy than the one that wrote the checkpoint ended in a traceback with exit code 1.

A folder of FSDP2 on one device was a KeyError of Lightning, a file under FSDP2 a RuntimeError of torch. The
DeepSpeed machine parts on a CPU were one too.
"""

from importlib.util import find_spec

import launch
import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit
from sharded import settings

needs_deepspeed = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the extra deepspeed")


def recipe(folder, strategy=None, steps=2):
    path = lm_recipe(folder, steps)
    config = yaml.safe_load(path.read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.Checkpoint":
            callback["init_args"]["every_n_steps"] = 2
    if strategy:
        config["trainer"]["strategy"] = settings(strategy)
    path.write_text(yaml.safe_dump(config))
    return path


def refused(folder, strategy, checkpoint, capsys):
    """The line with which a resume from a checkpoint is refused."""
    capsys.readouterr()
    fit(folder, recipe(folder, strategy, 4), "--ckpt_path", str(checkpoint), expected=2)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "Traceback" not in line
    return line


@pytest.mark.slow
def test_a_file_is_refused_by_sharded_strategies(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(folder, recipe(folder), "--run_name", "first")
    checkpoint = folder / "runs/tiny/first/checkpoints/step-0000002.ckpt"
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for strategy, name in (("fsdp2", "FSDP2"), ("deepspeed_2", "DeepSpeed ZeRO-2")):
        if strategy == "fsdp2" or find_spec("deepspeed"):
            line = refused(folder, strategy, checkpoint, capsys)
            assert f"written by one device or DDP, this run's strategy is {name}" in line
            assert "conf/trainer/ddp.yaml" in line
            assert f"--model.init_args.init_from {checkpoint}" in line
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == files  # nothing lost, nothing begun
    fit(folder, recipe(folder, None, 4), "--ckpt_path", str(checkpoint))


@pytest.mark.nightly
def test_shards_are_refused_by_other_strategies(tmp_path, capsys):
    strategies = ["fsdp2", *(["deepspeed_2", "deepspeed_3"] if find_spec("deepspeed") else [])]
    checkpoints = {}
    for strategy in strategies:
        folder = tmp_path / strategy
        path = recipe(folder, strategy)
        done = launch.run(folder, "fit", "-c", str(path), "--run_name", "first")
        assert done.returncode == 0, done.stderr[-4000:]
        checkpoints[strategy] = folder / "runs/tiny/first/checkpoints/step-0000002.ckpt"
        assert checkpoints[strategy].is_dir()
    for wrote, checkpoint in checkpoints.items():
        for other in [None, *strategies]:
            if other != wrote:
                line = refused(tmp_path / wrote, other, checkpoint, capsys)
                assert f"resume with conf/trainer/{wrote}.yaml" in line
                assert f"--model.init_args.init_from {checkpoint}" in line
    # As the message says: the same strategy, or a new run.
    for wrote, checkpoint in checkpoints.items():
        folder = tmp_path / wrote
        done = launch.run(folder, "fit", "-c", str(recipe(folder, wrote, 4)), "--ckpt_path", str(checkpoint))
        assert done.returncode == 0, done.stderr[-4000:]
        start = ("--model.init_args.init_from", str(checkpoint), "--run_name", "second")
        fit(folder, recipe(folder, None, 2), *start)


@pytest.mark.nightly
def test_a_file_that_fsdp2_gathered_resumes_on_one_device_and_under_fsdp2(tmp_path):
    folder = tmp_path / "run"
    path = recipe(folder, "fsdp2")
    one_file = ("--trainer.strategy.init_args.save_distributed_checkpoint", "false")
    done = launch.run(folder, "fit", "-c", str(path), "--run_name", "first", *one_file)
    assert done.returncode == 0, done.stderr[-4000:]
    checkpoint = folder / "runs/tiny/first/checkpoints/step-0000002.ckpt"
    assert checkpoint.is_file()
    for name, strategy in (("one", None), ("sharded", "fsdp2")):
        words = ("--ckpt_path", str(checkpoint), "--name", name)
        done = launch.run(folder, "fit", "-c", str(recipe(folder, strategy, 4)), *words)
        assert done.returncode == 0, done.stderr[-4000:]


@needs_deepspeed
def test_deepspeed_on_a_cpu_is_one_line(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ("-c", "conf/trainer/deepspeed_2.yaml", "--trainer.accelerator", "cpu")
    fit(folder, lm_recipe(folder, 2), *words, expected=2)
    assert "DeepSpeedStrategy on accelerator cpu, expected CUDA GPUs" in capsys.readouterr().err
    assert not (folder / "runs").exists()
