"""`--vocoder` and `open_vocoder`: what each name opens, the codec's folder, the verbs."""

import json

import pytest
import torch
from decoders import small_flow, small_hift
from model_folders import codec_folder
from vocoders import small_vocoder

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.trained_vocoder import TrainedVocoder
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder
from lit_moss.errors import UserError
from lit_moss.hub import open_codec, open_vocoder
from lit_moss.release.codec_export import export_codec

FRAMES = torch.randn(1, 80, 24, generator=torch.Generator().manual_seed(0)) - 5


@pytest.fixture
def trained(tmp_path):
    small_vocoder().save_pretrained(tmp_path / "vocoder_folder")
    return tmp_path / "vocoder_folder"


@pytest.fixture
def released(tmp_path):
    """A codec with HiFT, in the released layout."""
    return codec_folder(tmp_path / "released")


def same(a, b) -> bool:
    return torch.equal(a(FRAMES), b(FRAMES))


@pytest.mark.slow
def test_what_each_name_opens(trained, released, tmp_path):
    assert isinstance(open_vocoder("griffin-lim"), GriffinLim)
    assert same(open_vocoder(str(trained)), small_vocoder())
    hift = HiFTVocoder(small_hift())
    assert same(open_vocoder(str(released)), hift)
    assert same(open_vocoder(str(released / "flow/hift.pt")), hift)
    model = tmp_path / "model"
    model.mkdir()
    released.rename(model / "codec")
    assert same(open_vocoder(str(model)), hift)


@pytest.mark.parametrize("name", ["runs/none", "tokenizer", "no.pt"])
def test_names_of_nothing_are_one_line(tmp_path, name, tiny_encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"vocoder") as error:
        open_vocoder(name)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_codec_keeps_its_vocoder_in_its_folder(tmp_path, released):
    codes = torch.arange(9)
    codec = Codec(None, small_flow(), small_vocoder())
    codec.save_pretrained(tmp_path / "codec")
    again = open_codec(str(tmp_path / "codec"))
    assert isinstance(again.vocoder, TrainedVocoder)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    # Another one takes its place, whatever it is; a folder has one vocoder.
    for vocoder, files in ((HiFTVocoder(small_hift()), {"flow/hift.pt"}), (GriffinLim(), set())):
        Codec(None, small_flow(), vocoder).save_pretrained(tmp_path / "codec")
        assert type(open_codec(str(tmp_path / "codec")).vocoder) is type(vocoder)
        found = {p.relative_to(tmp_path / "codec").as_posix() for p in (tmp_path / "codec").rglob("*")}
        assert files == found & {"flow/hift.pt", "vocoder", "vocoder/config.json"}


@pytest.mark.slow
def test_a_given_vocoder_is_heard_in_the_whole_and_in_streams(released, trained):
    codes = torch.arange(12)
    codec = open_codec(str(released), vocoder=str(trained))
    assert isinstance(codec.vocoder, TrainedVocoder)
    whole = codec.decode(codes, streaming=True)
    player = codec.stream()
    pieces = [player.push(codes[:8]), player.push(codes[8:]), player.flush()]
    assert len(pieces[0]) == 480 * (20 - codec.vocoder.net.config.lookahead_frames) - 720
    assert torch.allclose(torch.cat(pieces), whole, atol=1e-4)
    assert len(whole) == 1920 * len(codes)


@pytest.mark.slow
def test_exports_hold_the_given_vocoder(released, trained, tmp_path, capsys):
    export_codec(str(released), tmp_path / "a", vocoder=str(trained))
    assert not (tmp_path / "a/flow/hift.pt").exists()
    assert same(open_codec(str(tmp_path / "a")).vocoder, small_vocoder())
    export_codec(str(tmp_path / "a"), tmp_path / "b")  # copied as it is
    assert same(open_codec(str(tmp_path / "b")).vocoder, small_vocoder())
    export_codec(str(tmp_path / "a"), tmp_path / "c", vocoder="griffin-lim")
    assert isinstance(open_codec(str(tmp_path / "c")).vocoder, GriffinLim)
    export_codec(str(tmp_path / "a"), tmp_path / "d", vocoder=str(released))
    assert same(open_codec(str(tmp_path / "d")).vocoder, HiFTVocoder(small_hift()))
    tokenizer = open_codec(str(released)).tokenizer
    assert tokenizer is not None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="no flow decoder, so a vocoder"):
        export_codec(str(tmp_path / "tokenizer"), tmp_path / "e", vocoder=str(trained))
    assert not (tmp_path / "e").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--stream"]], ids=["whole", "stream"])
def test_synthesize_speaks_with_it(released, trained, tmp_path, more):
    (tmp_path / "codes.jsonl").write_text(json.dumps({"id": "one", "codes": list(range(12))}) + "\n")
    heard = {}
    for name, vocoder in (("own", []), ("ours", ["--vocoder", str(trained)])):
        words = ["synthesize", str(tmp_path / "codes.jsonl"), "--codec", str(released), "--device", "cpu"]
        assert main([*words, "--out", str(tmp_path / name), *vocoder, *more]) == 0
        heard[name] = io.read(tmp_path / name / "one.wav", 24_000)
    expected = open_codec(str(released), vocoder=str(trained)).decode(torch.arange(12), streaming=bool(more))
    assert (heard["ours"] - expected).abs().max() < 1e-3
    assert (heard["own"] - expected).abs().max() > 1e-2


def test_a_vocoder_for_other_mels_is_refused_by_name(released, trained, tmp_path, capsys):
    config = json.loads((trained / "config.json").read_text())
    config["mel"]["hop_samples"] = 256
    (trained / "config.json").write_text(json.dumps(config))
    (tmp_path / "codes.jsonl").write_text('{"codes": [1]}\n')
    words = ["synthesize", str(tmp_path / "codes.jsonl"), "--codec", str(released)]
    assert main([*words, "--vocoder", str(trained), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "takes mels with hop_samples 256, the decoder makes them with 480" in said[0]


@pytest.mark.slow
def test_a_model_speaks_with_it_if_it_has_a_decoder(tmp_path, trained):
    import shutil

    from talker import model_folder

    from lit_moss.serve.model import SpeechModel

    folder = model_folder(tmp_path / "tiny")
    opened = SpeechModel.open(str(folder), device="cpu", vocoder=str(trained))
    assert opened.codec is not None
    assert isinstance(opened.codec.vocoder, TrainedVocoder)
    shutil.rmtree(folder / "codec/flow")
    with pytest.raises(UserError, match=r"--vocoder .* needs a decoder"):
        SpeechModel.open(str(folder), device="cpu", vocoder=str(trained))
