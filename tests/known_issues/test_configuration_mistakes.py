"""Mistakes in a configuration of `fit` were reported in the parser's words, with its types and all attempts.

`Parser key "model": Does not validate against any of the Union subtypes: Subtypes: [<class …`.
"""

import pytest
import yaml

from lit_moss.cli.main import main

pytestmark = pytest.mark.slow
MODULE = "lit_moss.modules.SplitLLM"


@pytest.fixture
def error_of(tmp_path, monkeypatch, capsys):
    """The one line that `fit` ends with for words and for a YAML over a recipe."""
    monkeypatch.chdir(tmp_path)

    def run(*words, recipe="conf/stage1.yaml", **over):
        (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
        capsys.readouterr()
        assert (
            main(["fit", *(["-c", recipe] if recipe else []), "-c", "over.yaml", *words, "--print_config"])
            == 2
        )
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return run


def test_unknown_options_are_named_with_those_that_exist(error_of):
    assert error_of(modle={"x": 1}) == "the configuration has no option 'modle', did you mean model?"
    assert error_of("--model.init_args.num_modality_layer", "3") == (
        "model has no option 'num_modality_layer', did you mean num_modality_layers?"
    )
    assert error_of(model={"init_args": {"lora": {"foo": 1}}}) == (
        "model.init_args.lora has no option 'foo', expected one of rank, alpha, dropout, parts, modules"
    )
    staged = {"class_path": "callbacks.StagedFreezing", "init_args": {"stage": []}}
    assert error_of(trainer={"callbacks": [staged]}) == (
        "trainer.callbacks has no option 'stage', did you mean stages?"
    )
    assert error_of(trainer={"max_stepz": 1}) == "trainer has no option 'max_stepz', did you mean max_steps?"
    line = error_of(trainer={"foo": 1})
    assert line.startswith("trainer has no option 'foo', expected one of accelerator, ")
    assert "max_steps" in line
    ddp = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"foo": 3}}
    line = error_of(trainer={"strategy": ddp})
    assert line.startswith("trainer.strategy has no option 'foo', expected one of accelerator, ")


def test_values_are_named_with_what_is_expected(error_of):
    assert error_of("--model.init_args.lr", "abc") == "model.init_args.lr is 'abc', expected a number"
    assert error_of("--model.init_args.init_codes", "zebra") == (
        "model.init_args.init_codes is 'zebra', expected one of random, codebook, text"
    )
    assert error_of("--model.init_args.betas", "7") == (
        "model.init_args.betas is '7', expected a list [a number, a number]"
    )
    assert error_of(model={"init_args": {"lora": {"rank": "x"}}}) == (
        "model.init_args.lora.rank is 'x', expected a whole number"
    )
    assert error_of("--trainer.max_steps", "five") == "trainer.max_steps is 'five', expected a whole number"
    assert error_of("--data.init_args.train", "x") == (
        "data.init_args.train is 'x', expected a list [text, …] or null"
    )
    line = error_of("--trainer.callbacks.LearningRateSchedule.init_args.warmup_steps", "few")
    assert line == "trainer.callbacks: warmup_steps is 'few', expected a whole number"


def test_classes_are_named_with_one_that_is_like_it(error_of):
    line = error_of("--model", MODULE[:-1])
    assert line.startswith(f"model names a class {MODULE[:-1]!r} that is not there (")
    assert line.endswith(f"; did you mean {MODULE}?")
    line = error_of(trainer={"callbacks": [{"class_path": "callbacks.StagedFreezin"}]})
    assert line.endswith("; did you mean callbacks.StagedFreezing?")


def test_the_yaml_of_another_verb(error_of):
    line = error_of(recipe="conf/sweep/split_depth.yaml")
    assert line.startswith("the configuration has no option '")
    assert "seed_everything, trainer, model, data, name, " in line


def test_stages_with_options_of_their_own_report_one_line(capsys):
    assert main(["prepare", "documents"]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: SOURCE, --kind (python -m lit_moss prepare documents "
        "--help lists the options)\n"
    )


def test_words_that_need_something_else(error_of):
    assert error_of("--model.init_args.lr", "1", recipe=None) == (
        "model has an option 'lr' but no class: expected a recipe before it, -c FILE, or a class_path"
    )
    assert error_of("trainer.max_steps=5") == (
        "unrecognized arguments: trainer.max_steps=5, expected -c FILE or --KEY VALUE, with a key of the YAML"
    )
