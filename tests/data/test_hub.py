"""Where a source is looked for, and each preset on rows with the schema that its data set has on the hub."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Features, Value

from caltune.data import PRESETS, hash_split, load_questions
from caltune.errors import InputError
from caltune.types import Question

TEXT, INT = Value("string"), Value("int32")
ARC = Features({"id": TEXT, "question": TEXT, "choices": {"text": [TEXT], "label": [TEXT]}, "answerKey": TEXT})
OPENBOOKQA = Features({"question_stem" if name == "question" else name: kind for name, kind in ARC.items()})
WINOGRANDE = Features({"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT})
BOOLQ = Features({"question": TEXT, "answer": Value("bool"), "passage": TEXT})
LETTERS = datasets.ClassLabel(names=["A", "B", "C", "D"])
MMLU = Features({"question": TEXT, "subject": TEXT, "choices": [TEXT], "answer": LETTERS})
MEDMCQA = Features(
    {
        **dict.fromkeys(("id", "question", "opa", "opb", "opc", "opd"), TEXT),
        "cop": datasets.ClassLabel(names=["a", "b", "c", "d"]),
        **dict.fromkeys(("choice_type", "exp", "subject_name", "topic_name"), TEXT),
    }
)
HOTPOTQA = Features(
    {
        **dict.fromkeys(("id", "question", "answer", "type", "level"), TEXT),
        "supporting_facts": {"title": [TEXT], "sent_id": [INT]},
        "context": {"title": [TEXT], "sentences": [[TEXT]]},
    }
)
NQ_OPEN = Features({"question": TEXT, "answer": [TEXT]})


@pytest.fixture(autouse=True)
def _no_local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALTUNE_DATA_DIR", raising=False)


def serve(monkeypatch: pytest.MonkeyPatch, features: Features, **splits: list[tuple[Any, ...]]) -> list[Any]:
    """Put a data set where the hub was; the list returned fills with the arguments of each call."""
    calls: list[Any] = []

    def load_dataset(*arguments: Any, **keywords: Any) -> datasets.DatasetDict:
        calls.append((*arguments, keywords))
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list([dict(zip(features, row, strict=True)) for row in rows], features)
                for split, rows in splits.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_arc(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = ("m1", "Which?", {"text": ["u", "v", "w"], "label": ["A", "B", "C"]}, "C")
    digits = ("m2", "What?", {"text": ["u", "v", "w", "x"], "label": ["1", "2", "3", "4"]}, "2")
    calls = serve(monkeypatch, ARC, train=[letters], validation=[digits], test=[letters, digits])
    expected = [Question("m1", "Which?", ("u", "v", "w"), 2), Question("m2", "What?", ("u", "v", "w", "x"), 1)]
    assert load_questions("arc-challenge", "test") == expected
    assert load_questions("arc-easy", "calibration") == expected[1:]
    assert load_questions("arc-easy", "train") == expected[:1]
    assert calls[:2] == [("allenai/ai2_arc", "ARC-Challenge", {}), ("allenai/ai2_arc", "ARC-Easy", {})]


def test_openbookqa(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("7-980", "The sun is", {"text": ["hot", "cold", "wet", "dry"], "label": ["A", "B", "C", "D"]}, "A")
    calls = serve(monkeypatch, OPENBOOKQA, train=[row], validation=[row], test=[row])
    assert load_questions("openbookqa", "test") == [Question("7-980", "The sun is", ("hot", "cold", "wet", "dry"), 0)]
    assert calls == [("allenai/openbookqa", "main", {})]


@pytest.mark.parametrize("size", ["s", "m"])
def test_winogrande_counts_from_one_and_its_test_is_the_validation_split(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    train = [(f"Ann met Bea as _ was {n}.", "Ann", "Bea", "1") for n in range(40)]
    validation = [("_ won.", "Ann", "Bea", "1"), ("_ lost.", "Ann", "Bea", "2")]
    unlabelled = [("_ ran.", "Ann", "Bea", "")]
    calls = serve(monkeypatch, WINOGRANDE, train=train, validation=validation, test=unlabelled)
    name = f"winogrande-{size}"
    assert [(q.text, q.answer) for q in load_questions(name, "test")] == [("_ won.", 0), ("_ lost.", 1)]
    fitted, calibration = load_questions(name, "train"), load_questions(name, "calibration")
    assert sorted(q.text for q in fitted + calibration) == sorted(row[0] for row in train)
    assert {hash_split(q.id) for q in calibration} == {"calibration"}
    assert load_questions(name, "validation") == load_questions(name, "test")  # the official name
    assert calls[0] == ("allenai/winogrande", f"winogrande_{size}", {})
    with pytest.raises(InputError, match=r"winogrande:.*--split"):
        load_questions(name)


def test_boolq(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("do cats purr", True, "Cats purr."), ("do cats bark", False, "Cats purr.")]
    serve(monkeypatch, BOOLQ, train=rows, validation=rows)
    questions = load_questions("boolq", "test")
    assert [q.text for q in questions] == ["Cats purr.\n\ndo cats purr", "Cats purr.\n\ndo cats bark"]
    assert [(q.options, q.answer) for q in questions] == [(("no", "yes"), 1), (("no", "yes"), 0)]


def test_mmlu(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("In Z_4, 1 + 1 is", "abstract_algebra", ["1", "2", "3", "0"], 1)
    other = ("The heart has", "anatomy", ["a", "b", "c", "d"], 3)
    serve(monkeypatch, MMLU, auxiliary_train=[other], test=[row, other], validation=[other, other], dev=[row])
    questions = load_questions("mmlu", "test")
    assert [(q.answer, q.group) for q in questions] == [(1, "abstract_algebra"), (3, "anatomy")]
    assert len(load_questions("mmlu", "dev")) == 1
    with pytest.raises(
        InputError, match=r"cais/mmlu:all: the split must be one of: .*dev, test, validation; got 'train'"
    ):
        load_questions("mmlu", "train")
    # It has exact duplicates and no ids: the second row of a pair is a bad one.
    with pytest.raises(InputError, match=r"cais/mmlu:all:validation:row 2: ids must differ .*validation:row 1 too"):
        load_questions("mmlu", "calibration")
    assert len(load_questions("mmlu", "calibration", on_bad=lambda _: None)) == 1


def test_medmcqa(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("u1", "Which nerve?", "1", "2", "3", "4", 2, "single", "because", "Anatomy", None)
    unlabelled = ("u2", "Which bone?", "1", "2", "3", "4", -1, "single", None, "Anatomy", None)
    serve(monkeypatch, MEDMCQA, train=[row], validation=[row], test=[unlabelled])
    assert load_questions("medmcqa", "test") == [
        Question("u1", "Which nerve?", ("1", "2", "3", "4"), 2, group="Anatomy")
    ]


def test_hotpotqa(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, context = {"title": ["T"], "sent_id": [0]}, {"title": ["T"], "sentences": [["One.", "Two."]]}
    rows = [("h1", "Same country?", "yes", "comparison", "hard", facts, context)]
    rows.append(("h2", "Where?", "Rome", "bridge", "hard", facts, context))
    calls = serve(monkeypatch, HOTPOTQA, train=rows, validation=rows)
    expected = [Question("h1", "Same country?", (), None, ("yes",)), Question("h2", "Where?", (), None, ("Rome",))]
    assert load_questions("hotpotqa", "test") == expected
    assert calls == [("hotpotqa/hotpot_qa", "distractor", {})]


def test_nq_open(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("when was the moon landing", ["1969", "July 1969"])]
    serve(monkeypatch, NQ_OPEN, train=rows, validation=rows)
    (question,) = load_questions("nq-open", "test")
    assert (question.options, question.accepted) == ((), ("1969", "July 1969"))


def test_every_preset_has_a_test_above() -> None:
    tested = {"arc-easy", "arc-challenge", "openbookqa", "winogrande-s", "winogrande-m", "boolq", "mmlu", "medmcqa"}
    assert set(PRESETS) == tested | {"hotpotqa", "nq-open"}


def test_hub_id_with_and_without_config(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = serve(monkeypatch, NQ_OPEN, test=[("who?", ["me"])])
    assert load_questions("some.one/data-set:sub-part") == load_questions("some.one/data-set", "test")
    assert calls == [("some.one/data-set", "sub-part", {}), ("some.one/data-set", None, {})]
    with pytest.raises(InputError, match="one of: test; got 'train'"):
        load_questions("some.one/data-set", "train")


def test_fields_of_the_user_go_over_those_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("u1", "Which nerve?", "1", "2", "3", "4", 2, "single", "because", "Anatomy", "Nerves")
    serve(monkeypatch, MEDMCQA, validation=[row])
    (question,) = load_questions("medmcqa", "test", fields={"group": "topic_name"})
    assert (question.group, question.answer) == ("Nerves", 2)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any) -> None:
        raise ConnectionError("Couldn't reach it\n  (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as caught:
        load_questions("nobody/nothing:part", "test")
    assert str(caught.value) == (
        "nobody/nothing:part: the data set must be loadable from the Hugging Face hub, "
        "got: Couldn't reach it (LocalEntryNotFoundError)"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("arc-chalenge", "arc-chalenge: the source must be .*world-facts, .* did you mean 'arc-challenge'"),
        ("world_facts", "did you mean 'world-facts'"),
        ("zzz", "one of arc-easy, .*; there is no such file or name$"),
        ("folder/train.jsonl", "folder/train.jsonl: the source must be a file.*no such file"),
        ("a/b/c", "no such file or name$"),
        (Path("folder/name"), "folder/name: the source must be a file"),
        ("", "no such file or name$"),
    ],
)
def test_unknown_sources(monkeypatch: pytest.MonkeyPatch, source: str | Path, message: str) -> None:
    calls = serve(monkeypatch, NQ_OPEN, test=[("who?", ["me"])])
    with pytest.raises(InputError, match=message):
        load_questions(source)
    assert calls == []


def write(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(f'{{"id": "{n}", "question": "{n}?", "choices": ["a", "b"], "answer": 1}}' for n in names)
    )


def test_local_data_replace_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = serve(monkeypatch, BOOLQ, validation=[("do cats purr", True, "Cats purr.")])
    monkeypatch.setenv("CALTUNE_DATA_DIR", str(tmp_path))
    write(tmp_path / "arc_easy" / "test.jsonl", "arc")
    write(tmp_path / "nq-open" / "validation.jsonl", "nq")
    write(tmp_path / "winogrande" / "train_s.jsonl", "q0", "q1", "q2", "q3")
    write(tmp_path / "winogrande" / "train_m.jsonl", "medium")
    write(tmp_path / "winogrande" / "validation.jsonl", "held-out")

    def ids(name: str, split: str | None) -> list[str]:
        return [question.id for question in load_questions(name, split)]

    assert ids("arc-easy", "test") == ["arc"]
    assert ids("nq-open", "test") == ids("nq-open", None) == ["nq"]
    # q1 and q2 are the calibration fifth, as in the example of hash_split.
    assert (ids("winogrande-s", "train"), ids("winogrande-s", "calibration")) == (["q0", "q3"], ["q1", "q2"])
    assert (
        ids("winogrande-s", "test") == ids("winogrande-m", "test") == ids("winogrande-m", "validation") == ["held-out"]
    )
    assert ids("winogrande-m", "train_m") == ["medium"]
    with pytest.raises(InputError, match=r"arc_easy: the split must be one of: test; got 'train'"):
        load_questions("arc-easy", "train")
    assert calls == []
    assert len(ids("boolq", None)) == 1  # no such folder: the hub
    assert len(calls) == 1


def test_the_variable_must_name_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALTUNE_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"CALTUNE_DATA_DIR: it must name a folder, got .*nowhere"):
        load_questions("boolq", "test")


def test_a_path_goes_before_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "boolq" / "test.jsonl", "mine")
    assert [question.id for question in load_questions("boolq")] == ["mine"]


def test_world_facts() -> None:
    everything = load_questions("world-facts")
    parts = {split: load_questions("world-facts", split) for split in ("train", "calibration", "test")}
    assert sorted(q.id for q in everything) == sorted(q.id for part in parts.values() for q in part)
    assert load_questions("world-facts", "validation") == parts["calibration"]
    assert load_questions("world-facts", "test", limit=5) == parts["test"][:5]
    with pytest.raises(InputError, match=r"world-facts: the split must be one of: calibration, test, train; got 'dev'"):
        load_questions("world-facts", "dev")
    with pytest.raises(InputError, match="world-facts has no columns to map"):
        load_questions("world-facts", fields={"id": "x"})
