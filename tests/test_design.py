"""The design, held to: file lengths, import directions, cheap verbs, no code from data, documented names."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from files import scores_file, write_jsonl

import caltune
from caltune.types import Question

SOURCE = Path(caltune.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES}
MODEL_LIBRARIES = {"torch", "transformers", "trl", "peft", "accelerate"}
SLOW_LIBRARIES = {*MODEL_LIBRARIES, "sklearn", "datasets", "matplotlib", "pandas", "scipy"}
# Everything a verb without a model may load.
LIGHT = (
    *("cli", "verbs", "verbs_abstain", "verbs_advise", "verbs_recalibrate", "recalibration", "errors", "output"),
    *("prompts", "types"),
    *("card", "verbs_card", "verbs_serve", "verbs_answers", "verbs_import", "verbs_export", "binomial", "abstain"),
    *("data", "formats", "metrics", "recalibrate", "regime", "report", "notebook"),
    "cross_fitting",
)
# Folder or file -> what of caltune it may import; each may import itself.
DIRECTIONS = {
    "allocator": set(),
    "errors": set(),
    "notebook": set(),
    "types": {"errors", "notebook"},
    "data": {"errors", "types"},
    "prompts": {"errors", "types"},
    "metrics": {"allocator", "binomial", "errors", "notebook", "types"},
    "recalibrate": {"errors", "notebook", "types", "metrics", "predictors"},
    "recalibration": {"errors", "output", "recalibrate"},
    "cross_fitting": {"errors", "types"},
    "regime": {"cross_fitting", "types", "metrics"},
    "binomial": {"types"},
    "abstain": {"errors", "types", "binomial"},
    "formats": {"errors", "types", "data", "prompts", "knowledge", "abstain", "output"},
    "losses": {"errors"},
    "callbacks": {"errors", "recalibrate"},
    "card": {"errors", "types", "metrics", "report"},
    "checkpoints": {"card", "errors", "models", "types"},
    "config": {"errors", "models", "output"},
    "examples": {"errors", "types", "data"},
    "flags": {"errors"},
    "knowledge": {"errors", "types", "metrics"},
    "models": {"errors"},
    "output": {"errors", "report"},
    "report": {
        *("errors", "types", "data", "prompts", "metrics", "recalibrate", "regime"),
        *("formats", "output", "abstain", "binomial", "notebook"),
    },
    "scoring": {"allocator", "errors", "types", "prompts", "models", "formats", "knowledge", "output"},
    "serving": {"errors", "types", "abstain", "models", "formats", "recalibration", "scoring"},
    "starting": {"allocator", "errors", "models"},
    "trackers": {"report"},
    "predictors": {"errors", "types", "prompts", "models", "scoring"},
    "methods": {"errors", "types", "metrics", "losses", "knowledge", "formats", "collator", "checkpoints", "trainer"},
}


def part(name: str) -> str:
    """The folder or file directly in caltune that a module belongs to: "metrics" for "caltune.metrics.ece"."""
    return name.split(".")[1] if "." in name else ""


def own(path: Path) -> str:
    """The same for a file of ours."""
    return part(NAMES[path].removesuffix(".__init__"))


def imports(tree: ast.AST, *, in_functions: bool = True) -> Iterator[str]:
    """Names of the imported modules; not those under `if TYPE_CHECKING`, which are never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "caltune":
                yield from (f"caltune.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, in_functions=in_functions)


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_files_are_there():
    assert {part(name) for name in NAMES.values()} >= {*LIGHT, *DIRECTIONS, "trainer", "training", "demo"}


def test_no_file_has_more_than_300_lines():
    assert [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []


def test_imports_follow_the_directions():
    for path in FILES:
        home = own(path)
        allowed = DIRECTIONS.get(home)
        used = {part(name) for name in imports(tree(path)) if name.split(".")[0] == "caltune"} - {home, ""}
        if allowed is not None:
            assert used <= allowed, path
        if home in LIGHT:
            top = {name.split(".")[0] for name in imports(tree(path), in_functions=False)}
            assert not top & SLOW_LIBRARIES, path
        if home != "verbs":
            assert "demo" not in used, path
        assert "cli" not in used or home == "__main__", path
        assert "verbs" not in used or home in ("cli", "training", "verbs_advise", "verbs_import"), path


def test_only_the_trainer_and_the_parsing_of_its_flags_import_trl():
    users = {NAMES[path] for path in FILES if any(name.split(".")[0] == "trl" for name in imports(tree(path)))}
    assert users == {"caltune.config", "caltune.trainer", "caltune.flags"}
    [parser] = [node for node in ast.walk(tree(SOURCE / "flags.py")) if getattr(node, "module", None) == "trl"]
    assert [alias.name for alias in parser.names] == ["TrlParser"]


def test_nothing_runs_code_from_data():
    never = {"eval", "exec", "compile", "os.system", "torch.load", "yaml.load", "yaml.unsafe_load"}
    for path in FILES:
        loaded = {name.split(".")[0] for name in imports(tree(path))}
        assert not loaded & {"pickle", "cloudpickle", "dill", "joblib"}, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in never, path
                for keyword in node.keywords:
                    assert keyword.arg not in {"trust_remote_code", "allow_pickle", "shell"} or (
                        isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    ), path


def run_python(code: str, *arguments: object) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_light_modules_load_no_slow_library():
    code = f"""
import importlib, json, sys
found = {{}}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted({SLOW_LIBRARIES!r} & sys.modules.keys())
print(json.dumps(found))
"""
    names = [NAMES[path].removesuffix(".__init__") for path in FILES if own(path) in LIGHT]
    found = json.loads(run_python(code, *names))
    assert len(found) == len(names) > 30
    assert {name: slow for name, slow in found.items() if slow} == {}


def test_verbs_without_a_model_load_no_slow_library(tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [Question("a", "Capital of Italy?", ("Rome", "Milan"), 0)])
    a, b = scores_file(tmp_path / "a.parquet", 40), scores_file(tmp_path / "b.parquet", 40, first=40)
    verbs = [
        ["--version"],
        ["--help"],
        *(
            [verb, "--help"]
            for verb in (
                "demo",
                "data",
                "score",
                "knowledge",
                "evaluate",
                "recalibrate",
                "compare",
                "report",
                "advise",
                "threshold",
            )
        ),
        ["train", "--help"],
        ["train", "nonsense"],
        ["nonsense"],
        ["data", data],
        ["data", "world-facts", "--split", "test", "--limit", "2"],
        ["evaluate", a, b, "--json", tmp_path / "m.json"],
        ["compare", a, a, "--json", tmp_path / "c.json"],
        ["recalibrate", "temperature", "--fit", a, "--apply", b, "-o", tmp_path / "o.parquet"],
        ["threshold", a, "--max-error", "0.3", "-o", tmp_path / "policy.json"],
        ["report", a, "-o", tmp_path / "r.html"],
        ["advise", a, "--adapter", a],
    ]
    code = f"""
import json, sys
from caltune.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    found.append([arguments, status, sorted({SLOW_LIBRARIES!r} & sys.modules.keys())])
print("\\n" + json.dumps(found))
"""
    out = run_python(code, json.dumps([[str(word) for word in verb] for verb in verbs]))
    found = json.loads(out.splitlines()[-1])
    assert [status for _, status, _ in found] == [2 if verb[-1] == "nonsense" else 0 for verb in verbs]
    assert [(arguments, slow) for arguments, _, slow in found if slow] == []


def test_importing_caltune_loads_nothing_slow_and_yet_offers_the_trainer():
    code = f"""
import sys, caltune
before = sorted(({SLOW_LIBRARIES!r} | {{"numpy"}}) & sys.modules.keys())
print(before, caltune.Question.__name__, "torch" in sys.modules, hasattr(caltune, "nonsense"))
"""
    assert run_python(code) == "[] Question False False\n"


PACKAGES = ["caltune", *(NAMES[path].removesuffix(".__init__") for path in FILES if path.name == "__init__.py")]


@pytest.mark.parametrize("name", sorted(set(PACKAGES)))
def test_public_names_exist_and_are_described(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    offered = getattr(module, "__all__", [])
    assert len(set(offered)) == len(offered)
    for public in offered:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"{name}.{public}"


def documented(body: list[ast.stmt], where: str) -> Iterator[tuple[str, bool]]:
    """Public functions and classes with whether they have a docstring; methods of public classes too.

    A method that redefines what its base class describes needs none.
    """
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{where}.{node.name}", bool(ast.get_docstring(node))
            if isinstance(node, ast.ClassDef):
                inherits = {ast.unparse(base) for base in node.bases} - {"Protocol", "ValueError", "Exception"}
                if not inherits:
                    yield from documented(node.body, f"{where}.{node.name}")


def test_public_functions_and_classes_have_docstrings():
    for path in FILES:
        assert ast.get_docstring(tree(path)), path
        assert [name for name, has in documented(tree(path).body, NAMES[path]) if not has] == []
