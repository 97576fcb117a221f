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


def environment_of(place, endpoint) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return environment | {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hf_home"),
                          "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip


def push(folder, repo="me/model", token=TOKEN, endpoint="", visible="private", **variables) -> str:
    environment = environment_of(folder.parent, endpoint)
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


@pytest.mark.nightly
@pytest.mark.parametrize("visible", [[], ["--public"]])
def test_export_pushes_what_it_has_made_private_unless_asked(model, tmp_path, visible):
    with Hub() as hub:
        done = export(model, tmp_path / "out", hub.address, "--push-to-hub", "me/model", *visible)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub.address}/me/model/commit/{1:040x}"
        assert hub.repos["me/model"] == files_of(tmp_path / "out")
        assert hub.private["me/model"] == (not visible)


@pytest.mark.nightly
def test_a_card_that_the_hub_does_not_take_is_one_line(model, tmp_path):
    with Hub() as hub:
        words = ["--push-to-hub", "me/model", "--license", "not a licence"]
        done = export(model, tmp_path / "out", hub.address, *words)
        assert done.returncode == 2
        assert "does not take the card of" in done.stderr.splitlines()[-1]
        assert '"license" must be one of' in done.stderr.splitlines()[-1]
        assert not hub.repos["me/model"]


@pytest.mark.nightly
def test_a_missing_token_is_said_before_anything_is_written(model, tmp_path):
    done = export(model, tmp_path / "out", "http://127.0.0.1:9", "--push-to-hub", "me/model", HF_TOKEN="")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no token for the Hugging Face hub")
    assert not (tmp_path / "out").exists()


def export(model, out, endpoint, *words, **variables):
    command = [sys.executable, "-m", "lit_moss", "export", str(model), "--out", str(out), *words]
    environment = environment_of(out.parent, endpoint) | {"HF_TOKEN": TOKEN} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
