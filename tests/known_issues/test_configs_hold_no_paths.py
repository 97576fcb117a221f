"""The config.json of a saved model named the folder that its backbone was read from."""

from lm_recipe import backbone_folder

from lit_moss.llm import SplitLM


def test_saved_config_does_not_name_the_folder_of_the_backbone(tmp_path):
    SplitLM.from_backbone(backbone_folder(tmp_path / "backbone"), 1, 128).save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
