"""Lightning callbacks of lit_moss, referred to in YAML as `callbacks.NAME`."""

from callbacks.checkpoint import Checkpoint
from callbacks.decoder_report import DecoderReport
from callbacks.exact_resume import ExactResume
from callbacks.first_validation import FirstValidation
from callbacks.learning_rate import LearningRateSchedule
from callbacks.non_finite_steps import NonFiniteSteps
from callbacks.progress import Progress
from callbacks.reverse_unfreeze import ReverseUnfreeze
from callbacks.schedule_picture import SchedulePicture
from callbacks.skipped_data import SkippedData
from callbacks.staged_freezing import StagedFreezing
from callbacks.throughput import Throughput
from callbacks.tokenizer_report import TokenizerReport
from callbacks.vocoder_report import VocoderReport

__all__ = [
    "Checkpoint",
    "DecoderReport",
    "ExactResume",
    "FirstValidation",
    "LearningRateSchedule",
    "NonFiniteSteps",
    "Progress",
    "ReverseUnfreeze",
    "SchedulePicture",
    "SkippedData",
    "StagedFreezing",
    "Throughput",
    "TokenizerReport",
    "VocoderReport",
]
