"""Each rule of `caltune.data.splits`, and overlap between splits."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from caltune.data import Overlap, find_overlap, hash_split, load_questions
from caltune.data.splits import SplitChoice, choose_file_split, choose_split
from caltune.errors import InputError
from caltune.types import Question

CARVED_TRAIN = SplitChoice("train", frozenset({"train", "test"}))
CARVED_CALIBRATION = SplitChoice("train", frozenset({"calibration"}))


def data_folder() -> Path:
    """The real data, from CALTUNE_DATA_DIR or beside the repository; the test is skipped where there is none."""
    folder = Path(os.environ.get("CALTUNE_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "openbookqa").is_dir():
        pytest.skip("needs the question-answering data")
    return folder


def question(
    name: str, text: str = "Which?", options: tuple[str, ...] = ("x", "y"), answer: int | None = 0
) -> Question:
    return Question(name, text, options, answer)


def test_hash_split_agrees_with_the_digest_written_in_decimal() -> None:
    for name in ("q1", "Mercury_7175875", "ü", ""):
        fraction = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16
        expected = "train" if fraction < 0.6 else "calibration" if fraction < 0.8 else "test"
        assert hash_split(name) == expected


def test_hash_split_shares() -> None:
    counts = Counter(hash_split(str(number)) for number in range(20_000))
    # Binomial standard deviations: sqrt(20,000 * 0.6 * 0.4) = 69 and sqrt(20,000 * 0.2 * 0.8) = 57; four of them.
    assert abs(counts["train"] - 12_000) < 280
    assert abs(counts["calibration"] - 4_000) < 230
    assert abs(counts["test"] - 4_000) < 230


def test_rule_1_own_split_wins() -> None:
    names = ["train", "calibration", "validation", "test"]
    for name in names:
        assert choose_split(names, name, "s") == SplitChoice(name)


@pytest.mark.parametrize("stand_in", ["validation", "valid", "val", "dev"])
def test_rule_1_calibration_falls_back(stand_in: str) -> None:
    names = ["train", "test", stand_in]
    assert choose_split(names, "calibration", "s") == SplitChoice(stand_in)
    assert choose_split(names, "validation", "s") == SplitChoice(stand_in)
    assert choose_split(names, "train", "s") == SplitChoice("train")  # nothing is taken from it


def test_rule_1_order_of_stand_ins() -> None:
    assert choose_split(["dev", "val", "validation"], "calibration", "s").own == "validation"
    assert choose_split(["calibration", "train"], "validation", "s").own == "calibration"
    assert choose_split(["calibration", "dev"], "validation", "s").own == "dev"


def test_rule_2_single_file() -> None:
    assert choose_file_split(None, "f") == SplitChoice("")
    for name in ("train", "calibration", "test"):
        assert choose_file_split(name, "f").hash_splits == {name}
    with pytest.raises(InputError, match=r"f: .* must be train, calibration or test, got 'dev'"):
        choose_file_split("dev", "f")


def test_rule_2_parts_of_a_file_are_disjoint_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"question": "Is {n} odd?", "choices": ["a", "b"], "id": {n}}}\n' for n in range(200)))
    parts = [load_questions(path, name) for name in ("train", "calibration", "test")]
    ids = [q.id for part in parts for q in part]
    assert sorted(ids, key=int) == [q.id for q in load_questions(path)] == [str(n) for n in range(200)]
    assert all(len(part) > 20 for part in parts)
    assert load_questions(path, "validation") == parts[1]


def test_rule_3_train_gives_up_a_fifth(tmp_path: Path) -> None:
    assert choose_split(["train", "test"], "train", "s") == CARVED_TRAIN
    assert choose_split(["train", "test"], "calibration", "s") == CARVED_CALIBRATION
    assert choose_split(["train", "test"], "validation", "s") == CARVED_CALIBRATION
    assert choose_split(["train", "test"], "test", "s") == SplitChoice("test")
    for split in ("train", "test"):
        lines = [f'{{"question": "{split} {n}?", "choices": ["a", "b"], "id": "{split}-{n}"}}' for n in range(300)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    train, calibration = load_questions(tmp_path, "train"), load_questions(tmp_path, "calibration")
    assert sorted(q.id for q in train + calibration) == sorted(f"train-{n}" for n in range(300))
    assert {hash_split(q.id) for q in calibration} == {"calibration"}
    assert 0.72 < len(train) / 300 < 0.88  # 0.8 within 3.5 standard deviations of sqrt(0.8 * 0.2 / 300) = 0.023
    assert len(load_questions(tmp_path, "test")) == 300


def test_rule_4_a_missing_split_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"folder: the split must be one of: test, train, calibration .*; got 'dev'"):
        choose_split(["train", "test"], "dev", "folder")
    with pytest.raises(InputError, match="one of: test; got 'calibration'"):
        choose_split(["test"], "calibration", "folder")
    with pytest.raises(InputError, match="one of: official, test; got 'x'"):
        choose_split(["test"], "x", "folder", also=["official"])


def test_rule_5_several_splits_are_never_joined() -> None:
    assert choose_split(["test"], None, "s") == SplitChoice("test")
    assert choose_split(["train"], None, "s") == SplitChoice("train")  # all of it
    with pytest.raises(InputError, match=r"--split.*test, train"):
        choose_split(["train", "test"], None, "s")


def test_overlap_by_id_and_by_content() -> None:
    train = [question("1", "What  is\tH\u2082O?", ("Water", "Salt")), question("2", "Why?"), question("3", "Ｗｅｉß?")]
    test = [
        question("a", " what is h2o?", ("salt ", "WATER"), 1),  # NFKC makes the subscript a digit
        question("2", "Something else?"),
        question("b", "WEISS?", ("y", "x")),
        question("c", "Why?", ("x", "z")),  # another option: another question
        question("d", "Why?", ("x", "y", "z")),
    ]
    assert find_overlap({"train": train, "test": test}) == [
        Overlap("content", "train", "1", "test", "a"),
        Overlap("id", "train", "2", "test", "2"),
        Overlap("content", "train", "3", "test", "b"),
    ]


def test_overlap_looks_at_every_pair_of_splits_once() -> None:
    splits = {
        "train": [question("1"), question("2")],
        "calibration": [question("3", "Other?")],
        "test": [question("4")],
    }
    assert find_overlap(splits) == [Overlap("content", "train", "1", "test", "4")]
    splits["calibration"] = [question("3")]
    pairs = [(found.first_split, found.second_split) for found in find_overlap(splits)]
    assert pairs == [("train", "calibration"), ("train", "test"), ("calibration", "test")]


def test_no_overlap_within_one_split() -> None:
    assert find_overlap({"train": [question("1"), question("2")]}) == []
    assert find_overlap({}) == []


def test_overlap_of_the_real_data() -> None:
    """The numbers that the README of the data gives: 14 and 7 rows of OpenBookQA, 28 of MMLU, 3 of ARC-Easy."""
    folder = data_folder()

    def overlap(name: str, first: str, second: str) -> int:
        both = {split: load_questions(folder / name, split, on_bad=lambda _: None) for split in (first, second)}
        return len(find_overlap(both))

    assert overlap("openbookqa", "train", "test") == 14
    assert overlap("openbookqa", "train", "validation") == 7
    assert overlap("arc_easy", "train", "test") == 3
    assert overlap("mmlu", "validation", "test") == 28


@pytest.mark.parametrize(
    ("name", "split", "rows", "bad"),
    [
        ("arc_challenge", "test", 1172, 0),
        ("arc_easy", "train", 2251, 0),
        ("boolq", "validation", 3270, 0),
        ("hotpotqa", "validation", 7405, 0),
        ("medmcqa", "train_sample1000", 1000, 2),
        ("medmcqa", "validation", 4183, 21),
        ("mmlu", "dev", 285, 1),
        ("mmlu", "validation", 1531, 3),
        ("mmlu", "test", 14042, 9),
        ("nq_open", "validation", 3610, 0),
        ("openbookqa", "train", 4957, 3),
        ("winogrande", "train_s", 640, 0),
    ],
)
def test_real_data_loads_whole(name: str, split: str, rows: int, bad: int) -> None:
    """Rows as the README of the data counts them; the bad ones have an option twice."""
    messages: list[str] = []
    questions = load_questions(data_folder() / name, split, on_bad=messages.append)
    assert len(questions) == rows - bad
    assert len(messages) == bad
    assert all("options must differ" in message for message in messages)
    if name not in ("hotpotqa", "nq_open"):
        assert all(q.answer is not None for q in questions)
    if name == "mmlu":
        assert len({q.group for q in questions}) == 57


def test_exact_overlap_tells_a_power_from_a_number_and_capitals_apart():
    def asked(name, text, options):
        return Question(name, text, options, 0)

    train = [
        asked("a", "What is 2²?", ("4", "22")),
        asked("b", "Polish", ("x", "y")),
        asked("c", "Cafe\u0301?", ("x", "y")),
    ]
    test = [asked("d", "What is 22?", ("22", "4")), asked("e", "polish", ("x", "y")), asked("f", " Café?", ("y", "x"))]
    splits = {"train": train, "test": test}
    assert [found.second_id for found in find_overlap(splits)] == ["d", "e", "f"]
    assert [found.second_id for found in find_overlap(splits, exact=True)] == ["f"]
