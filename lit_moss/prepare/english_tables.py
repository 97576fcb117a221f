"""Tables for the English rules: units, money, abbreviations, symbols, letters."""

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
SHORT_MONTHS = {name[:3]: name for name in MONTHS} | {"Sept": "September"}

# Singular and plural of a unit; units without a plural have the same form twice.
UNITS = {
    "km": ("kilometer", "kilometers"), "m": ("meter", "meters"), "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"), "µm": ("micrometer", "micrometers"),
    "μm": ("micrometer", "micrometers"), "nm": ("nanometer", "nanometers"), "ft": ("foot", "feet"),
    "yd": ("yard", "yards"), "yds": ("yard", "yards"), "mi": ("mile", "miles"),
    "kg": ("kilogram", "kilograms"), "g": ("gram", "grams"), "mg": ("milligram", "milligrams"),
    "µg": ("microgram", "micrograms"), "μg": ("microgram", "micrograms"), "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"), "L": ("liter", "liters"),
    "l": ("liter", "liters"), "mL": ("milliliter", "milliliters"), "ml": ("milliliter", "milliliters"),
    "tsp": ("teaspoon", "teaspoons"), "tbsp": ("tablespoon", "tablespoons"),
    "s": ("second", "seconds"), "sec": ("second", "seconds"), "secs": ("second", "seconds"),
    "ms": ("millisecond", "milliseconds"), "µs": ("microsecond", "microseconds"),
    "min": ("minute", "minutes"), "mins": ("minute", "minutes"), "h": ("hour", "hours"),
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "yr": ("year", "years"), "yrs": ("year", "years"),
    "mph": ("mile per hour", "miles per hour"), "kph": ("kilometer per hour", "kilometers per hour"),
    "kmh": ("kilometer per hour", "kilometers per hour"),
    "rpm": ("revolution per minute", "revolutions per minute"),
    "bpm": ("beat per minute", "beats per minute"), "fps": ("frame per second", "frames per second"),
    "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"), "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"), "kb": ("kilobit", "kilobits"), "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "Mb": ("megabit", "megabits"), "Gb": ("gigabit", "gigabits"),
    "Mbps": ("megabit per second", "megabits per second"), "W": ("watt", "watts"),
    "kbps": ("kilobit per second", "kilobits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"), "kW": ("kilowatt", "kilowatts"),
    "MW": ("megawatt", "megawatts"), "GW": ("gigawatt", "gigawatts"),
    "kWh": ("kilowatt hour", "kilowatt hours"), "mAh": ("milliamp hour", "milliamp hours"),
    "V": ("volt", "volts"), "kV": ("kilovolt", "kilovolts"), "mA": ("milliamp", "milliamps"),
    "Ω": ("ohm", "ohms"), "J": ("joule", "joules"), "kJ": ("kilojoule", "kilojoules"),
    "N": ("newton", "newtons"), "Pa": ("pascal", "pascals"), "kPa": ("kilopascal", "kilopascals"),
    "psi": ("pound per square inch", "pounds per square inch"), "cal": ("calorie", "calories"),
    "kcal": ("kilocalorie", "kilocalories"), "dB": ("decibel", "decibels"), "ha": ("hectare", "hectares"),
    "mol": ("mole", "moles"), "ppm": ("part per million", "parts per million"),
    "sq ft": ("square foot", "square feet"), "px": ("pixel", "pixels"),
    "dpi": ("dot per inch", "dots per inch"), "°C": ("degree Celsius", "degrees Celsius"),
    "° C": ("degree Celsius", "degrees Celsius"), "℃": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"), "° F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "℉": ("degree Fahrenheit", "degrees Fahrenheit"), "°": ("degree", "degrees"),
    "%": ("percent", "percent"), "％": ("percent", "percent"), "‰": ("per mille", "per mille"),
    "¢": ("cent", "cents"), "″": ("inch", "inches"), "′": ("foot", "feet"), "€": ("euro", "euros"),
    "£": ("pound", "pounds"), "¥": ("yen", "yen"), "USD": ("US dollar", "US dollars"),
    "EUR": ("euro", "euros"), "GBP": ("British pound", "British pounds"), "RMB": ("yuan", "yuan"),
    "CNY": ("yuan", "yuan"), "JPY": ("Japanese yen", "Japanese yen"),
}  # fmt: skip
POWERS = {"²": "square", "2": "square", "³": "cubic", "3": "cubic"}

# Singular and plural of a currency, and of a hundredth of it.
MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"), "US$": ("US dollar", "US dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"), "￥": ("yuan", "yuan", "fen", "fen"),
    "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "jeon", "jeon"),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "AU$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "CA$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "NT$": ("New Taiwan dollar", "New Taiwan dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
}  # fmt: skip
SCALES = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million",
    "b": "billion", "B": "billion", "bn": "billion", "t": "trillion", "T": "trillion", "tn": "trillion",
    "hundred": "hundred", "thousand": "thousand", "million": "million", "billion": "billion",
    "trillion": "trillion",
}  # fmt: skip

# Only before a name.
TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Ms", "Dr": "Doctor", "Drs": "Doctors", "Prof": "Professor",
    "Messrs": "Messrs", "Rev": "Reverend", "Hon": "Honorable", "Gen": "General", "Col": "Colonel",
    "Maj": "Major", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Cpl": "Corporal",
    "Pvt": "Private", "Cmdr": "Commander", "Gov": "Governor", "Sen": "Senator", "Rep": "Representative",
    "Pres": "President", "Mt": "Mount", "St": "Saint", "Ft": "Fort", "Supt": "Superintendent",
    "Det": "Detective", "Fr": "Father", "Sr": "Senior",
}  # fmt: skip
ALWAYS_TITLES = ("Mr", "Mrs", "Ms", "Messrs", "Dr", "Prof")
AFTER_NAMES = {
    "St": "Street", "Dr": "Drive", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane",
    "Sq": "Square", "Jr": "Junior", "Sr": "Senior", "Co": "Company", "Corp": "Corporation",
    "Inc": "Incorporated", "Ltd": "Limited", "Bros": "Brothers", "Hwy": "Highway",
}  # fmt: skip
ABBREVIATIONS = {
    "tbsp": "tablespoons", "tbsp.": "tablespoons", "tsp": "teaspoons", "tsp.": "teaspoons",
    "mL": "milliliter", "E.g.": "For example", "I.e.": "That is",
    "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is", "vs.": "versus", "vs": "versus",
    "approx.": "approximately", "dept.": "department", "Dept.": "Department", "est.": "established",
    "misc.": "miscellaneous", "max.": "maximum", "min.": "minimum", "temp.": "temperature",
    "avg.": "average", "incl.": "including", "excl.": "excluding", "cf.": "compare", "viz.": "namely",
    "al.": "al", "Ph.D.": "P H D", "Ph.D": "P H D", "PhD": "P H D", "w/o": "without", "w/": "with ",
    "a.k.a.": "also known as", "aka": "also known as", "c/o": "care of", "n/a": "not applicable",
    "N/A": "not applicable", "b/c": "because", "and/or": "and or", "either/or": "either or",
    "he/she": "he or she", "she/he": "she or he", "his/her": "his or her", "him/her": "him or her",
    "s/he": "she or he", "50/50": "fifty-fifty", "50-50": "fifty-fifty", "&c.": "et cetera",
    "24/7": "twenty-four seven", "9/11": "nine eleven", "ca.": "circa", "Vol.": "Volume",
    "vol.": "volume", "vols.": "volumes", "Fig.": "Figure", "fig.": "figure", "Figs.": "Figures",
    "Ch.": "Chapter", "ch.": "chapter", "pp.": "pages", "Sec.": "Section", "sec.": "seconds",
    "Eq.": "Equation", "eq.": "equation", "ed.": "edition", "eds.": "editors", "hrs.": "hours",
    "mins.": "minutes", "secs.": "seconds", "lbs.": "pounds", "oz.": "ounces", "govt.": "government",
    "Govt.": "Government", "intl.": "international", "Univ.": "University", "Assn.": "Association",
}  # fmt: skip
# Only read before a number.
BEFORE_NUMBERS = {
    "No": "number", "no": "number", "Nos": "numbers", "nos": "numbers", "p": "page", "art": "article",
    "Art": "Article", "par": "paragraph", "Par": "Paragraph", "pt": "part", "Pt": "Part",
}  # fmt: skip

SYMBOLS = {
    "&": " and ", "@": " at ", "+": " plus ", "=": " equals ", "×": " times ", "÷": " divided by ",
    "≠": " is not equal to ", "≤": " less than or equal to ", "≥": " greater than or equal to ",
    "<": " less than ", ">": " greater than ", "≈": " approximately ", "±": " plus or minus ",
    "~": " about ", "−": " minus ", "·": " times ", "√": " square root of ", "∞": " infinity ",
    "∑": " sum of ", "∏": " product of ", "∫": " integral of ", "∂": " partial ", "∆": " delta ",
    "→": " to ", "←": " from ", "⇒": " implies ", "↔": " is equivalent to ", "∈": " is in ",
    "∪": " union ", "∩": " intersection ", "⊂": " is a subset of ", "∀": " for all ",
    "∃": " there exists ", "∅": " empty set ", "¬": " not ", "∧": " and ", "∨": " or ",
    "©": " copyright ", "®": " registered ", "™": " trademark ", "§": " section ", "¶": " paragraph ",
    "%": " percent ", "°": " degrees ", "$": " dollars ", "€": " euros ", "£": " pounds ",
    "¢": " cents ", "¥": " yen ", "₹": " rupees ", "₩": " won ", "₽": " rubles ", "‰": " per mille ",
    "^": " to the power of ", "\\": " backslash ", "/": " slash ", "_": " underscore ", "№": " number ",
    "Ω": " ohms ", "²": " squared ", "³": " cubed ", "℃": " degrees Celsius ",
    "℉": " degrees Fahrenheit ", "″": " inches ", "′": " feet ", "µ": " micro ",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega"
)
GREEK = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK_NAMES.split(), strict=True))

# Kings, queens and popes are numbered with ordinals.
RULERS = (
    "Albert|Alexander|Alfonso|Alphonse|Benedict|Boniface|Catherine|Charles|Christian|Clement|Edward|"
    "Elizabeth|Ferdinand|Francis|Frederick|George|Gregory|Gustav|Haakon|Harald|Henry|Innocent|Ivan|James|"
    "John|Julius|Leo|Leopold|Louis|Margaret|Mary|Max|Maximilian|Napoleon|Nicholas|Olav|Otto|Paul|Peter|"
    "Philip|Pius|Ptolemy|Ramesses|Richard|Robert|Rudolf|Sixtus|Umberto|Urban|Victor|Wilhelm|William|Xerxes"
)
NUMBERED = (
    "Act|Appendix|Article|Book|Bowl|Canto|Chapter|Class|Episode|Exhibit|Figure|Grade|Lesson|Level|Mark|Part|"
    "Phase|Plate|Psalm|Quarter|Scene|Section|Series|Stage|Table|Title|Type|Vatican|Vol|Volume|War|Wars"
)
# Ends of host names, read after "dot".
DOMAINS = (
    "com|org|net|edu|gov|mil|io|ai|co|uk|de|fr|cn|jp|eu|us|ca|au|info|dev|app|tv|me|ru|in|it|es|nl|ch|se|no"
)
