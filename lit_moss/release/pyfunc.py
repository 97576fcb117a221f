"""MLflow's `pyfunc` interface of an exported model: rows of questions in, rows of answers out.

    columns in    text | audio, reply, system, max_new_tokens, temperature, seed          all optional but one
    columns out   text, audio (base64 of a 24 kHz WAV, or null), codes

The weights are files next to `model_code.py`, which creates the model ("models from code"): nothing is
pickled. One engine answers all rows of a call, and the calls of several clients, concurrently.
"""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.llm.replies import reply_codes
from lit_moss.llm.sampling import sampling_of
from lit_moss.serve.engine import Engine, Session
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions
from lit_moss.serve.settings import Limits
from lit_moss.serve.sounds import from_base64, read_upload, sound_bytes

# Options of a loaded model, `load_model(…, model_config={…})`; for a served model they are JSON in the
# environment variable MLFLOW_PYFUNC_INFERENCE_CONFIG.
MODEL_CONFIG: dict[str, Any] = {
    "codec": None,  # name of a codec, see `open_codec`; null: the one in the model's folder
    "device": "auto",  # auto, cpu, cuda
    "audio_folder": None,  # `audio` may be the path of a file below it; null: files are never read
    "max_sessions": 8,  # number of answers generated at once; others wait
}

_OPTIONAL = {"text": DataType.string, "audio": DataType.string, "reply": DataType.string,
             "system": DataType.string, "max_new_tokens": DataType.long, "temperature": DataType.double,
             "seed": DataType.long}  # fmt: skip
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(kind, name, required=False) for name, kind in _OPTIONAL.items()]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "text"),
            ColSpec(DataType.string, "audio", required=False),
            ColSpec(Array(DataType.long), "codes"),
        ]
    ),
)
INPUT_EXAMPLE = {"text": "What is a codec?", "reply": "text", "max_new_tokens": 60}


class TalkingModel(PythonModel):
    """Answers text or speech with text or speech.

    Columns of a question: `text` or `audio`, the base64 of a sound file (wav, flac, ogg, mp3) or, if
    `audio_folder` is set, the path of a sound file below it; `reply` (text or speech; default: as the
    question, or text if the model cannot speak); `system`, appended to the system prompt; `max_new_tokens`
    (default 500, at most 2000); `temperature` (0: the most likely rows); `seed`.

    Args:
        folder: Folder of an exported model; opened by `load_context`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._engine: Engine | None = None
        self._audio_folder: Path | None = None

    def load_context(self, context: Any) -> None:
        """Loads the model.

        Raises:
            UserError: if a part is missing, or text tokenizer, template or codec differ from those of the
                training.
        """
        settings = MODEL_CONFIG | dict(context.model_config or {})
        if settings["audio_folder"]:
            self._audio_folder = Path(settings["audio_folder"]).resolve()
        model = SpeechModel.open(str(self.folder), settings["codec"], settings["device"])
        self._engine = Engine(model, Limits(max_sessions=int(settings["max_sessions"])))
        self._workers = ThreadPoolExecutor(self._engine.limits.max_sessions, thread_name_prefix="pyfunc")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Returns one answer per row.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE if a row cannot be answered; the message names the row.
        """
        rows = pd.DataFrame(model_input).to_dict("records")
        answers = list(self._workers.map(self._answer, range(len(rows)), rows))
        # dtype object: pandas' strings have NaN instead of None, which is not JSON.
        return pd.DataFrame(answers, columns=["text", "audio", "codes"], dtype=object)

    def _answer(self, number: int, columns: dict[str, Any]) -> dict[str, Any]:
        assert self._engine is not None, "load_context first"
        given = {str(k): v for k, v in columns.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
        try:
            session = self._engine.open_session(instructions=str(given.get("system", "")))
            try:
                self._ask(session, given)
                return _heard(session, _options(given, session))
            finally:
                session.close()
        except UserError as error:
            raise MlflowException(f"row {number}: {error}", error_code=INVALID_PARAMETER_VALUE) from error

    def _ask(self, session: Session, given: dict[str, Any]) -> None:
        """Adds the question to the conversation of the session."""
        text, audio, conversation = given.get("text"), given.get("audio"), session.conversation
        if bool(text) == bool(audio):
            raise UserError(f"got {', '.join(sorted(given)) or 'nothing'}, expected either text or audio")
        if text:
            conversation.add(conversation.text_message("user", str(text)))
            return
        limits = session.engine.limits
        wave_T = read_upload(self._bytes_of(str(audio), limits.max_upload_bytes), limits.max_turn_sec)
        turn = session.listen(rates.TOKENIZER_RATE_HZ)
        turn.push(wave_T)
        conversation.add(conversation.speech_message("user", turn.finish().result()))

    def _bytes_of(self, audio: str, most: int) -> bytes:
        """The content of a sound file: that of `audio` itself, or of the file with that name."""
        path = self._allowed(audio) if "." in audio else None  # in sound file names, never in base64
        size = len(audio) * 3 // 4 if path is None else path.stat().st_size
        if size > most + 2:
            raise UserError(f"audio has {size} bytes, expected {most} at most")
        return from_base64(audio) if path is None else path.read_bytes()

    def _allowed(self, audio: str) -> Path:
        """The path of a file that clients are allowed to read."""
        if self._audio_folder is None:
            raise UserError(
                "audio is a path, and this model reads no files for its clients: send the base64 of the "
                "file, or load the model with model_config audio_folder"
            )
        try:
            path = (self._audio_folder / audio).resolve()  # follows links and `..`
            if path.is_relative_to(self._audio_folder) and path.is_file():
                return path
        except (OSError, ValueError):  # a name that is too long, or contains a null byte
            pass
        raise UserError("audio is a path: expected a file below the audio_folder of this model")


def _options(given: dict[str, Any], session: Session) -> ReplyOptions:
    model = session.engine.model
    can_speak = model.codec is not None
    reply = given.get("reply") or ("speech" if given.get("audio") and can_speak else "text")
    if reply not in ("text", "speech"):
        raise UserError(f"reply is {reply!r}, expected text or speech")
    modality: Literal["text", "speech"] = "speech" if reply == "speech" else "text"
    temperature = given.get("temperature")
    sampling = sampling_of(None if temperature is None else float(temperature))
    most = int(given.get("max_new_tokens", 500))
    if most < 1:
        raise UserError(f"max_new_tokens is {most}, expected 1 or more")
    seed = None if given.get("seed") is None else int(given["seed"])
    return ReplyOptions(modality, None, most, sampling, sampling, seed)


def _heard(session: Session, options: ReplyOptions) -> dict[str, Any]:
    """The complete reply."""
    waves, model = [], session.engine.model
    for event in session.start_reply(options):
        if isinstance(event, AudioDelta):
            waves.append(event.samples_T)
        if isinstance(event, ReplyDone):
            if event.reason == "failed":
                raise MlflowException(f"the reply failed ({event.error})", error_code=INTERNAL_ERROR)
            rows = event.rows
    audio = base64.b64encode(sound_bytes(torch.cat(waves).cpu(), "wav")).decode() if waves else None
    text = session.conversation.text_of(rows)
    return {"text": text, "audio": audio, "codes": reply_codes(rows, model.lm.format)}
