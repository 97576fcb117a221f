"""Voices by name: which there are, what they refuse, how one is drawn."""

import sys

import numpy as np
import pytest
import soundfile

from lit_moss.data.interleave import document_rng
from lit_moss.errors import UserError
from lit_moss.prepare.voice_protocol import CannotSay, Wording
from lit_moss.prepare.voices import VoicePool, VoiceSettings


def pool(*names, **settings) -> VoicePool:
    return VoicePool(names, VoiceSettings(**settings))


def test_kokoro_has_all_voices_of_its_two_languages():
    assert len({v.speaker for v in pool("embedded:kokoro/en").voices}) == 28
    assert len({v.speaker for v in pool("embedded:kokoro/zh").voices}) == 8
    assert [v.languages for v in pool("embedded:kokoro/bm_lewis", "embedded:kokoro/zm_yunxi").voices] == [
        ("en",),
        ("zh",),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hibari", "no voice 'hibari'"),
        ("embedded:kokoro/jf_alpha", "expected embedded:hibari"),
        ("command: say {text_file}", r"\{out\}"),
        ("command: 'say {text_file} {out}", "close the quotes"),
        ("http://localhost/v1", "expected localhost|expected http://localhost/v1"),
        ("http://localhost/v1?model=a", "voice=NAME"),
    ],
)
def test_other_names_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        pool(name)


@pytest.mark.parametrize(
    "address", ["http://h/v1?model=a&voice=b&api_key=sesame", "http://me:sesame@h/v1?model=a&voice=b"]
)
def test_a_key_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(UserError) as error:
        pool(address)
    assert "sesame" not in str(error.value)
    assert "$OPENAI_API_KEY" in str(error.value)


def test_the_content_of_a_voice_is_known_without_opening_it_and_holds_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    names = (
        "embedded:hibari",
        "embedded:kokoro/en",
        "https://host/v1?model=m&voice=v",
        "command: a {text_file} {out}",
    )
    assert "sesame" not in str(pool(*names).content())
    assert pool(*names, threads=2).content() != pool(*names).content()


def test_a_drawn_voice_speaks_the_language_and_follows_from_the_name():
    voices = pool("embedded:hibari", "embedded:kokoro/zh")
    drawn = [voices.draw("zh", document_rng(1, f"t{i}")).speaker for i in range(40)]
    assert drawn == [voices.draw("zh", document_rng(1, f"t{i}")).speaker for i in range(40)]
    assert len(set(drawn)) == 8
    assert voices.draw("fr", document_rng(1, "t")) is None
    other = voices.speaking("zh")[0]
    assert other.speaker not in {
        voices.draw("zh", document_rng(1, f"t{i}"), but=other).speaker for i in range(40)
    }
    only = voices.speaking("en")[0]
    assert voices.draw("en", document_rng(1, "t"), but=only) is only


def test_hibari_refuses_what_it_would_pass_over():
    voice = pool("embedded:hibari").voices[0]
    voice.open()
    assert len(voice.say(Wording("Café – “yes”.", "en")).wave) > 5000
    for text in ("Good 早上 morning.", "Мир", "5 apples", "a + b"):
        with pytest.raises(CannotSay):
            voice.say(Wording(text, "en"))


def test_speed_and_seed_of_hibari():
    voice = pool("embedded:hibari").voices[0]
    voice.open()

    def say(**changes):
        return voice.say(Wording("The same sentence once more.", "en", **changes)).wave

    np.testing.assert_array_equal(say(seed=3), say(seed=3))
    assert np.abs(say(seed=3) - say(seed=4)).max() > 0
    assert len(say(speed=0.8)) > 1.08 * len(say())
    assert len(say()) > 1.08 * len(say(speed=1.2))


@pytest.mark.nightly
@pytest.mark.network
def test_kokoro_refuses_too_many_phonemes_and_says_latin_words_in_chinese():
    voice = pool("embedded:kokoro/zf_xiaoxiao").voices[0]
    voice.open()
    with pytest.raises(CannotSay) as error:
        voice.say(Wording("今天天气真好。" * 40, "zh"))
    assert error.value.too_long
    with pytest.raises(CannotSay, match="Привет"):
        voice.say(Wording("你好Привет。", "zh"))
    plain, mixed = (voice.say(Wording(t, "zh")).wave for t in ("我喜欢。", "我喜欢Python。"))
    assert len(mixed) > len(plain) + 0.2 * 24_000


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.parametrize("speaker", ["zf_xiaoxiao", "zm_yunxi"])
def test_chinese_speech_is_understood(speaker):
    opencc, torchaudio = pytest.importorskip("opencc"), pytest.importorskip("torchaudio")
    pytest.importorskip("faster_whisper")
    import torch

    from lit_moss.evaluate.judges import Recogniser, word_errors
    from lit_moss.prepare.spoken import spoken

    voice = pool(f"embedded:kokoro/{speaker}").voices[0]
    voice.open()
    recognise, simplified = Recogniser("embedded:whisper-base", "cpu"), opencc.OpenCC("t2s")
    texts = [
        "今天天气真好，我们去公园散步吧。",
        "他在北京大学学习计算机科学，每天早上七点起床。",
        "这本书讲述了一个小女孩和她的狗在山里的故事。",
        "请问从这里到火车站怎么走，大概需要多长时间？",
    ]
    errors = characters = 0
    for text in texts:
        wave = torch.from_numpy(voice.say(Wording(text, "zh")).wave)
        said = simplified.convert(recognise(torchaudio.functional.resample(wave, 24_000, 16_000), "zh"))
        wrong, count = word_errors(spoken(text, "zh"), spoken(said, "zh"), "zh")
        errors, characters = errors + wrong, characters + count
    assert errors <= 0.2 * characters


PROGRAM = """
import sys
text, out, lang, style = open(sys.argv[1], encoding="utf-8").read(), *sys.argv[2:5]
if "fail" in text:
    sys.exit("no such word: " + text.strip())
import numpy as np, soundfile
samples = len(text.encode()) * 800 + (8000 if style == "happy" else 0)
soundfile.write(out, 0.1 * np.sin(np.arange(samples) / 5), 16000)
"""


@pytest.fixture
def program(tmp_path) -> str:
    (tmp_path / "a voice.py").write_text(PROGRAM)
    return f"command: {sys.executable} '{tmp_path}/a voice.py' {{text_file}} {{out}} {{lang}} {{style}}"


@pytest.mark.slow
def test_a_program_is_a_voice_and_no_shell_reads_the_text(program, tmp_path):
    voice = pool(program).voices[0]
    voice.open()
    assert voice.languages is None
    assert voice.takes_style
    text = f"hello $(touch {tmp_path}/x) `touch {tmp_path}/x`; touch {tmp_path}/x"
    plain = voice.say(Wording(text, "en"))
    assert plain.rate_hz == 16_000
    assert len(plain.wave) == (len(text) + 1) * 800
    assert len(voice.say(Wording(text, "en", style="happy")).wave) == len(plain.wave) + 8000
    assert not (tmp_path / "x").exists()
    with pytest.raises(CannotSay, match="no such word: fail"):
        voice.say(Wording("fail", "en"))
    for _ in range(5):  # it has worked before: the texts are to blame
        with pytest.raises(CannotSay):
            voice.say(Wording("fail", "en"))


def test_a_program_that_never_works_stops_the_run(program, tmp_path):
    with pytest.raises(UserError, match="no program"):
        pool("command: /no/such {text_file} {out}").open()
    voice = pool(program).voices[0]
    for _ in range(4):
        with pytest.raises(CannotSay):
            voice.say(Wording("fail", "en"))
    with pytest.raises(UserError, match="failed 5 times"):
        voice.say(Wording("fail", "en"))
    slow = pool(
        f"command: {sys.executable} -c 'import time; time.sleep(9)' {{text_file}} {{out}}", timeout_sec=0.5
    )
    with pytest.raises(CannotSay, match=r"over 0\.5 s"):
        slow.voices[0].say(Wording("hello", "en"))
    silent = pool(f"command: {sys.executable} -c '' {{text_file}} {{out}}")
    with pytest.raises(CannotSay, match="no sound file"):
        silent.voices[0].say(Wording("hello", "en"))


def test_sounds_are_wav_in_any_rate(tmp_path):
    script = "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])"
    soundfile.write(tmp_path / "two.wav", np.stack([np.full(4410, 0.5), np.zeros(4410)], 1), 44_100)
    voice = pool(f'command: {sys.executable} -c "{script}" {tmp_path}/two.wav {{out}} {{text_file}}').voices[
        0
    ]
    speech = voice.say(Wording("hello", "en"))
    assert speech.wave.shape == (4410,)
    assert speech.wave.min() > 0.49
    assert speech.rate_hz == 44_100
