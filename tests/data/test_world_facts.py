"""The built-in data set: its size, its splits, and that each question has one right answer."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from caltune.data.world_facts import SPLITS, gives_away, load_world_facts, questions_by_entity, split_of_entity
from caltune.errors import InputError
from caltune.types import Question

# No question may ask for these: several right answers, a disputed or moving one, or one that the question spells out.
LEFT_OUT = {
    "country-capital": "south-africa bolivia netherlands sri-lanka eswatini benin ivory-coast malaysia tanzania "
    "burundi israel indonesia kazakhstan yemen guatemala mexico panama kuwait singapore luxembourg monaco "
    "djibouti tunisia",
    "country-continent": "turkey russia egypt kazakhstan cyprus georgia azerbaijan indonesia",
    "country-region": "serbia montenegro russia",
    "country-currency": "bulgaria panama zimbabwe el-salvador lesotho cuba",
    "country-language": "switzerland belgium canada south-africa mali niger india",
    "calling-code-country": "1 7 39",
    "country-domain": "united-kingdom",
    "city-country": "london paris birmingham valencia barcelona santiago hyderabad tripoli mexico-city guatemala-city "
    "sevastopol simferopol srinagar jerusalem donetsk taipei hargeisa tiraspol",
    "us-city-state": "springfield portland columbus arlington kansas-city oklahoma-city washington",
    "us-county-state": "washington-county jefferson-county san-diego-county",
    "currency-country": "dollar euro rand kwacha krone rupee riyal",
    "element-group": "lanthanum lutetium cerium",
    "element-block": "lanthanum lawrencium",
    "element-state": "francium caesium gallium astatine",
}
FACTS = Path(str(files("caltune.data"))) / "facts"


def table(name: str) -> list[dict[str, str]]:
    with (FACTS / f"{name}.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    return {question.id: question for question in load_world_facts()}


def right(question: Question) -> str:
    assert question.answer is not None
    return question.options[question.answer]


def test_sizes(questions: dict[str, Question]) -> None:
    assert 6000 <= len(questions) <= 9000
    assert len({question.group for question in questions.values()}) >= 15
    sizes = {split: len(load_world_facts(split)) for split in SPLITS}
    assert sizes["train"] >= 2000
    assert sizes["calibration"] >= 1000
    assert sizes["test"] >= 2000
    assert sum(sizes.values()) == len(questions)
    assert {len(question.options) for question in questions.values()} == {2, 3, 4, 5, 6, 7}


def test_tables_are_small() -> None:
    assert sum(path.stat().st_size for path in FACTS.iterdir()) <= 1_000_000


def test_ids_texts_and_options_are_unique(questions: dict[str, Question]) -> None:
    assert len(load_world_facts()) == len(questions)
    assert len({(q.text, frozenset(q.options)) for q in questions.values()}) == len(questions)
    for question in questions.values():
        assert re.fullmatch(rf"{question.group}/[a-z0-9-]+", question.id), question.id
        assert len({option.casefold() for option in question.options}) == len(question.options)
        assert max(map(len, question.options)) <= 40
        assert "{" not in question.text


def test_one_wording_has_one_answer(questions: dict[str, Question]) -> None:
    """Two questions of the same words, other than comparisons, would have two right answers."""
    texts = Counter(q.text for q in questions.values() if q.group not in ("country-area", "country-population"))
    assert max(texts.values()) == 1


def test_entities_do_not_cross_splits(questions: dict[str, Question]) -> None:
    home: dict[str, set[str]] = defaultdict(set)
    in_split = {question.id: split for split in SPLITS for question in load_world_facts(split)}
    for entity, question in questions_by_entity():
        home[entity].add(in_split[question.id])
        assert in_split[question.id] == split_of_entity(entity)
    assert max(map(len, home.values())) == 1
    # Spot checks across relations: both directions, the capital as a city, its airport, the currency's own code.
    for together in (
        ("country-capital/japan", "capital-country/tokyo", "city-country/tokyo", "country-domain/japan"),
        ("country-currency-code/poland", "code-currency/pln", "currency-country/zloty"),
        ("us-state-capital/arizona", "us-abbreviation-state/az", "us-state-year/arizona"),
        ("element-symbol/iron", "symbol-element/fe", "number-element/26"),
        ("language-code/basque", "code-language/eu"),
    ):
        assert len({in_split[question_id] for question_id in together}) == 1, together


def test_pairs_of_countries_do_not_cross_splits(questions: dict[str, Question]) -> None:
    """A border or a comparison is a fact about each country in it."""
    home = {row["name"]: split_of_entity(entity_of(row["name"])) for row in table("countries")}
    names = {entity_of(name).split("/")[1]: name for name in home}
    for question in questions.values():
        subject = names.get(question.id.split("/")[1], "")
        if question.group == "country-neighbour":
            assert home[subject] == home[right(question)]
        if question.group in ("country-area", "country-population"):
            assert {home[option] for option in question.options} == {home[subject]}


def entity_of(country: str) -> str:
    plain = country.replace("ã", "a").replace("é", "e").replace("í", "i").lower()
    return f"country/{plain.replace(' ', '-')}"


def columns(name: str, key: str, value: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in table(name):
        if row[key] and row[value]:
            found[row[key]].add(row[value])
    return found


@pytest.mark.parametrize(
    ("group", "name", "key", "value"),
    [
        ("country-capital", "countries", "name", "capital"),
        ("capital-country", "countries", "capital", "name"),
        ("country-currency", "countries", "name", "unit"),
        ("currency-country", "countries", "unit", "name"),
        ("country-calling-code", "countries", "name", "calling_code"),
        ("calling-code-country", "countries", "calling_code", "name"),
        ("domain-country", "countries", "domain", "name"),
        ("element-symbol", "elements", "name", "symbol"),
        ("number-element", "elements", "number", "name"),
        ("us-capital-state", "us_states", "capital", "name"),
        ("airport-city", "airports", "code", "city"),
        ("code-language", "languages", "code", "name"),
        ("code-currency", "currencies", "code", "name"),
    ],
)
def test_no_distractor_is_right(questions: dict[str, Question], group: str, name: str, key: str, value: str) -> None:
    """Read the tables again, apart from the loader: the answer is the only value, and no distractor is one."""
    values = columns(name, key, value)
    of_group = [question for question in questions.values() if question.group == group]
    assert len(of_group) >= 30
    for question in of_group:
        named = [s for s in values if s in question.text and re.search(rf"(?<!\w){re.escape(s)}(?!\w)", question.text)]
        subject = max(named, key=len)  # "Guinea" is also a word of "Equatorial Guinea"
        assert values[subject] & set(question.options) == {right(question)}, question


def test_distractors_avoid_other_languages_and_borders(questions: dict[str, Question]) -> None:
    by_name = {row["name"]: row for row in table("countries")}
    by_code = {row["code"]: row["name"] for row in table("countries")}
    checked = 0
    for name, row in by_name.items():
        for group, never in (
            ("country-language", set(row["spoken"].split("|"))),
            ("country-neighbour", {by_code[code] for code in row["maybe_neighbours"].split("|") if code}),
        ):
            question = questions.get(f"{group}/{entity_of(name).removeprefix('country/')}")
            if question:
                checked += 1
                assert not (set(question.options) - {right(question)}) & never, question
    assert checked > 100


def test_comparisons_hold_by_far(questions: dict[str, Question]) -> None:
    for column, ratio in (("area", 1.4), ("population", 2.5)):
        size = {row["name"]: float(row[column]) for row in table("countries") if row[column]}
        for question in questions.values():
            if question.group == f"country-{column}":
                others = [size[option] for option in question.options if option != right(question)]
                assert size[right(question)] >= ratio * max(others)


def test_neighbours_are_symmetric() -> None:
    touching = {row["code"]: set(row["neighbours"].split("|")) - {""} for row in table("countries")}
    assert all(code in touching[other] for code, others in touching.items() for other in others)


def test_text_does_not_contain_the_answer(questions: dict[str, Question]) -> None:
    for question in questions.values():
        answer = right(question)
        assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", question.text), question
        if len(answer) > 4 and answer[0].isupper():
            assert answer.casefold() not in question.text.casefold(), question


def test_answer_positions_are_uniform(questions: dict[str, Question]) -> None:
    # 99.9 % quantiles of chi-square with 1 to 6 degrees of freedom
    for count, limit in {2: 10.83, 3: 13.82, 4: 16.27, 5: 18.47, 6: 20.52, 7: 22.46}.items():
        places = Counter(q.answer for q in questions.values() if len(q.options) == count)
        expected = sum(places.values()) / count
        assert sum((places[place] - expected) ** 2 / expected for place in range(count)) < limit


def test_load_does_not_depend_on_the_process(questions: dict[str, Question]) -> None:
    """Another process with another hash seed makes the same questions."""
    code = "from caltune.data.world_facts import *; print(repr(load_world_facts('calibration')))"
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(str(files("caltune"))).parent), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == repr(load_world_facts("calibration"))


@pytest.mark.parametrize(
    ("question_id", "answer"),
    [
        ("country-capital/mongolia", "Ulaanbaatar"),
        ("capital-country/paramaribo", "Suriname"),
        ("country-currency/hungary", "forint"),
        ("country-currency-code/thailand", "THB"),
        ("country-language/iran", "Persian"),
        ("country-calling-code/france", "+33"),
        ("country-domain/germany", ".de"),
        ("country-continent/paraguay", "South America"),
        ("country-region/ghana", "Western Africa"),
        ("country-sea/nepal", "no"),
        ("element-symbol/tungsten", "W"),
        ("element-number/gold", "79"),
        ("element-group/neon", "18"),
        ("element-period/uranium", "7"),
        ("element-state/bromine", "liquid"),
        ("element-weight/oxygen", "16"),
        ("us-state-capital/montana", "Helena"),
        ("us-state-year/hawaii", "1959"),
        ("language-code/basque", "eu"),
        ("code-currency/jpy", "Japanese yen"),
    ],
)
def test_facts_known_by_heart(questions: dict[str, Question], question_id: str, answer: str) -> None:
    assert right(questions[question_id]) == answer


@pytest.mark.parametrize("question_id", [f"{group}/{key}" for group, keys in LEFT_OUT.items() for key in keys.split()])
def test_ambiguous_facts_are_left_out(questions: dict[str, Question], question_id: str) -> None:
    assert question_id not in questions
    assert any(known.startswith(question_id.split("/")[0] + "/") for known in questions)  # the relation itself exists


def test_other_territories_are_no_options(questions: dict[str, Question]) -> None:
    options = {option for question in questions.values() for option in question.options}
    assert not options & {"Taiwan", "Kosovo", "Palestine", "Western Sahara", "Hong Kong", "Puerto Rico", "Gibraltar"}


def test_gives_away() -> None:
    assert gives_away("El Salvador", "San Salvador")
    assert gives_away("Oklahoma", "Oklahoma City")
    assert not gives_away("North Korea", "North Macedonia")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="must be train, calibration or test, got 'dev'"):
        load_world_facts("dev")
