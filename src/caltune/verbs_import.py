"""`caltune import`: another program's results as a scores file, or as an answers file where that is all they tell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from caltune.errors import InputError
from caltune.output import one_line, require_place
from caltune.verbs import field_mapping

if TYPE_CHECKING:
    import argparse

    from caltune.formats.predictions import Imported

FORMATS = ("lm-eval", "table", "uqlm")


def import_(arguments: argparse.Namespace) -> None:
    """Read what another program wrote, and write it as ours."""
    from caltune import __version__
    from caltune.formats import write_scores
    from caltune.formats.predictions import write_answers
    from caltune.types import OptionLogits

    require_place(arguments.output, *arguments.files)
    for path in arguments.files:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
    found = _read(arguments)
    metadata = {**found.metadata, "format": arguments.format, "imported_by": f"caltune {__version__}"}
    if arguments.model is not None:
        metadata["model"] = arguments.model
    if isinstance(found.scores, OptionLogits):
        write_scores(arguments.output, found.scores, metadata)
        kind = "questions with option probabilities"
    else:
        write_answers(arguments.output, found.scores, metadata)
        kind = "answers with a confidence; what needs option probabilities will say so"
    for note in found.notes:
        print(f"caltune: {one_line(note)}", file=sys.stderr)
    print(f"{len(found.scores)} {kind}")
    print(arguments.output)


def _read(arguments: argparse.Namespace) -> Imported:
    from caltune.formats.foreign_table import FIELDS, read_foreign_table
    from caltune.formats.lm_eval import read_lm_eval
    from caltune.formats.uqlm import read_uqlm

    fields = field_mapping(arguments.field)
    unknown = next((name for name in fields if name not in FIELDS), None)
    if unknown is not None:
        raise InputError(f"--field must name one of {', '.join(FIELDS)}, got {unknown!r}")
    if arguments.format == "lm-eval":
        return read_lm_eval(arguments.files, fields, filter_name=arguments.filter, extract=arguments.extract)
    for name in ("filter", "extract"):
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name} is for lm-eval only, got {getattr(arguments, name)!r}")
    read = read_uqlm if arguments.format == "uqlm" else read_foreign_table
    return read(arguments.files, fields)
