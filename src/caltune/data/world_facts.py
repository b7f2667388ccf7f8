"""The built-in data set `world-facts`: tables of facts turned into questions that a small model half knows.

The tables lie under `facts/`; `facts/SOURCES.md` says where each fact comes from and what was left out. Each relation
makes one question of each fact: the wording, the distractors and the place of the answer follow from a hash of the
question's id, so they are the same on every machine. All questions about one entity are in one split.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import TypedDict

from caltune.errors import InputError
from caltune.types import Question

SPLITS = ("train", "calibration", "test")
TRAIN_PERCENT, CALIBRATION_PERCENT = 42, 20
# A comparison is asked only when the largest is this many times the second, so that no year's figures change it.
COMPARISONS = (("area", 1.4), ("population", 2.5))
COMPARISON_WORDINGS = {
    "area": ("Which of these countries has the largest area?", "Which of these countries covers the most ground?"),
    "population": ("Which of these countries has the most people?", "In which of these countries do most people live?"),
}
NEIGHBOUR_WORDINGS = ("Which of these countries borders {}?", "Which country shares a land border with {}?")
# Words of a name that say nothing about which one it is.
COMMON = frozenset(
    ("north", "south", "east", "west", "saint", "city", "port", "united", "island", "islands", "central")
)

Row = dict[str, str]


class Relation(TypedDict):
    """One entry of `facts/relations.json`: which column of which table answers which question."""

    name: str
    table: str
    subject: str
    answer: str
    near: str
    options: int
    wordings: list[str]


def load_world_facts(split: str | None = None) -> list[Question]:
    """The questions of one split ("train", "calibration" or "test"), or of all three when `split` is None.

    `group` is the relation, such as "country-capital". Splits are by entity: what is asked about France, in either
    direction, is in one split. Most questions have 4 options; some relations have 2, 3, 5, 6 or 7.

    Raises `InputError` for another split.

    >>> questions = {question.id: question for question in load_world_facts()}
    >>> question = questions["country-capital/france"]
    >>> question.options[question.answer], question.group
    ('Paris', 'country-capital')
    >>> load_world_facts("dev")
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: world-facts: split must be train, calibration or test, got 'dev'
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"world-facts: split must be train, calibration or test, got {split!r}")
    return [question for entity, question in questions_by_entity() if split in (None, split_of_entity(entity))]


def split_of_entity(entity: str) -> str:
    """The split of an entity such as "country/france", from a hash of its name."""
    percent = _seed(entity) % 100
    if percent < TRAIN_PERCENT:
        return "train"
    return "calibration" if percent < TRAIN_PERCENT + CALIBRATION_PERCENT else "test"


@cache
def questions_by_entity() -> tuple[tuple[str, Question], ...]:
    """All questions, each with the entity it is about."""
    tables = _tables()
    relations: list[Relation] = json.loads(_read("relations.json"))
    made = [pair for relation in relations for pair in _ask(relation, tables[relation["table"]])]
    made += _ask_neighbours(tables["countries"])
    for column, ratio in COMPARISONS:
        made += _ask_comparison(tables["countries"], column, ratio)
    return tuple(made)


@cache
def slug(text: str) -> str:
    """The form that ids use: lower-case ASCII with hyphens.

    >>> slug("São Tomé and Príncipe")
    'sao-tome-and-principe'
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def gives_away(subject: str, answer: str) -> bool:
    """Whether a telling word of the answer begins like one of the subject, so that spelling alone answers.

    >>> gives_away("Guatemala", "Guatemala City"), gives_away("South Africa", "South Korea")
    (True, False)
    """
    return bool(_beginnings(subject) & _beginnings(answer))


def _ask(relation: Relation, table: Sequence[Row]) -> Iterator[tuple[str, Question]]:
    """One question for each row that has both columns, and whose subject has a single answer."""
    name, subject_column, answer_column = relation["name"], relation["subject"], relation["answer"]
    answers_of: dict[str, set[str]] = {}
    rows = [row for row in table if row[subject_column] and row[answer_column]]
    for row in rows:
        answers_of.setdefault(slug(row[subject_column]), set()).add(row[answer_column])
    pool = list(dict.fromkeys(row[answer_column] for row in rows))
    near_pools: dict[str, list[str]] = {}
    for row in rows:
        if relation["near"] not in ("", "number"):
            near_pool = near_pools.setdefault(_near_key(relation, row), [])
            if row[answer_column] not in near_pool:
                near_pool.append(row[answer_column])
    numbers = sorted(pool, key=int) if relation["near"] == "number" else []
    asked = set()
    for row in rows:
        subject, answer = row[subject_column], row[answer_column]
        key = slug(subject)
        shown = f"{row['the']} {subject}".strip() if subject_column == "name" and "the" in row else subject
        wordings = [text for text in relation["wordings"] if not _says(text.format(shown), answer)]
        if key in asked or len(answers_of[key]) > 1 or gives_away(subject, answer) or not wordings:
            continue
        asked.add(key)
        question_id = f"{name}/{key}"
        if numbers:
            place = numbers.index(answer)
            near = numbers[max(0, place - 4) : place + 5]
        else:
            near = near_pools.get(_near_key(relation, row), [])
        never = set(row["spoken"].split("|")) if answer_column == "language" else set()
        if relation["table"] == "airports":  # a city nearby may share the airport
            never = {other[answer_column] for other in rows if other["country"] == row["country"]}
        count = min(relation["options"], len(pool))
        yield row["entity"], _question(question_id, name, wordings, shown, answer, near, pool, count, never)


def _ask_neighbours(countries: Sequence[Row]) -> Iterator[tuple[str, Question]]:
    """Which country borders another: the right neighbour is in the same split, as the fact is about both."""
    by_code = {row["code"]: row for row in countries}
    everywhere = [row["name"] for row in countries]
    for row in countries:
        split = split_of_entity(row["entity"])
        fitting = [
            other["name"]
            for other in (by_code[code] for code in row["neighbours"].split("|") if code)
            if split_of_entity(other["entity"]) == split and not gives_away(row["name"], other["name"])
        ]
        if not fitting:
            continue
        question_id = f"country-neighbour/{slug(row['name'])}"
        answer = fitting[_seed(question_id + "/answer") % len(fitting)]
        never = {by_code[code]["name"] for code in row["maybe_neighbours"].split("|")} | {row["name"]}
        near = [other["name"] for other in countries if other["region"] == row["region"]]
        shown = f"{row['the']} {row['name']}".strip()
        question = _question(
            question_id, "country-neighbour", NEIGHBOUR_WORDINGS, shown, answer, near, everywhere, 4, never
        )
        yield row["entity"], question


def _ask_comparison(countries: Sequence[Row], column: str, ratio: float) -> Iterator[tuple[str, Question]]:
    """Which of three countries of one split is the largest, where the largest is so by far."""
    sizes = {row["name"]: float(row[column]) for row in countries if row[column]}
    members: dict[str, list[str]] = {}
    asked: list[set[str]] = []
    for row in countries:
        if row[column]:
            members.setdefault(split_of_entity(row["entity"]), []).append(row["name"])
    for row in countries:
        if not row[column]:
            continue
        name, others = row["name"], members[split_of_entity(row["entity"])]
        question_id = f"country-{column}/{slug(name)}"
        # Harder pairs come from neighbours in the order of size, easier ones from anywhere.
        others = sorted(others, key=lambda other: sizes[other])
        place, seed = others.index(name), _seed(question_id + "/pair")
        reach = len(others) if seed % 2 else 9
        choices = [other for other in others[max(0, place - reach) : place + reach + 1] if other != name]
        first = choices[(seed >> 8) % len(choices)]
        second = choices[((seed >> 8) + 1 + (seed >> 32) % (len(choices) - 1)) % len(choices)]
        largest, middle, smallest = sorted((name, first, second), key=lambda other: -sizes[other])
        if sizes[largest] >= ratio * sizes[middle] and {name, first, second} not in asked:
            asked.append({name, first, second})
            losers = [middle, smallest]
            wordings = COMPARISON_WORDINGS[column]
            question = _question(question_id, f"country-{column}", wordings, "", largest, losers, losers, 3, set())
            yield row["entity"], question


def _question(
    question_id: str,
    group: str,
    wordings: Sequence[str],
    subject: str,
    answer: str,
    near: Sequence[str],
    pool: Sequence[str],
    count: int,
    never: Iterable[str],
) -> Question:
    """Choose wording, distractors and the place of the answer by the hash of the id.

    A quarter of the questions takes all distractors from `near` where it has enough, a quarter half, the rest none.
    """
    seed, wording = divmod(_seed(question_id), len(wordings))
    seed, level = divmod(seed, 4)
    seed, place = divmod(seed, count)
    wanted = count - 1
    close = {0: wanted, 1: (wanted + 1) // 2}.get(level, 0)
    taken = [answer]
    barred = {_bones(text) for text in (answer, *never)}
    for source, number in ((near, close), (pool, wanted)):
        while source and len(taken) <= number:
            seed, start = divmod(seed, len(source))
            free = (text for text in chain(source[start:], source[:start]) if _bones(text) not in barred)
            candidate = next(free, None)
            if candidate is None:
                break
            taken.append(candidate)
            barred.add(_bones(candidate))
    options = taken[1:]
    place = min(place, len(options))
    options.insert(place, answer)
    return Question(question_id, wordings[wording].format(subject), tuple(options), place, group=group)


def _says(text: str, answer: str) -> bool:
    """Whether the text has the answer as a word of its own, as "is" is the code of Icelandic."""
    return answer in text and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def _near_key(relation: Relation, row: Row) -> str:
    return row[relation["answer"]].lstrip(".")[0] if relation["near"] == "initial" else row.get(relation["near"], "")


@cache
def _bones(text: str) -> str:
    """Consonants of longer words: two options with the same ones, such as rial and riyal, are spellings of one word."""
    letters = slug(text).replace("-", "")
    return re.sub(r"[aeiouy]", "", letters) if letters.isalpha() and len(letters) > 3 else text


@cache
def _beginnings(text: str) -> frozenset[str]:
    words = slug(text).split("-")
    return frozenset(word[:4] for word in words if len(word) >= 4 and not word.isdigit() and word not in COMMON)


@cache
def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode()).digest())


def _tables() -> dict[str, list[Row]]:
    """The tables by name, each row with its entity and what it takes from the table of countries or states."""
    names = ("countries", "cities", "us_cities", "us_counties", "us_states", "elements", "airports")
    tables = {name: list(csv.DictReader(io.StringIO(_read(f"{name}.csv")))) for name in names}
    tables |= {name: list(csv.DictReader(io.StringIO(_read(f"{name}.csv")))) for name in ("languages", "currencies")}
    countries = {row["code"]: row for row in tables["countries"]}
    states = {row["abbreviation"]: row for row in tables["us_states"]}
    for row in tables["cities"]:
        row["country"], row["region"] = countries[row["code"]]["name"], countries[row["code"]]["region"]
    for row in tables["airports"]:
        row["region"] = countries[row["country"]]["region"]
    for row in tables["us_cities"] + tables["us_counties"]:
        row["state"], row["region"] = states[row["state"]]["name"], states[row["state"]]["region"]
    kinds = {"countries": "country", "us_states": "state", "us_counties": "county", "elements": "element"}
    for table, kind in (kinds | {"languages": "language"}).items():
        for row in tables[table]:
            row["entity"] = f"{kind}/{slug(row['name'])}"
    return tables


def _read(name: str) -> str:
    return (files("caltune.data") / "facts" / name).read_text(encoding="utf-8")
