"""`evaluate resynthesis`: closed forms of its measures, list formats, a whole run, exit codes."""

import csv
import json
import math

import mlflow
import pytest
import torch
import yaml
from decoders import small_flow

from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.evaluate import judges
from lit_moss.evaluate.clips import read_clips
from lit_moss.evaluate.resynthesis import means


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors_and_words"),
    [
        ("The kettle sang.", "the kettle sang", (0, 3)),
        ("one two three", "one three", (1, 3)),
        ("one two", "zero one too", (2, 2)),
        ("", "well", (1, 0)),
        ("well", "", (1, 1)),
    ],
)
def test_word_errors_by_hand(reference, hypothesis, errors_and_words):
    assert judges.word_errors(reference, hypothesis) == errors_and_words


def test_chinese_is_counted_by_characters():
    assert judges.word_errors("你好,世界", "你好世", "zh") == (1, 4)


def test_mel_cepstral_distance_of_a_louder_copy_is_0_and_grows_with_difference(speech):
    wave = torch.nn.functional.interpolate(speech[0][None, None, :32_000], scale_factor=1.5, mode="linear")[
        0, 0
    ]
    assert judges.mel_cepstral_distance(wave, wave) == 0
    # Loudness is the 0th coefficient alone, but for the floors of the mel.
    loud = torch.randn(24_000)
    assert judges.mel_cepstral_distance(loud, 0.5 * loud) < 0.01
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    steps = [judges.mel_cepstral_distance(wave, wave + s * noise) for s in (1e-4, 1e-3, 1e-2)]
    assert steps == sorted(steps)


def test_mel_cepstral_distance_is_the_rms_difference_of_smooth_spectra_in_db():
    mel = torch.randn(80, 7, generator=torch.Generator().manual_seed(0))
    bands = math.pi * (torch.arange(80) + 0.5) / 80
    other = mel + 5.0 + (0.3 * torch.cos(3 * bands) - 0.2 * torch.cos(11 * bands))[:, None]
    rms_db = 20 / math.log(10) * math.sqrt((0.3**2 + 0.2**2) / 2)
    assert judges.cepstral_distance(mel, other) == pytest.approx(rms_db, rel=1e-4)
    ripple = mel + torch.cos(40 * bands)[:, None]  # finer than 13 cepstra resolve
    assert judges.cepstral_distance(mel, ripple) == pytest.approx(0, abs=1e-4)


def test_means_weigh_errors_by_words():
    row = dict.fromkeys(("similarity", "dnsmos", "mcd_db", "rtf", "first_sound_sec", "seam_ratio"))
    rows = [row | {"rung": "codec", "errors": 1, "words": 2, "rtf": 0.5},
            row | {"rung": "codec", "errors": 0, "words": 8, "rtf": 1.5}]  # fmt: skip
    assert means(rows, ["codec"]) == {"codec": {"wer": 0.1, "rtf": 1.0}}


def test_seed_word_errors_are_the_mean_of_clips_and_pooled():
    texts = (("fifty turns", "50 turns"), ("one two three four", "one two three four"))
    row = {"rung": "codec", "errors": 0, "words": 1}
    rows = [row | {"reference": reference, "hypothesis": hypothesis} for reference, hypothesis in texts]
    values = means(rows, ["codec"])["codec"]
    assert values["wer_seed"] == pytest.approx(0.25)
    assert values["wer_seed_pooled"] == pytest.approx(1 / 6)
    assert values["wer_normalised"] == values["wer_normalised_pooled"] == 0


def test_roughness_of_noise_and_of_a_louder_copy():
    mel = torch.linspace(0, 3, 80)[:, None] + torch.linspace(0, 1, 500)[None]
    assert judges.mel_roughness(mel) == pytest.approx(0, abs=1e-9)  # slopes are smooth
    noise = 0.1 * torch.randn(80, 500, generator=torch.Generator().manual_seed(0))
    assert judges.mel_roughness(mel + noise) == pytest.approx(12 * 0.01, rel=0.03)
    wave = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    assert judges.roughness(wave, wave) == pytest.approx(1)
    assert judges.roughness(wave, 0.5 * wave) == pytest.approx(1, rel=0.01)


def test_a_seed_tts_eval_list_is_read(tmp_path):
    (tmp_path / "meta.lst").write_text("a|who|prompts/p.wav|What is said.|wavs/a-b.wav\nb|who|p.wav|So.\n")
    clips = read_clips(tmp_path / "meta.lst")
    assert [c.id for c in clips] == ["a", "b"]
    assert clips[0].audio == tmp_path / "wavs/a-b.wav"
    assert clips[0].prompt == tmp_path / "prompts/p.wav"
    assert clips[1].audio == tmp_path / "wavs/b.wav"
    assert clips[1].text == "So."
    (tmp_path / "twice.lst").write_text(
        "a/b|who|p.wav|One\u2028two.\na_b|who|p.wav|Three.\n", encoding="utf-8"
    )
    assert [c.id for c in read_clips(tmp_path / "twice.lst")] == ["a_b", "a_b-2"]  # names of files
    (tmp_path / "short.lst").write_text("a|What is said.\nb|So.|p.wav\n")
    short = read_clips(tmp_path / "short.lst")
    assert [(c.text, c.audio.name) for c in short] == [("What is said.", "a.wav"), ("So.", "b.wav")]
    assert [c.prompt for c in short] == [None, tmp_path / "p.wav"]
    (tmp_path / "bad.lst").write_text("a|b\na|b|c|d|e|f\n")
    with pytest.raises(UserError, match="line 2 has 6 columns"):
        read_clips(tmp_path / "bad.lst")


@pytest.fixture
def conf(tiny_encoder, tmp_path, corpus):
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    path = tmp_path / "conf.yaml"
    path.write_text(
        f"codec: {tmp_path / 'codec'}\nclips: {corpus / 'validation.jsonl'}\njudge: null\nspeaker: null\n"
        "dnsmos: false\n"
    )
    return path


@pytest.mark.nightly
def test_every_rung_of_every_clip_has_a_row_and_the_means_are_in_mlflow(conf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "resynthesis", "-c", str(conf)]) == 0
    (folder,) = (tmp_path / "runs/resynthesis").iterdir()
    rows = list(csv.DictReader((folder / "items.csv").open()))
    assert [row["rung"] for row in rows] == ["original", "vocoder", "codec", "stream"] * 2
    metrics = json.loads((folder / "result.json").read_text())
    assert metrics["codec/mcd_db"] > metrics["vocoder/mcd_db"] > 0
    assert metrics["stream/first_sound_sec"] > 0
    assert metrics["codec/roughness"] > 0
    assert 0 < metrics["stream/seam_ratio"] < 2
    assert len(list((folder / "audio").glob("*.wav"))) == 8
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("resynthesis").experiment_id])
    assert run.data.metrics["codec/mcd_db"] == pytest.approx(metrics["codec/mcd_db"])
    assert run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"items.json", "report.md"}


@pytest.mark.nightly
def test_a_killed_evaluation_judges_only_what_is_missing(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "resynthesis", "-c", str(conf), "--rungs=[original,vocoder]"]
    assert main(words) == 0
    (folder,) = (tmp_path / "runs/resynthesis").iterdir()
    whole = (folder / "result.json").read_text()
    lines = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    first["result"]["rows"][1]["mcd_db"] = 123.0  # known again by it
    (folder / "items.jsonl").write_text(json.dumps(first) + "\n" + lines[1][:40])
    (folder / "result.json").unlink()
    assert main(words) == 0
    again = json.loads((folder / "result.json").read_text())
    second = json.loads(lines[1])["result"]["rows"][1]["mcd_db"]
    assert again["vocoder/mcd_db"] == pytest.approx((123.0 + second) / 2)
    assert again["n"] == json.loads(whole)["n"] == 2
    assert main(words) == 0
    assert "done before" in capsys.readouterr().out


@pytest.mark.slow
def test_similarity_is_with_the_recording_and_with_the_prompt(conf, tmp_path, monkeypatch, corpus):
    monkeypatch.chdir(tmp_path)
    clips = read_clips(corpus / "validation.jsonl")
    words = ["--rungs=[original]", "--speaker=embedded:resemblyzer", f"--voice_prompt={clips[0].audio}"]
    assert main(["evaluate", "resynthesis", "-c", str(conf), *words]) == 0
    (items,) = tmp_path.glob("runs/resynthesis/*/items.csv")
    rows = list(csv.DictReader(items.open()))
    assert [float(row["similarity"]) for row in rows] == pytest.approx([1, 1], abs=1e-5)
    assert float(rows[0]["similarity_prompt"]) == pytest.approx(1, abs=1e-5)
    assert 0.5 < float(rows[1]["similarity_prompt"]) < 0.9999


@pytest.mark.slow
def test_a_clip_that_cannot_be_read_is_named_and_counted(conf, tmp_path, monkeypatch, corpus, capsys):
    monkeypatch.chdir(tmp_path)
    good = read_clips(corpus / "validation.jsonl")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    for names, code in (((str(good[0].audio), "bad.wav"), 0), (("bad.wav",), 2)):
        rows = [json.dumps({"audio_filepath": name, "duration": 1.0, "text": "x"}) for name in names]
        (tmp_path / "clips.jsonl").write_text("\n".join(rows) + "\n")
        keys = ["--clips", str(tmp_path / "clips.jsonl"), "--rungs", "[original]"]
        assert main(["evaluate", "resynthesis", "-c", str(conf), *keys]) == code
        assert "counted as wrong" in capsys.readouterr().err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("resynthesis").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


@pytest.mark.network
@pytest.mark.nightly
def test_the_judges_recognise_the_text(conf, tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper", reason="needs the extra `evaluate`")
    pytest.importorskip("speechmos", reason="needs the extra `evaluate`")
    monkeypatch.chdir(tmp_path)
    words = ["--rungs=[original,vocoder]", "--judge=embedded:whisper-tiny", "--dnsmos=true", "--limit=1"]
    assert main(["evaluate", "resynthesis", "-c", str(conf), *words]) == 0
    (result,) = tmp_path.glob("runs/resynthesis/*/result.json")
    metrics = json.loads(result.read_text())
    assert metrics["original/wer"] < 0.3
    assert metrics["vocoder/wer_normalised"] < 0.5
    assert 2 < metrics["original/dnsmos"] < 5
    assert 2 < metrics["original/dnsmos_sig"] < 5


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rung", "x"], "unknown option --rung x, expected one of codec, clips, "),
        (
            ["--rungs", "[echo]"],
            "rungs is 'echo', expected a list [one of original, vocoder, codec, stream, …]",
        ),
        (["--clips", "none.jsonl"], "none.jsonl"),
        (["--voice_prompt", "none.wav"], "none.wav"),
        (["--voice_prompt", "list"], "has no prompt"),
        (
            ["--judge", "paraformer-zh"],
            "paraformer-zh needs funasr, which is not installed: pip install funasr",
        ),
        (["--utmos", "none"], "has 0 .pt files, expected a checkout of tarepan/SpeechMOS with one"),
        (["--steps", "0"], "samples from noise, with start 0"),
        (["--steps", "-1"], "steps is -1, expected 0 or more"),
        (["--limit", "0"], "limit 0, expected one or more"),
        (["--limit", "few"], "limit is 'few', expected a whole number or null"),
        (["--device", "moon"], "--device is 'moon', expected"),
        (["--rungs", "[]"], "expected one or more"),
        (["--language", "chinese"], "language is 'chinese', expected one of en, zh"),
        (["--limit"], "expected one argument"),
        (["-c", "none.yaml"], "no configuration none.yaml"),
        (["-c"], "-c has no value"),
    ],
)
def test_mistakes_are_one_line(conf, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "resynthesis", "-c", str(conf), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert "Traceback" not in "".join(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("codec: x\n", "no clips: give it in the YAML or as --clips"),
        ("codec: x\nclips: y\nrung: z\n", "unknown option rung, expected one of codec, clips, "),
        ("codec: x\nclips: y\nlimit: [1]\n", "limit is '[1]', expected a whole number or null"),
        ("codec: ${gone}\nclips: y\n", "cannot be resolved"),
        ("- codec\n", "holds list"),
        ("a: b: c", "is no YAML"),
    ],
)
def test_mistakes_in_the_yaml_are_one_line(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.yaml").write_text(text)
    assert main(["evaluate", "resynthesis", "-c", "conf.yaml"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


def test_yamls_merge_from_left_to_right_and_the_environment_is_read(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIT_MOSS_TEST_LIMIT", "3")
    (tmp_path / "more.yaml").write_text("limit: ${oc.env:LIT_MOSS_TEST_LIMIT}\njudge: large-v3\n")
    words = ["-c", str(conf), "-c", str(tmp_path / "more.yaml"), "--language=zh", "--print_config"]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "resynthesis", *words])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    chosen = {key: config[key] for key in ("limit", "judge", "language", "speaker")}
    assert chosen == {"limit": 3, "judge": "large-v3", "language": "zh", "speaker": None}


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "resynthesis", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--run_root RUN_ROOT   Folder of all runs' files." in text
    assert "    vocoder         its mel through the vocoder\n" in text


def test_an_unknown_benchmark_is_named_with_those_there_are(conf, capsys):
    assert main(["evaluate", "everything", "-c", str(conf)]) == 2
    assert "no benchmark 'everything', expected one of " in capsys.readouterr().err
    assert main(["evaluate", "--help"]) == 0
    assert "resynthesis" in capsys.readouterr().out
