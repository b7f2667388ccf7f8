"""Anything -> `list[Question]`: files, folders, Hugging Face data sets, presets and the built-in world facts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from caltune.data.fields import question_reader
from caltune.data.files import Row, find_split_files, is_data_file, read_rows
from caltune.data.hub import HUB_ID, PRESETS, hub_rows, load_hub, local_folder
from caltune.data.splits import Overlap, SplitChoice, choose_file_split, choose_split, find_overlap, hash_split
from caltune.errors import InputError, MissingSplit
from caltune.types import Question

__all__ = ["PRESETS", "WORLD_FACTS", "Overlap", "find_overlap", "hash_split", "load_other_split", "load_questions"]

WORLD_FACTS = "world-facts"
Rows = Iterable[tuple[str, Row]]


def load_questions(
    source: str | Path,
    split: str | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    on_bad: Callable[[str], None] | None = None,
    limit: int | None = None,
) -> list[Question]:
    """Load the questions of a source, in its order.

    `source` is, tried in this order: "world-facts"; a file (JSONL, CSV, Parquet, also .gz) or a folder with one such
    file a split; a preset (`PRESETS`); a Hugging Face data set "owner/name" or "owner/name:config". What `split` means
    is said in `caltune.data.splits`; `fields` maps our names (id, question, options, answer, accepted, group, context,
    answer_is) to column names, see `caltune.data.fields`. `limit` takes the first so many questions of the split.

    A bad row (unreadable, breaking a rule of `Question`, or with an id that was there before) raises `InputError` with
    file, line, rule and value. With `on_bad` the message goes there instead and the row is left out.

    Raises `InputError` also for a source or split that does not exist, and where no question is left.

    >>> import tempfile
    >>> row = '{"id": "a", "question": "Capital of France?", "choices": ["Lyon", "Paris"], "answer": "B"}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "data.jsonl")
    ...     _ = path.write_text(row)
    ...     load_questions(path)
    [Question(id='a', text='Capital of France?', options=('Lyon', 'Paris'), answer=1, accepted=(), group='')]
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: it must be at least 1, got {limit}")
    name = str(source)
    if name == WORLD_FACTS:
        if fields:
            raise InputError(f"fields: {WORLD_FACTS} has no columns to map, got {dict(fields)!r}")
        return _load_world_facts(split)[:limit]
    path = Path(source)
    rows: Rows
    if path.is_file():
        rows, choice = read_rows(path), choose_file_split(split, name)
    elif name and path.is_dir():
        rows, choice = _open_folder(path, split, {})
    elif name in PRESETS:
        rows, choice, own_fields = _open_preset(name, split)
        fields = {**own_fields, **(fields or {})}
    elif (match := HUB_ID.fullmatch(name)) and not is_data_file(name) and not isinstance(source, Path):
        rows, choice = _open_hub(match["id"], match["config"], split, {})
    else:
        close = difflib.get_close_matches(name, [*PRESETS, WORLD_FACTS], n=1)
        raise InputError(
            f"{name}: the source must be a file, a folder, {WORLD_FACTS}, a hub id (owner/name) or one of "
            f"{', '.join(PRESETS)}; there is no such file or name" + (f", did you mean {close[0]!r}?" if close else "")
        )
    return _collect(rows, choice, name if split is None else f"{name} ({split})", fields, on_bad, limit)


def load_other_split(
    source: str | Path, split: str, fields: Mapping[str, str] | None, tell: Callable[[str], None]
) -> list[Question]:
    """Questions that those of another split must not repeat: none where the source lacks the split; no bad rows.

    Where it is there and none can be read, that is told: nothing could be compared with it.
    """
    bad: list[str] = []
    try:
        return load_questions(source, split, fields=fields, on_bad=bad.append)
    except MissingSplit:
        pass
    except InputError as error:
        tell(f"the {split} split cannot be read, so what stands there too is not known: {bad[0] if bad else error}")
    return []


def _load_world_facts(split: str | None) -> list[Question]:
    from caltune.data.world_facts import SPLITS, load_world_facts

    return load_world_facts(None if split is None else choose_split(SPLITS, split, WORLD_FACTS).own)


def _open_folder(folder: Path, split: str | None, names: Mapping[str, str]) -> tuple[Rows, SplitChoice]:
    files = find_split_files(folder)
    own, choice = _choose(list(files), split, str(folder), names)
    return chain.from_iterable(map(read_rows, files[own])), choice


def _open_hub(
    hub_id: str, config: str | None, split: str | None, names: Mapping[str, str], left_out: tuple[str, ...] = ()
) -> tuple[Rows, SplitChoice]:
    shown = f"{hub_id}:{config}" if config else hub_id
    loaded = load_hub(hub_id, config)
    own, choice = _choose(list(loaded), split, shown, names)
    return hub_rows(loaded[own], f"{shown}:{own}", left_out), choice


def _open_preset(name: str, split: str | None) -> tuple[Rows, SplitChoice, Mapping[str, str]]:
    preset = PRESETS[name]
    folder = local_folder(name)
    if folder is not None:
        return *_open_folder(folder, split, preset.local_splits or preset.splits), {}
    return *_open_hub(preset.hub_id, preset.config, split, preset.splits, preset.left_out), preset.fields


def _choose(own: list[str], split: str | None, source: str, names: Mapping[str, str]) -> tuple[str, SplitChoice]:
    """The source's own split to read; `names` are a preset's names for the source's splits."""
    offered = (
        {ours: theirs for ours, theirs in names.items() if theirs in own} if names else {name: name for name in own}
    )
    if split is not None and split not in offered and split in own:
        return split, SplitChoice(split)  # asked for by its own name, such as the official validation split of BoolQ
    choice = choose_split(offered, split, source, also=own)
    return offered[choice.own], choice


def _collect(
    rows: Rows,
    choice: SplitChoice,
    source: str,
    fields: Mapping[str, str] | None,
    on_bad: Callable[[str], None] | None,
    limit: int | None,
) -> list[Question]:
    questions: list[Question] = []
    good = bad = 0
    for place, question in _read(rows, fields):
        if isinstance(question, InputError):
            if on_bad is None:
                raise InputError(f"{place}: {question}") from question
            on_bad(f"{place}: {question}")
            bad += 1
            continue
        good += 1
        if choice.keeps(question.id):
            questions.append(question)
            if len(questions) == limit:
                break
    if not questions:
        raise (InputError if bad and not good else MissingSplit)(
            f"{source}: at least one question must be left, got {good} good rows (none in this split), {bad} bad"
        )
    return questions


def _read(rows: Rows, fields: Mapping[str, str] | None) -> Iterator[tuple[str, Question | InputError]]:
    read = question_reader(fields)
    places: dict[str, str] = {}
    for place, row in rows:
        if isinstance(row, InputError):
            yield place, row
            continue
        try:
            question = read(row)
        except InputError as error:
            yield place, error
            continue
        first = places.setdefault(question.id, place)
        if first is place:
            yield place, question
        else:
            yield (
                place,
                InputError(f"ids must differ from each other, got {question.id!r}, which stands at {first} too"),
            )
