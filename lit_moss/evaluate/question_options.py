"""Options common to the benchmarks of spoken questions."""

from dataclasses import dataclass, field
from typing import Literal

from lit_moss.errors import UserError
from lit_moss.evaluate.answers import Answerer, Ears, ReplyOptions, open_answerer
from lit_moss.evaluate.evaluation import local_parts
from lit_moss.evaluate.questions import EMBEDDED, list_names
from lit_moss.evaluate.utmos import Utmos
from lit_moss.llm.replies import FormName


@dataclass
class QuestionOptions:
    """The model, the questions, and the models that speak and transcribe.

    Args:
        model: Language model: a run, a checkpoint, or a folder that `export` wrote.
        questions: Lists of questions: .jsonl, .json, .tsv, .csv, .parquet, a folder of OpenAudioBench, or
            embedded:questions.
        codec: Codec: a decoder's run, a checkpoint or a folder. null: `codec/` in the model's folder.
        log_mel: Features of its speech tokenizer: causal or whisper. null: as stated by the tokenizer.
        reply_form: Form of spoken replies: direct, guided or interleaved. null: that of the training.
        max_new_tokens: Maximum number of rows of a reply; a code of speech is one row (80 ms).
        greedy: Generate the most likely replies; false: sample with the settings of the released model.
        seed: Seed of the sampling.
        lang: Language of all questions: en or zh. null: as stated in the lists, or detected from the script.
        voices: Voices for texts, such as questions without audio, named as in `prepare synthesize`; the first
            of each language is used.
        reply_voice: Sound file of the voice of decoded speech. null: the codec's own voice.
        asr: Speech recogniser: embedded:whisper-base, large-v3, … The language is given to it.
        keep_sounds: Number of questions, from the first of all lists, whose audio is kept.
        limit: Number of questions per list, from the first. null: all.
        batch_size: Number of replies generated together; replies do not depend on it.
        device: auto, cpu or cuda.
        run_root: Folder of all runs' files.
        again: Start over if results exist.
    """

    model: str
    questions: list[str] = field(default_factory=lambda: [EMBEDDED])
    codec: str | None = None
    log_mel: Literal["causal", "whisper"] | None = None
    reply_form: FormName | None = None
    max_new_tokens: int = 500
    greedy: bool = True
    seed: int = 1
    lang: Literal["en", "zh"] | None = None
    voices: list[str] = field(default_factory=lambda: ["embedded:hibari", "embedded:kokoro/zf_xiaoxiao"])
    reply_voice: str | None = None
    asr: str = "embedded:whisper-base"
    keep_sounds: int = 10
    limit: int | None = None
    batch_size: int = 16
    device: str = "auto"
    run_root: str = "runs"
    again: bool = False

    def __post_init__(self) -> None:
        least = min(self.max_new_tokens, self.batch_size, 1 if self.limit is None else self.limit)
        if least < 1 or self.keep_sounds < 0:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}, batch_size {self.batch_size}, limit {self.limit} "
                f"and keep_sounds {self.keep_sounds}: expected 1 or more, and keep_sounds 0 or more"
            )

    @property
    def sources(self) -> list[str | None]:
        """Everything the results depend on besides the options."""
        # Earlier reports did not distinguish lists with the same file name; all other folders are found
        # again.
        told_apart = [f"list {name}" for name, file in self._list_names() if name != file]
        lists = [*self.questions, *told_apart]
        return [self.model, self.codec, self.reply_voice, *lists, *local_parts(self.asr)]

    def _list_names(self) -> list[tuple[str, str]]:
        """Name of each list among all lists, and the name it would have alone."""
        together, alone = list_names(self.questions), [list_names([name])[0] for name in self.questions]
        return list(zip(together, alone, strict=True))

    def answerer(self, dnsmos: bool = False, utmos: Utmos | None = None) -> Answerer:
        """Opens the model to ask questions.

        Args:
            dnsmos: Compute DNSMOS of spoken replies.
            utmos: UTMOS for spoken replies, or None.

        Raises:
            UserError: if the model or codec cannot be used.
        """
        return open_answerer(
            self.model,
            self.codec,
            self.device,
            self.log_mel,
            self.reply_voice,
            ReplyOptions(self.reply_form, self.max_new_tokens, self.greedy, self.seed),
            Ears(self.asr, self.device, dnsmos, utmos),
            self.voices,
        )
