"""A model in a folder kept its split whatever the recipe said, and the record held what the recipe said."""

import pytest
import yaml
from lm_recipe import backbone_folder, documents_folder, lm_recipe

from lit_moss.cli.main import main
from lit_moss.data.documents import read_documents
from lit_moss.llm import SplitLM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stated", "code"),
    [
        ({"num_modality_layers": 1}, 2),
        ({"num_modality_layers": 2}, 0),
        ({"num_modality_layers": None}, 0),
        ({"num_modality_layers": None, "joint": True}, 2),
    ],
)
def test_another_split_is_refused_and_none_takes_the_folders(tmp_path, monkeypatch, capsys, stated, code):
    backbone = backbone_folder(tmp_path / "backbone")
    form = read_documents(documents_folder(tmp_path / "interleaved-train", backbone, "interleaved")).format
    SplitLM.from_backbone(backbone, 2, 128, row_format=form).save_pretrained(tmp_path / "folder")
    path = lm_recipe(tmp_path / "run", 1, stages=[{"policy": "full"}], init_from=str(tmp_path / "folder"))
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] |= stated
    path.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(path.parent)
    assert main(["fit", "-c", str(path)]) == code
    refused = "has 2 and False: a model in a folder keeps its split" in capsys.readouterr().err
    assert refused == (code == 2)
