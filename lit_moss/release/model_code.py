"""Code that MLflow runs to create a registered model, stored next to the model folder (`registry`)."""

from pathlib import Path

from mlflow.models import set_model

from lit_moss.release.pyfunc import TalkingModel

set_model(TalkingModel(Path(__file__).with_name("model")))
