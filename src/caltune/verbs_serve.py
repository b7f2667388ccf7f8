"""Models over HTTP: the verb that serves one, and `score` where another server is asked."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune.errors import InputError
from caltune.output import launched, one_line, quiet, require_place

if TYPE_CHECKING:
    import argparse

    from caltune.types import Question

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(arguments: argparse.Namespace) -> None:
    """Answer questions over HTTP until interrupted; what runs then is finished."""
    missing = [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(f"serve needs {', '.join(missing)}: pip install 'caltune[serve]'")
    with _bind(arguments.host, arguments.port) as place:
        _serve(arguments, place)


def _serve(arguments: argparse.Namespace, place: socket.socket) -> None:
    quiet()
    import uvicorn

    from caltune.scoring.record import require_device
    from caltune.serving.answering import load_answerer
    from caltune.serving.app import create_app
    from caltune.serving.schema import Limits

    limits = Limits(seconds=arguments.seconds, waiting=arguments.waiting)
    require_device(arguments.device)
    names = ("policy", "calibration", "served_as", "device", "max_tokens")
    how = {name: getattr(arguments, name) for name in (*names, "answers", "reduction", "template", "batch_tokens")}
    answerer, unchecked = load_answerer(arguments.model, **how)
    for path in unchecked:
        print(f"caltune: warning: {one_line(path)} does not say what it was fitted for", file=sys.stderr)
    if arguments.host not in LOOPBACK:
        print("caltune: warning: whoever reaches this address may ask; nobody is asked who they are", file=sys.stderr)
    config = uvicorn.Config(
        create_app(answerer, limits),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )
    place.listen(128)  # from here on nobody is turned away
    host, port = place.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{one_line(answerer.name)} {answerer.version} at http://{shown}:{port}/v1/answers", flush=True)
    with suppress(KeyboardInterrupt):  # how a person ends it; uvicorn has finished what ran
        uvicorn.Server(config).run(sockets=[place])
    print("stopped")


def _bind(host: str, port: int) -> socket.socket:
    """A socket with that address, before the model is loaded."""
    if not 0 <= port <= 65535:  # others would be wrapped around
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    wrong = f"--host and --port must be an address to listen at, got {host}:{port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{wrong}: {error}") from error
    place = socket.socket(family, kind)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(address)
    except OSError as error:
        place.close()
        raise InputError(f"{wrong}: {error}") from error
    return place


def asks_server(arguments: argparse.Namespace) -> bool:
    """Whether `score` is to ask a server. Raises `InputError` for flags that are for the other way."""
    here = arguments.endpoint is None
    for name in ("api_key_env", "rate", "cache", "top", "parallel") if here else ("features", "device", "shots"):
        if getattr(arguments, name):
            rule = "needs --endpoint" if here else "cannot be had from --endpoint"
            raise InputError(f"--{name.replace('_', '-')} {rule}, got {getattr(arguments, name)!r}")
    if not here and launched() > 1:
        raise InputError(f"--endpoint is asked by one process (see --parallel), got {launched()}")
    return not here


def score_endpoint(
    arguments: argparse.Namespace, questions: Sequence[Question], shots: Sequence[Question], extra: dict[str, Any]
) -> None:
    """What a server's model believes about each question behind the shots, to a file; and how exact it is."""
    require_place(arguments.cache)
    if arguments.cache is not None and arguments.cache.resolve() in (
        arguments.output.resolve(),
        Path(arguments.source).resolve(),
    ):
        raise InputError(f"--cache must be a file of its own, got {str(arguments.cache)!r}")
    from caltune.scoring.endpoint import bounded_line, endpoint_to_file
    from caltune.scoring.endpoint_client import Client
    from caltune.scoring.endpoint_dialects import Asking

    client = Client(arguments.endpoint, key=_key(arguments.api_key_env), rate=arguments.rate)
    template = "plain" if arguments.template == "auto" else arguments.template  # whether there is a chat is not known
    top = 20 if arguments.top is None else arguments.top
    file, found = endpoint_to_file(
        arguments.output,
        client,
        questions,
        Asking(arguments.model, arguments.answers, template, arguments.reduction, top, tuple(shots)),
        data=arguments.source,
        split=arguments.split,
        seed=arguments.seed if shots else None,
        extra=extra,
        cache=arguments.cache,
        parallel=4 if arguments.parallel is None else arguments.parallel,
        progress=True,
    )
    line = bounded_line(file.scores, found)
    if line is not None:
        print(line)
    print(arguments.output)


def _key(variable: str | None) -> str | None:
    """The key in an environment variable."""
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):  # perhaps the key itself, which must not be shown
        raise InputError("--api-key-env must be the name of an environment variable, got something else")
    key = os.environ.get(variable)
    if not key:
        raise InputError(f"--api-key-env must name a variable that is set, got {variable!r}")
    return key
