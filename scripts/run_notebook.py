"""Run a notebook from top to bottom and keep its outputs in it, without a Jupyter kernel.

.venv/bin/python scripts/run_notebook.py examples/quickstart.ipynb

Kept are what a cell prints, and its last expression as HTML where it knows how, else as text. The cells run in an empty
folder.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_notebook(document: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of a fresh run in the present folder; an exception of a cell is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    count = 0
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            print(f"cell {count}: {cell['source'][0].strip()}", file=sys.stderr)
            cell = {**cell, "execution_count": count, "outputs": list(_outputs(cell, count, names))}
        cells.append(cell)
    return {**document, "cells": cells}


def _outputs(cell: dict[str, Any], count: int, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tree = ast.parse("".join(cell["source"]), filename=f"cell {count}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names) if last else None
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data = {"text/html": [value._repr_html_()], "text/plain": [f"<{type(value).__name__}>"]}
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def main() -> None:
    """Rewrite the notebook that is named."""
    path = Path(sys.argv[1]).resolve()
    document = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        done = run_notebook(document)
        os.chdir(path.parent)
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
