"""A queue of jobs in a folder: several processes share it, and what is there is not done again."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from caltune.formats import read_scores
from caltune.metrics import nll

STARTED = time.perf_counter()
Jobs = dict[Path, Callable[[], None]]


def work(ready: Callable[[], Jobs], minutes: float = math.inf) -> bool:
    """Do what is ready until nothing is left, beside other processes that do the same; whether all is done.

    No job is begun later than so many `minutes` after this process; then a line tells what is left. Jobs that wait for
    the results of others are not in its number, nor those that another process has in hand.
    """
    while jobs := ready():
        for path, job in jobs.items():
            lock = path.with_suffix(".lock")
            if claim(lock):
                try:
                    if not path.exists():  # else another process has done it since the list was made
                        if time.perf_counter() >= STARTED + 60 * minutes:
                            left = sum(one == path or not one.with_suffix(".lock").exists() for one in jobs)
                            print(
                                f"{left} or more runs are left, {path.stem} first; the same command goes on with them"
                            )
                            return False
                        start = time.perf_counter()
                        job()
                        tell(path, time.perf_counter() - start)
                finally:
                    lock.unlink()
                break
        else:
            time.sleep(10)  # the rest is in other hands
    return True


def claim(lock: Path) -> bool:
    """Take a job unless a living process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(lock, "x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        with suppress(OSError, ValueError):
            owner = int(lock.read_text(encoding="utf-8"))
            if not Path(f"/proc/{owner}").exists() and Path("/proc").exists():
                lock.unlink(missing_ok=True)  # its process was killed; the next round takes it
        return False


def tell(path: Path, seconds: float) -> None:
    """One line about a job that is done."""
    line = f"{path.stem}: {seconds:.0f} s"
    if path.suffix == ".parquet":
        scores = read_scores(path).scores
        decided = scores.decide()
        line += f", accuracy {decided.correct.mean():.3f}, confidence {decided.confidence.mean():.3f}"
        line += f", NLL {nll(scores):.3f}"
    print(line, flush=True)
