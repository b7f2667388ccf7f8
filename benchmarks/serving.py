"""How many questions a second `caltune serve` answers on this machine, one at a time and many at once.

It starts the service in a process of its own, on the loopback, asks questions of `world-facts` with asyncio
clients, and stops it. Each load is asked after a few questions that do not count.

    python benchmarks/serving.py [--model smollm2] [--questions 64] [--clients 1 4 16] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import common
import httpx2
import numpy as np

from caltune.data import load_questions


async def load(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> dict[str, float]:
    """Ask all bodies with so many clients, each one question after another."""
    waiting, times = list(reversed(bodies)), []

    async def ask(client: httpx2.AsyncClient) -> None:
        while waiting:
            body, start = waiting.pop(), time.perf_counter()
            reply = await client.post(url, json=body)
            reply.raise_for_status()
            times.append(time.perf_counter() - start)

    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(clients)))
        seconds = time.perf_counter() - start
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"clients": clients, "requests_per_second": len(times) / seconds, "p50": float(p50), "p99": float(p99)}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--questions", type=int, default=64)
        parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])

    arguments, folder = common.parse(__doc__, "serving", add=add, alone=True)
    if arguments.quick:
        arguments.questions, arguments.clients = 8, [1, 4]
    questions = load_questions("world-facts", "test")
    chosen = random.Random(0).sample(questions, min(arguments.questions, len(questions)))
    bodies = [{"question": question.text, "options": list(question.options)} for question in chosen]
    command = [sys.executable, "-m", "caltune", "serve", arguments.model, "--port", "0", "--seconds", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("the service did not start")
        rows = []
        for clients in arguments.clients:
            asyncio.run(load(found[0], bodies[:4], clients))
            rows.append(asyncio.run(load(found[0], bodies, clients)))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    print(f"{arguments.model}, {len(bodies)} questions")
    print("clients  requests/s  p50 ms  p99 ms")
    for row in rows:
        milliseconds = f"{1000 * row['p50']:6.0f}  {1000 * row['p99']:6.0f}"
        print(f"{row['clients']:7}  {row['requests_per_second']:10.1f}  {milliseconds}")
    document = {"model": arguments.model, "questions": len(bodies), "loads": rows}
    common.publish("serving", folder, quick=arguments.quick, document=document)


if __name__ == "__main__":
    main()
