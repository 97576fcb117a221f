"""`$ 5` was read dollars five, `1.5e-3` lost its sign, and `1-2pm` was one minus two PM."""

import pytest

from lit_moss.prepare.spoken import spoken

pytest.importorskip("num2words", reason="needs the extra `prepare`")
CASES = [
    ("€ 5", "five euros"),
    ("$ 5", "five dollars"),
    ("$\u00a05", "five dollars"),
    ("£ 3.50", "three pounds and fifty pence"),
    ("$ 5 million", "five million dollars"),
    ("-$ 5", "minus five dollars"),
    ("US$ 5", "five US dollars"),
    ("a $ 5 bill", "a five dollar bill"),
    ("5 $", "five dollars"),
    ("5 $ 3 days", "five dollars three days"),
    ("€ five", "euros five"),
    ("1.5e-3", "one point five e minus three"),
    ("1.5e−3.", "one point five e minus three."),
    ("-1.5e-3", "minus one point five e minus three"),
    ("1e-10", "one e minus ten"),
    ("1.5e3", "one point five e three"),
    ("2E+5", "two E plus five"),
    ("lr=3e-4", "lr equals three e minus four"),
    ("noon-1 p.m.", "noon to one PM."),
    ("9 am-noon", "nine AM to noon"),
    ("10-11 am", "ten to eleven AM"),
    ("10–11 a.m.", "ten to eleven AM."),
    ("10 - 11 am", "ten to eleven AM"),
    ("10 am-11 am", "ten AM to eleven AM"),
    ("9 am – 5 pm", "nine AM to five PM"),
    ("1-2pm", "one to two PM"),
    ("10-11:30 am", "ten to eleven thirty AM"),
    ("9:30-10 am", "nine thirty to ten AM"),
    ("14:00-15:30", "fourteen hundred to fifteen thirty"),
    ("He woke at 5 am - 3 hours early", "He woke at five AM, three hours early"),
    ("pages 10-11 amount", "pages ten to eleven amount"),
    ("10 - 3", "ten minus three"),
]


@pytest.mark.parametrize(("written", "said"), CASES, ids=[written for written, _ in CASES])
def test_they_are_read_as_meant(written, said):
    assert spoken(written, "en") == said
