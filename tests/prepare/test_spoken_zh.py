"""Chinese text in spoken form: a table of cases, and what holds for every text."""

import random

import pytest

from lit_moss.data.interleave import join_words
from lit_moss.prepare.spoken import spoken, spoken_words, unspeakable
from lit_moss.prepare.spoken_zh import cardinal

CASES = [
    ("2024年5月6日", "二零二四年五月六日"),
    ("$1,234.50", "一千二百三十四点五零美元"),
    ("我有3.5元", "我有三点五元"),
    ("打电话13812345678", "打电话幺三八幺二三四五六七八"),
    ("www.baidu.com", "WWW点baidu点com"),
    ("请看https://www.baidu.com/a1。", "请看WWW点baidu点com斜杠a一。"),
    ("ABC123", "ABC一二三"),
    ("温度-5°C", "温度负五摄氏度"),
    ("长5km", "长五公里"),
    ("50%", "百分之五十"),
    ("比分3:2", "比分三比二"),
    ("10:30", "十点三十分"),
    ("2024-05-06", "二零二四年五月六日"),
    ("1/2", "二分之一"),
    ("第3章", "第三章"),
    ("他有2个苹果", "他有两个苹果"),
    ("1.5kg", "一点五公斤"),
    ("GPT-4很好用", "GPT四很好用"),
    ("3-5天", "三到五天"),
    ("①", "一"),
    ("x^2=4", "x的平方等于四"),
    ("约1000万", "约一千万"),
    ("2008年", "二零零八年"),
    ("8:05", "八点零五分"),
    ("邮箱a@b.com", "邮箱a艾特b点com"),
    ("A4纸", "A四纸"),
    ("iPhone 15 Pro", "iPhone十五Pro"),
    ("B2B", "B二B"),
    ("100m²", "一百平方米"),
    ("5G网络", "五G网络"),
    ("1,234,567", "一百二十三万四千五百六十七"),
    ("0.5", "零点五"),
    ("-3", "负三"),
    ("+86 138 1234 5678", "加八六，幺三八，幺二三四，五六七八"),
    ("3:00pm", "下午三点"),
    ("1990-2000年", "一九九零到二零零零年"),
    ("π", "派"),
    ("≥5", "大于等于五"),
    ("20℃", "二十摄氏度"),
    ("￥100", "一百元"),
    ("100元/天", "每天一百元"),
    ("60km/h", "每小时六十公里"),
    ("3×4=12", "三乘四等于十二"),
    ("1+1=2", "一加一等于二"),
    ("Hello World 很好。", "Hello World很好。"),
    ("你好，世界！", "你好，世界！"),
    ("《红楼梦》", "《红楼梦》"),
    ("100%", "百分之一百"),
    ("有12345人", "有一万二千三百四十五人"),
    ("2000", "两千"),
    ("102", "一百零二"),
    ("二〇二四", "二〇二四"),
    ("5'11\"", "五英尺十一英寸"),
    ("价格12345", "价格幺二三四五"),
    ("拨打10086", "拨打幺零零八六"),
    ("拨打110", "拨打幺幺零"),
    ("第12345号", "第一万两千三百四十五号"),
    ("3~5天", "三到五天"),
    ("上涨-5%", "上涨负百分之五"),
    ("a>b", "a大于b"),
    ("007", "零零七"),
    ("3.14159", "三点一四一五九"),
    ("20%-30%", "百分之二十到百分之三十"),
    ("8:00-10:00", "八点到十点"),
    ("8点-10点", "八点到十点"),
    ("100kg/m²", "每平方米一百公斤"),
    ("2km", "两公里"),
    ("€5", "五欧元"),
    ("5千", "五千"),
    ("2万", "两万"),
    ("Windows 11", "Windows十一"),
    ("MP3", "MP三"),
    ("F-16", "F一六"),
    ("COVID-19", "COVID一九"),
    ("3D打印", "三D打印"),
    ("1,2,3", "一,二,三"),
    ("3、4", "三、四"),
    ("2024/05/06", "二零二四年五月六日"),
    ("12月25日", "十二月二十五日"),
    ("1.2.3", "一点二点三"),
    ("192.168.1.1", "一九二点一六八点一点一"),
    ("v2.0", "v二点零"),
    ("@小明", "艾特小明"),
    ("A&B", "A和B"),
    ("10w", "十万"),
    ("300多", "三百多"),
    ("±5", "正负五"),
    ("12÷4=3", "十二除以四等于三"),
    ("5 cm", "五厘米"),
    ("No.1", "第一"),
    ("10:30am", "上午十点三十分"),
    ("$100万", "一百万美元"),
    ("HK$5", "五港元"),
    ("5‰", "千分之五"),
    ("Ⅳ", "四"),
    ("１２３", "一百二十三"),
    ("(010)62345678", "零幺零，六二三四五六七八"),
    ("010-62345678", "零幺零，六二三四五六七八"),
    ("400-800-1234", "四零零，八零零，幺二三四"),
    ("21世纪", "二十一世纪"),
    ("90后", "九零后"),
    ("90年代", "九十年代"),
    ("5·12", "五点十二"),
    ("14:30:15", "十四点三十分十五秒"),
    ("5-3=2", "五减三等于二"),
    ("10 - 3", "十减三"),
    ("2/3的人", "三分之二的人"),
    ("2:1", "二比一"),
    ("12.5万", "十二点五万"),
    ("20000", "两万"),
    ("110", "幺幺零"),
    ("1010", "一千零一十"),
    ("10010", "幺零零幺零"),
    ("200", "两百"),
    ("2200", "两千二百"),
    ("22222", "两万二千二百二十二"),
    ("100000", "十万"),
    ("1000000001", "十亿零一"),
    ("3m长", "三米长"),
    ("第2名", "第二名"),
    ("2小时", "两小时"),
    ("2℃", "二摄氏度"),
    ("2点", "两点"),
    ("12点半", "十二点半"),
    ("5.0%", "百分之五点零"),
    ("2倍", "两倍"),
    ("CO2", "CO二"),
    ("H2O", "H二O"),
    ("WiFi6", "WiFi六"),
    ("U盘", "U盘"),
    ("2.0版本", "二点零版本"),
    ("3–5个", "三到五个"),
    ("2-3个", "两到三个"),
    ("周一至周五9-18点", "周一至周五九到十八点"),
    ("下午2-4点", "下午两到四点"),
    ("1992-08", "一九九二年八月"),
    ("3/4杯", "四分之三杯"),
    ("iOS17.2", "iOS一七点二"),
    ("占1/3", "占三分之一"),
    ("$5", "五美元"),
    ("100USD", "一百美元"),
    ("5美元", "五美元"),
    ("￥3.5", "三点五元"),
    ("我有1只猫，2条狗。", "我有一只猫，两条狗。"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written", "expected"), CASES, ids=[written for written, _ in CASES])
def test_reading(written, expected):
    assert spoken(written, "zh") == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("0", "零"), ("10", "十"), ("12", "十二"), ("110", "一百一十"), ("1010", "一千零一十"),
        ("1100", "一千一百"),
        ("2005", "两千零五"), ("10000", "一万"), ("10010", "一万零一十"), ("120000", "十二万"),
        ("1000001", "一百万零一"),
        ("100000000", "一亿"), ("1002003004", "十亿零二百万三千零四"),
        ("1,234.50", "一千二百三十四点五零"), ("007", "零零七"),
    ],
)  # fmt: skip
def test_cardinal(number, expected):
    assert cardinal(number) == expected


def test_each_character_is_a_word_and_a_number_is_one_token():
    assert spoken_words("我有25%的 iPhone 手机，2024年买的。", "zh") == [
        ("我", ["我"]),
        ("有", ["有"]),
        ("25%", ["百", "分", "之", "二", "十", "五"]),
        ("的", ["的"]),
        ("iPhone", ["iPhone"]),
        ("手", ["手"]),
        ("机，", ["机，"]),
        ("2024年", ["二", "零", "二", "四", "年"]),
        ("买", ["买"]),
        ("的。", ["的。"]),
    ]


def test_brackets_stay_with_their_words():
    assert spoken_words("《红楼梦》好", "zh")[0] == ("《红", ["《红"])


def test_symbols_that_no_rule_can_say_are_named():
    assert unspeakable("好🎉的", "zh") == "🎉"
    assert unspeakable("日本のテスト", "zh") == "のテスト"
    assert unspeakable("我花了$5，约25%，x≥3。", "zh") == ""


def check(text):
    """What holds for every text."""
    pairs = spoken_words(text, "zh")
    said = spoken(text, "zh")
    assert "".join("".join(written for written, _ in pairs).split()) == "".join(text.split())
    assert join_words([word for _, words in pairs for word in words]) == said
    assert not any(c.isdigit() for c in said), said
    if any(words for _, words in pairs):
        assert all(words for _, words in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("text", [written for written, _ in CASES])
def test_cases_keep_every_character(text):
    check(text)


@pytest.mark.slow
def test_any_mixture_of_characters_is_read_to_its_end():
    draw = random.Random(1)
    cases = [written for written, _ in CASES]
    characters = "我年月日点个第百0159.,:;-–—/'\"()（）《》，。$%°#@&*+=<>~^_²½α🎉aZ é\n"
    for _ in range(40):
        check("".join(draw.choices(cases, k=draw.randint(1, 5))))
        check("".join(draw.choices(characters, k=draw.randint(1, 30))))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("价格是￥1,299.99元。", "价格是一千二百九十九点九九元。"),
        ("￥5起", "五元起"),
        ("$3万美元", "三万美元"),
        ("邮编100084。", "邮编一零零零八四。"),
        ("房间面积是80㎡。", "房间面积是八十平方米。"),
    ],
)
def test_units_that_are_written_twice_or_as_one_sign(written, said):
    assert spoken(written, "zh") == said
