"""`evaluate cloze --against` could not read an evaluation with a separator of lines, such as U+2028, in a
name."""

import pytest

from lit_moss.evaluate.cloze_options import Config
from lit_moss.evaluate.cloze_report import results_of
from lit_moss.evaluate.evaluation import Evaluation


@pytest.mark.slow
def test_names_with_separators_of_lines_are_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a\u2028b", "c\u0085d", "e\x1cf", "g\rh"]
    with Evaluation("cloze", Config("m", ["x"], run_root=str(tmp_path)), []) as evaluation:
        results = evaluation.results(names, lambda batch: [{"good": name} for name in batch], key=str)
        folder = evaluation.folder
    assert results_of(str(folder)) == dict(zip(names, results, strict=True))
