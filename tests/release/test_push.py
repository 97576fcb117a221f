"""Uploads to a hub that speaks HTTP on this machine; the library is the real one, in a process of its own:
it reads HF_ENDPOINT when it is imported."""

import os
import subprocess
import sys

import pytest
from hub_server import READER, TOKEN, Hub
from lm_recipe import backbone_folder

from lit_moss.llm import SplitLM

PROGRAM = """
import sys
from pathlib import Path
from lit_moss.errors import UserError
from lit_moss.release.push import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], private=sys.argv[3] == "private"))
except UserError as error:
    print("UserError:", error)
"""


def push(folder, repo="me/model", token=TOKEN, endpoint="", visible="private", **variables) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hf_home"),
                    "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    environment |= {"HF_TOKEN": token} if token else {}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), repo, visible],
        capture_output=True, text=True, timeout=120, env=environment | variables,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("push")
    SplitLM.from_backbone(backbone_folder(place / "backbone"), 1, 128).save_pretrained(place / "model")
    return place / "model"


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_pushed_repository_holds_the_folder_in_one_commit(model):
    (model / "model.safetensors.lock").write_text("")
    (model / ".cache").mkdir(exist_ok=True)
    (model / ".cache" / "x").write_text("")
    with Hub() as hub:
        assert push(model, endpoint=hub.address) == f"{hub.address}/me/model/commit/{1:040x}"
        expected = {n: c for n, c in files_of(model).items() if not n.endswith(".lock") and ".cache" not in n}
        assert hub.repos["me/model"] == expected
        assert hub.private["me/model"]
        assert hub.commits == ["model, by lit_moss"]


def test_pushing_again_sends_no_weights_and_deletes_those_of_before(model):
    with Hub() as hub:
        push(model, endpoint=hub.address, visible="public")
        assert not hub.private["me/model"]
        sent = hub.sent
        hub.repos["me/model"] |= {"model-00001-of-00002.safetensors": b"old", "notes.md": b"theirs"}
        push(model, endpoint=hub.address)
        assert hub.sent == sent
        assert "model-00001-of-00002.safetensors" not in hub.repos["me/model"]
        assert hub.repos["me/model"]["notes.md"] == b"theirs"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": None}, "no token for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN"),
        ({"token": "hf_wrong"}, "401: Invalid username or password.): the token is not valid"),
        ({"token": READER}, "the token has no right to write there"),
        ({"repo": "model"}, "the repository is 'model', expected owner/name"),
        ({"repo": "me/no--thing.."}, "does not take the name 'me/no--thing..'"),
        ({"HF_HUB_OFFLINE": "1"}, "does not answer"),
        ({"endpoint": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
    ],
)
def test_what_hinders_a_push_is_one_line(model, options, words):
    with Hub() as hub:
        output = push(model, **({"endpoint": hub.address} | options))
        assert output.startswith("UserError:")
        assert "\n" not in output
        assert words in output
        assert not hub.repos


def test_a_folder_that_is_no_model_is_not_pushed(tmp_path):
    (tmp_path / "empty").mkdir()
    with Hub() as hub:
        assert "holds no config.json" in push(tmp_path / "empty", endpoint=hub.address)
