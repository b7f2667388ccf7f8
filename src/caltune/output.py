"""What leaves caltune: files, whole or not at all and checked before the work, and plain lines for the terminal."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caltune.errors import InputError
from caltune.report.text import clean


def launched() -> int:
    """How many processes `accelerate launch` or `torchrun` has started together with this one, itself counted."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def first_process() -> bool:
    """Whether this is the process that writes and speaks: the only one, or the first of those launched together."""
    return launched() == 1 or os.environ["RANK"] == "0"


def require_place(path: Path | None, *read: Path) -> None:
    """Fail before the work when a file cannot be written there, or would be written over one that is `read`."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder must exist, got {str(path.parent)!r}")
    if path.is_dir():
        raise InputError(f"{path}: must be a file, got a folder")
    if path.resolve() in [one.resolve() for one in read]:
        raise InputError(f"{path}: must not be a file that is read, got it for the output too")
    _require_writable(path, path.parent)


def require_folder(path: Path) -> None:
    """Fail before the work, not after it, when no folder can be made or written there; makes none."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: must be a folder, got a file")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"{path}: must lie in a folder, got the file {str(existing)!r}")
    _require_writable(path, existing)


def _require_writable(path: Path, folder: Path) -> None:
    try:  # permissions alone do not tell: the disk may be mounted read-only
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path}: the folder must be writable, got {error.strerror or error}") from error


def write_json(path: Path | None, document: Any) -> None:
    """Write JSON under a temporary name and rename it; nothing at all when there is no path."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written, {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def one_line(value: object) -> str:
    r"""Text from anywhere as one line that cannot steer a terminal: control characters as their code points.

    >>> one_line("two\nlines and \x1b[2J")
    'two lines and [U+001B][2J'
    """
    return " ".join(clean(value).split())


def tell(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    if first_process():
        print(f"caltune: {one_line(text)}", file=sys.stderr)


def report_bad_rows(bad: Sequence[str]) -> None:
    """Say on stderr how many rows were left out, and each one's place and reason."""
    if bad and first_process():
        print(f"caltune: skipped {len(bad)} bad row{'s' * (len(bad) > 1)}:", file=sys.stderr)
        for line in bad:
            print(f"  {one_line(line)}", file=sys.stderr)


def quiet() -> None:
    """Leave the terminal to caltune: libraries' progress bars and advice stay out of it."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import warnings

    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
