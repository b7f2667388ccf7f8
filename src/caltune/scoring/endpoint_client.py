"""POST JSON to a server politely: at a rate, again after a while where that may help, and never elsewhere."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from caltune.errors import InputError

AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}  # statuses that may pass
LONGEST_WAIT = 600.0  # seconds; a server that wants more is not waited for
LARGEST = 64 * 2**20  # bytes of an answer
SHOWN = 200  # characters of a server's word in an error


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: it would carry the key and the questions to another place."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """A server at `url`, such as http://localhost:8000/v1; a bare address gets the /v1. For several threads.

    Connection errors, statuses that may pass and answers cut short are tried `tries` times in all, each after twice the
    wait of the one before, or after what the server's Retry-After asks for. At most `rate` requests a second are begun,
    tries included. `key` goes into the Authorization header and nowhere else. `sleep` stands in for waiting.

    Raises `InputError` for another kind of address, or a `rate` that is not above 0.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        rate: float | None = None,
        tries: int = 6,
        seconds: float = 120.0,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"the endpoint must be an address like http://localhost:8000/v1, got {error}") from error
        if parts.username is not None or parts.password is not None:
            raise InputError("the endpoint must not hold a name or password, name a variable with --api-key-env")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"the endpoint must be an address like http://localhost:8000/v1, got {url!r}")
        if rate is not None and not rate > 0:
            raise InputError(f"the rate must be above 0 requests a second, got {rate}")
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise InputError("the API key must be one line of ASCII characters, got something else")
        self.host = parts.hostname
        self.base = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self._place = self.host if port is None else f"{self.host}:{port}"
        self._key = key
        self._interval = 0.0 if rate is None else 1 / rate
        self._tries = tries
        self._seconds = seconds
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._opener = urllib.request.build_opener(_Stay)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server answers, a JSON object. Raises `InputError` for anything else, tried often enough."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps(body).encode()
        for attempt in range(1, self._tries + 1):
            self._keep_pace()
            if self._stopped.is_set():
                raise InputError(f"{self._place}: is not asked any more")
            request = urllib.request.Request(f"{self.base}/{path}", data, headers)
            try:
                with self._opener.open(request, timeout=self._seconds) as reply:
                    content = reply.read(LARGEST + 1)
                    if reply.length and len(content) <= LARGEST:
                        raise http.client.IncompleteRead(content, reply.length)
                    return self._read(content, path)
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if error.code not in AGAIN:
                    raise InputError(f"{self._place}: answered {error.code} to {path}: {said}") from None
                reason, wanted = f"{error.code} {said}", retry_after(error.headers)
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", None) or error
                reason, wanted = str(cause) or type(cause).__name__, None
            if wanted is not None and wanted > LONGEST_WAIT:
                raise InputError(
                    f"{self._place}: asks to wait {wanted:.0f} seconds, at most {LONGEST_WAIT:.0f} are waited"
                )
            if attempt < self._tries:
                self._wait(backoff(attempt) if wanted is None else wanted)
        raise InputError(f"{self._place}: gave no answer in {self._tries} tries, at last: {reason}")

    def for_one_run(self) -> Client:
        """The same server, for a run that `stop` ends."""
        found = copy(self)
        found._stopped = threading.Event()
        return found

    def stop(self) -> None:
        """Ask nothing more, and let what waits for its turn or for another try fail at once."""
        self._stopped.set()

    def _wait(self, seconds: float) -> None:
        (self._sleep or self._stopped.wait)(seconds)

    def _read(self, content: bytes, path: str) -> dict[str, Any]:
        if len(content) > LARGEST:
            raise InputError(f"{self._place}: must answer with at most {LARGEST} bytes to {path}, got more")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            said = self._short(content[:10_000])
            raise InputError(f"{self._place}: must answer with a JSON object to {path}, got {said!r}")
        return found

    def _said(self, error: urllib.error.HTTPError) -> str:
        """A server's own word of an error."""
        try:
            content = error.read(10_000)
        except (OSError, http.client.HTTPException):
            content = b""
        return self._short(content or str(error.reason).encode())

    def _short(self, content: bytes) -> str:
        """What a server said, on one line and without the key: some servers repeat it."""
        text = " ".join(content.decode("utf-8", "replace").split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"

    def _keep_pace(self) -> None:
        if not self._interval:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._wait(turn - now)


def backoff(attempt: int) -> float:
    """Seconds before the next try: 1, 2, 4, … up to 60, less up to a half, so that clients do not march in step."""
    return min(60.0, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def retry_after(headers: Message) -> float | None:
    """Seconds that the Retry-After header asks for, as a number or as a date; None without one that can be read."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(value)) if value[:1].isdigit() else _until(parsedate_to_datetime(value))
    except (ValueError, TypeError):
        return None


def _until(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
