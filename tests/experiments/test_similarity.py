"""The similarity study of a real (tiny) run: both scores, by layer, in its report and in MLflow."""

import pytest
import torch
import yaml
from lm_recipe import CODES, lm_recipe
from mlflow import MlflowClient
from recording import fit

from experiments.studies import similarity
from lit_moss.audio.io import read
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.llm.backbone import load_text_tokenizer


@pytest.mark.nightly
def test_the_report_holds_the_papers_and_the_centred_score(
    tmp_path, monkeypatch, capsys, corpus, tiny_encoder
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=CODES)).save_pretrained("codec")
    fit(tmp_path, lm_recipe(tmp_path / "recipe", 5))
    run = next(tmp_path.glob("runs/tiny/*/run.json")).parent
    words = ["--speech", str(corpus / "train.jsonl"), "--speech-tokenizer", "codec", "--samples", "2"]
    assert similarity.main([str(run), *words]) == 0
    report = capsys.readouterr().out
    assert "| layer | trained | trained, centred | untrained | untrained, centred |" in report
    assert report.count("\n| ") == 1 + 4  # the header and four layers
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(f"similarity-{run.name}")
    stored = {a.path for r in client.search_runs([experiment.experiment_id])
              for a in client.list_artifacts(r.info.run_id)}  # fmt: skip
    assert {"similarity.md", "similarity.png", "similarity_centred.png"} <= stored
    # Repeated with other options, the study's metric follows: it once kept that of the first call.
    (study,) = client.search_runs([experiment.experiment_id])
    assert similarity.main([str(run), *words[:-1], "3"]) == 0
    assert len(client.get_metric_history(study.info.run_id, "proposed_depth")) == 2
    # Another run of the same folder, whose codes were made by Whisper's features.
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["log_mel"] = "whisper"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lm, _, backbone, codec, log_mel = similarity.load(run, None, "codec")
    assert log_mel == "whisper"
    manifest, tokenizer = str(corpus / "train.jsonl"), load_text_tokenizer(backbone)
    found = {
        kind: similarity.samples(manifest, codec, lm, tokenizer, 1, 2, kind)[0].speech
        for kind in (log_mel, "causal")
    }
    first = [u for u in read_manifest(corpus / "train.jsonl") if u.text][:2]
    tokenizer = SpeechTokenizer.from_pretrained("codec", log_mel="whisper")
    codes = [
        c for u in first for c in tokenizer.encode(read(u.audio, 16000, u.offset_sec, u.duration_sec), 16000)
    ]
    assert found["whisper"].tolist() == lm.format.speech([int(c) for c in codes])
    assert not torch.equal(found["whisper"], found["causal"])
