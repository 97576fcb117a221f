"""A variant of conf/studies/decoder.yaml had batches of 10 s for utterances of up to 20 s: the study ended
after its other runs. Parsing finds wrong keys and types; that values fit together is seen when data is made.
"""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from experiments.studies import variants
from lit_moss.cli.yaml_options import OptionsParser
from lit_moss.runs.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))
FITS = [p for p in YAMLS if "class_path" in (yaml.safe_load(p.read_text()).get("data") or ())]
STUDIES = [p for p in YAMLS if p.parent.name == "studies" and "variants:" in p.read_text()]


def make_data(config: dict) -> LightningDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": config["data"]}))["data"]


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("path", FITS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_data_of_every_recipe_can_be_made(path, at_root):
    assert isinstance(make_data(read_recipe([path])), LightningDataModule)


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_data_of_every_variant_can_be_made(path, at_root):
    study, _ = OptionsParser(variants.Options, "variants").read(["-c", str(path)])
    for name in study.variants:
        assert isinstance(make_data(study.recipe_of(name, study.seeds[0])), LightningDataModule), name
