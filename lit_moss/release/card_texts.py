"""Sentences of model cards that do not depend on the run."""

INTENDED_USE = """
Research on speech language models: training, comparing and taking apart models that listen and speak. Talking
to it on one's own machine, fine-tuning it, measuring it.

Not for: advice that someone may act on without checking it, decisions about people, emergencies, or any
product without measurements of its own. Do not use it to imitate a person's voice without that person's
consent, and say to listeners that they hear a machine.
"""

SUMMARY = {
    "language model": (
        "A speech-to-speech language model of the MOSS-Speech kind: it takes speech or text and answers in "
        "speech or text. A shared trunk is followed by a text tail and a speech tail."
    ),
    "codec": (
        "A speech codec: a speech tokenizer (speech to codes, 12.5 a second) and a decoder (codes to speech "
        "at 24 kHz)."
    ),
    "speech tokenizer": "A speech tokenizer: speech to codes, 12.5 a second.",
    "vocoder": "A vocoder: 80-band log-mels, 50 frames a second, to speech at 24 kHz.",
}

SMALL = (
    "This is a small model ({millions:,.1f} M parameters). Expect replies that are short, often wrong, and "
    "often not sentences; speech may be noise. It shows how such a model is made, it does not know much."
)

_VOICES = (
    "A voice prompt makes it speak like a recorded person. That can be misused for fraud and to put words "
    "into people's mouths. There is no watermark in the sound."
)

LIMITS: dict[str, tuple[str, ...]] = {
    "language model": (
        "Not measured, unless the table above names it: spoken question answering, word errors and "
        "naturalness of the spoken replies, latency, behaviour under noise, accents or several speakers, "
        "safety of replies, bias.",
        "It repeats what its backbone and its data hold: errors, prejudice and gaps of both. Nothing was "
        "done here against harmful replies.",
        _VOICES,
        "It does not say when it does not know. Its text and its speech may state different things.",
    ),
    "codec": (
        "Not measured, unless the table above names it: word errors after resynthesis, naturalness, speaker "
        "similarity, music, noise and several speakers at once.",
        "12.5 codes a second keep what was said and little else; what is left out comes from the voice "
        "prompt or is lost.",
        _VOICES,
    ),
    "speech tokenizer": (
        "Not measured, unless the table above names it: noise, accents, children's speech, several speakers "
        "at once.",
        "Codes keep what was said and little of who said it or how; they are no anonymisation.",
    ),
    "vocoder": (
        "Not measured, unless the table above names it: voices and languages other than those of the "
        "training data, music, noise, mels that a decoder has made.",
        "The mels end at 8 kHz: what it adds above is what its training data sound like.",
    ),
}

CITATION = """
The method:

```bibtex
@misc{{mossspeech2025,
  author = {{Zhao, Xingjian and Xu, Zhe and others}},
  title  = {{MOSS-Speech: Towards True Speech-to-Speech Models Without Text Guidance}},
  year   = {{2025}},
  eprint = {{2510.00499}},
  archivePrefix = {{arXiv}},
  url    = {{https://arxiv.org/abs/2510.00499}}
}}
```

The code that made this model: lit_moss, version {version}. This model: by the name and the revision of its
repository.
"""

_INSTALL = "In a checkout of lit_moss: `pip install --editable '.[serve]'`. In this folder:"

_TALK = """
```sh
python -m lit_moss serve --model .{codec}     # OpenAI's chat completions and realtime websocket
python -m lit_moss chat --model .{codec}      # a page to talk to it
python -m lit_moss chat --model .{codec} --once question.wav --out answer.wav
```
"""

_PYTHON = """
From Python, text in and text out:

```python
from lit_moss.data.conversation import Renderer, Turn
from lit_moss.hub import open_lm
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.llm.replies import reply_text

lm, tokenizer = open_lm("."), load_text_tokenizer(".")
prompt = Renderer(tokenizer, lm.format).prompt([Turn("user", "What is a codec?")], user="text", reply="text")
print(tokenizer.decode(reply_text(lm.generate(prompt, modality="text", max_new_tokens=60), lm.format)))
```
"""

_CODEC = """
```python
from lit_moss.audio import io
from lit_moss.hub import open_codec

codec = open_codec(".")
codes = codec.encode(io.read("question.wav", 16_000), 16_000)
io.write("again.wav", codec.decode(codes), 24_000)
```
"""

_TOKENIZER = """
```python
from lit_moss.audio import io
from lit_moss.hub import open_tokenizer

codes = open_tokenizer(".").encode(io.read("question.wav", 16_000), 16_000)
```
"""

_VOCODER = """
```python
from lit_moss.audio import io
from lit_moss.audio.features import decoder_mel
from lit_moss.hub import open_vocoder

mel = decoder_mel(io.read("speech.wav", 24_000)[None])
io.write("again.wav", open_vocoder(".")(mel)[0], 24_000)
```

With a codec: `--vocoder FOLDER` of `synthesize`, `serve`, `chat` and `export`.
"""


def usage(kind: str, has_codec: bool) -> str:
    """The section "How to use".

    Args:
        kind: `language model`, `codec`, `speech tokenizer` or `vocoder`.
        has_codec: Whether the model's folder contains a codec.
    """
    if kind == "language model":
        return _INSTALL + "\n" + _TALK.format(codec="" if has_codec else " --codec CODEC") + _PYTHON
    return _INSTALL + "\n" + {"codec": _CODEC, "vocoder": _VOCODER}.get(kind, _TOKENIZER)
