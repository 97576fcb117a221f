"""Aligners by name: spoken words and their audio -> times.

Two kinds share the interface `Aligner`. `CTCAligner` finds the words in the scores of an acoustic model:
the CTC head of a speech tokenizer (`TokenizerModel`), a Hugging Face model (`HuggingFaceModel`), torchaudio's
MMS_FA (`MMSModel`). `ASRAligner` takes the times that `transcribe` has left in `asr_words`.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_moss.audio import io, rates
from lit_moss.audio.features import CausalLogMel, whisper_log_mel
from lit_moss.audio.precision import full_precision
from lit_moss.data.interleave import join_words
from lit_moss.devices import moved
from lit_moss.errors import UserError, first_line
from lit_moss.prepare.forced_alignment import WILDCARD, CannotAlign, TimedWord, align_words
from lit_moss.prepare.language import is_han
from lit_moss.prepare.romanise import romanise
from lit_moss.prepare.spoken import spoken_words
from lit_moss.prepare.stage import Item
from lit_moss.prepare.storage import local_copy
from lit_moss.prepare.words import split_words

# Time and memory grow with the square of an utterance's length: an hour at 50 Hz has 10^10 cells.
LONGEST_SEC = rates.MAX_SEGMENT_SAMPLES / rates.TOKENIZER_RATE_HZ
MMS_LICENCE = "MMS_FA's weights are licensed CC-BY-NC 4.0: what is aligned by them is for non-commercial use"


@dataclass(frozen=True)
class Alignment:
    """Times of an utterance's words.

    Args:
        words: One for each spoken word; None where a word was not found.
        wildcards: Letters that the model's vocabulary lacks.
    """

    words: list[TimedWord | None]
    wildcards: int = 0


class Aligner(Protocol):
    """Finds spoken words in an utterance."""

    def align(self, item: Item, words: Sequence[str]) -> Alignment:
        """Times of words, from the start of the utterance.

        Args:
            item: The utterance.
            words: Spoken words, without punctuation.

        Raises:
            CannotAlign: if there is no alignment.
            UnreadableAudio: if the sound cannot be read.
        """
        ...


class AcousticModel(Protocol):
    """A network with a CTC vocabulary of characters.

    Attributes:
        vocabulary: Character -> id, without the blank.
        blank: Id of the blank.
        separator: Id of the sign between words; None if there is none.
    """

    vocabulary: dict[str, int]
    blank: int
    separator: int | None

    def log_probs(self, wave_T: Tensor) -> tuple[Tensor, float]:
        """Samples (T,) at 16 kHz -> log-probabilities (frames, V), float32, and the seconds of a frame."""
        ...


class CTCAligner:
    """Forced alignment by an acoustic model, one utterance a call.

    Args:
        model: Its letters decide how a text is spelled: Chinese is romanised unless it has Chinese
            characters.
    """

    def __init__(self, model: AcousticModel) -> None:
        self.model = model
        self._romanised = not any(map(is_han, model.vocabulary))

    def align(self, item: Item, words: Sequence[str]) -> Alignment:
        """See `Aligner`."""
        ids = [self._spell(word) for word in (romanise(words) if self._romanised else words)]
        wave_T = io.read(
            local_copy(item["audio_filepath"]),
            rates.TOKENIZER_RATE_HZ,
            item.get("offset") or 0.0,
            item.get("duration"),
            LONGEST_SEC + 1,
            item.get("channel"),
        )
        if len(wave_T) > rates.MAX_SEGMENT_SAMPLES:
            raise CannotAlign("longer than an aligner takes", item.get("duration"), LONGEST_SEC)
        log_probs_TV, seconds_per_frame = self.model.log_probs(wave_T)
        blank, separator = self.model.blank, self.model.separator
        timed = align_words(log_probs_TV, ids, seconds_per_frame, blank, separator)
        return Alignment(timed, sum(i == WILDCARD for word in ids for i in word))

    def _spell(self, word: str) -> list[int]:
        """Ids of a word's letters."""
        ids: list[int] = []
        for letter in word:
            forms = (letter, letter.lower(), letter.upper(), _without_accent(letter))
            known = (self.model.vocabulary[form] for form in forms if form in self.model.vocabulary)
            if letter != "'" or "'" in self.model.vocabulary:
                ids.append(next(known, WILDCARD))
        return ids


def _without_accent(letter: str) -> str:
    return unicodedata.normalize("NFD", letter)[0].lower()


# --- acoustic models ----------------------------------------------------------------------------------------


class TokenizerModel:
    """The CTC head that a speech tokenizer is trained with, on its 50 Hz frames before pooling.

    Its other head, on quantized frames, knows times to 80 ms: at 465 known starts of words its median error
    was 27 ms, that of this one 16 ms, each without its constant delay (a tokenizer of 350 steps). A model
    trained with `frame_loss_weight: 0` has no such head. The network is causal,
    so it is late by a constant: `lit_moss.prepare.known_borders.measure_shift`.

    Args:
        path: Checkpoint of `conf/codec_encoder.yaml`, see `tokenizer_checkpoint`.
        device: auto, cpu or cuda.
    """

    blank: int = 0

    def __init__(self, path: Path, device: str) -> None:
        from lit_moss.codec.pretrained import encoder_of_checkpoint, head_of_checkpoint

        encoder = encoder_of_checkpoint(path)
        head, characters = head_of_checkpoint(path)
        self.encoder = moved(encoder.eval().requires_grad_(False), device)
        self.head = moved(head.eval().requires_grad_(False), device)
        self.device = self.encoder.codebook.weight.device
        self.vocabulary = {character: i for i, character in enumerate(characters.characters, start=2)}
        self.separator: int | None = self.vocabulary.pop(" ", None)

    @torch.no_grad()
    def log_probs(self, wave_T: Tensor) -> tuple[Tensor, float]:
        """See `AcousticModel`. Audio is padded to whole codes, so a frame is 320 samples."""
        samples = rates.codes_of_samples(len(wave_T)) * rates.SAMPLES_PER_CODE
        wave_1T = nn.functional.pad(wave_T, (0, samples - len(wave_T)))[None].to(self.device)
        config = self.encoder.config
        with full_precision(self.device):
            bins, whole = config.num_mel_bins, config.log_mel == "whisper"
            mel_1MF = whisper_log_mel(wave_1T, bins) if whole else CausalLogMel(bins)(wave_1T)
            hidden_1LD = self.encoder(mel_1MF)
            log_probs_LV = self.head.from_frames(hidden_1LD)[0]
        return log_probs_LV.cpu(), rates.SAMPLES_PER_HIDDEN / rates.TOKENIZER_RATE_HZ


def tokenizer_checkpoint(name: str | None) -> Path:
    """Checkpoint of a tokenizer run.

    Raises:
        UserError: if there is none: released tokenizers are published without a CTC head.
    """
    from lit_moss import assets
    from lit_moss.hub.tokenizer import tokenizer_path

    if name is None:
        raise UserError("aligner tokenizer needs a speech_tokenizer: a run of conf/codec_encoder.yaml")
    path = assets.resolve(str(tokenizer_path(name)))
    if path.is_dir():
        raise UserError(
            f"{name} has no CTC head, as all released tokenizers: give speech_tokenizer a checkpoint or "
            "run of conf/codec_encoder.yaml, or choose another aligner"
        )
    return path


class HuggingFaceModel:
    """A CTC model of `transformers`: wav2vec 2.0, HuBERT, WavLM, MMS and others.

    One utterance a call and no padding: models with `feat_extract_norm="group"` take no attention mask, and
    their scores change with what they are padded to.

    Args:
        name: Folder or hub id.
        device: auto, cpu or cuda.
    """

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        from lit_moss import assets

        folder = assets.resolve(name)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.features: Any = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
            model: Any = AutoModelForCTC.from_pretrained(folder, trust_remote_code=False)
            self.blank: int = tokenizer.pad_token_id
            special = {*tokenizer.all_special_ids, tokenizer.word_delimiter_token_id}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"aligner {name!r} cannot be opened ({first_line(error)}): expected tokenizer, "
                "whisper, mms_fa, or a folder or hub id of a CTC model such as facebook/wav2vec2-base-960h"
            ) from error
        if self.features.sampling_rate != rates.TOKENIZER_RATE_HZ:
            raise UserError(
                f"aligner {name!r} expects {self.features.sampling_rate} Hz: take one for 16,000 Hz"
            )
        self.model: nn.Module = moved(model.eval().requires_grad_(False), device)
        self.device = model.device
        vocabulary = tokenizer.get_vocab()
        self.vocabulary = {c: i for c, i in vocabulary.items() if len(c) == 1 and i not in special}
        self.separator: int | None = vocabulary.get(tokenizer.word_delimiter_token)

    @torch.no_grad()
    def log_probs(self, wave_T: Tensor) -> tuple[Tensor, float]:
        """See `AcousticModel`."""
        inputs = self.features(wave_T.numpy(), sampling_rate=rates.TOKENIZER_RATE_HZ, return_tensors="pt")
        logits_TV = self.model(inputs.input_values.to(self.device)).logits[0]
        # Not the model's stride: what does not fill a frame at the end is spread over all of them.
        seconds_per_frame = len(wave_T) / len(logits_TV) / rates.TOKENIZER_RATE_HZ
        return logits_TV.float().log_softmax(dim=-1).cpu(), seconds_per_frame


class MMSModel:
    """torchaudio's MMS_FA: Latin letters, 1,100 languages (arXiv:2305.13516); see `MMS_LICENCE`.

    Args:
        device: auto, cpu or cuda.
    """

    blank: int = 0
    separator: int | None = None

    def __init__(self, device: str) -> None:
        from torchaudio.pipelines import MMS_FA

        print(MMS_LICENCE)
        try:
            # torchaudio would unpickle the file.
            model = MMS_FA.get_model(with_star=False, dl_kwargs={"weights_only": True})
        except OSError as error:
            raise UserError(f"MMS_FA cannot be fetched ({error}): check the connection, 1.2 GB") from error
        self.model = moved(model.eval().requires_grad_(False), device)
        self.device = next(model.parameters()).device
        labels = MMS_FA.get_labels(star=None)
        self.vocabulary = {label: i for i, label in enumerate(labels) if i != self.blank}

    @torch.no_grad()
    def log_probs(self, wave_T: Tensor) -> tuple[Tensor, float]:
        """See `AcousticModel`."""
        log_probs_1TV, _ = self.model(wave_T[None].to(self.device))
        seconds_per_frame = len(wave_T) / log_probs_1TV.shape[1] / rates.TOKENIZER_RATE_HZ
        return log_probs_1TV[0].float().cpu(), seconds_per_frame


# --- word times of ASR --------------------------------------------------------------------------------------


class ASRAligner:
    """Word times that an item has from ASR, by matching its text with the transcript letter by letter.

    Both are spoken first: 5 in one is five in the other. Whisper's times come from cross-attention: a
    fallback where there is no acoustic model.
    """

    def align(self, item: Item, words: Sequence[str]) -> Alignment:
        """See `Aligner`; a word is found if its first and its last letter are."""
        transcribed = item.get("asr_words") or ()
        if not transcribed:
            raise CannotAlign("no word times of ASR", 0, "asr_words, as `transcribe` writes them")
        letters, times = _spoken_letters(transcribed, item.get("lang") or "en")
        own = "".join(words).casefold()
        place_of: dict[int, int] = {}
        for block in SequenceMatcher(None, own, letters, autojunk=False).get_matching_blocks():
            place_of |= {block.a + i: block.b + i for i in range(block.size)}
        timed: list[TimedWord | None] = []
        first = 0
        for word in words:
            stop = first + len(word.casefold())
            timed.append(_matched([place_of.get(i) for i in range(first, stop)], times))
            first = stop
        return Alignment(timed)


_Letter = tuple[float, float, float]  # start and end in seconds, probability of its word


def _spoken_letters(
    transcribed: Sequence[tuple[str, float, float, float]], lang: str
) -> tuple[str, list[_Letter]]:
    """Letters of a transcript as it is spoken, with their times."""
    written: list[_Letter] = []
    for word, start, end, probability in transcribed:
        written += _divided(start, end, probability, len("".join(word.split())))
    text, spoken, first = "", [], 0
    for token, said in spoken_words(join_words([word.strip() for word, *_ in transcribed]), lang):
        stop = first + len("".join(token.split()))
        own = written[first:stop]
        letters = "".join(part for word in said for part in split_words(word)).casefold()
        if own:
            probability = sum(letter[2] for letter in own) / len(own)
            spoken += _divided(own[0][0], own[-1][1], probability, len(letters))
            text += letters
        first = stop
    return text, spoken


def _divided(start: float, end: float, probability: float, count: int) -> list[_Letter]:
    """A stretch of time divided evenly among letters."""
    step = (end - start) / max(1, count)
    return [(start + i * step, start + (i + 1) * step, probability) for i in range(count)]


def _matched(places: Sequence[int | None], times: Sequence[_Letter]) -> TimedWord | None:
    if not places or places[0] is None or places[-1] is None:
        return None
    found = [times[place] for place in places if place is not None]
    score = sum(probability for _, _, probability in found) / len(places)
    return TimedWord(times[places[0]][0], times[places[-1]][1], score, len(places))


# --- by name ------------------------------------------------------------------------------------------------


def open_aligner(name: str, speech_tokenizer: str | None, device: str) -> Aligner:
    """An aligner: `tokenizer`, `whisper`, `mms_fa`, or a folder or hub id of a Hugging Face CTC model.

    Args:
        name: See above.
        speech_tokenizer: Checkpoint or run, for `tokenizer`.
        device: auto, cpu or cuda.

    Raises:
        UserError: if there is no such aligner.
    """
    if name == "whisper":
        return ASRAligner()
    if name == "tokenizer":
        return CTCAligner(TokenizerModel(tokenizer_checkpoint(speech_tokenizer), device))
    return CTCAligner(MMSModel(device) if name == "mms_fa" else HuggingFaceModel(name, device))


def weights_of(name: str, speech_tokenizer: str | None) -> str | None:
    """sha256 of an aligner's weights; None where its name says everything.

    Raises:
        UserError: if there is no such aligner.
    """
    from lit_moss import assets

    if name in ("whisper", "mms_fa"):
        return None
    if name == "tokenizer":
        return assets.sha256_of(tokenizer_checkpoint(speech_tokenizer))
    folder = assets.resolve(name)
    files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json"))
    return hashlib.sha256(" ".join(map(assets.sha256_of, files)).encode()).hexdigest()
