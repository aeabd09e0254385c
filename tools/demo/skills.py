"""The demo model's skills: each makes one question, its working for each effort, and its one right answer.

A skill is a function of a random.Random and gives a Turn. `key` says what was asked without its wording: the split into
training and held-out questions is by key, so that no held-out sum, date or list was ever trained on. `state` is what a
follow-up question may go on from: ("number", n), ("word", w) or ("list", [..]).
"""
import calendar
import dataclasses
import datetime
import random

from words import CANNOT, CANNOT_ASKS, FACTS, LANGUAGES, MONTHS, PLACES, WEEKDAYS, WORDS


@dataclasses.dataclass
class Turn:
    skill: str
    key: str
    user: str
    low: str | None  # analysis by effort; None: answers at once
    medium: str | None
    high: str | None
    final: str
    state: tuple | None = None


PLACE_NAMES = ("ones", "tens", "hundreds", "thousands", "ten thousands")


def number(r, digits_max=4):
    digits = r.randint(1, digits_max)
    return r.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def digit(n, place):
    return n // 10**place % 10


def add_working(a, b):
    """Columns from the right, as (short, long) texts."""
    places = max(len(str(a)), len(str(b)))
    carry, short, long = 0, [], []
    for place in range(places):
        x, y = digit(a, place), digit(b, place)
        total = x + y + carry
        step = f"{x}+{y}+{carry}={total}"
        short.append(step)
        long.append(f"{PLACE_NAMES[place]} {step}, write {total % 10} carry {total // 10}")
        carry = total // 10
    return "; ".join(short) + f"; {carry}", "; ".join(long) + f"; left {carry}"


def sub_working(a, b):
    """a >= b: columns from the right, borrowing."""
    borrow, short, long = 0, [], []
    for place in range(len(str(a))):
        x, y = digit(a, place), digit(b, place)
        total = x - y - borrow
        step = f"{x}-{y}-{borrow}={total}"
        borrow = 1 if total < 0 else 0
        short.append(f"{step}, {total % 10}")
        long.append(f"{PLACE_NAMES[place]} {step}, write {total % 10} borrow {borrow}")
    return "; ".join(short), "; ".join(long)


def sum_turn(skill, a, b, sign, user):
    if sign == "+":
        short, long = add_working(a, b)
        total = a + b
        medium = f"Add from the right. {long}. {total}"
        low = f"{short}. {total}"
    else:
        total = a - b
        big, small = max(a, b), min(a, b)
        short, long = sub_working(big, small)
        head = f"{a} >= {b}." if a >= b else f"{a} < {b}, so {b} - {a} and a minus sign."
        medium = f"Subtract from the right. {head} {long}. {total}"
        low = f"{head} {short}. {total}"
    high = f"The question is {a} {sign} {b}. {medium}. So {a} {sign} {b} = {total}."
    return Turn(skill, f"{a}{sign}{b}", user, low, medium, high, f"{a} {sign} {b} = {total}", ("number", total))


def add(r):
    a, b = number(r), number(r)
    asks = ["what is {a} + {b}", "{a} + {b}", "{a}+{b}", "add {a} and {b}", "what is {a} plus {b}", "calculate {a} + {b}",
            "how much is {a} + {b}", "what is the sum of {a} and {b}", "{a} plus {b}", "compute {a}+{b}",
            "what is {a}+{b}", "{a} + {b} ="]
    return sum_turn("add", a, b, "+", r.choice(asks).format(a=a, b=b))


def subtract(r):
    a, b = number(r), number(r)
    if a < b and r.random() < 0.7:
        a, b = b, a
    asks = ["what is {a} - {b}", "{a} - {b}", "{a}-{b}", "subtract {b} from {a}", "what is {a} minus {b}",
            "calculate {a} - {b}", "how much is {a} - {b}", "take {b} away from {a}", "{a} minus {b}", "compute {a}-{b}",
            "what is {a}-{b}", "{a} - {b} ="]
    return sum_turn("subtract", a, b, "-", r.choice(asks).format(a=a, b=b))


def times_working(n, f):
    """n times a single digit, columns from the right with the carry."""
    carry, steps = 0, []
    for place in range(len(str(n))):
        total = digit(n, place) * f + carry
        steps.append(f"{digit(n, place)}*{f}+{carry}={total}")
        carry = total // 10
    return "; ".join(steps) + f"; {carry}"


# from, to, factor (10^k, or a number below 100)
UNITS = [("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("m", "mm", 1000), ("kg", "g", 1000), ("g", "mg", 1000),
         ("l", "ml", 1000), ("t", "kg", 1000), ("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7),
         ("years", "months", 12), ("days", "hours", 24), ("feet", "inches", 12), ("yards", "feet", 3),
         ("euros", "cents", 100), ("dollars", "cents", 100), ("bytes", "bits", 8), ("kB", "bytes", 1000)]


def units(r):
    one, many, factor = r.choice(UNITS)
    n = r.randint(1, 9) if r.random() < 0.15 else r.randint(10, 99) if r.random() < 0.5 else r.randint(100, 999)
    zeros = len(str(factor)) - 1 if str(factor).strip("0") == "1" else 0
    back = zeros > 0 and r.random() < 0.4
    if back:
        source, target, value, result = many, one, n * factor, n
        work = f"{many} to {one}: divide by {factor}. {n * factor} without {zeros} zeros: {n}"
    else:
        source, target, value, result = one, many, n, n * factor
        work = f"{one} to {many}: times {factor}. "
        if zeros:
            work += f"{n} with {zeros} zeros: {result}"
        elif factor < 10:
            work += f"{n}*{factor}: {times_working(n, factor)}. {result}"
        elif factor == 60:
            work += f"{n}*6: {times_working(n, 6)}. {n * 6}, with 1 zero: {result}"
        else:
            tens, ones = factor // 10 * 10, factor % 10
            first, second = n * tens, n * ones
            work += f"{n}*{tens // 10}: {times_working(n, tens // 10)}. {n * tens // 10}, with 1 zero: {first}. "
            work += f"{n}*{ones}: {times_working(n, ones)}. {second}. {first}+{second}: "
            work += f"{add_working(first, second)[0]}. {result}"
    asks = ["convert {v} {s} to {t}", "how many {t} are {v} {s}", "{v} {s} in {t}", "what is {v} {s} in {t}",
            "how many {t} are in {v} {s}", "change {v} {s} into {t}", "{v} {s} to {t}"]
    user = r.choice(asks).format(v=value, s=source, t=target)
    low = None if zeros else work
    high = f"The question is {value} {source} in {target}. {work}. So {value} {source} = {result} {target}."
    return Turn("units", f"{value}{source}{target}", user, low, work, high, f"{value} {source} = {result} {target}",
                ("number", result))


BASES = {"binary": 2, "hexadecimal": 16}


def to_base(n, base):
    """Digits and working of n in binary or hexadecimal, by division."""
    left, steps, digits = n, [], ""
    while True:
        quotient, rest = divmod(left, base)
        digits = "0123456789ABCDEF"[rest] + digits
        if base == 2:
            steps.append(f"{left}/2={quotient} rest {rest}")
        else:
            steps.append(f"16*{quotient}={quotient * 16}, {left}-{quotient * 16}={rest}, {digits[0]}")
        left = quotient
        if left == 0:
            return digits, "; ".join(steps)


def from_base(text, base):
    value, steps = 0, []
    for c in text:
        d = int(c, 16)
        if base == 2:
            value = value * 2 + d
            steps.append(f"{c}: {value}")
        else:
            steps.append(f"{c}={d}, {value}*16={value * 16}, {value * 16}+{d}={value * 16 + d}")
            value = value * 16 + d
    return value, "; ".join(steps)


def base_turn(skill, n, name, user, back):
    base = BASES[name]
    text, work = to_base(n, base)
    if back:
        work = from_base(text, base)[1]
        final = f"{text} in {name} is {n} in decimal"
        head = f"{text} is {name}: read it from the left."
        result = n
    else:
        final = f"{n} in decimal is {text} in {name}"
        head = f"{n} in {name}: divide by {base}."
        result = text
    medium = f"{head} {work}. {result}"
    return Turn(skill, f"{n}{name}{back}", user, f"{work}. {result}", medium, f"The question is about {name}. {medium}. "
                f"So {final}.", final, ("number", n) if back else None)


def bases(r):
    n = r.randint(0, 511) if r.random() < 0.7 else r.randint(0, 63)
    name = r.choice(list(BASES))
    if name == "hexadecimal":
        n = r.randint(0, 255)
    back = r.random() < 0.5
    text = to_base(n, BASES[name])[0]
    if back:
        asks = ["convert {x} from {b} to decimal", "what is {b} {x} in decimal", "what is {x} in {b} as a decimal number",
                "{b} {x} to decimal", "convert {b} {x} to decimal"]
    else:
        asks = ["convert {x} to {b}", "what is {x} in {b}", "write {x} in {b}", "{x} in {b}", "{x} to {b}",
                "convert {x} from decimal to {b}"]
    return base_turn("bases", n, name, r.choice(asks).format(x=text if back else n, b=name), back)


def weekday_add(r):
    start, days = r.randint(0, 6), r.randint(1, 99) if r.random() < 0.6 else r.randint(1, 14)
    after = r.random() < 0.65
    rest = days % 7
    path = [WEEKDAYS[(start + (k if after else -k)) % 7] for k in range(rest + 1)]
    result = path[-1]
    word = "after" if after else "before"
    work = f"{days} = 7*{days // 7} + {rest}. {rest} days {word} {WEEKDAYS[start]}: {', '.join(path)}. {result}"
    plural = "day" if days == 1 else "days"
    asks = ["what day is {n} {p} {w} {s}", "which weekday is {n} {p} {w} {s}", "what day of the week is {n} {p} {w} {s}",
            "{n} {p} {w} {s} is which day"]
    user = r.choice(asks).format(n=days, p=plural, w=word, s=WEEKDAYS[start])
    return Turn("dates", f"{days}{word}{start}", user, work, work, f"A week has 7 days. {work}.",
                f"{days} {plural} {word} {WEEKDAYS[start]} is {result}")


def year_code(year):
    """Weekday of January 1 less one day, 0 for a Sunday: (1 + code) is January 1 with Monday 1."""
    return (datetime.date(year, 1, 1).isoweekday() - 1) % 7


MONTH_CODES = [0, 3, 3, 6, 1, 4, 6, 2, 5, 0, 3, 5]


def weekday_of(r, fixed=None):
    date = fixed or datetime.date(2000, 1, 1) + datetime.timedelta(r.randint(0, 365 * 40 - 1))
    leap = calendar.isleap(date.year) and date.month > 2
    codes = [year_code(date.year), MONTH_CODES[date.month - 1], int(leap), date.day]
    total = sum(codes)
    name = WEEKDAYS[date.weekday()]
    rest = total % 7
    assert (rest - 1) % 7 == date.weekday()
    work = (f"Year {date.year}: {codes[0]}. {MONTHS[date.month - 1]}: {codes[1]}. After a leap day: {codes[2]}. Day: {date.day}. "
            f"{codes[0]}+{codes[1]}={codes[0] + codes[1]}, +{codes[2]}={sum(codes[:3])}, +{date.day}={total}. "
            f"{total} = 7*{total // 7} + {rest}. {rest} is {name}")
    asks = ["what day of the week is {d}", "which weekday is {d}", "what weekday was {d}", "{d} is which day of the week",
            "what day is {d}"]
    month = MONTHS[date.month - 1]
    texts = [date.isoformat(), f"{month} {date.day}, {date.year}", f"{date.day} {month} {date.year}"]
    user = r.choice(asks).format(d=r.choice(texts))
    return Turn("dates", f"weekday{date}", user, work, work, f"The date is {date}. {work}.", f"{date} is a {name}")


def date_add(r):
    date = datetime.date(2000, 1, 1) + datetime.timedelta(r.randint(0, 365 * 60))
    days = r.randint(1, 28)
    result = date + datetime.timedelta(days)
    length = calendar.monthrange(date.year, date.month)[1]
    month = MONTHS[date.month - 1]
    work = f"{month} {date.year} has {length} days. {date.day}+{days}={date.day + days}. "
    if date.day + days > length:
        work += f"More than {length}: {date.day + days}-{length}={result.day}, next month. {result}"
    else:
        work += f"Not more than {length}: same month. {result}"
    plural = "day" if days == 1 else "days"
    asks = ["what date is {n} {p} after {d}", "which date is {n} {p} after {d}", "add {n} {p} to {d}", "{d} plus {n} {p}"]
    user = r.choice(asks).format(n=days, p=plural, d=date)
    return Turn("dates", f"{date}+{days}", user, work, work, f"The date is {date}. {work}.",
                f"{days} {plural} after {date} is {result}")


def leap_year(r):
    if r.random() < 0.5:
        year = r.randint(1800, 2399)
        yes = calendar.isleap(year)
        rest = year % 100
        if rest == 0:
            work = f"{year} ends in 00. {year // 100} = 4*{year // 400} + {year // 100 % 4}"
        else:
            work = f"{year} ends in {rest:02d}. {rest} = 4*{rest // 4} + {rest % 4}"
        user = r.choice(["is {y} a leap year", "was {y} a leap year", "leap year {y}", "does {y} have a leap day"]).format(y=year)
        answer = "Yes" if yes else "No"
        work += f". {answer}"
        return Turn("dates", f"leap{year}", user, work, work, f"A leap year divides by 4, and by 400 when it ends in 00. "
                    f"{work}.", f"{answer}, {year} is {'' if yes else 'not '}a leap year")
    year, month = r.randint(1900, 2199), r.randint(1, 12)
    length = calendar.monthrange(year, month)[1]
    rest = year % 100
    if month != 2:
        work = f"{MONTHS[month - 1]} always has {length} days"
    elif rest == 0:
        work = f"{year} ends in 00. {year // 100} = 4*{year // 400} + {year // 100 % 4}. {length} days"
    else:
        work = f"{year} ends in {rest:02d}. {rest} = 4*{rest // 4} + {rest % 4}. {length} days"
    user = r.choice(["how many days does {m} {y} have", "how many days are in {m} {y}", "how long is {m} {y}"]).format(
        m=MONTHS[month - 1], y=year)
    return Turn("dates", f"length{year}{month}", user, None if month != 2 else work, work, f"The month is "
                f"{MONTHS[month - 1]} {year}. {work}.", f"{MONTHS[month - 1]} {year} has {length} days")


def dates(r):
    return r.choices([weekday_add, weekday_of, date_add, leap_year], [3, 4, 3, 2])[0](r)


def sort_turn(skill, items, down, user):
    width = max(2, len(str(max(items))))  # all written with as many digits, so that equal places stand at equal distances
    left, steps = list(items), []
    line = lambda numbers: " ".join(f"{n:0{width}d}" for n in numbers)
    while len(left) > 1:
        best = max(left) if down else min(left)
        left.remove(best)
        steps.append(f"{best:0{width}d}, left {line(left)}")
    steps.append(line(left))
    ordered = sorted(items, reverse=down)
    final = ", ".join(map(str, ordered))
    work = f"{'largest' if down else 'smallest'} first of {line(items)}: {'; '.join(steps)}"
    key = f"{sorted(items)}{down}"
    return Turn(skill, key, user, work, work, f"The list is {', '.join(map(str, items))}. {work}.", final,
                ("list", list(items)))


def sort_numbers(r):
    count, top = r.randint(3, 7), r.choice([20, 99, 99, 999])
    items = r.sample(range(top + 1), count)
    down = r.random() < 0.3
    text = r.choice([", ", ", ", " "]).join(map(str, items))
    if down:
        asks = ["sort {l} in descending order", "sort {l} from largest to smallest", "sort these numbers descending: {l}",
                "order {l} from high to low"]
    else:
        asks = ["sort {l}", "sort these numbers: {l}", "put {l} in order", "sort {l} in ascending order", "order {l}",
                "sort the numbers {l}", "sort {l} from smallest to largest"]
    return sort_turn("sort", items, down, r.choice(asks).format(l=text))


def capitals(word):
    return " ".join(word.upper())


def sort_words(r):
    while True:
        items = r.sample(WORDS, r.randint(3, 5))
        if len({w[0] for w in items}) == len(items):
            break
    ordered = sorted(items)
    letters = ", ".join(f"{w[0].upper()} {w}" for w in items)
    work = f"{letters}. In order: {' '.join(w[0].upper() for w in ordered)}"
    text = ", ".join(items)
    user = r.choice(["sort {l}", "sort these words: {l}", "put these words in order: {l}", "sort {l} by the alphabet",
                     "order the words {l}"]).format(l=text)
    return Turn("sort", f"{ordered}", user, letters, work, f"The words are {text}. {work}.", ", ".join(ordered))


def sort(r):
    return sort_numbers(r) if r.random() < 0.75 else sort_words(r)


ONSETS = "b c d f g h j k l m n p r s t v w y z br ch cl cr dr fl fr gr pl pr qu sh sl sp st th tr wh".split()
VOWELS = "a e i o u a e i o ai ea ee oo ou".split()
CODAS = " ,n,r,s,t,l,m,ck,nd,ng,nt,rd,st,x,d,p".split(",")


TEXT_WORDS = sorted({w for asks, said in FACTS for line in (*asks, said) for w in "".join(
    c if c.isalpha() else " " for c in line.lower()).split() if len(w) > 2})


def word(r):
    """A real word, or letters that could be one."""
    way = r.random()
    if way < 0.3:
        return r.choice(WORDS)
    if way < 0.42:
        return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(3, 8)))
    if way < 0.72:  # cut from other words: the pieces that the tokenizer knows
        text = ""
        while len(text) < 3:
            source = r.choice(TEXT_WORDS)
            at = r.randrange(len(source) - 1)
            text += source[at : at + r.randint(2, 6)]
        return text[:11]
    text = ""
    for _ in range(r.randint(1, 3)):
        text += r.choice(ONSETS) + r.choice(VOWELS)
    text += r.choice(CODAS).strip()
    return text[:11] if len(text) > 2 else text + "t"


def shown(r, text):
    """A word as a person would type it."""
    return r.choices([text, text.upper(), text.capitalize(), f'"{text}"', f"'{text}'"], [6, 1, 1, 1.5, 0.5])[0]


def spell_turn(skill, w, user):
    letters = capitals(w)
    work = f"{w.upper()}: {letters}"
    return Turn(skill, f"spell {w}", user, None, letters, f"The word is {work}. It has {len(w)} letters.",
                "-".join(w.upper()), ("word", w))


def spell(r):
    w = word(r)
    user = r.choice(["spell {w}", "spell the word {w}", "how do you spell {w}", "how is {w} spelled", "please spell {w}"])
    return spell_turn("spell", w, user.format(w=shown(r, w)))


def reverse_turn(skill, w, user):
    letters, back = capitals(w), capitals(w[::-1])
    work = f"{letters}. Backwards: {back}"
    return Turn(skill, f"reverse {w}", user, letters, work, f"The word is spelled {work}.", w.upper()[::-1], ("word", w))


def reverse(r):
    w = word(r)
    user = r.choice(["reverse {w}", "reverse the word {w}", "write {w} backwards", "what is {w} backwards", "{w} backwards",
                     "spell {w} backwards"])
    return reverse_turn("reverse", w, user.format(w=shown(r, w)))


def count_letter(r):
    w = word(r)
    if r.random() < 0.4:
        at = r.randrange(len(w))
        w = w[:at] + r.choice(w) + w[at:]
    c = r.choice(w) if r.random() < 0.85 else r.choice("abcdefghijklmnopqrstuvwxyz")
    seen, steps = 0, []
    for x in w:
        seen += x == c
        steps.append(f"{x.upper()} {seen}")
    work = f"{c.upper()} in {capitals(w)}: {', '.join(steps)}. {seen}"
    asks = ["how many times does {c} occur in {w}", "how many {c} are in {w}", "count the letter {c} in {w}",
            "how many times is the letter {c} in {w}", "how often does the letter {c} occur in {w}", "how many {c}'s are in {w}"]
    user = r.choice(asks).format(c=r.choice([c, c, c.upper()]), w=shown(r, w))
    times = "time" if seen == 1 else "times"
    return Turn("count", f"{c} in {w}", user, work, work, f"I count {c.upper()} letter by letter. {work}.",
                f"The letter {c.upper()} occurs {seen} {times}")


def count_letters(r):
    w = word(r)
    work = f"{capitals(w)}: " + ", ".join(f"{x.upper()} {i + 1}" for i, x in enumerate(w))
    user = r.choice(["how many letters does {w} have", "how long is the word {w}", "how many letters are in {w}",
                     "count the letters in {w}"]).format(w=shown(r, w))
    return Turn("count", f"letters {w}", user, work, work, f"I count letter by letter. {work}.", f"The word has {len(w)} letters")


def count_up(r):
    step = r.choice([1, 1, 1, 2, 5, 10])
    count = r.randint(4, 12)
    start = r.randint(0, 300)
    numbers = [start + step * k for k in range(count)]
    if r.random() < 0.3:
        numbers.reverse()
    a, b = numbers[0], numbers[-1]
    by = "" if step == 1 else f" in steps of {step}" if r.random() < 0.5 else f" by {step}"
    user = r.choice(["count from {a} to {b}{s}", "count {a} to {b}{s}"]).format(a=a, b=b, s=by)
    way = "up" if a < b else "down"
    work = f"Count {way} by {step}, from {a} to {b}"
    return Turn("count", f"{a}to{b}by{step}", user, None, work, f"{work}.", ", ".join(map(str, numbers)))


def count_items(r):
    items = r.choices(WORDS, k=r.randint(2, 9))
    work = ", ".join(f"{w} {i + 1}" for i, w in enumerate(items))
    user = r.choice(["how many words are in this list: {l}", "how many items are there: {l}", "count the words: {l}",
                     "how many words are these: {l}"]).format(l=r.choice([", ", ", ", " "]).join(items))
    return Turn("count", " ".join(items), user, work, work, f"I count one by one. {work}.", f"There are {len(items)} words")


def count(r):
    return r.choices([count_letter, count_letters, count_up, count_items], [4, 2, 2, 2])[0](r)


def facts(r):
    asks, answer = r.choice(FACTS)
    user = r.choice(asks)
    if len(user.split()) > 2:
        user = r.choice(["", "", "", "please tell me: ", "I have a question: ", "can you tell me, ", "I want to know: ",
                         "hello, ", "tell me, ", "one more question: ", "quick question: "]) + user
        key = "fact " + user
    else:
        key = "short"  # greetings have nothing to hold out: always for training
    return Turn("facts", key, user, None, "This is about me and nibbled.", f"The user asks: {user}. This is about "
                "me and nibbled, and I know the answer.", answer)


def cannot(r):
    user = r.choice(CANNOT_ASKS).format(
        word=word(r), word2=word(r), place=r.choice(PLACES), place2=r.choice(PLACES), language=r.choice(LANGUAGES),
        year=r.randint(1900, 2030), a=r.randint(2, 9999), b=r.randint(2, 999), c=r.randint(2, 99))
    return Turn("cannot", "cannot " + user, user, None, "This is not one of my skills.",
                "The user asks for something that is not one of my skills, so I say what I can do.", CANNOT)


def follow_up(r, state):
    """A question about the answer before."""
    kind, value = state
    if kind == "number" and value >= 0 and value <= 9999:
        n = number(r, 3)
        way = r.random()
        if way < 0.45:
            user = r.choice(["now add {n}", "and plus {n}", "add {n} to that", "plus {n}", "add {n}", "and {n} more"]).format(n=n)
            turn = sum_turn("followup", value, n, "+", user)
        elif way < 0.85 or value > 255:
            user = r.choice(["now subtract {n}", "and minus {n}", "subtract {n} from that", "minus {n}", "take away {n}",
                             "and {n} less"]).format(n=n)
            turn = sum_turn("followup", value, n, "-", user)
        else:
            name = r.choice(list(BASES))
            turn = base_turn("followup", value, name, r.choice(["and in {b}", "what is that in {b}", "now in {b}"]).format(b=name),
                             False)
    elif kind == "word":
        way = r.random()
        if way < 0.5:
            turn = reverse_turn("followup", value, r.choice(["reverse it", "now backwards", "and backwards", "now reverse it"]))
        else:
            turn = spell_turn("followup", value, r.choice(["spell it", "now spell it", "and how do you spell it"]))
    elif kind == "list":
        down = r.random() < 0.7
        user = r.choice(["now from largest to smallest", "and in descending order", "now descending"] if down else
                        ["now from smallest to largest", "and in ascending order", "now ascending"])
        turn = sort_turn("followup", value, down, user)
    else:
        return None
    turn.key = f"{kind} {value} {turn.key}"
    return turn


def tidy(r, text):
    """A question as people type it: with or without a capital and a mark at the end."""
    if r.random() < 0.75 and not text[0].isupper():
        text = text[0].upper() + text[1:]
    first = text.split()[0].lower().strip(",:")
    asks = first in ("what", "how", "which", "who", "is", "are", "does", "do", "was", "can", "where", "when", "why", "and")
    if r.random() < 0.7 and text[-1] not in "=.?!":
        text += "?" if asks else "."
    return text


SKILLS = {"add": (add, 10), "subtract": (subtract, 10), "units": (units, 11), "bases": (bases, 12), "dates": (dates, 12),
          "sort": (sort, 12), "count": (count, 15), "spell": (spell, 10), "reverse": (reverse, 11), "facts": (facts, 5),
          "cannot": (cannot, 4)}


def any_skill(r):
    return r.choices([f for f, _ in SKILLS.values()], [w for _, w in SKILLS.values()])[0](r)
