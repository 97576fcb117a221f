"""Faults of export, import and what opens their folders."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys

import pytest
import torch
import yaml
from lm_recipe import CODES, backbone_folder, lm_recipe
from model_folders import codec_folder, model_folder, run_folder
from recording import fit
from safetensors.torch import load_file
from sharded import settings
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.files import PARTIAL, remove_leftovers, scratch_beside
from lit_moss.hub import open_lm, speech_tokenizer_fingerprint
from lit_moss.hub.model_folder import ModelRecord, record_of
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format
from lit_moss.llm.lora import Lora
from lit_moss.llm.stages import hash_record
from lit_moss.release.export import export
from lit_moss.release.import_model import import_model
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.checkpoints import STEP, load_checkpoint, seal_folder
from lit_moss.serve.model import SpeechModel


def weights_of(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


# --- what is published --------------------------------------------------------------------------------------


def test_the_licence_of_a_backbone_is_not_that_of_the_weights(tmp_path):
    source = model_folder(tmp_path / "source")
    ModelRecord(backbone="embedded:smollm2-135m").write(source)
    for words, license, said in (
        ([], "unknown", "has stated no licence; the backbone that they started from is under Apache-2.0"),
        (["--license", "mit"], "mit", "The weights are under mit."),
    ):
        assert main(["export", str(source), "--out", str(tmp_path / "out"), "--force", *words]) == 0
        card = (tmp_path / "out/README.md").read_text()
        assert f"license: {license}\n" in card.split("---")[1]
        assert said in card
        assert ModelRecord.read(tmp_path / "out").license == (license if words else "")


@pytest.mark.slow
def test_paths_of_an_imported_folder_are_not_published_by_its_export(tmp_path):
    source = model_folder(tmp_path / "secret/source")
    codec = codec_folder(tmp_path / "secret/codec")
    imported = tmp_path / "imported"
    import_model(str(source), imported, str(codec))
    export(str(imported), tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
    assert ModelRecord.read(tmp_path / "out").source == "source"


@pytest.mark.slow
def test_what_is_written_can_be_read_by_others(tmp_path):
    source = model_folder(tmp_path / "source")
    codec = codec_folder(tmp_path / "codec")
    before = os.umask(0o022)
    try:
        import_model(str(source), tmp_path / "imported", str(codec))
        export(str(tmp_path / "imported"), tmp_path / "out")
    finally:
        os.umask(before)
    for folder in (source, codec, tmp_path / "imported", tmp_path / "out"):
        for file in folder.rglob("*"):
            mode = stat.S_IMODE(file.stat().st_mode)
            assert mode == (0o755 if file.is_dir() else 0o644), (file, oct(mode))


# --- the codec of a fine-tuned model ------------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path):
    """A run that was fine-tuned from a folder with a codec, and that codec."""
    model = model_folder(tmp_path / "models/moss", codes=CODES)
    codec = codec_folder(model / "codec", codes=CODES)
    made_by = {"text_tokenizer": None, "speech_tokenizer": speech_tokenizer_fingerprint(str(codec))}
    return run_folder(tmp_path, made_by=made_by, model={"init_from": str(model)}), codec


@pytest.mark.slow
def test_the_codec_of_the_folder_that_a_run_started_from_goes_along(tuned, tmp_path, capsys):
    run, codec = tuned
    export(str(run), tmp_path / "out")
    assert capsys.readouterr().err == f"codec/ is a copy of {codec}, the codec of the training\n"
    assert speech_tokenizer_fingerprint(str(tmp_path / "out/codec")) == speech_tokenizer_fingerprint(
        str(codec)
    )
    assert (tmp_path / "out/codec/flow/flow.pt").read_bytes() == (codec / "flow/flow.pt").read_bytes()
    assert not ModelRecord.read(tmp_path / "out").speech_tokenizer_name  # the run names none
    assert "--codec" not in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
def test_a_codec_that_has_been_replaced_is_not_copied(tuned, tmp_path, capsys):
    run, codec = tuned
    shutil.rmtree(codec)
    codec_folder(codec, codes=CODES, seed=1)
    export(str(run), tmp_path / "out")
    assert "is no longer the codec of the training: not copied, give --codec" in capsys.readouterr().err
    assert not (tmp_path / "out/codec").exists()


@pytest.mark.slow
def test_a_given_codec_that_is_not_that_of_the_training_is_refused(tuned, tmp_path):
    run, codec = tuned
    other = codec_folder(tmp_path / "other", codes=CODES, seed=1)
    known, given = (speech_tokenizer_fingerprint(str(c)) for c in (codec, other))
    with pytest.raises(UserError, match=rf"{known}.*has {given}: give the codec of the training"):
        export(str(run), tmp_path / "out", codec=str(other))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_its_codec_says_which_to_give(tmp_path):
    run = run_folder(tmp_path, data={"speech_tokenizer": "/home/alice/runs/my_tokenizer"})
    export(str(run), tmp_path / "out")
    assert ModelRecord.read(tmp_path / "out").speech_tokenizer_name == "my_tokenizer"
    with pytest.raises(UserError, match=r"has no codec/, and .*my_tokenizer, cannot .*\(--codec\)"):
        SpeechModel.open(str(tmp_path / "out"))


# --- weights ------------------------------------------------------------------------------------------------


def test_frozen_weights_that_a_run_rounded_are_rounded_wherever_it_is_opened(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    form = row_format(load_text_tokenizer(backbone), 128, eosp=CODES)
    state = SplitLM.from_backbone(backbone, 1, 128, row_format=form).state_dict()
    left = {k: v.bfloat16() if v.dim() > 1 else v for k, v in state.items() if "audio" not in k}
    assert any(not torch.equal(v.float(), state[k]) for k, v in left.items())
    run = run_folder(tmp_path, frozen={"backbone": str(backbone), "init_from": None, **hash_record(left)})
    path = run / "checkpoints/step-0000005.ckpt"
    content = load_checkpoint(path)
    content["state_dict"] = {f"lm.{k}": v for k, v in state.items() if k not in left}
    AtomicCheckpointIO().save_checkpoint(content, path)
    export(str(run), tmp_path / "out")
    opened = open_lm(run).state_dict()
    assert all(torch.equal(opened[k], v.float()) for k, v in left.items())
    assert all(torch.equal(opened[k], v) for k, v in weights_of(tmp_path / "out").items())


@pytest.mark.slow
def test_a_mean_of_adapters_is_the_mean_of_their_products(tmp_path):
    run = run_folder(tmp_path, steps=(5, 10, 15), lora=Lora(rank=2, alpha=3.0).record())
    name = "lm.model.shared_block.layers.0.self_attn.q_proj"
    expected = []
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        content = load_checkpoint(path)
        weight = content["state_dict"].pop(f"{name}.weight")
        a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        content["state_dict"] |= {f"{name}.base_layer.weight": weight, f"{name}.lora_A.default.weight": a,
                                  f"{name}.lora_B.default.weight": b}  # fmt: skip
        AtomicCheckpointIO().save_checkpoint(content, path)
        expected.append(weight.double() + 1.5 * b.double() @ a.double())
    export(str(run), tmp_path / "out", average=3)
    found = weights_of(tmp_path / "out")[f"{name.removeprefix('lm.')}.weight"]
    torch.testing.assert_close(found.double(), torch.stack(expected).mean(0), atol=1e-5, rtol=0)


# --- folders and processes ----------------------------------------------------------------------------------


@pytest.mark.nightly
def test_opening_a_tokenizer_of_a_split_model_prints_nothing(tmp_path):
    model = model_folder(tmp_path / "model")
    code = f"from lit_moss.llm.backbone import load_text_tokenizer as t; print(len(t({str(model)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) == len(load_text_tokenizer(tmp_path / "backbone"))


def test_what_a_killed_export_left_is_removed_by_the_next_one(tmp_path, capsys):
    run, out = run_folder(tmp_path), tmp_path / "out"
    left = tmp_path / f"out{PARTIAL}ab12cd_4"
    (left / "out").mkdir(parents=True)
    (left / "out/model.safetensors").write_bytes(b"half")
    other = tmp_path / f"out{PARTIAL}ef56gh_8"  # of the user's own
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with scratch_beside(out) as partial:  # by a living process
        partial.mkdir()
        export(str(run), out)
        assert partial.exists()
        assert f"{partial.parent} is another export in progress" in capsys.readouterr().err
    assert not left.exists()
    assert (other / "notes.txt").read_text() == "mine"
    assert remove_leftovers(out) == [other]


# --- code in shards -----------------------------------------------------------------------------------------


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def shards(folder, kind, ran):
    """A folder of shards in which one part is a payload."""
    weights = {"state_dict": {"w": torch.ones(2)}}
    if kind == "bytes":
        weights["optimizer_0"] = {"x": Payload(ran)}
    (folder / "checkpoint").mkdir(parents=True)
    if kind in ("deepspeed", "latest"):
        place = folder / "checkpoint" if kind == "deepspeed" else folder.parent / "elsewhere"
        place.mkdir(exist_ok=True)
        (folder / "latest").write_text("checkpoint" if kind == "deepspeed" else "../../elsewhere")
        torch.save({"module": Payload(ran)}, place / "mp_rank_00_model_states.pt")
    else:
        (folder / "checkpoint").rmdir()
        save_shards(weights, checkpoint_id=folder, no_dist=True)
        torch.save({"global_step": 5} | ({"x": Payload(ran)} if kind == "meta" else {}), folder / "meta.pt")
        if kind == "metadata":
            (folder / ".metadata").write_bytes(pickle.dumps(Payload(ran)))
    (folder / STEP).write_text("5\n")
    seal_folder(folder)


def load_as_the_strategies_do(folder, kind, place):
    """That the payload would run: torch and DeepSpeed load the part so."""
    if kind == "metadata":
        pickle.loads((folder / ".metadata").read_bytes())
    elif kind == "bytes":
        from torch.distributed.checkpoint.state_dict_loader import load

        load({"optimizer_0": {"x": None}}, checkpoint_id=folder, no_dist=True)
    else:
        torch.load(place, weights_only=False)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", ["metadata", "bytes", "meta", "deepspeed", "latest"])
def test_a_run_does_not_resume_from_shards_that_hold_code(tmp_path, capsys, kind):
    folder, ran = tmp_path / "run/runs/tiny/run/checkpoints/step-0000005.ckpt", tmp_path / "ran"
    shards(folder, kind, ran)
    (folder.parents[1] / "run.json").write_text(json.dumps({"mlflow_run_id": None}))
    files = [*folder.rglob("*.pt"), *(folder.parent / "elsewhere").glob("*.pt")]
    load_as_the_strategies_do(folder, kind, files[0] if files else None)
    assert ran.is_dir()
    ran.rmdir()
    conf = lm_recipe(tmp_path / "run", 10)
    config = yaml.safe_load(conf.read_text())
    config["trainer"]["strategy"] = settings("fsdp2")
    conf.write_text(yaml.safe_dump(config))
    for words in (["--ckpt_path", "last"], ["--ckpt_path", str(folder)]):
        fit(tmp_path / "run", conf, *words, expected=2)
        error = capsys.readouterr().err.splitlines()[-1]
        assert "cannot be read as data" in error or "names another folder" in error
        assert not ran.exists()


def test_objects_in_shards_that_are_data_are_accepted(tmp_path):
    from lit_moss.runs.shards import check_shards

    content = {"state_dict": {"w": torch.ones(3)}, "optimizer_0": {"lr": 0.1, "betas": (0.9, 0.95)}}
    save_shards(content, checkpoint_id=tmp_path, no_dist=True)
    torch.save({"global_step": 5}, tmp_path / "meta.pt")
    check_shards(tmp_path)


# --- forms of spoken replies --------------------------------------------------------------------------------


def documents_of_form(folder, form):
    """Marks conversations that are there already as made with another form of replies."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["options"] = {"reply_form": form}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.slow
def test_a_checkpoint_states_the_form_of_replies_of_documents_made_before(tmp_path, caplog):
    conf = lm_recipe(tmp_path / "run", 5, kind="sft", stages=[{"policy": "full"}])
    documents_of_form(tmp_path / "sft-train", "guided")
    fit(tmp_path / "run", conf)
    assert record_of(tmp_path / "run/runs/tiny").form.name == "guided"
    export(str(tmp_path / "run/runs/tiny"), tmp_path / "out")
    assert "text first" in (tmp_path / "out/chat_template.jinja").read_text()
    # A model of one form that is tuned on documents of another.
    documents_of_form(tmp_path / "sft-train", "direct")
    again = lm_recipe(tmp_path / "again", 5, kind="sft", stages=[{"policy": "full"}],
                      init_from=str(tmp_path / "out"))  # fmt: skip
    fit(tmp_path / "again", again)
    said = [record.message for record in caplog.records if "spoken replies" in record.message]
    assert said == [
        f"{tmp_path / 'out'} was trained for guided spoken replies, these documents hold direct ones "
        "(data.init_args.reply_form): it learns another form"
    ]
    assert record_of(tmp_path / "again/runs/tiny").form.name == "direct"


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--average", "0"], ["--average", "-1"]])
def test_an_average_of_no_states_is_one_line(tmp_path, capsys, words):
    model = model_folder(tmp_path / "model")
    assert main(["export", str(model), "--out", str(tmp_path / "out"), *words]) == 2
    assert "expected 1 or more" in capsys.readouterr().err.splitlines()[-1]
