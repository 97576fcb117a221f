"""Reports lost failures: `spoken_qa` named a question once for all pairs, with the reason of the last one.

`tokenizer_probe` gave their number alone.
"""

from types import SimpleNamespace

from lit_moss.evaluate.evaluation import FAILED
from lit_moss.evaluate.spoken_qa import Config, report
from lit_moss.evaluate.tokenizer_probe import Config as ProbeConfig
from lit_moss.evaluate.tokenizer_probe import Item, Lists
from lit_moss.evaluate.tokenizer_probe import report as probe_report

ANSWERER = SimpleNamespace(form=SimpleNamespace(name="direct"))


def row(pair, name, **more):
    return {"id": name, "pair": pair, "source": "s", "group": "", "lang": "en", "voice": "", "failed": None,
            "match_norm": 0.0, "match_raw": 0.0} | more  # fmt: skip


def test_each_pair_has_its_own_reason():
    pairs = ["speech-text", "speech-speech"]
    rows = [row(pair, name, failed=f"{pair} lost") for pair in pairs for name in ("q1", "q2")]
    text = report(rows, Config("m", pairs=pairs), ANSWERER)
    assert "## Failed, counted as wrong: 4" in text
    for pair in pairs:
        assert f"- {pair}/q1: {pair} lost" in text


def test_so_have_replies_without_a_verdict():
    pairs = ["text-text", "speech-speech"]
    rows = [row(pair, "q1", judge=0.0, judge_why=f"{pair}?", unparsable=1.0) for pair in pairs]
    rows[1] |= {"text_match_norm": 0.0, "text_match_raw": 0.0, "text_judge": 0.0, "text_judge_why": "own?",
                "text_unparsable": 1.0}  # fmt: skip
    text = report(rows, Config("m", pairs=pairs), ANSWERER)
    assert "## Without a verdict of the judge, counted as wrong: 2" in text
    assert "- text-text/q1: text-text?" in text
    assert "- speech-speech/q1: speech-speech?" in text
    assert "## Own text, without a verdict of the judge, counted as wrong: 1" in text


def test_a_single_pair_needs_no_name():
    text = report([row("text-text", "q1", failed="lost")], Config("m", pairs=["text-text"]), ANSWERER)
    assert "- q1: lost" in text


def test_the_tokenizer_probe_names_them():
    lists = Lists({"test": [SimpleNamespace(id="same"), SimpleNamespace(id="same")]})
    judged = [(Item("k", "test", n), {FAILED: "it has no codes"}) for n in range(2)]
    text = probe_report(ProbeConfig(["t"], "d", ["test"]), lists, [{"codes": "k"}], judged)
    assert "2 failures" in text
    assert "- k|test|0 (same): it has no codes\n- k|test|1 (same): it has no codes" in text
    whole = probe_report(ProbeConfig(["t"], "d", ["test"]), lists, [{"codes": "k"}], [])
    assert "Failed" not in whole
