"""A resumed run equals the uninterrupted one to the bit, for the speech tokenizer."""

import pytest
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, recipe, seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """20 steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, recipe(folder, corpus, 20))
    return folder


def assert_same_run(folder, whole):
    ours, theirs = checkpoints(folder)["step-0000020.ckpt"], checkpoints(whole)["step-0000020.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "global_step", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(folder) == curves(whole)
    assert seen(folder)[-1] == seen(whole)[-1]


@pytest.mark.nightly
def test_the_whole_run_covers_the_quantized_part(whole):
    state = checkpoints(whole)["step-0000020.ckpt"]["state_dict"]
    assert state["codebook_ready"]
    assert state["updates"] == 13  # steps 7 to 19


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 10])
def test_resume_equals_uninterrupted_run(tmp_path, corpus, whole, stop):
    fit(tmp_path, recipe(tmp_path, corpus, stop))
    fit(tmp_path, recipe(tmp_path, corpus, 20), "--ckpt_path", "last")
    assert_same_run(tmp_path, whole)
    assert [s for s, _ in seen(tmp_path)] == list(range(1, 21))


@pytest.mark.nightly
def test_resume_equals_uninterrupted_run_with_gradient_accumulation(tmp_path, corpus):
    changes = {"trainer__accumulate_grad_batches": 2}
    for folder, stops in ((tmp_path / "whole", [20]), (tmp_path / "parts", [5, 20])):
        for stop in stops:
            config = recipe(folder, corpus, stop, **changes)
            fit(folder, config, *([] if stop == stops[0] else ["--ckpt_path", "last"]))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.nightly
def test_two_resumes_in_one_epoch_at_its_end_and_after_the_last_step(tmp_path, corpus, whole):
    # 5 and 10 lie inside epochs, 15 behind a validation at 8 and before the one at 16; 20 is the last step.
    for stop in (5, 10, 15, 20, 20):
        ckpt = ["--ckpt_path", "last"] if stop > 5 else []
        fit(tmp_path, recipe(tmp_path, corpus, stop), *ckpt)
    assert_same_run(tmp_path, whole)
    assert seen(tmp_path) == seen(whole)


@pytest.mark.nightly
def test_every_sample_once_per_epoch(whole, corpus):
    order, per_epoch = seen(whole), {}
    first = [ids for _, ids in order]
    n = 0
    while n < len(first) and len(per_epoch) < 22:
        for name in first[n]:
            assert name not in per_epoch
            per_epoch[name] = n
        n += 1
    assert len(per_epoch) == 22


@pytest.mark.slow
def test_killed_between_saves_continues_the_same_mlflow_run(tmp_path, corpus, whole):
    killed = recipe(tmp_path, corpus, 20, **{
        "trainer__callbacks+": [{"class_path": "recording.KillAt", "init_args": {"step": 12}}]})  # fmt: skip
    done = fit_in_process(tmp_path, killed)
    assert done.returncode == -9, done.stderr[-2000:]
    assert "step-0000010.ckpt" in checkpoints(tmp_path)
    done = fit_in_process(tmp_path, recipe(tmp_path, corpus, 20), "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path, whole)  # `curves` takes the only run there is, each step of each metric once


@pytest.mark.nightly
def test_killed_before_the_first_save_starts_again_in_the_same_run(tmp_path, corpus, whole):
    killed = recipe(tmp_path, corpus, 20, **{
        "trainer__callbacks+": [{"class_path": "recording.KillAt", "init_args": {"step": 3}}]})  # fmt: skip
    assert fit_in_process(tmp_path, killed).returncode == -9
    done = fit_in_process(tmp_path, recipe(tmp_path, corpus, 20), "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "starting it again from step 0" in done.stderr
    assert_same_run(tmp_path, whole)


@pytest.mark.nightly
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, corpus, whole, capsys):
    fit(tmp_path, recipe(tmp_path, corpus, 10))
    (newest,) = tmp_path.glob("runs/tiny/*/checkpoints/step-0000010.ckpt")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    fit(tmp_path, recipe(tmp_path, corpus, 20), "--ckpt_path", "last")
    assert "damaged" in capsys.readouterr().err
    assert_same_run(tmp_path, whole)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(tmp_path, corpus, whole, workers):
    fit(tmp_path, recipe(tmp_path, corpus, 20, data__init_args__workers=workers))
    assert_same_run(tmp_path, whole)


@pytest.mark.nightly
def test_one_rank_two_ranks_and_back_see_every_sample_in_the_order(tmp_path, corpus, whole):
    two = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__val_check_interval": 100}
    one = {"trainer__val_check_interval": 100}
    fit(tmp_path, recipe(tmp_path, corpus, 5, **one))
    first = seen(tmp_path)
    done = fit_in_process(tmp_path, recipe(tmp_path, corpus, 10, **two), "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [(tmp_path / f"ids.{rank}").read_text().splitlines() for rank in (0, 1)]
    ranks = [line for pair in zip(lines[0][5:], lines[1], strict=True) for line in pair]
    (tmp_path / "ids.0").unlink()
    fit(tmp_path, recipe(tmp_path, corpus, 15, **one), "--ckpt_path", "last")
    import json

    ids = [i for _, i in first] + [json.loads(line)[1] for line in ranks] + [i for _, i in seen(tmp_path)]
    assert ids == [i for _, i in seen(whole)]
    assert len(curves(tmp_path)["train/loss"]) == 15  # one MLflow run of all three parts, two ranks included


@pytest.mark.nightly
def test_resume_on_other_data_is_refused(tmp_path, corpus, capsys):
    fit(tmp_path, recipe(tmp_path, corpus, 5))
    other = recipe(tmp_path, corpus, 10, data__init_args__seed=99)
    fit(tmp_path, other, "--ckpt_path", "last", expected=2)
    assert "fingerprint" in capsys.readouterr().err.splitlines()[-1]
