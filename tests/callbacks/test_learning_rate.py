"""Rates of groups by step: courses, factors, refusals, and a resume that starts from any step."""

from types import SimpleNamespace

import pytest
import torch

from callbacks import LearningRateSchedule, SchedulePicture
from lit_moss.errors import UserError
from lit_moss.schedule import rate_factor

NAMES = ["trunk.0", "trunk.0.no_decay", "trunk.1", "audio_tail", "audio_tail.no_decay", "text_norm.no_decay"]


def trainer_of(*callbacks, max_steps=10):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": n, "base_lr": 0.2} for n in NAMES]
    optimizer = torch.optim.AdamW(groups, lr=0.2)
    return SimpleNamespace(callbacks=callbacks, optimizers=[optimizer], max_steps=max_steps, global_step=0)


def rates(schedule, trainer, steps):
    schedule.on_fit_start(trainer, None)
    found = []
    for trainer.global_step in steps:
        schedule.on_train_batch_start(trainer, None, None, 0)
        found.append({g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})
    return found


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_every_group_follows_the_course_from_its_own_base_rate(kind):
    schedule = LearningRateSchedule(3, floor=0.1, kind=kind)
    trainer = trainer_of(schedule)
    trainer.optimizers[0].param_groups[3]["base_lr"] = 0.5
    for step, found in enumerate(rates(schedule, trainer, range(12))):
        factor = rate_factor(kind, step, 3, 10, 0.1)
        assert found == {n: (0.5 if n == "audio_tail" else 0.2) * factor for n in NAMES}


def test_the_default_is_the_warmed_up_cosine_to_a_fiftieth():
    schedule = LearningRateSchedule()
    found = rates(schedule, trainer_of(schedule, max_steps=300), [0, 99, 200, 300])
    wanted = [0.2 / 100, 0.2, 0.2 * (0.02 + 0.98 / 2), 0.2 * 0.02]
    assert [f["trunk.1"] for f in found] == pytest.approx(wanted, rel=1e-14)


def test_total_steps_outranks_the_runs_length():
    schedule = LearningRateSchedule(0, total_steps=4, floor=0.0)
    assert rates(schedule, trainer_of(schedule, max_steps=-1), [2, 4])[0]["trunk.0"] == pytest.approx(0.1)


def test_factors_find_parts_with_their_norms_and_multiply():
    groups = {"trunk": 0.5, "trunk.1": 3.0, "audio_tail": 2.0, "*_norm": 0.0}
    schedule = LearningRateSchedule(0, kind="constant", groups=groups)
    (found,) = rates(schedule, trainer_of(schedule), [5])
    assert found == pytest.approx(dict(zip(NAMES, [0.1, 0.1, 0.3, 0.4, 0.4, 0.0], strict=True)), rel=1e-14)


def test_a_resumed_run_goes_on_at_any_step():
    whole = LearningRateSchedule(3, kind="linear")
    wanted = rates(whole, trainer_of(whole), range(10))
    for start in range(10):
        again = LearningRateSchedule(3, kind="linear")
        trainer = trainer_of(again)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 123.0  # what a checkpoint left there
        assert rates(again, trainer, range(start, 10)) == wanted[start:]


def test_a_frozen_group_has_rate_0():
    schedule = LearningRateSchedule(0)
    trainer = trainer_of(schedule)
    trainer.optimizers[0].param_groups[2]["frozen"] = True
    (found,) = rates(schedule, trainer, [1])
    assert [n for n, rate in found.items() if rate == 0] == ["trunk.1"]


@pytest.mark.parametrize(
    ("options", "max_steps", "message"),
    [
        (
            {"groups": {"tail": 2.0}},
            10,
            "'tail' fits none of the groups trunk.0, trunk.1, audio_tail, text_norm",
        ),
        ({}, -1, "needs the run's length"),
    ],
)
def test_mistakes_are_refused_at_the_start(options, max_steps, message):
    schedule = LearningRateSchedule(**options)
    with pytest.raises(UserError, match=message):
        schedule.on_fit_start(trainer_of(schedule, max_steps=max_steps), None)


@pytest.mark.parametrize("options", [{"warmup_steps": -1}, {"floor": 1.5}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(UserError, match="expected"):
        LearningRateSchedule(**options)


def test_the_picture_shows_every_part_once_with_the_rates_to_come():
    schedule = LearningRateSchedule(2, kind="linear", floor=0.0)
    trainer = trainer_of(schedule)
    schedule.on_fit_start(trainer, None)
    figure = SchedulePicture(points=10).figure(trainer, SimpleNamespace(), schedule)
    (axes,) = figure.axes
    assert len(axes.lines) == 4  # trunk.0, trunk.1, audio_tail, text_norm
    for line in axes.lines:
        steps, values = line.get_data()
        assert list(steps) == list(range(11))
        assert list(values) == [0.2 * rate_factor("linear", s, 2, 10, 0.0) for s in range(11)]
