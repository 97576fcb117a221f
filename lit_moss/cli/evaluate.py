"""Benchmarks of trained models.

Each writes a table with one row per clip, and the means, to a folder and to MLflow.

    python -m lit_moss evaluate NAME -c conf/evaluate/NAME.yaml [--KEY VALUE …]
    python -m lit_moss evaluate NAME --help      the keys of a benchmark
"""

import importlib
from collections.abc import Sequence

from lit_moss.errors import UserError

# Name -> module with a dataclass `Config` and `run(config)`.
_MODULES = (
    "cloze", "text", "spoken_qa", "modality_gap", "tokenizer_probe", "resynthesis", "paralinguistics"
)  # fmt: skip
BENCHMARKS = {name: f"lit_moss.evaluate.{name}" for name in _MODULES}


def main(words: Sequence[str]) -> None:
    """Runs a benchmark.

    Args:
        words: Name of the benchmark and its options.

    Raises:
        UserError: if the benchmark does not exist, or does not accept an option.
    """
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nNAME is one of {', '.join(BENCHMARKS)}.")
        return
    name, *options = words
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}, expected one of {', '.join(BENCHMARKS)}")
    from lit_moss.cli.yaml_options import OptionsParser

    module = importlib.import_module(BENCHMARKS[name])
    parser = OptionsParser(module.Config, f"python -m lit_moss evaluate {name}", module.__doc__)
    config, _ = parser.read(options)
    module.run(config)
