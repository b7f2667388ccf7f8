"""A small HTTP server for the tests that answers as a function says, and the dialects of known servers."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
LISTED = {" A": -0.5, " B": -1.5, " the": -2.0, "A": -3.0, " C": -4.0, "\n": -5.0}  # what follows "Answer:"
IN_CHAT = {token.strip(): value for token, value in LISTED.items() if token in (" A", " B", " C")} | {"The": -2.0}


class Stub:
    """Where it listens, and what it was asked: (path, headers, body) a request."""

    def __init__(self, answer: Callable[[str, dict[str, Any]], Reply | dict[str, Any]]) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append((self.path, dict(self.headers), body))
                found = answer(self.path, body)
                status, headers, content = found if isinstance(found, tuple) else (200, {}, json.dumps(found).encode())
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Reply | dict[str, Any]]) -> Iterator[Stub]:
    """Inside, a stub listens on a free port of the loopback."""
    stub = Stub(answer)
    thread = threading.Thread(target=stub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.server.shutdown()
        stub.server.server_close()
        thread.join()


def vllm(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Letters as vLLM answers: a table of texts for completions, OpenAI's form for chats."""
    if path == "/v1/chat/completions":
        return openai(path, body)
    top = dict(sorted(LISTED.items(), key=lambda pair: -pair[1])[: body["logprobs"]])
    logprobs = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": [" A"], "top_logprobs": [top]}
    return {"choices": [{"index": 0, "text": " A", "logprobs": logprobs}]}


def openai(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Letters in OpenAI's form, which llama.cpp has for completions as well; the sampled token stands among them."""
    listed = IN_CHAT if path == "/v1/chat/completions" else LISTED
    count = body["top_logprobs"] if path == "/v1/chat/completions" else body["logprobs"]
    top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in listed.items()]
    top.sort(key=lambda one: -one["logprob"])
    return {"choices": [{"index": 0, "logprobs": {"content": [{**top[0], "top_logprobs": top[:count]}]}}]}


def transformers_serve(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """`transformers serve` gives no log-probabilities, and leaves the key out."""
    return {"id": "x", "object": "text_completion", "choices": [{"finish_reason": "length", "index": 0, "text": " A"}]}


class Echoing:
    """vLLM's echo and prompt_logprobs, from a real model, one plain pass a text."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/chat/completions":
            turns, end = body["messages"], body.get("add_generation_prompt", True)
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=end, continue_final_message=not end
            )
            ids, values = self._tokens(text)
            rows = [{str(i): {"logprob": v, "rank": 1, "decoded_token": "?"}} for i, v in zip(ids, values, strict=True)]
            return {"choices": [{"index": 0, "logprobs": None}], "prompt_logprobs": [None, *rows[1:]]}
        choices, total = [], 0
        for index, text in enumerate(body["prompt"]):
            ids, values = self._tokens(text)
            total += len(ids)
            tokens = [*self.tokenizer.convert_ids_to_tokens(ids), "generated"]
            choices.append(
                {"index": index, "logprobs": {"tokens": tokens, "token_logprobs": [None, *values[1:], -9.0]}}
            )
        choices.reverse()  # a server may give them in another order
        return {"choices": choices, "usage": {"prompt_tokens": total, "completion_tokens": len(choices)}}

    def _tokens(self, text: str) -> tuple[list[int], list[float]]:
        import torch

        ids = self.tokenizer(text).input_ids
        with torch.no_grad():
            logs = self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return ids, [math.nan, *(float(logs[i, token]) for i, token in enumerate(ids[1:]))]
