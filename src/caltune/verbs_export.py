"""`caltune export`: a model with what transformers' `pipeline("decision")` needs to answer as caltune measured."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune.errors import InputError
from caltune.output import quiet, require_folder
from caltune.recalibration import RECALIBRATORS

if TYPE_CHECKING:
    import argparse

    from caltune.formats import ScoreFile
    from caltune.recalibrate import Temperature

# Recalibrators that come to one temperature, all that the pipeline applies.
_TEMPERATURES = tuple(name for name, (kind, _) in RECALIBRATORS.items() if kind == "Temperature")


def export(arguments: argparse.Namespace) -> None:
    """Write `decision.json` and `decision_template.jinja` into a model's folder, or a whole model folder with them."""
    from caltune.formats import read_scores
    from caltune.formats.decision import decision_config, write_decision

    folder: Path = arguments.model_dir
    file = read_scores(arguments.fit)
    template = _require_expressible(arguments.fit, file)
    temperature = _temperature(arguments, file)
    if arguments.output is None:
        _require_in_place(folder)
    elif arguments.output.exists():
        raise InputError(f"{arguments.output}: must be a new folder, got one that exists")
    else:
        require_folder(arguments.output)
    quiet()
    from caltune.models import load_model, load_tokenizer
    from caltune.scoring.decision import describe_prompts

    if arguments.output is None:
        labels, text = describe_prompts(load_tokenizer(folder), template, file.metadata.get("prompt_example"))
        write_decision(folder, decision_config(labels, temperature), text)
    else:
        model, tokenizer = load_model(str(folder))
        labels, text = describe_prompts(tokenizer, template, file.metadata.get("prompt_example"))
        with _new_folder(arguments.output) as unfinished:
            (model.merge_and_unload() if hasattr(model, "merge_and_unload") else model).save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            write_decision(unfinished, decision_config(labels, temperature), text)
    print("\n".join(_lines(folder, arguments.output, temperature, file)))


def _require_expressible(path: Path, file: ScoreFile) -> str:
    """The template that the scores were made with; `InputError` where the pipeline could not give the same numbers."""
    answers = file.metadata.get("answers")
    if answers != "letters":
        raise InputError(
            f"{path}: the decision pipeline reads the probability of a letter, so the scores must be made with "
            f"--answers letters; got {answers!r}"
        )
    applied = file.metadata.get("recalibrated", [])
    names = (
        [one.get("name") if isinstance(one, dict) else one for one in applied]
        if isinstance(applied, list)
        else [applied]
    )
    other = [name for name in names if name not in _TEMPERATURES]
    if other:
        raise InputError(f"{path}: the decision pipeline applies a temperature and no other map, got {other[0]!r}")
    template = file.metadata.get("template", "auto")
    if template not in ("auto", "chat", "plain"):
        raise InputError(f"{path}: 'template' must be auto, chat or plain, got {template!r}")
    return str(template)


def _temperature(arguments: argparse.Namespace, file: ScoreFile) -> float:
    """Of the model's own logits: what is fitted now, or was saved, times what the scores had before."""
    from caltune.recalibrate import Temperature, fit_temperature

    try:
        before = Temperature.from_json({"temperature": file.metadata.get("temperature", 1.0), "fitted_on": []})
        fitted = fit_temperature(file.scores) if arguments.temperature is None else None
    except InputError as error:
        raise InputError(f"{arguments.fit}: {error}") from error
    if fitted is None:
        fitted = _saved(arguments.temperature, arguments.fit, file)
    return replace(fitted, temperature=before.temperature * fitted.temperature).temperature  # checked once more


def _saved(path: Path, fit: Path, file: ScoreFile) -> Temperature:
    from caltune.recalibrate import Temperature

    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be what `caltune recalibrate temperature --save` wrote, got {error}") from error
    name = document.get("recalibrator") if isinstance(document, dict) else None
    if name not in _TEMPERATURES:
        raise InputError(f"{path}: must hold one of {', '.join(_TEMPERATURES)}, got {name!r}")
    try:
        fitted = Temperature.from_json(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    unknown = sorted(set(fitted.fitted_on) - set(file.scores.ids))
    if unknown or not fitted.fitted_on:
        raise InputError(f"{path}: must be fitted on questions of {fit}, got {(unknown or ['none'])[0]!r}")
    return fitted


def _require_in_place(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: must be a model's folder; with -o OUT also a hub id or a GGUF file, got neither")
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"{folder}: the pipeline needs a tokenizer in the folder, got none; -o OUT writes a whole one")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        from caltune.models import SMOLLM2, _base_of

        base = _base_of(str(folder))
        if base == SMOLLM2 or base.endswith(".gguf"):
            raise InputError(f"{folder}: transformers cannot load its base model {base!r}; -o OUT writes a whole model")
    require_folder(folder)


class _new_folder:
    """A temporary folder beside `path` that takes its name when all went well, and is removed when not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.place = tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name[:40]}-")
        return Path(self.place.name) / "model"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                (Path(self.place.name) / "model").rename(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written, {error.strerror or error}") from error
        finally:
            self.place.cleanup()


def _lines(folder: Path, output: Path | None, temperature: float, file: ScoreFile) -> list[str]:
    """The temperature, what to be careful of, and the call that uses the folder."""
    lines = [f"temperature {temperature:.4f}"]
    scored = file.metadata.get("model")
    if scored is not None and Path(str(scored)).resolve() != folder.resolve():
        lines.append(f"warning: the scores say that they are of {str(scored)!r}")
    place = folder if output is None else output
    call = f'model="{place}"'
    if (place / "adapter_config.json").is_file():  # the pipeline would look beside the base model
        call += f', decision_config="{place}"'
    else:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        kept = config.get("dtype", config.get("torch_dtype")) or "float32"
        if kept != "float32":
            lines.append(f"note: the pipeline computes in {kept}, as the folder says; score in the same to compare")
    return [*lines, f'pipeline("decision", {call})']
