"""English text in spoken form: a table of cases, and what holds for every text."""

import random

import pytest

from lit_moss.data.interleave import join_words
from lit_moss.errors import UserError
from lit_moss.prepare.scoring import scoring_form
from lit_moss.prepare.spoken import spoken, spoken_words, unspeakable

CASES = [
    ("the 1990s", "the nineteen nineties"),
    ("in the '90s", "in the nineties"),
    ("80s music", "eighties music"),
    ("30s", "thirties"),
    ("after 30s", "after thirty seconds"),
    ("5-10 kg", "five to ten kilograms"),
    ("$5-$10", "five to ten dollars"),
    ("$5–10 million", "five to ten million dollars"),
    ("3.5 million", "three point five million"),
    ("10:00", "ten o'clock"),
    ("10:00 am", "ten AM"),
    ("00:15", "zero fifteen"),
    ("14:00", "fourteen hundred"),
    ("at 3:05.", "at three oh five."),
    ("9 a.m. to 5 p.m.", "nine AM to five PM."),
    ("It is 9 p.m. He left.", "It is nine PM. He left."),
    ("24/7", "twenty-four seven"),
    ("9/11", "nine eleven"),
    ("1/3 of", "one third of"),
    ("3/100", "three hundredths"),
    ("5/150", "five over one hundred fifty"),
    ("12/25/2023", "December twenty-fifth, twenty twenty-three"),
    ("25/12/2023", "December twenty-fifth, twenty twenty-three"),
    ("May 2024", "May twenty twenty-four"),
    ("March 3rd", "March third"),
    ("6 May 1990", "the sixth of May, nineteen ninety"),
    ("the 4th of July, 1776", "the fourth of July, seventeen seventy-six"),
    ("Jan. 5, 2020", "January fifth, twenty twenty"),
    ("Henry VIII's wife", "Henry the eighth's wife"),
    ("World War II", "World War two"),
    ("Rocky III", "Rocky three"),
    ("I am", "I am"),
    ("Chapter XII.", "Chapter twelve."),
    ("Pope John Paul II said", "Pope John Paul the second said"),
    ("Vitamin C", "Vitamin C"),
    ("AT&T", "AT and T"),
    ("R&D", "R and D"),
    ("user@example.com.", "user at example dot com."),
    ("https://a.b.com/x?y=1", "a dot b dot com slash x question mark y equals one"),
    ("see www.x.org.", "see W W W dot x dot org."),
    ("/usr/local/bin", "slash usr slash local slash bin"),
    ("C:\\Users\\x", "C colon backslash Users backslash x"),
    ("main.py", "main dot py"),
    ("snake_case", "snake underscore case"),
    ("#python", "hashtag python"),
    ("@john", "at john"),
    ("and/or", "and or"),
    ("he/she", "he or she"),
    ("km/h", "km slash h"),
    ("$5/month", "five dollars per month"),
    ("60 mph", "sixty miles per hour"),
    ("5 km/h", "five kilometers per hour"),
    ("10 m/s", "ten meters per second"),
    ("9.8 m/s²", "nine point eight meters per second squared"),
    ("5 sq ft", "five square feet"),
    ("5 GB", "five gigabytes"),
    ("2.4GHz", "two point four gigahertz"),
    ("16:9", "sixteen to nine"),
    ("3:2", "three to two"),
    ("3D", "three D"),
    ("4K", "four K"),
    ("mp3", "mp three"),
    ("H2O", "H two O"),
    ("A4", "A four"),
    ("B-52", "B fifty-two"),
    ("F-16", "F sixteen"),
    ("COVID-19", "COVID nineteen"),
    ("iPhone 15", "iPhone fifteen"),
    ("007", "zero zero seven"),
    ("1,000,000", "one million"),
    ("1000000", "one million"),
    (
        "12345678901234567890",
        "one two three four five six seven eight nine zero one two three four five six seven eight nine zero",
    ),
    ("-5°C", "minus five degrees Celsius"),
    ("-40 °F", "minus forty degrees Fahrenheit"),
    ("5°", "five degrees"),
    ("98.6°F", "ninety-eight point six degrees Fahrenheit"),
    ("100%", "one hundred percent"),
    ("3–5%", "three to five percent"),
    ("0.5%", "zero point five percent"),
    ("½ cup", "one half cup"),
    ("1½ cups", "one and a half cups"),
    ("x²", "x squared"),
    ("x^3", "x cubed"),
    ("2^10", "two to the power of ten"),
    ("10^-3", "ten to the power of minus three"),
    ("a^n", "a to the power of n"),
    ("sqrt(2)", "square root of (two)"),
    ("√2", "square root of two"),
    ("3 × 4", "three times four"),
    ("6 ÷ 2", "six divided by two"),
    ("3*4=12", "three times four equals twelve"),
    ("x = 5", "x equals five"),
    ("x>5", "x greater than five"),
    ("x >= 5", "x greater than or equal to five"),
    ("±3", "plus or minus three"),
    ("~50", "about fifty"),
    ("≈3.14", "approximately three point one four"),
    ("π", "pi"),
    ("α-particle", "alpha-particle"),
    ("Ω", "omega"),
    ("5 Ω", "five ohms"),
    ("No. 7", "number seven"),
    ("Nos. 3 and 4", "numbers three and four"),
    ("no. It is", "no. It is"),
    ("pp. 3-5", "pages three to five"),
    ("p. 7", "page seven"),
    ("vol. 2", "volume two"),
    ("Fig. 3", "Figure three"),
    ("St. Louis", "Saint Louis"),
    ("5th St. is", "fifth Street is"),
    ("Elm Dr.", "Elm Drive."),
    ("Dr. Who", "Doctor Who"),
    ("Dr Who", "Doctor Who"),
    ("Mr Smith", "Mister Smith"),
    ("Smith Jr.", "Smith Junior."),
    ("etc. and", "et cetera and"),
    ("etc.", "et cetera."),
    ("e.g. this", "for example this"),
    ("U.S.A.", "U S A."),
    ("Ph.D. student", "P H D student"),
    ("J. R. R. Tolkien", "J. R. R. Tolkien"),
    ("1st, 2nd, 3rd", "first, second, third"),
    ("21st", "twenty-first"),
    ("100th", "one hundredth"),
    ("£3.50", "three pounds and fifty pence"),
    ("£1", "one pound"),
    ("€2.5m", "two point five million euros"),
    ("¥500", "five hundred yen"),
    ("50¢", "fifty cents"),
    ("20€", "twenty euros"),
    ("$1", "one dollar"),
    ("$1.01", "one dollar and one cent"),
    ("$0.05", "five cents"),
    ("1 km", "one kilometer"),
    ("1 kg", "one kilogram"),
    ("1 hour", "one hour"),
    ("555-1234", "five five five, one two three four"),
    ("800-555-1234", "eight zero zero, five five five, one two three four"),
    ("1-800-555-1234", "one, eight zero zero, five five five, one two three four"),
    ("(212) 555-0199", "two one two, five five five, zero one nine nine"),
    ("+44 20 7946 0958", "plus four four, two zero, seven nine four six, zero nine five eight"),
    ("212.555.0199", "two one two, five five five, zero one nine nine"),
    ("911", "nine hundred eleven"),
    ("100-200", "one hundred to two hundred"),
    ("v2", "version two"),
    ("v2.0", "version two point zero"),
    ("version 3.1", "version three point one"),
    ("Python 3.11", "Python three point one one"),
    ("1.2.3", "one point two point three"),
    ("192.168.0.1", "one ninety-two dot one sixty-eight dot zero dot one"),
    ("1776", "seventeen seventy-six"),
    ("1812-1815", "eighteen twelve to eighteen fifteen"),
    ("2010", "twenty ten"),
    ("2004", "two thousand four"),
    ("1900", "nineteen hundred"),
    ("3000", "three thousand"),
    ("1066", "one thousand sixty-six"),
    ("1500 people", "fifteen hundred people"),
    ("2000 men", "two thousand men"),
    ("in 2000", "in two thousand"),
    ("5'11\"", "five foot eleven"),
    ("6’2”", "six foot two"),
    ("5′", "five feet"),
    ("6 ft", "six feet"),
    ("6ft 2in", "six feet two inches"),
    ("100m", "one hundred meters"),
    ("100m²", "one hundred square meters"),
    ("5 m3", "five cubic meters"),
    ("5+3", "five plus three"),
    ("5 + 3 = 8", "five plus three equals eight"),
    ("5-3=2", "five minus three equals two"),
    ("10 - 3", "ten minus three"),
    ("-7", "minus seven"),
    ("x - 5", "x minus five"),
    ("a–b", "a, b"),
    ("word—word", "word, word"),
    ("word -- word", "word, word"),
    ("(hello) [x] {y}", "(hello) (x) (y)"),
    ("“quoted”", '"quoted"'),
    ("5 > 3", "five greater than three"),
    ("café naïve", "café naïve"),
    ("①", "one"),
    ("²", "squared"),
    ("rock 'n' roll", "rock 'n' roll"),
    ("don't", "don't"),
    ("o'clock", "o'clock"),
    ("'tis", "'tis"),
    ("it's 5 o'clock", "it's five o'clock"),
    ("1980's", "nineteen eighties"),
    ("Class of '99", "Class of ninety-nine"),
    ("24 h", "twenty-four hours"),
    ("8h", "eight hours"),
    ("30min", "thirty minutes"),
    ("10K run", "ten K run"),
    ("$10k", "ten thousand dollars"),
    ("3pm", "three PM"),
    ("3PM", "three PM"),
    ("12am", "twelve AM"),
    ("2,5", "two, five"),
    ("12:30:45", "twelve thirty and forty-five seconds"),
    ("1/2/24", "January second, twenty twenty-four"),
    ("A1B2", "A one B two"),
    ("x1", "x one"),
    ("100,000th", "one hundred thousandth"),
    ("0", "zero"),
    ("0.0", "zero point zero"),
    ("10.50", "ten point five zero"),
    (".5", "zero point five"),
    ("5.", "five."),
    ("(5)", "(five)"),
    ("5,", "five,"),
    ("5;6", "five; six"),
    ("1)", "one)"),
    ("a) x", "a) x"),
    ("#1", "number one"),
    ("C#", "C sharp"),
    ("C++", "C plus plus"),
    ("F#", "F sharp"),
    ("50/50", "fifty-fifty"),
    ("&c.", "et cetera."),
    ("5 @ $3", "five at three dollars"),
    ("'5'", "'five'"),
    ('"5"', '"five"'),
    ("M&M's", "M and M's"),
    ("Q&A", "Q and A"),
    ("1:1", "one to one"),
    ("II.", "II."),
    ("the 5 W's", "the five W's"),
    ("2 x 4", "two by four"),
    ("1920x1080", "one thousand nine hundred twenty by one thousand eighty"),
    ("2x", "two times"),
    ("3x faster", "three times faster"),
    ("5.5x", "five point five times"),
    ("T-shirt", "T-shirt"),
    ("x-ray", "x-ray"),
    ("U.S. dollars", "U S dollars"),
    ("US$5", "five US dollars"),
    ("A$5", "five Australian dollars"),
    ("the 1960s-1970s", "the nineteen sixties to nineteen seventies"),
    ("mid-1990s", "mid nineteen nineties"),
    ("pre-1990", "pre nineteen ninety"),
    ("post-2000 era", "post two thousand era"),
    ("COVID", "COVID"),
    ("20-year-old", "twenty-year-old"),
    ("6-foot", "six-foot"),
    ("9-11", "nine to eleven"),
    ("3-2", "three to two"),
    ("50-50", "fifty-fifty"),
    ("90-degree", "ninety-degree"),
    ("1-day", "one-day"),
    ("5-year", "five-year"),
    ("100-meter", "one hundred-meter"),
    ("6.5-millimeter", "six point five-millimeter"),
    ("½", "one half"),
    (
        "In 1905, 1,234 men paid $1,234.50 for 5 kg.",
        "In nineteen oh five, one thousand two hundred thirty-four men paid one thousand two hundred thirty-four dollars and fifty cents for five kilograms.",  # noqa: E501
    ),
    ("a $5 bill", "a five dollar bill"),
    ("The ratio is 3:2.", "The ratio is three to two."),
    ("It costs £5m, or €3 billion.", "It costs five million pounds, or three billion euros."),
    ("Agent 007.", "Agent zero zero seven."),
    ("It weighs 1 kg.", "It weighs one kilogram."),
    ("Post Office Box 2915", "Post Office Box two nine one five"),
    ("a .38-caliber pistol", "a thirty-eight-caliber pistol"),
    ("In 626 the city fell", "In six twenty-six the city fell"),
    ("I paid $0.99.", "I paid ninety-nine cents."),
    ("call 911", "call nine one one"),
    ("The U.S. Army", "The U S Army"),
    ("10 degrees", "ten degrees"),
    ("at 14:05", "at fourteen oh five"),
    ("Meet at 7 p.m.", "Meet at seven PM."),
    ("He's 6'2\" and she's 5'11\".", "He's six foot two and she's five foot eleven."),
    ("Of the 1,000 men, 3/4 left.", "Of the one thousand men, three quarters left."),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written", "expected"), CASES, ids=[written for written, _ in CASES])
def test_reading(written, expected):
    assert spoken(written, "en") == expected


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("Well done 🎉!", "🎉"),
        ("**bold** | cell", "*|"),
        ("He said Привет", "Привет"),
        ("你好 means hello", "你好"),
        ("Plain, “quoted” — with 5% naïveté…", ""),
        ("soft\u00adhyphen and zero\u200bwidth", ""),
    ],
)
def test_symbols_that_no_rule_can_say_are_named(text, symbols):
    assert unspeakable(text, "en") == symbols
    assert not set(symbols) & set(spoken(text, "en"))


def test_written_tokens_keep_their_punctuation_and_their_words():
    assert spoken_words("On May 6, 1990, he paid $5 — at 10:30 am.", "en") == [
        ("On", ["On"]),
        ("May 6, 1990,", ["May", "sixth,", "nineteen", "ninety,"]),
        ("he", ["he"]),
        ("paid", ["paid"]),
        ("$5 —", ["five", "dollars,"]),
        ("at", ["at"]),
        ("10:30 am.", ["ten", "thirty", "AM."]),
    ]


def test_lone_punctuation_joins_a_neighbour():
    assert spoken_words("— yes", "en") == [("— yes", ["yes"])]
    assert spoken_words('" yes "', "en") == [('" yes "', ['"yes"'])]
    assert spoken_words("…", "en") == [("…", [])]
    assert spoken_words("", "en") == []


def test_plain_words_stay_as_they_are():
    text = "The quick brown fox, it's said, won't jump over well-known lazy dogs: why? Because!"
    assert spoken(text, "en") == text


def check(text):
    """What holds for every text."""
    said = spoken(text, "en")
    pairs = spoken_words(text, "en")
    assert " ".join(written for written, _ in pairs) == " ".join(text.split())
    assert join_words([word for _, words in pairs for word in words]) == said
    assert not any(c.isdigit() for c in said), said
    if any(words for _, words in pairs):
        assert all(words for _, words in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("text", [written for written, _ in CASES])
def test_cases_keep_every_token(text):
    check(text)
    assert spoken(spoken(text, "en"), "en") == spoken(text, "en")


def test_any_mixture_of_tokens_is_read_to_its_end():
    draw = random.Random(1)
    tokens = [token for written, _ in CASES for token in written.split()]
    characters = "ab Z0159.,:;-–—/'\"()[]$%°#@&*+=<>~^_²½α🎉é\u00a0\n"
    for _ in range(150):
        check(" ".join(draw.choices(tokens, k=draw.randint(1, 8))))
        check("".join(draw.choices(characters, k=draw.randint(1, 30))))


def test_unknown_language_is_refused():
    with pytest.raises(UserError, match="expected one of en, zh"):
        spoken("bonjour", "fr")


@pytest.mark.slow
def test_readings_agree_with_those_of_a_corpus(shared_data):
    """LJ Speech has its texts as written and as read out."""
    rows = [
        line.rstrip("\n").split("|") for line in (shared_data / "ljspeech_text.csv").open(encoding="utf8")
    ]
    rows = [row for row in rows if row[1] != row[2]]  # those with numbers and abbreviations
    agreeing = sum(scoring_form(written, "en") == scoring_form(read, "en") for _, written, read in rows)
    assert agreeing / len(rows) > 0.97


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "Mix 2 1/2 tbsp butter with 1 tsp salt.",
            "Mix two and a half tablespoons butter with one teaspoon salt.",
        ),
        ("Few bacteria per mL.", "Few bacteria per milliliter."),
        ("E.g. apples.", "For example apples."),
    ],
)
def test_abbreviations_of_kitchens_and_laboratories(written, said):
    assert spoken(written, "en") == said
