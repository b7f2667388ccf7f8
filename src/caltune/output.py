"""Where results go: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from caltune.errors import InputError


def require_place(path: Path | None) -> None:
    """Fail before the work, not after it, when there is nowhere to write."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: the folder must exist, got {str(path.parent)!r}")
    if path is not None and path.is_dir():
        raise InputError(f"{path}: must be a file, got a folder")


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
