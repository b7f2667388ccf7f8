"""Numbers and untrusted strings as a reader should see them."""

from __future__ import annotations

import math

from caltune.notebook import clean as clean

MINUS = "\u2212"
UNDEFINED = "not defined"


def number(value: float, digits: int = 3) -> str:
    """A plain number with a true minus sign; "not defined" for nan.

    >>> number(0.0871), number(-0.05, 2), number(float("nan")), number(-0.0001), number(float("inf"))
    ('0.087', '−0.05', 'not defined', '0.000', '∞')
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, with a no-break space.

    >>> percent(0.8305).replace(chr(0xA0), " "), percent(float("nan"))
    ('83.0 %', 'not defined')
    """
    return UNDEFINED if math.isnan(value) else number(100 * value, digits) + "\u00a0%"


def interval(low: float, high: float, digits: int = 3, *, factor: float = 1.0) -> str:
    """An interval in brackets that no line break divides, or nothing where it is not defined.

    >>> interval(0.07, 0.104).replace(chr(0xA0), " "), interval(-0.012, 0.007, 1, factor=100), interval(float("nan"), 1)
    ('[0.070, 0.104]', '[−1.2,\\xa00.7]', '')
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(factor * low, digits)},\u00a0{number(factor * high, digits)}]"


def listed(names: list[str]) -> str:
    """Names as a list in a sentence.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def questions(count: int) -> str:
    """A count of questions.

    >>> questions(1), questions(2000)
    ('1 question', '2,000 questions')
    """
    return f"{count:,} question" + ("" if count == 1 else "s")
