"""The parser of `caltune train`: a YAML file's values must have the types of flags, and what was given is told."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from caltune.errors import InputError

KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text, in quotes where YAML reads something else"),
}


class FlagParser(TrlParser):
    """`TrlParser` that checks the types of what a file gives, and knows which fields were given at all."""

    configured: frozenset[str] = frozenset()  # fields in the file

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Take over a file's values.

        Raises `InputError` for one of another type than its field; text that stands for a number is read as in a flag.
        """
        self.configured = frozenset(kwargs)
        defaults = {action.dest: action.default for action in self._actions}
        kwargs = {name: _word(name, value) for name, value in kwargs.items()}
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for name, value in kwargs.items():
            if name in defaults and not (value is None and defaults[name] is None):
                require_type(name, value, hints.get(name))
        remaining: list[str] = super().set_defaults_with_config(**kwargs)
        return remaining

    def given(self, names: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
        """Those of the fields that a flag or the file has set; afterwards the parser has lost its defaults."""
        for action in self._actions:
            action.default = SUPPRESS
        typed = vars(self.parse_known_args(arguments)[0])
        return tuple(name for name in names if name in typed or name in self.configured)


def _word(name: str, value: Any) -> Any:
    """YAML reads `no` and `true` as booleans, also where they are words of a field."""
    if name == "resume_from_checkpoint" and isinstance(value, bool):
        return str(value).lower()
    return "no" if name.endswith("_strategy") and value is False else value


def require_type(name: str, value: Any, hint: Any) -> None:
    """Raise `InputError` for a value that a field annotated with `hint` cannot hold; a wider union takes anything.

    >>> require_type("limit", None, int | None)
    >>> require_type("learning_rate", "1e-4", float)  # YAML takes it for text, and it is read as in a flag
    >>> require_type("bins", [1, 2], int)
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: bins must be a whole number, got [1, 2]
    """
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in parts:
        return
    kinds = [part for part in parts if part is not NoneType]
    if len(kinds) != 1 or kinds[0] not in KINDS or isinstance(value, str) or (name == "fsdp" and value is True):
        return  # fsdp is annotated as text, and documented as true
    accepted, what = KINDS[kinds[0]]
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise InputError(f"{name} must be {what}, got {value!r}")
