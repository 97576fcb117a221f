"""Text benchmarks of lm-eval (EleutherAI's harness) on the model's text path: MMLU, CMMLU, any task.

Tasks are named as in lm-eval (`mmlu`, `cmmlu`, patterns such as `mmlu_*`), or are YAML files. The package
includes `everyday_choices`, 20 questions with four choices, which needs no download.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_moss.errors import UserError, first_line
from lit_moss.evaluate.evaluation import Evaluation, markdown_table, wilson
from lit_moss.evaluate.task_files import files_of_tasks
from lit_moss.evaluate.text_model import open_text_model

EXTRA = "text benchmarks need lm-eval: pip install 'lit-moss[evaluate]'"
TASKS = Path(__file__).parent / "tasks"
_ITERATIONS = 100  # for lm-eval's bootstrap, for metrics that are not means


@dataclass
class Config:
    """Options of the text benchmarks.

    Args:
        model: Model: a run, a checkpoint, a folder in the released layout, a hub id, or for comparison a text
            backbone such as embedded:smollm2-135m.
        tasks: Names of lm-eval's tasks and groups, patterns of them, or YAML files of tasks.
        task_folders: Folders with additional tasks, which replace those of the same name.
        num_fewshot: Number of examples before each question. null: each task's own number. 5 is usual for
            MMLU and CMMLU, whose own number is 0.
        chat_template: Present questions as turns of a conversation. Do not use it for MMLU.
        system: System prompt; requires `chat_template`.
        fewshot_as_multiturn: Present the examples as separate turns; requires `chat_template`.
        limit: Number of questions per task, from the first. null: all.
        seed: Seed for drawing examples, and for tasks that sample.
        dtype: Data type of the weights; log-probabilities and sums are always float32 or wider.
        batch_size: Number of requests computed together; a question with four choices is four requests.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Start over if results exist.
    """

    model: str
    tasks: list[str] = field(default_factory=lambda: ["everyday_choices"])
    task_folders: list[str] = field(default_factory=list)
    num_fewshot: int | None = None
    chat_template: bool = False
    system: str | None = None
    fewshot_as_multiturn: bool = True
    limit: int | None = None
    seed: int = 1234
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 32
    device: str = "auto"
    name: str = "text"
    run_root: str = "runs"
    again: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("tasks is [], expected names of tasks, such as everyday_choices")
        for key in ("limit", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key} is {value}, expected 1 or more")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"num_fewshot is {self.num_fewshot}, expected 0 or more")
        if self.system is not None and not self.chat_template:
            raise UserError("system is given, but chat_template is false: set chat_template to true")


def run(config: Config) -> dict[str, float]:
    """Runs all tasks; returns and writes their metrics.

    Raises:
        UserError: if the model or a task cannot be opened, or lm-eval is missing.
    """
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise UserError(EXTRA) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    local = [task for task in config.tasks if Path(task).is_file()]
    tasks_from = [*local, *config.task_folders]
    sources = [config.model, *tasks_from, *files_of_tasks(tasks_from)]
    with Evaluation("text", config, sources, config.again) as evaluation:
        if (known := evaluation.done()) is not None:
            return known
        tasks, manager = load_tasks(config.tasks, config.task_folders)
        from lit_moss.evaluate.lm_eval_model import LitMossLM

        lm, tokenizer, form = open_text_model(config.model, config.device, config.dtype)
        model = LitMossLM(
            lm, tokenizer, evaluation, config.batch_size, Path(config.model).name, form, config.seed
        )
        simple_evaluate: Any = lm_eval.simple_evaluate  # imported lazily there, with another signature
        results = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            bootstrap_iters=_ITERATIONS,
            apply_chat_template=config.chat_template,
            system_instruction=config.system,
            fewshot_as_multiturn=config.fewshot_as_multiturn,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
        assert results is not None
        return evaluation.finish(*summary(config, results))


# --- tasks --------------------------------------------------------------------------------------------------


def load_tasks(names: Sequence[str], folders: Sequence[str] = ()) -> tuple[list[Any], Any]:
    """Loads tasks and groups of lm-eval with their data; also returns the manager that found them.

    lm-eval's own thousands of tasks are searched only if a name is not among the local ones.

    Args:
        names: Names, patterns or YAML files.
        folders: Folders with additional tasks.

    Raises:
        UserError: if a name does not exist, or data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"no folder {folder}: task_folders expects folders with lm-eval tasks (.yaml)")
    include: list[str | Path] = [TASKS, *folders]
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(_known(manager, name) for name in names) or any(
        name in manager.all_groups or name in manager.all_tags or Path(name).is_file() for name in names
    ):
        manager = TaskManager(include_path=include)
    chosen: list[str] = []
    for name in names:
        matches = [name] if _is_yaml(name) else manager.match_tasks([name])
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f": did you mean {', '.join(near)}?" if near else ", expected a name of lm-eval or a YAML"
            raise UserError(f"no task {name!r}{hint}")
        chosen += [match for match in matches if match not in chosen]
    try:
        loaded = manager.load(chosen)
    except Exception as error:  # lm-eval and datasets raise many kinds
        raise UserError(
            f"the data of {', '.join(names)} cannot be loaded ({type(error).__name__}: {first_line(error)}): "
            "without a network give local copies, see conf/evaluate/text.yaml"
        ) from error
    groups = loaded.get("groups", {})
    inside = {child for group in groups.values() for child in group.child_names}
    tops = [group for name, group in groups.items() if name not in inside]
    in_groups = {task.task_name for group in tops for task in group.get_all_tasks()}
    return [*tops, *(task for name, task in loaded["tasks"].items() if name not in in_groups)], manager


def _is_yaml(name: str) -> bool:
    return Path(name).suffix.lower() in (".yaml", ".yml")


def _known(manager: Any, name: str) -> bool:
    if _is_yaml(name) and not Path(name).is_file():
        raise UserError(f"no file {name}: tasks expects names of lm-eval's tasks or YAML files")
    return _is_yaml(name) or name in manager.all_tasks


# --- report -------------------------------------------------------------------------------------------------


def summary(
    config: Config, results: Mapping[str, Any]
) -> tuple[dict[str, float], str, list[dict[str, Any]], dict[str, Any]]:
    """Metrics, report, a row per question, and figures, from lm-eval's results."""
    metrics: dict[str, float] = {}
    lines: list[dict[str, Any]] = []
    everything = {**results["results"], **results.get("groups", {})}
    for task, values in everything.items():
        n = _size(results, task)
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = metric if kind == "none" else f"{metric}-{kind}"
            metrics[f"{task}/{name}"] = float(value)
            error = values.get(f"{metric}_stderr,{kind}")
            lines.append(
                {
                    "task": task,
                    "n": n,
                    "shots": results.get("n-shot", {}).get(task),
                    "metric": name,
                    "value": float(value),
                    "95 %": _interval(metric, float(value), error, n),
                }
            )
        if n is not None:
            metrics[f"{task}/n"] = n
    table = [row for task, samples in results.get("samples", {}).items() for row in _rows(task, samples)]
    chat = "turns of a conversation" if config.chat_template else "plain text"
    report = (
        f"# Text: {config.model}\n\n{markdown_table(lines)}\n"
        f"lm-eval {_version()}; questions as {chat}; text head over words alone; weights {config.dtype}."
        f"{f' The first {config.limit} questions of each task.' if config.limit else ''}\n"
    )
    return metrics, report, table, {"tasks.png": _bars(lines)} if lines else {}


def _size(results: Mapping[str, Any], task: str) -> int | None:
    """Number of questions of a task, or of all tasks of a group."""
    sizes = results.get("n-samples", {})
    if task in sizes:
        return int(sizes[task]["effective"])
    parts = [_size(results, child) for child in results.get("group_subtasks", {}).get(task, [])]
    known = [size for size in parts if size is not None]
    return sum(known) if known else None


def _interval(metric: str, value: float, error: Any, n: int | None) -> str:
    """95 % interval: Wilson's for a fraction of right answers, otherwise from lm-eval's standard error."""
    if metric in ("acc", "acc_norm", "exact_match") and n:
        low, high = wilson(value * n, n)
    elif isinstance(error, int | float):
        low, high = value - 1.96 * error, value + 1.96 * error
    else:
        return ""
    return f"{low:.3f} to {high:.3f}"


def _rows(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for sample in samples:
        answers = [str(answer)[:200] for answer in sample["filtered_resps"]]
        values = {m: sample[m] for m in sample["metrics"] if isinstance(sample[m], int | float)}
        head = {"task": task, "question": sample["doc_id"], "target": str(sample["target"])[:200]}
        rows.append({**head, "filter": sample["filter"], "answers": " | ".join(answers), **values})
    return rows


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _bars(lines: Sequence[Mapping[str, Any]]) -> Any:
    """A bar per task and metric."""
    from matplotlib.figure import Figure  # without pyplot, which opens windows and keeps figures

    shown = [line for line in lines if 0 <= line["value"] <= 1]
    figure = Figure(figsize=(7, 1 + 0.25 * max(1, len(shown))))
    axes = figure.add_subplot()
    axes.barh([f"{line['task']} {line['metric']}" for line in shown], [line["value"] for line in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("value")
    figure.tight_layout()
    return figure
