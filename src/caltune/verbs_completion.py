"""`caltune completion`: a shell's completion script."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from caltune.output import quiet


def completion(parser: argparse.ArgumentParser, methods: dict[str, str], arguments: argparse.Namespace) -> None:
    """Print the script that completes verbs, flags, choices and file names, and the fields of every training method."""
    verbs = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    add_training_fields(verbs["train"], methods)
    for verb in verbs.values():
        for action in verb._actions:
            if action.type is Path or action.dest in ("source", "model"):
                action.complete = shtab.FILE
    print(shtab.complete(parser, arguments.shell))


def add_training_fields(train: argparse.ArgumentParser, methods: dict[str, str]) -> None:
    """What `caltune train METHOD --help` lists, of all methods together."""
    quiet()
    from caltune.training import flags_of

    for name in methods.values():
        for action in flags_of(name, prog="caltune train")._actions:
            if not set(action.option_strings) & set(train._option_string_actions):
                train._add_action(action)
