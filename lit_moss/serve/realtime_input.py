"""The input audio buffer of a Realtime session: audio that is not yet part of an item."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.serve.engine import Session, UserTurn
from lit_moss.serve.realtime_events import new_id
from lit_moss.serve.realtime_session import ServerVad
from lit_moss.serve.turn_detection import Probabilities, TurnDetector

RATE_HZ = rates.DECODER_RATE_HZ
MIN_COMMIT_MS = 100  # as in OpenAI's interface


@dataclass(frozen=True)
class SpeechStarted:
    """The user started to speak, at `ms` of all appended audio, including the padding before it."""

    item_id: str
    ms: int


@dataclass(frozen=True)
class SpeechStopped:
    """The user stopped speaking, at `ms` of all appended audio; `turn` contains the speech."""

    item_id: str
    ms: int
    turn: UserTurn


class InputBuffer:
    """Audio that was appended by the client.

    Without turn detection it forms a single turn until it is committed. With turn detection, turns are those
    that the detector finds; of the audio between them, only the padding before the next turn is kept.

    Args:
        session: Session of the engine.
        model: Opens the model of turn detection; may be called on any thread.
    """

    def __init__(self, session: Session, model: Callable[[], Probabilities]) -> None:
        self._session, self._model = session, model
        self._turn: UserTurn | None = None
        self._item_id = new_id("item")
        self._settings: ServerVad | None = None
        self._detector: TurnDetector | None = None
        self._appended = 0  # samples
        self._held_T = torch.zeros(0)  # latest samples that are not part of a turn
        self._held_from = 0  # index of the first of them

    async def set_detection(self, settings: ServerVad | None) -> None:
        """Enables, disables or changes turn detection; the content of the buffer is kept.

        Raises:
            UserError: if the model cannot be opened.
        """
        if settings == self._settings:
            return
        if settings is None:
            self._detector = None
        else:
            model = await asyncio.to_thread(self._model)
            old, self._detector = self._detector, TurnDetector(model, settings.rule(), self._appended)
            self._detector.speaking = old is not None and old.speaking
        self._settings = settings
        self._held_T, self._held_from = torch.zeros(0), self._appended

    async def append(self, samples_T: Tensor) -> AsyncIterator[SpeechStarted | SpeechStopped]:
        """Appends samples at 24 kHz, float32 (T,); yields what the detector finds in them.

        Raises:
            UserError: if a turn without detection becomes too long; the samples are discarded.
        """
        if self._detector is None:
            self._open_turn().push(samples_T)
            self._appended += len(samples_T)
            return
        for piece_T in samples_T.split(RATE_HZ):  # one second: sends events while the rest is processed
            if len(piece_T):
                for found in await self._detect(piece_T, self._detector):
                    yield found

    def commit(self) -> tuple[str, UserTurn]:
        """Ends the turn on request of the client; returns the id of its item, and the turn.

        Raises:
            UserError: if it has less than 100 ms.
        """
        turn = self._turn
        ms = 0 if turn is None else 1000 * turn.seconds
        if turn is None or ms < MIN_COMMIT_MS:
            raise UserError(
                f"the buffer holds {ms:.0f} ms of sound, expected {MIN_COMMIT_MS} ms or more"
                + ("" if self._detector is None else "; turn detection commits by itself")
            )
        if self._detector is not None:
            self._detector.end_turn()
        return self._take_turn()

    def clear(self) -> None:
        """Clears the buffer."""
        if self._turn is not None:
            self._turn.clear()
        if self._detector is not None:
            self._detector.end_turn()
        self._turn = None
        self._held_T, self._held_from = torch.zeros(0), self._appended

    # --- internals ------------------------------------------------------------------------------------------

    def _open_turn(self) -> UserTurn:
        if self._turn is None:
            self._turn = self._session.listen(RATE_HZ)
        return self._turn

    def _take_turn(self) -> tuple[str, UserTurn]:
        taken, self._turn = self._open_turn(), None
        item_id, self._item_id = self._item_id, new_id("item")
        return item_id, taken

    async def _detect(self, piece_T: Tensor, detector: TurnDetector) -> list[SpeechStarted | SpeechStopped]:
        assert self._settings is not None
        # The padding takes at most half of a short turn, to leave room for the speech.
        padding = min(self._settings.prefix_padding_ms * RATE_HZ // 1000, self._most_samples // 2)
        borders = await asyncio.to_thread(detector.push, piece_T)
        self._held_T = torch.cat([self._held_T, piece_T])
        self._appended += len(piece_T)
        found: list[SpeechStarted | SpeechStopped] = []
        for border in borders:
            if border.kind == "began":
                start = max(border.sample - padding, self._held_from)
                self._drop_before(start)
                self._open_turn()
                found.append(SpeechStarted(self._item_id, _ms(start)))
            else:
                found += self._fill_turn(border.sample)
                item_id, turn = self._take_turn()
                found.append(SpeechStopped(item_id, _ms(border.sample), turn))
        if detector.speaking:
            found += self._fill_turn(self._appended)
        else:
            self._drop_before(self._appended - padding - detector.MAX_DELAY_SAMPLES)
        return found

    @property
    def _most_samples(self) -> int:
        """Maximum length of a turn."""
        return max(1, int(self._session.engine.limits.max_turn_sec * RATE_HZ))

    def _fill_turn(self, end: int) -> list[SpeechStarted | SpeechStopped]:
        """Moves held samples before `end` to the turn; a turn that is too long ends, and another starts."""
        found: list[SpeechStarted | SpeechStopped] = []
        while True:
            turn = self._open_turn()
            samples_T = self._held_T[: max(0, end - self._held_from)]
            if turn.samples + len(samples_T) > self._most_samples:
                if not turn.samples:  # the piece is longer than a turn
                    turn.push(samples_T[: self._most_samples])
                    self._drop_before(self._held_from + self._most_samples)
                item_id, turn = self._take_turn()
                at = _ms(self._held_from)
                found += [SpeechStopped(item_id, at, turn), SpeechStarted(self._item_id, at)]
                continue
            turn.push(samples_T)
            self._drop_before(end)
            return found

    def _drop_before(self, sample: int) -> None:
        dropped = min(max(sample - self._held_from, 0), len(self._held_T))
        self._held_T, self._held_from = self._held_T[dropped:].clone(), self._held_from + dropped


def _ms(samples: int) -> int:
    return 1000 * samples // RATE_HZ
