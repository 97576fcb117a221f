"""`import`: what is taken over, what is filled in, what is refused, and that nothing half done is left."""

import json
import os
import pickle
import shutil

import launch
import pytest
import torch
from huggingface_hub import constants
from model_folders import as_released, codec_folder, model_folder
from safetensors.torch import load_file, save_file

from lit_moss.cli.main import main
from lit_moss.codec import Codec
from lit_moss.errors import UserError
from lit_moss.hub import speech_tokenizer_fingerprint
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.release.import_model import import_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp("made")
    as_released(model_folder(top / "model"))
    (top / "model/README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n")
    (top / "model/modeling_moss.py").write_text("raise SystemExit('ran')")
    (top / "model/generation_config.json").write_text('{"temperature": 0.6}')
    codec_folder(top / "codec")
    return top


@pytest.fixture
def sources(made, tmp_path):
    """A copy that a test may damage."""
    for name in ("model", "codec"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def files(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


@pytest.mark.slow
def test_a_released_model_and_codec_become_one_folder(sources):
    out = sources / "out"
    made = import_model(sources / "model", out, str(sources / "codec"))
    weights = [name for name in files(sources / "model") if name.endswith(".safetensors")]
    assert len(weights) > 2
    assert made.files == len(weights)
    assert made.linked
    assert all(os.path.samefile(out / name, sources / "model" / name) for name in weights)
    assert "modeling_moss.py" not in files(out)
    assert [f for f in files(out) if f.startswith("codec")] == [
        f"codec/{f}" for f in files(sources / "codec")
    ]
    config = json.loads((out / "config.json").read_text())
    assert (config["im_start_token_id"], config["im_end_token_id"], config["end_token_id"]) == (1, 2, 0)
    assert "auto_map" not in config
    record = ModelRecord.read(out)
    assert record == made.record
    assert record.speech_tokenizer == speech_tokenizer_fingerprint(str(sources / "codec"))
    assert record.license == "apache-2.0"
    assert record.source == str(sources / "model")
    lm, same = SplitLM.from_pretrained(out), SplitLM.from_pretrained(sources / "model")
    assert lm.format == same.format
    assert lm.format.end_id == 0  # <|endoftext|>, not the end of a turn that eos_token_id states
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in lm.state_dict().items())
    codec = Codec.from_pretrained(out / "codec")
    codes = torch.arange(9)
    assert torch.equal(codec.decode(codes), Codec.from_pretrained(sources / "codec").decode(codes))


def test_an_imported_folder_is_imported_again_as_it_is(sources):
    first = import_model(sources / "model", sources / "first", str(sources / "codec"))
    second = import_model(sources / "first", sources / "second")
    assert files(second.folder) == files(first.folder)
    for name in files(first.folder):
        if name != "lit_moss.json":
            assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name
    assert second.record.speech_tokenizer == first.record.speech_tokenizer


def test_the_verb(sources, capsys):
    words = [
        "import",
        str(sources / "model"),
        "--codec",
        str(sources / "codec"),
        "--out",
        str(sources / "out"),
    ]
    assert main(words) == 0
    assert "tensors in" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


def damage(folder, name, change):
    """Rewrites the shard that holds a tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


NAME = "model.text_norm.weight"


def other_shape(sources):
    damage(sources / "model", NAME, lambda t: t.update({NAME: torch.zeros(7)}))


def other_name(sources):
    damage(sources / "model", NAME, lambda t: t.update(extra=t.pop(NAME)))


def eight_bits(sources):
    damage(sources / "model", NAME, lambda t: t.update({NAME: t[NAME].to(torch.float8_e4m3fn)}))


def pointer(sources):
    file = next((sources / "model").glob("*.safetensors"))
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


def pointer_in_codec(sources):
    (sources / "codec/flow/flow.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def cut(sources):
    file = next((sources / "model").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])


def only_pickles(sources):
    for file in (sources / "model").glob("*.safetensors*"):
        file.unlink()
    (sources / "model/pytorch_model.bin").write_bytes(pickle.dumps({}))


def code_in_flow(sources):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(sources / "ran"),)

    torch.save({"a": Payload()}, sources / "codec/flow/flow.pt")


def outside(sources):
    index = sources / "model/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][NAME] = "../secret.safetensors"
    index.write_text(json.dumps(content))


def stale_index(sources):
    index = sources / "model/model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    here = content["weight_map"][NAME]
    content["weight_map"][NAME] = next(name for name in shards if name != here)
    index.write_text(json.dumps(content))


def other_tokenizer(sources):
    from lm_recipe import tokenizer_of_bytes

    tokenizer = tokenizer_of_bytes()
    tokenizer.add_tokens(["one word more"])
    tokenizer.save_pretrained(sources / "model")


def other_codec(sources):
    shutil.rmtree(sources / "codec")
    codec_folder(sources / "codec", codes=32)


def not_finite(sources):
    file = sources / "codec/model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv1.bias"][3] = float("nan")
    save_file(tensors, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (other_shape, r"text_norm.weight is \(7,\), expected \(32,\)"),
        (other_name, "text_norm.weight is missing"),
        (eight_bits, "stored as F8_E4M3"),
        (pointer, "Git-LFS pointer"),
        (pointer_in_codec, "Git-LFS pointer"),
        (cut, "damaged"),
        (only_pickles, "found pytorch_model.bin"),
        (code_in_flow, "no file of plain tensors"),
        (outside, "'../secret.safetensors', expected files of its own folder"),
        (stale_index, "differ in where model.text_norm.weight is"),
        (
            other_tokenizer,
            r"<\|object_ref_start\|> is 260 in the tokenizer, config.json has sosp_token_id 259",
        ),
        (other_codec, r"has 64 codes \(eosp_token_id of its config.json\), .*codec has 32"),
        (not_finite, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing(sources, break_it, message):
    break_it(sources)
    before = sorted(p.name for p in sources.iterdir())
    with pytest.raises(UserError, match=message) as error:
        import_model(sources / "model", sources / "out", str(sources / "codec"))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in sources.iterdir()) == before


@pytest.mark.slow
def test_a_codec_of_another_training_is_refused(sources):
    first = import_model(sources / "model", sources / "first", str(sources / "codec"))
    codec_folder(sources / "other", seed=1)
    other = speech_tokenizer_fingerprint(str(sources / "other"))
    ours = first.record.speech_tokenizer
    with pytest.raises(UserError, match=f"{ours} .*other has {other}"):
        import_model(sources / "first", sources / "second", str(sources / "other"))
    config = json.loads((sources / "codec/config.json").read_text()) | {"log_mel": "whisper"}
    (sources / "codec/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"log_mel causal, .* is the same tokenizer with log_mel whisper"):
        import_model(sources / "first", sources / "second", str(sources / "codec"))
    again = import_model(sources / "first", sources / "second", str(sources / "codec"), "causal")
    assert again.record.speech_tokenizer == ours


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_no_folder(sources):
    """It dies once all weights are there, in the middle of the codec."""
    script = sources / "script.py"
    script.write_text(
        "import os, sys\n"
        "from lit_moss.release import import_model as m\n"
        "m.add_codec = lambda *a: os.kill(os.getpid(), 9)\n"
        "m.import_model(*sys.argv[1:])\n"
    )
    words = [str(sources / name) for name in ("model", "out", "codec")]
    done = launch.start_script(sources, str(script), *words).wait()
    assert done.returncode == -9, done.stderr
    assert not (sources / "out").exists()
    import_model(*words)
    assert ModelRecord.read(sources / "out").speech_tokenizer


def test_a_hub_id_is_read_from_the_hubs_cache_and_else_an_error_in_one_line(sources, monkeypatch, capsys):
    revision = "0" * 40
    for name in ("model", "codec"):
        repo = sources / f"cache/models--someone--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text(revision)
        shutil.copytree(sources / name, repo / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(sources / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = ["import", "someone/model", "--codec", "someone/codec", "--out", str(sources / "out")]
    assert main(["import", "someone/absent", *words[2:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'someone/absent' is not a local path and could not be fetched")
    assert error.count("\n") == 1
    assert main(words) == 0
    assert ModelRecord.read(sources / "out").source == "someone/model"
