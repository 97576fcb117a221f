"""`python killing.py FOLDER prepare …`: the command line, whose process kills itself once in some stages.

FOLDER holds `kill.json`: the steps to be killed in, each with a number. A stage that runs unit by unit is
killed after that many units of this process have run, before the engine has heard of the last: the stage's
own files are there. One that needs all items is killed in the middle, counted in calls of our functions;
`FOLDER/STEP.calls` says how many there are, and is written where the step runs to its end.
`FOLDER/STEP.killed` is left behind. The process has a group of its own, as in a terminal; workers take part.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lit_moss.prepare.stage import WholeStage
from lit_moss.prepare.step import Step

FOLDER = Path(sys.argv[1])
KILL_AT: dict[str, int] = json.loads((FOLDER / "kill.json").read_text())
_build = Step.build


def build(self: Step) -> Any:
    step, stage = self, _build(self)
    if isinstance(stage, WholeStage):
        _kill_in_the_middle(step, stage)
    elif step.name in KILL_AT:
        _kill_after_a_unit(step, stage)
    return stage


def _kill(step: Step) -> None:
    (FOLDER / f"{step.name}.killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def _is_due(step: Step) -> bool:
    return step.name in KILL_AT and not (FOLDER / f"{step.name}.killed").exists()


def _kill_after_a_unit(step: Step, stage: Any) -> None:
    run, units = stage.run, []

    def run_and_kill(unit: Any) -> Any:
        result = run(unit)
        units.append(unit)
        if len(units) == KILL_AT[step.name] and _is_due(step):
            _kill(step)
        return result

    stage.run = run_and_kill


def _kill_in_the_middle(step: Step, stage: Any) -> None:
    run_all, file = stage.run_all, FOLDER / f"{step.name}.calls"
    middle = int(file.read_text()) // 2 if _is_due(step) else -1
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        if event == "call" and "/lit_moss/" in frame.f_code.co_filename:
            calls += 1
            if calls == middle:
                _kill(step)

    def run_all_and_kill(sources: Any) -> Any:
        sys.setprofile(count)
        try:
            return run_all(sources)
        finally:
            sys.setprofile(None)
            file.write_text(str(calls))

    stage.run_all = run_all_and_kill


Step.build = build

if __name__ == "__main__":
    from lit_moss.cli.main import main

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    sys.exit(main(sys.argv[2:]))
