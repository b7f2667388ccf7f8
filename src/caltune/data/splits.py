"""Which rows belong to which split, and which questions stand in two of them.

The rules, in the order in which they are tried:

1. A source's own split of the wanted name is taken. "calibration" falls back to "validation", "valid", "val" or "dev";
   "validation" falls back to "valid", "val", "dev" or "calibration".
2. A single file has no splits of its own: without a split all its rows are taken, with one its hash split
   (60 % train, 20 % calibration, 20 % test, by the id alone).
3. A source with a train split but nothing to calibrate on gives up a fifth of it: calibration is the 20 % of train that
   rule 2 would take, train is the other 80 %.
4. Any other split does not exist: an error names those that do.
5. A source with several splits is never joined: without a split there is an error, unless it has only one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from caltune.errors import InputError, MissingSplit
from caltune.types import Question

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
TRAIN_SHARE = 0.6
CALIBRATION_SHARE = 0.2


def hash_split(question_id: str) -> str:
    """Assign an id to "train" (60 %), "calibration" (20 %) or "test" (20 %), the same on every machine and every day.

    u = first 8 bytes of SHA-256(id), big-endian, divided by 2^64; train is u < 0.6, test is u ≥ 0.8. Only the id
    counts, so adding rows moves none. It cannot see that two ids hold the same question: `find_overlap` can.

    >>> [hash_split(f"q{number}") for number in range(5)]
    ['train', 'calibration', 'calibration', 'train', 'train']
    """
    fraction = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:8], "big") / 2**64
    if fraction < TRAIN_SHARE:
        return "train"
    return "calibration" if fraction < TRAIN_SHARE + CALIBRATION_SHARE else "test"


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """The source's own split to read, and the hash splits to keep of it (none named: all rows)."""

    own: str
    hash_splits: frozenset[str] = frozenset()

    def keeps(self, question_id: str) -> bool:
        """Whether a question of the own split belongs to the wanted one."""
        return not self.hash_splits or hash_split(question_id) in self.hash_splits


def choose_file_split(wanted: str | None, source: str) -> SplitChoice:
    """Rule 2: the part of a single file that a split name means.

    >>> sorted(choose_file_split("validation", "data.jsonl").hash_splits)
    ['calibration']
    """
    parts = {"train": "train", "calibration": "calibration", "validation": "calibration", "test": "test"}
    if wanted is None:
        return SplitChoice("")
    if wanted not in parts:
        raise InputError(f"{source}: the split of a single file must be train, calibration or test, got {wanted!r}")
    return SplitChoice("", frozenset({parts[wanted]}))


def choose_split(names: Collection[str], wanted: str | None, source: str, *, also: Collection[str] = ()) -> SplitChoice:
    """Rules 1, 3, 4 and 5: which of the source's own splits to read for the wanted one, and what to keep of it.

    `also` names further splits of the source, which an error lists.

    >>> choose_split(["train", "dev", "test"], "calibration", "folder").own
    'dev'
    >>> choose_split(["train", "test"], "validation", "folder")
    SplitChoice(own='train', hash_splits=frozenset({'calibration'}))
    """
    has_held_out = any(name in names for name in ("calibration", *VALIDATION_NAMES))
    carves_train = "train" in names and not has_held_out
    listed = ", ".join(sorted({*names, *also})) + (", calibration (a fifth of train)" if carves_train else "")
    if wanted is None:
        if len(names) == 1:
            return SplitChoice(next(iter(names)))
        raise InputError(f"{source}: a split must be named (--split), one of: {listed}; got none")
    if wanted == "train" and carves_train:
        return SplitChoice("train", frozenset({"train", "test"}))
    stand_ins = {"calibration": VALIDATION_NAMES, "validation": (*VALIDATION_NAMES, "calibration")}
    for name in (wanted, *stand_ins.get(wanted, ())):
        if name in names:
            return SplitChoice(name)
    if wanted in stand_ins and carves_train:
        return SplitChoice("train", frozenset({"calibration"}))
    raise MissingSplit(f"{source}: the split must be one of: {listed}; got {wanted!r}")


@dataclass(frozen=True, slots=True)
class Overlap:
    """One question of `second_split` that stands in `first_split` too.

    `kind` is "id" for the same id (whatever the text) and "content" for the same question under another id.
    """

    kind: str
    first_split: str
    first_id: str
    second_split: str
    second_id: str


def find_overlap(splits: Mapping[str, Sequence[Question]], *, exact: bool = False) -> list[Overlap]:
    """Find the questions that stand in more than one split; an empty list is good.

    Two questions are the same when their ids are equal, or when text and set of options are equal after Unicode NFKC,
    case folding and collapsing white space. Each question of the later split is reported once for each earlier split it
    stands in, with the first id found there. It cannot see paraphrases. With `exact`, case and characters that NFKC
    makes equal count, so that "2²" is not "22": only NFC and white space are levelled.

    >>> train = [Question("a", "Capital of  France?", ("Paris", "Lyon"), 0)]
    >>> test = [Question("b", "capital of france?", ("Lyon", "Paris"), 1), Question("c", "Why?", ("x", "y"), 0)]
    >>> find_overlap({"train": train, "test": test})
    [Overlap(kind='content', first_split='train', first_id='a', second_split='test', second_id='b')]
    """
    contents = {name: [_content(question, exact) for question in questions] for name, questions in splits.items()}
    found = []
    for first, second in combinations(splits, 2):
        first_ids = {question.id for question in splits[first]}
        holders: dict[tuple[str, frozenset[str]], str] = {}
        for question, content in zip(splits[first], contents[first], strict=True):
            holders.setdefault(content, question.id)
        for question, content in zip(splits[second], contents[second], strict=True):
            if question.id in first_ids:
                found.append(Overlap("id", first, question.id, second, question.id))
            elif content in holders:
                found.append(Overlap("content", first, holders[content], second, question.id))
    return found


def _content(question: Question, exact: bool) -> tuple[str, frozenset[str]]:
    text, *options = (_normalise(text, exact) for text in (question.text, *question.options))
    return text, frozenset(options)


def _normalise(text: str, exact: bool) -> str:
    levelled = unicodedata.normalize("NFC", text) if exact else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(levelled.split())
