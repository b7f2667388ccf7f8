"""What a notebook shows of a result: tables and pictures as HTML that stands by itself, every text escaped."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

_LEFT = ' style="text-align: left"'

# Control characters break parsers, lone surrogates break UTF-8, and the bidirectional overrides and isolates reorder
# the text around them. The plain left-to-right and right-to-left marks stay: Arabic and Hebrew questions need them.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]")


def clean(value: object) -> str:
    """The text with every character that could break or reorder the page written out as its code point.

    >>> clean("a" + chr(0x202E) + "b"), clean("two" + chr(10) + "lines"), clean(0.5)
    ('a[U+202E]b', 'two\\nlines', '0.5')
    """
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return _HARMFUL.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table with a title above and a note below; the first cell of each row is its header.

    >>> table("A & B", ["", "x"], [["<b>", "1"]]).replace(' style="text-align: left"', "")
    '<table><caption>A &amp; B</caption><thead><tr><th scope="col"></th><th scope="col">x</th></tr></thead><tbody>\
<tr><th scope="row">&lt;b&gt;</th><td>1</td></tr></tbody></table>'
    """
    head = "".join(f'<th scope="col"{_LEFT}>{_safe(cell)}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td{_LEFT}>{_safe(one)}</td>" for one in rest)
        body += f'<tr><th scope="row"{_LEFT}>{_safe(first)}</th>{cells}</tr>'
    made = f"<table><caption{_LEFT}>{_safe(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return made + (f"<p>{_safe(note)}</p>" if note else "")


def picture(svg: str, css: str, description: str) -> str:
    """An SVG drawing with a style sheet as an image: neither can touch the page, nor the page them."""
    opened, rest = svg.split(">", 1)
    whole = opened.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + f"><style>{css}</style>{rest}"
    code = b64encode(whole.encode()).decode()
    style = "width: 100%; max-width: 27rem"
    return f'<img src="data:image/svg+xml;base64,{code}" alt="{_safe(description)}" style="{style}">'


def number(value: float, digits: int = 3) -> str:
    """A number for a cell.

    >>> number(0.0871), number(float("nan")), number(float("inf"))
    ('0.087', 'not defined', 'inf')
    """
    return "not defined" if math.isnan(value) else f"{value:.{digits}f}"


def interval(low: float, high: float) -> str:
    """An interval for a cell, empty where it is not defined.

    >>> interval(0.1, 0.25), interval(float("nan"), 1.0)
    ('[0.100, 0.250]', '')
    """
    return "" if math.isnan(low) or math.isnan(high) else f"[{number(low)}, {number(high)}]"


def _safe(text: str) -> str:
    """The text as HTML shows it."""
    return escape(clean(text))
