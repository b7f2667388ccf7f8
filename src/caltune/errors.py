"""The one error a user is meant to read: the command line prints it as one line and exits with status 2."""

from collections.abc import Sequence


class InputError(ValueError):
    """Input that breaks a rule. The message names the file or argument, the rule and the value received.

    >>> raise InputError("data.jsonl:3: 'answer' must be an option index from 0 to 3, got 7")
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: data.jsonl:3: 'answer' must be an option index from 0 to 3, got 7
    """


class MissingSplit(InputError):
    """A source without the split that was asked for, or with no question in it; not one that cannot be read."""


def require(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
