"""Training code for speech-to-speech language models of the MOSS-Speech kind (arXiv:2510.00499)."""

import os

__version__ = "0.1.0"

# OpenMP threads that wait for work spin before they sleep, and a spinning thread occupies the core that other
# threads need: one busy process beside a two-thread training slowed it from 17 to 5 audio seconds a second;
# with a short spin it kept 9. GNU OpenMP reads the variable when torch is imported, so it is set here, before
# any module of ours imports torch; processes that we start inherit it. A value set by the user is kept.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

# MLflow reports the use of its functions to its makers, huggingface_hub that of parts that it fetches; the
# variables are read variables when they are imported.
for _name in ("MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "true")
