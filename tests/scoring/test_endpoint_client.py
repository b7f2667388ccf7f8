"""The client: what is tried again and when, the rate, the key, and answers that are none."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime

import pytest
from stub_server import serving

from caltune.errors import InputError
from caltune.scoring.endpoint_client import Client, backoff, retry_after

FINE = {"choices": []}


def failing(times, status=503, headers=None, content=b'{"error": "loading"}'):
    """An answer that fails so many times, and then is fine."""
    left = [times]

    def answer(path, body):
        left[0] -= 1
        return (status, headers or {}, content) if left[0] >= 0 else FINE

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_after_growing_waits(status):
    waits = []
    with serving(failing(3, status)) as stub:
        assert Client(stub.url, sleep=waits.append).post("completions", {"a": 1}) == FINE
    assert [body for _, _, body in stub.asked] == [{"a": 1}] * 4
    assert all(2.0**i / 2 <= wait <= 2.0**i for i, wait in enumerate(waits))
    assert len(waits) == 3


def test_retry_after_is_honoured():
    waits = []
    with serving(failing(2, 429, {"Retry-After": "7"})) as stub:
        assert Client(stub.url, sleep=waits.append).post("x", {}) == FINE
    assert waits == [7.0, 7.0]
    with (
        serving(failing(1, 429, {"Retry-After": "3600"})) as stub,
        pytest.raises(InputError, match="asks to wait 3600 seconds, at most 600 are waited"),
    ):
        Client(stub.url, sleep=waits.append).post("x", {})
    header = Message()
    assert retry_after(header) is None
    header["Retry-After"] = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(header) <= 90
    for value, wanted in (("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-5", None), ("1.5", 1.5)):
        header.replace_header("Retry-After", value)
        assert retry_after(header) == wanted
    assert all(30 <= backoff(attempt) <= 60 for attempt in range(7, 1000, 50))


def test_it_ends_after_so_many_tries_and_says_the_last_reason():
    waits = []
    with (
        serving(failing(99)) as stub,
        pytest.raises(
            InputError, match=r'127\.0\.0\.1:\d+: gave no answer in 3 tries, at last: 503 {"error": "loading"}'
        ),
    ):
        Client(stub.url, tries=3, sleep=waits.append).post("x", {})
    assert (len(stub.asked), len(waits)) == (3, 2)
    with pytest.raises(InputError, match=r"gave no answer in 2 tries, at last: .*refused"):
        Client(stub.url, tries=2, sleep=waits.append).post("x", {})  # nobody is there any more


@pytest.mark.parametrize("status", [400, 401, 404, 413, 302])
def test_what_will_not_pass_is_told_at_once_and_redirects_are_not_followed(status):
    with serving(failing(1, status, {"Location": "/v1/elsewhere"}, b'{"message":\n "no"}')) as stub:
        with pytest.raises(InputError, match=rf'answered {status} to x: {{"message": "no"}}'):
            Client(stub.url).post("x", {})
        assert len(stub.asked) == 1


def test_the_key_is_sent_and_never_shown():
    with serving(failing(1, 401, content=b"Incorrect API key provided: sk-secret." + b"." * 1000)) as stub:
        client = Client(stub.url, key="sk-secret")
        with pytest.raises(InputError) as caught:
            client.post("x", {})
        client.post("x", {})
    assert [headers["Authorization"] for _, headers, _ in stub.asked] == ["Bearer sk-secret"] * 2
    assert "provided: ***." in str(caught.value)
    assert "sk-secret" not in str(caught.value)
    assert len(str(caught.value)) < 300
    with serving(lambda path, body: (200, {}, b"You sent " + b"." * 185 + b"sk-secret")) as stub:
        with pytest.raises(InputError, match="must answer with a JSON object") as caught:
            Client(stub.url, key="sk-secret").post("x", {})
        assert "sk-" not in str(caught.value)  # nor a part of it
    for key in ("two\nlines", " ", "kéy"):
        with pytest.raises(InputError, match="must be one line of ASCII characters") as caught:
            Client(stub.url, key=key)
        assert key == " " or key not in str(caught.value)


def test_the_rate_is_kept():
    with serving(lambda path, body: FINE) as stub:
        waits = []
        client = Client(stub.url, rate=4, sleep=lambda seconds: (waits.append(seconds), time.sleep(seconds)))
        start = time.monotonic()
        for _ in range(4):
            client.post("x", {})
    # The first goes at once, the others a quarter of a second apart.
    assert time.monotonic() - start >= 0.75
    assert len(waits) == 3
    assert max(waits) <= 0.25


def test_addresses():
    for url, base in (
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host.example/api/v2/", "https://host.example/api/v2"),
    ):
        assert Client(url).base == base
    assert Client("http://[::1]:80/v1").host == "::1"
    for url in ("localhost:8000", "file:///etc/passwd", "ftp://host", "http://", "http://host/v1?key=1", "http://h:x/"):
        with pytest.raises(InputError, match="the endpoint must be an address like http://localhost:8000/v1"):
            Client(url)
    with pytest.raises(InputError, match="must not hold a name or password") as caught:
        Client("http://me:sk-secret@host/v1")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(InputError, match="the rate must be above 0"):
        Client("http://host", rate=0.0)


def test_answers_that_are_none():
    for content in (b"<html>", b"[1]", b"", b"[" * 100_000):
        with (
            serving(lambda path, body, content=content: (200, {}, content)) as stub,
            pytest.raises(InputError, match="must answer with a JSON object to x, got"),
        ):
            Client(stub.url).post("x", {})
    waits = []
    cut = failing(1, 200, {"Content-Length": "999", "Connection": "close"}, json.dumps(FINE).encode())
    with serving(cut) as stub:
        assert Client(stub.url, sleep=waits.append).post("x", {}) == FINE  # cut short once
    assert len(waits) == 1
