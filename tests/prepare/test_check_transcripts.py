"""Each rule on items made by hand: what must be dropped, and what only looks like it."""

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare import transcript_rules as rules
from lit_moss.prepare.check_transcripts import (
    CheckTranscriptsOptions,
    CheckTranscriptsStage,
    check_transcript,
)
from lit_moss.prepare.language import script_share, words_of

PROSE = (
    "The printing press changed how people learned about the world, and within fifty years more books had "
    "been made than in the thousand years before."
)
CHINESE = "我们今天来谈一谈北京的天气,下午可能会下雨,所以请大家出门的时候带上雨伞。"


def item(text: str, sec: float | None = None, lang: str = "en", **keys) -> dict:
    """A good transcript of ordinary speed, but for what is given."""
    rate = 4.5 if lang == "zh" else 14
    seconds = len(text) / rate if sec is None else sec
    scores = {"lang_prob": 0.98, "avg_logprob": -0.2, "no_speech_prob": 0.02}
    return {"text": text, "duration": seconds, "lang": lang} | scores | keys


def reason(checked: dict, **options) -> str | None:
    finding = check_transcript(checked, CheckTranscriptsOptions(**options))
    return finding[0] if finding else None


def timed(*words: tuple[float, float]) -> list[list]:
    """ASR words from their lengths and probabilities."""
    found, at = [], 0.0
    for seconds, probability in words:
        found.append(["word", at, at + seconds, probability])
        at += seconds
    return found


@pytest.mark.parametrize(
    "good",
    [
        item(PROSE),
        item(CHINESE, lang="zh"),
        item("No, no, no.", 1.2),
        item("No, no, no, no, no, no!", 2.0),
        item("对对对。", 1.0, lang="zh"),
        item("我不知道,我真的不知道。", 2.5, lang="zh"),
        item("Thank you.", 1.1),
        item("Thank you very much, it was a pleasure to be here with all of you tonight."),
        item("谢谢。", 0.9, lang="zh"),
        item("I have a dream that one day this nation will rise up. I have a dream today."),
        item("我们用 PyTorch Lightning 训练模型,效果非常好。", 4.0, lang="zh"),
        item("He said it was incomprehensibility itself, responsibilities and all."),
        item("In 1984.", 2.5),  # nineteen eighty-four
        item("Yes.", 1.4),
        item("Mhm, да, privet", lang="en"),
        {"text": "A text without any score or duration."},
    ],
    ids=lambda good: good["text"][:20],
)
def test_what_people_say_passes(good):
    assert check_transcript(good, CheckTranscriptsOptions()) is None


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (item(""), "no text"),
        (item(" . . ♪ "), "no text"),
        (item("Thank you very much. " * 6), "distinct words"),
        (item("谢谢观看谢谢观看谢谢观看谢谢观看谢谢观看", lang="zh"), "distinct words"),
        (item("哈" * 40, lang="zh"), "distinct words"),
        (item("謝謝大家" * 10, lang="zh"), "distinct words"),
        (
            item(PROSE + " I am going to go there now." * 4, 30),
            "repeated words",
        ),
        (item(CHINESE * 4, 32, lang="zh"), "distinct words"),
        (item(CHINESE + "".join(f"我真的很想去看看{c}" for c in "甲乙丙丁"), lang="zh"), "repeated words"),
        (item("x" * 26 + " is what it wrote here today"), "longest word"),
        (item("ha" * 11 + " he he ha hm it is so"), "longest word over the next"),
        (item(PROSE, 4.0), "characters per second"),
        (item(CHINESE, 2.5, lang="zh"), "characters per second"),
        (item("And so", 12.0), "characters per second"),
        (item("你好", 8.0, lang="zh"), "characters per second"),
        (item("Thanks for watching!", 1.5, no_speech_prob=0.5), "stock phrase"),
        (item("Thank you.", 1.0, avg_logprob=-0.9), "stock phrase"),
        (item("Thank you.", 0.4), "stock phrase"),
        (item("Thanks for watching, and see you soon my friends", no_speech_prob=0.5), "stock phrase"),
        (item("謝謝觀看", 1.5, lang="zh", no_speech_prob=0.5), "stock phrase"),
        (item("请不吝点赞 订阅 转发", 3.0, lang="zh", no_speech_prob=0.6), "stock phrase"),
        (item(PROSE, avg_logprob=-1.2, no_speech_prob=0.7), "probably no speech"),
        (item(PROSE, lang_prob=0.4), "probability of the language"),
        (item(CHINESE, lang="en", sec=8), "script of the text"),
        (item(PROSE, lang="zh", sec=20), "script of the text"),
        (item(PROSE, asr_words=timed((0.3, 0.1), (0.3, 0.1), (0.3, 0.1))), "anomalous words"),
        (item(PROSE, asr_words=timed((0.3, 0.9), (5.5, 0.9))), "anomalous words"),
    ],
)
def test_what_was_never_said_is_dropped(bad, expected):
    assert reason(bad) == expected


def test_one_bad_score_alone_drops_nothing():
    assert reason(item(PROSE, avg_logprob=-1.2)) is None
    assert reason(item(PROSE, no_speech_prob=0.9)) is None


def test_compression_is_asked_of_long_texts_only():
    loop = "ab cd ef gh " * 40
    others = {"min_distinct": None, "max_repeats": None, "max_characters_per_sec": None}
    assert reason(item(loop), **others) == "compression of the text"
    assert reason(item(loop), max_zlib_ratio_from_bytes=1000, **others) is None
    assert rules.zlib_ratio(PROSE) < 2 > rules.zlib_ratio(CHINESE)


def test_words_are_short_in_chinese_without_being_anomalous():
    words = [[c, i / 10, (i + 1) / 10, 0.9] for i, c in enumerate(CHINESE[:12])]
    assert reason(item(CHINESE, lang="zh", asr_words=words)) is None
    assert rules.anomaly(words, with_times=True) > 3
    # In punctuation there is nothing to count, and only eight words are.
    assert rules.anomaly([[",", 0, 9, 0.0], *timed(*[(0.2, 0.9)] * 8, (9, 0.01))], with_times=True) == 0


def test_anomaly_score_as_in_whisper():
    assert rules.anomaly(timed((0.033, 0.9)), with_times=True) == pytest.approx(1.5)
    assert rules.anomaly(timed((3.5, 0.1)), with_times=True) == pytest.approx(2.5)


def test_overlapping_repeats_count_once():
    assert rules.most_repeats(["no"] * 12, 4) == 3
    assert rules.most_repeats(list("abcabcabc"), 3) == 3
    assert rules.most_repeats(["a"], 3) == 0


def test_allowed_languages():
    assert reason(item(PROSE, lang="de"), languages=["en", "zh"]) == "language"
    assert reason(item(PROSE), languages=["en", "zh"]) is None


def test_further_phrases_and_rules_switched_off():
    end = item("End of recording", 2.0, no_speech_prob=0.5)
    assert reason(end) is None
    assert reason(end, more_stock_phrases={"en": ["End of recording."]}) == "stock phrase"
    assert reason(end, more_stock_phrases={"en": ["End of recording."]}, stock_phrases=False) is None
    assert reason(item(PROSE, 4.0), max_characters_per_sec=None) is None


def test_limits_by_language_need_one_for_the_others():
    with pytest.raises(UserError, match="other"):
        CheckTranscriptsOptions(max_characters_per_sec={"en": 25})
    limits = {"other": 12, "en": 25}
    assert reason(item(PROSE, lang="en"), max_characters_per_sec=limits) is None
    assert reason(item(PROSE, lang="de"), max_characters_per_sec=limits) == "characters per second"


def test_rejections_carry_item_value_and_threshold():
    good, bad = item(PROSE, kept="as it was"), item(PROSE, 4.0, source="radio")
    result = CheckTranscriptsStage(CheckTranscriptsOptions(), None).run([good, bad])
    assert result.items == [good]
    (rejection,) = result.rejected
    assert rejection.item == bad
    assert rejection.value == pytest.approx((len(PROSE) - 2) / 4.0)  # a comma and a full stop
    assert rejection.threshold == 25


def test_words_and_scripts():
    assert words_of("Don't—“stop”, O’Neill! 用GPT写 ﬁne") == [
        "don't", "stop", "o’neill", "用", "gpt", "写", "fine",
    ]  # fmt: skip
    assert words_of("東京タワー") == list("東京タワー")
    assert script_share(words_of("Привет, мир"), "ru") == 1
    assert script_share(words_of("한국어 text"), "ko") == 0.5
    assert script_share(words_of("123"), "en") is None
