"""What MLflow runs to make a registered model; it is copied beside the model's folder, see `registry`."""

from pathlib import Path

from mlflow.models import set_model

from lit_moss.release.pyfunc import TalkingModel

set_model(TalkingModel(Path(__file__).with_name("model")))
