r"""The rows of `conversation.Renderer` as a Jinja chat template, for programs with only the text tokenizer.

    tokenizer.apply_chat_template(messages, reply="speech", add_generation_prompt=True, tokenize=False)

It renders the text channel of the released model's grid: a stretch of n codes is sosp and n + 1 modality_pads
(n codes and eosp). The `content` of a message is a string or an ordered list of parts: {"type": "text",
"text": …} and {"type": "audio", "codes": [c_1, …]}, where `codes` may also be the number of codes. Variables:
`reply`, the modality of the replies, text or speech (default text); `system`, a system prompt that replaces
the default one. A leading system message is appended to the system prompt, as in training.

The ids of the rendered text equal the training rows, with two exceptions, because the renderer tokenizes each
piece separately and treats names of special tokens in a text as plain text:
- Content that begins with white space: a tokenizer with merges may join it with the line break after the
  role. SmolLM2's does so for some runs of two or more such characters ("user\n" + "\n\nHi"), never for one;
  Qwen's pattern also joins a single line break.
- Content that spells the name of a special token, such as <|im_end|>: it becomes that token. Programs that
  take texts from untrusted users should use the renderer, as `serve` does.
The text of an interleaved reply may be split between any two ids; if the split is inside a word or a
character, the parts may be tokenized differently.
"""

import hashlib
from typing import Any

from lit_moss.data.conversation import SPEECH_SYSTEM, SYSTEM
from lit_moss.llm.backbone import MODALITY_PAD_NAMES, SOSP_NAMES
from lit_moss.llm.replies import DIRECT, ReplyForm

_TEMPLATE = r"""
{#- Text channel of conversations of text and speech. Variables: messages, add_generation_prompt,
    reply ('text' or 'speech': modality of the replies), system (a system prompt instead of the default). -#}
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- elif part.type == 'audio' -%}
                {%- set codes = part.codes if part.codes is number else part.codes | length -%}
                {{- SOSP ~ (MODALITY_PAD * (codes + 1)) -}}
            {%- else -%}
                {{- raise_exception('a part of type ' ~ part.type ~ ', expected text or audio') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set reply = reply | default('text') -%}
{%- if reply not in ['text', 'speech'] -%}
    {{- raise_exception('reply is ' ~ reply ~ ', expected text or speech') -}}
{%- endif -%}
{%- set prompt = SPEECH_PROMPT if reply == 'speech' else TEXT_PROMPT -%}
{%- if system is defined and system is not none -%}
    {%- set prompt = system -%}
{%- endif -%}
{%- set turns = messages -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set prompt = (prompt ~ ' ' ~ render(messages[0].content)) | trim -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{{- '<|im_start|>system\n' ~ prompt ~ '<|im_end|>\n' -}}
{%- for turn in turns -%}
    {%- if turn.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('a turn of ' ~ turn.role ~ ', expected system, user or assistant') -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ turn.role ~ '\n' ~ render(turn.content) ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' ~ REPLY_PREFIX -}}
{%- endif -%}
"""


def chat_template(tokenizer: Any, form: ReplyForm = DIRECT) -> str:
    """The chat template of a model.

    Args:
        tokenizer: Its text tokenizer, see `lit_moss.llm.backbone.load_text_tokenizer`.
        form: Form of the spoken replies that the model was trained for; determines the system prompt.
    """
    vocabulary = tokenizer.get_vocab()
    sosp, pad = (
        next(repr(name) for name in names if name in vocabulary) for names in (SOSP_NAMES, MODALITY_PAD_NAMES)
    )
    constants = {
        "SOSP": sosp,
        "MODALITY_PAD": pad,
        "SPEECH_PROMPT": _quoted(SPEECH_SYSTEM[form.name]),
        "TEXT_PROMPT": _quoted(SYSTEM["text"]),
        "REPLY_PREFIX": "''" if form.has_text else f"({sosp} if reply == 'speech' else '')",
    }
    text = _TEMPLATE.strip()
    for name, value in constants.items():
        text = text.replace(name, value)
    return text


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def template_fingerprint(template: str) -> str:
    """16 hex digits of a chat template's sha256."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]
