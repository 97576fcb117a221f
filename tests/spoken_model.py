"""A tiny exported model with tokenizer and codec, as `export` writes it."""

from pathlib import Path

from decoders import made_up_codec, small_flow
from lm_recipe import CODES, backbone_folder

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.encoder import fingerprint
from lit_moss.hub.model_folder import CODEC, ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint


def spoken_model(folder: Path, codec: bool = True, **record) -> Path:
    """The folder; backbone beside it."""
    backbone = backbone_folder(folder.parent / "backbone")
    tokenizer = load_text_tokenizer(backbone)
    form = row_format(tokenizer, 128, eosp=CODES)
    SplitLM.from_backbone(backbone, 1, 128, row_format=form).save_pretrained(folder)
    known = {"text_tokenizer": text_tokenizer_fingerprint(tokenizer)}
    if codec:
        speech = SpeechTokenizer.from_pretrained(made_up_codec(folder / CODEC, CODES))
        Codec(speech, small_flow(vocab_size=CODES)).save_pretrained(folder / CODEC)
        known["speech_tokenizer"] = fingerprint(speech.encoder)
    ModelRecord(**known | {"steps": 5} | record).write(folder)
    return folder
