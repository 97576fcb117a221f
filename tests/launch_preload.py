"""What the server of `launch.py` imports once, before it is forked."""

import threading

import mlflow.store.db.utils
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import callbacks  # noqa: F401
import lit_moss.cli.fit
import lit_moss.data.kinds
import lit_moss.data.speech_data
import lit_moss.modules  # noqa: F401

# A fork copies only the thread that forks: locks held by another would stay locked in the copy for ever.
assert threading.active_count() == 1, threading.enumerate()
