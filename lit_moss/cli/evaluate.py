"""Benchmarks of what was trained; each writes a table a clip and its means, here and into MLflow.

python -m lit_moss evaluate resynthesis -c conf/evaluate/resynthesis.yaml [--set KEY=VALUE …]
"""

import argparse
import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.runs.recipes import read_yaml

# name -> module with a dataclass `Config` and run(config)
BENCHMARKS = {"resynthesis": "lit_moss.evaluate.resynthesis"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("benchmark", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("-c", "--config", required=True, type=Path, help="its YAML")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="keys",
        help="keys of the YAML: --set limit=20 codec=runs/flow_decoder",
    )  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """Runs one benchmark."""
    if args.benchmark not in BENCHMARKS:
        raise UserError(f"no benchmark {args.benchmark!r}, expected one of {', '.join(BENCHMARKS)}")
    module = importlib.import_module(BENCHMARKS[args.benchmark])
    module.run(read_config(module.Config, args.config, args.keys))


def read_config(kind: type, file: Path, keys: list[str]) -> Any:
    """The benchmark's options from a YAML and `KEY=VALUE` words.

    Raises:
        UserError: for a key it does not know, or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    content = read_yaml(file)
    known = [f.name for f in fields(kind)]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), content, OmegaConf.from_dotlist(keys))
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}; known keys: {', '.join(known)}") from error
