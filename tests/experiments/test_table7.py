"""The ablation's recipes: the same rows for all, and a table with deviations."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.studies import table7
from lit_moss.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]


def options(tmp_path) -> table7.Options:
    return table7.Options(
        speech=str(tmp_path),
        text=str(tmp_path / "t.txt"),
        stage1_steps=6,
        stage2_steps=4,
        items=8,
        run_root=str(tmp_path / "runs"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({k for stages in table7.RECIPES.values() for k in stages}))
def test_every_recipe_parses_and_sees_the_same_data(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(ROOT)
    config = table7.recipe(kind, 3, options(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", str(path), "--print_config"])
    assert done.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    data = resolved["data"]["init_args"]
    assert data["seed"] == resolved["seed_everything"] == 3
    second = kind.startswith("stage2")
    assert data["first_batch"] == (6 if second else 0)
    assert resolved["trainer"]["max_steps"] == {"stage1": 6, "nf": 10, "nf_nosplit": 10}.get(kind, 4)
    assert (resolved["model"]["init_args"]["init_from"] is not None) == second


@pytest.mark.parametrize("kind", ["stage1", "stage2_shared", "nf", "nf_nosplit"])
def test_codes_start_at_the_codebook_and_learn_faster_where_a_recipe_begins(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(ROOT)
    chosen = options(tmp_path)
    chosen.init_codes, chosen.code_rate = "codebook", 3.0
    (tmp_path / "train").mkdir()
    (tmp_path / "train/manifest.jsonl").touch()  # as a chain leaves it
    config = table7.recipe(kind, 1, chosen)
    init = config["model"]["init_args"]
    assert init.get("init_codes", "random") == ("random" if kind == "stage2_shared" else "codebook")
    factors = {} if kind == "nf_nosplit" else {"audio_embedding": 3.0, "audio_head": 3.0}
    assert init.get("lr_factors", {}) == factors
    interleaved = config["data"]["init_args"]["parts"][0]["init_args"]
    assert interleaved["train"] == [str(tmp_path / "train/manifest.jsonl")]
    assert interleaved["validation"] == [str(tmp_path / "validation.jsonl")]


def test_the_table_has_mean_and_deviation():
    before = dict.fromkeys(table7.COLUMNS.values(), 2.0)
    values = {"NF": [dict.fromkeys(before, 1.0), dict.fromkeys(before, 3.0)]}
    text = table7.table(before, values)
    assert "| before | – | 2 | 2 | 2 | 2 | 2 |" in text
    assert "| NF | 2 | 2 ± 1.4 |" in text
    assert table7.picture(before, values).axes


@pytest.mark.nightly
def test_missing_speech_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.studies.table7", "--speech", str(tmp_path), "--text", "none.txt"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("error: no manifest")


def test_a_mistake_in_an_option_is_one_line(capsys):
    assert table7.main(["--speech", "a", "--text", "b", "--seeds", "1"]) == 2
    assert capsys.readouterr().out.startswith("error: seeds is '1', expected a list [a whole number, …]")
