"""Small studies and `synthesize` answered mistakes and full disks with a traceback."""

import pytest
import torch
from decoders import small_flow

from experiments.studies import code_baselines, compare, table7
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.vocoder import GriffinLim
from lit_moss.errors import UserError
from lit_moss.hub.codes_to_audio import CodeLine, write_batches, write_streams


def test_a_folder_without_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["code_baselines", str(tmp_path), "--heldout", str(tmp_path)])
    assert code_baselines.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert compare.main(["anything"]) == 2
    assert "MLflow at http://127.0.0.1:9 cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"jobs": 0}, {"seeds": []}])
def test_numbers_that_leave_nothing_to_do(options):
    with pytest.raises(UserError, match="expected one seed or more"):
        table7.Options("speech", "text.txt", **options)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_that_cannot_be_written_to(tiny_encoder, tmp_path, stream):
    codec = Codec(SpeechTokenizer(tiny_encoder()), small_flow(), GriffinLim(1))
    lines, gone = [CodeLine("a", [3] * 5)], tmp_path / "a file in place of the folder"
    gone.write_text("")
    with pytest.raises(UserError, match=r"a\.wav could not be written"), torch.inference_mode():
        write_streams(codec, lines, None, gone) if stream else write_batches(codec, lines, None, gone, 100)


@pytest.mark.slow
def test_a_file_is_whole_or_not_there(tiny_encoder, tmp_path, monkeypatch):
    codec = Codec(SpeechTokenizer(tiny_encoder()), small_flow(), GriffinLim(1))

    def killed(path, *_):
        path.write_bytes(b"RIFF half of")
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_moss.audio.io.write", killed)
    with pytest.raises(KeyboardInterrupt):
        write_batches(codec, [CodeLine("a", [3] * 5)], None, tmp_path, 100)
    assert list(tmp_path.iterdir()) == []
