"""UTMOS in a process of its own: a stand-in checkout with the layout and the interface of SpeechMOS."""

from pathlib import Path

import pytest
import torch

from lit_moss.errors import UserError
from lit_moss.evaluate.utmos import Utmos

MODEL = """
import torch
from speechmos.utmos22.scale import scale

class UTMOS22Strong(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, wave, sr):
        print("loading")
        assert sr == 16000 and wave.ndim == 2
        return scale * wave.mean(dim=1) + self.bias
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "SpeechMOS"
    (folder / "speechmos/utmos22/strong").mkdir(parents=True)  # without __init__.py, as the original
    (folder / "speechmos/utmos22/scale.py").write_text("scale = 2.0\n")
    (folder / "speechmos/utmos22/strong/model.py").write_text(MODEL)
    torch.save({"bias": torch.tensor(3.0)}, folder / "utmos22_strong.pt")
    return folder


@pytest.mark.slow
def test_scores_come_from_the_checkout_though_another_speechmos_is_installed(checkout):
    pytest.importorskip("speechmos", reason="needs the extra `evaluate`")
    with Utmos(checkout) as utmos:
        assert utmos(torch.full((4000,), 0.25)) == pytest.approx(3.5)
        assert utmos(torch.zeros(10)) == pytest.approx(3.0)
    import speechmos

    assert Path(str(speechmos.__file__)).parent != checkout / "speechmos"


@pytest.mark.slow
def test_a_checkout_that_cannot_be_run_is_one_line(checkout):
    (checkout / "speechmos/utmos22/scale.py").unlink()
    with (
        Utmos(checkout) as utmos,
        pytest.raises(UserError, match=r"cannot be run \(ModuleNotFoundError.*scale"),
    ):
        utmos(torch.zeros(100))
    (checkout / "second.pt").touch()
    with pytest.raises(UserError, match=r"has 2 \.pt files"):
        Utmos(checkout)
