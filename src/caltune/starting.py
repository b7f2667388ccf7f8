"""The model that a training starts from, as a script gives it: by a name of ours, by one that TRL loads, or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from caltune.allocator import keep_freed_memory
from caltune.errors import InputError
from caltune.models import SMOLLM2, default_dtype, load_model

logger = logging.get_logger(__name__)


def starting_model(model: Any, args: Any, *, adapter: bool, quantized: bool) -> tuple[Any, Any]:
    """The model and its tokenizer; a name is left to TRL, without a tokenizer, where `model_init_kwargs` say how to
    load it.

    `smollm2`, GGUF files and adapter folders, which TRL cannot load, take `dtype` of `model_init_kwargs` only. A model
    with flash attention is set to `sdpa`, since questions share rows under a mask that flash attention has none of.

    Raises `InputError` for other `model_init_kwargs` with such a name.
    """
    if torch.device(args.device).type == "cpu":
        keep_freed_memory()
    wanted = {name: value for name, value in (args.model_init_kwargs or {}).items() if value is not None}
    if not isinstance(model, str):
        if "flash" in (getattr(model.config, "_attn_implementation", None) or ""):
            _tell_flash(model.config._attn_implementation)
            model.set_attn_implementation("sdpa")
        return model, None
    if "flash" in str(wanted.get("attn_implementation", "")):
        _tell_flash(wanted["attn_implementation"])
        wanted["attn_implementation"] = "sdpa"
    if args.model_init_kwargs is not None:
        args.model_init_kwargs = wanted
    ours = model == SMOLLM2 or model.endswith(".gguf") or (Path(model) / "adapter_config.json").is_file()
    if not ours and (quantized or wanted):
        return model, None
    # A frozen base may rest in half precision; weights that are trained may not.
    dtype = wanted.pop("dtype", default_dtype(args.device) if adapter else torch.float32)
    # What TRL's own script always gives.
    wanted = {name: value for name, value in wanted.items() if (name, value) != ("revision", "main") and value}
    if wanted or quantized:
        what = ", ".join(wanted) or "quantization_config"
        raise InputError(f"model {model!r}: cannot be loaded with {what}; give the loaded model")
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    return load_model(model, device=args.device, dtype=dtype, trainable_adapter=True)


def _tell_flash(found: str) -> None:
    logger.warning(f"attn_implementation {found!r} becomes 'sdpa': questions share rows under a mask it cannot take")
