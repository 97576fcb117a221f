"""Keys are written nowhere, and what a manifest says never becomes a path outside the folders it is about."""

import json
import sys

import numpy as np
import pytest
import soundfile
from prepare.chat_server import Answer, ChatServer, verdict

from lit_moss.cli.main import main
from lit_moss.errors import without_secrets

KEY = "sk-very-secret-0123456789"
TEXT = "Hello there, how are you today?"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(*items: dict) -> str:
    with open("items.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return "items.jsonl"


def prepare(*words: str) -> int:
    return main(["prepare", *words, "--track", "false"])


@pytest.mark.slow
def test_the_key_of_an_endpoint_is_in_no_file_param_or_message(folder, monkeypatch, capfd):
    monkeypatch.setenv("CHAT_KEY", KEY)
    monkeypatch.setenv("LIT_MOSS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    source = manifest({"id": "a", "question": "Is it far?", "answer": "No, it is not."})
    with ChatServer(lambda body, n: Answer(verdict())) as server:
        options = ["--adapter", "endpoint", "--model", "m", "--base_url", server.url]
        options += ["--api_key_env", "CHAT_KEY"]
        assert main(["prepare", "adapt", source, "--out", "out", *options]) == 0
        assert server.keys == [f"Bearer {KEY}"]
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "mlflow.db" in files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "words",
    [
        ("speak", "--user_voices", f"http://host/v1?model=m&voice=v&api_key={KEY}"),
        ("speak", "--user_voices", f"[http://host/v1?model=m&voice=v&api_key={KEY}]"),
        ("speak", "--user_voices", f"[http://user:{KEY}@host/v1?model=m&voice=v]"),
        ("adapt", "--adapter", "endpoint", "--model", "m", "--base_url", f"http://user:{KEY}@host/v1"),
        ("adapt", "--adapter", "endpoint", "--model", "m", "--api_key_env", KEY),
        ("adapt", f"ftp://user:{KEY}@host/items.jsonl"),
    ],
)
def test_keys_in_addresses_are_refused_and_not_repeated(folder, capfd, words):
    assert prepare(*words, manifest({"question": "a", "answer": "b"}), "--out", "out") == 2
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    assert not (folder / "out").exists() or not list((folder / "out").rglob("manifest.jsonl"))


def test_secrets_are_cut_out_of_addresses_and_nothing_else():
    assert without_secrets("x is 'http://u:p@h/v1?key=k', expected [text, …]") == (
        "x is 'http://…@h/v1?…', expected [text, …]"
    )
    assert without_secrets("Is it a@b? Yes") == "Is it a@b? Yes"


def test_ids_never_become_paths(folder):
    names = ["../../evil", "/tmp/evil", "..", "a/b", "nul\0", "x" * 300]
    (folder / "in").mkdir()
    items = [{"id": name, "text": TEXT, "lang": "en", "document": name} for name in names]
    steps = {"synthesize": {}, "report": {}}
    (folder / "in" / "chain.yaml").write_text(json.dumps({"steps": steps}))
    before = {path for path in folder.rglob("*")} | {folder / "in" / "out", folder / "items.jsonl"}
    assert prepare("-c", "in/chain.yaml", manifest(*items), "--out", "in/out") == 0
    made = {path for path in folder.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(folder / "in" / "out") for path in made)
    lines = (folder / "in/out/synthesize/manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["document"] for line in lines] == names


def test_messages_and_links_stay_inside_the_root(folder, capsys):
    (folder / "root").mkdir()
    soundfile.write("outside.wav", np.zeros(16_000, np.float32), 16_000)
    soundfile.write("root/inside.wav", np.zeros(16_000, np.float32), 16_000)
    (folder / "root" / "link.wav").symlink_to(folder / "outside.wav")
    for path in ("outside.wav", "root/../outside.wav", "root/link.wav", "s3://bucket/a.wav", "/etc/hostname"):
        message = {"role": "user", "content": "hello", "audio_filepath": path}
        for item in ({"messages": [message]}, {"audio_filepath": path}):
            assert prepare("tokenize", manifest(item), "--out", "out", "--root", "root") == 2
            assert "expected a file below the root" in capsys.readouterr().err


def test_a_voice_command_is_run_without_a_shell(folder):
    script = folder / "voice.py"
    script.write_text(
        "import sys, wave\n"
        "with wave.open(sys.argv[2], 'wb') as f:\n"
        "    f.setnchannels(1); f.setsampwidth(2); f.setframerate(16000); f.writeframes(bytes(64000))\n"
    )
    voice = f"command: {sys.executable} {script} {{text_file}} {{out}} ; touch hacked $(touch hacked)"
    item = {"id": "a", "text": "Say `touch hacked`; $(touch hacked) please.", "lang": "en"}
    assert prepare("synthesize", manifest(item), "--out", "out", "--voices", json.dumps([voice])) == 0
    assert not (folder / "hacked").exists()
