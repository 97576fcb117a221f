"""Options that the benchmarks of spoken questions share."""

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
    """Which model is asked which questions, and who speaks and hears.

    Args:
        model: Language model: a run, a checkpoint, or a folder that `export` wrote.
        questions: Lists: .jsonl, .json, .tsv, .csv, .parquet, a folder of OpenAudioBench, or
            embedded:questions.
        codec: Codec: a decoder's run, a checkpoint or a folder; null takes `codec/` in the model's folder.
        log_mel: Features of its speech tokenizer, causal or whisper; null takes what it states.
        reply_form: Form of spoken replies: direct, guided or interleaved; null takes that of the training.
        max_new_tokens: Most rows of a reply; a code of speech is a row of 80 ms.
        greedy: Whether replies are the most likely ones; false draws them as the released model does.
        seed: Of replies that are drawn.
        lang: Language of all questions, en or zh; null takes what the lists state or are written in.
        voices: Voices that speak texts, such as questions without sound, as in `prepare synthesize`; of each
            language the first.
        reply_voice: Sound file of the voice of decoded speech; null takes the codec's own.
        asr: Recogniser of all sounds: embedded:whisper-base, large-v3, … The language is fixed.
        keep_sounds: Of how many questions, from the first of all lists, the sounds are kept.
        limit: How many questions of each list, from the first; null uses all.
        batch_size: Replies that are made together; they do not depend on it.
        device: auto, cpu or cuda.
        run_root: Folder of all runs' files.
        again: Whether to start over where results exist.
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
        """What the results follow from besides the options."""
        # Reports of before took lists with the same file name for one; all other folders are found again.
        told_apart = [f"list {name}" for name, file in self._list_names() if name != file]
        lists = [*self.questions, *told_apart]
        return [self.model, self.codec, self.reply_voice, *lists, *local_parts(self.asr)]

    def _list_names(self) -> list[tuple[str, str]]:
        """Name of each list, and the name that it has alone."""
        together, alone = list_names(self.questions), [list_names([name])[0] for name in self.questions]
        return list(zip(together, alone, strict=True))

    def answerer(self, dnsmos: bool = False, utmos: Utmos | None = None) -> Answerer:
        """What asks the model.

        Args:
            dnsmos: Whether spoken replies are judged by DNSMOS.
            utmos: Judge of spoken replies; None for none.

        Raises:
            UserError: for a model or codec that cannot be used.
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
