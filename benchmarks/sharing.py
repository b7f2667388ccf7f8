"""A queue of jobs in a folder: several processes share it, and what is there is not done again.

Where Python has no `fcntl` (Windows), a folder is for one process only.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from caltune.formats import read_scores
from caltune.metrics import nll

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STARTED = time.perf_counter()
Jobs = dict[Path, Callable[[], None]]


def work(ready: Callable[[], Jobs], minutes: float = math.inf) -> bool:
    """Do what is ready until nothing is left, beside other processes that do the same; whether all is done.

    No job is begun later than so many `minutes` after this process; then a line tells what is left. Jobs that wait for
    the results of others are not in its number, nor those that another process has in hand.
    """
    while jobs := ready():
        for path, job in jobs.items():
            with claimed(path) as mine:
                if not mine:
                    continue
                if not path.exists():  # else another process has done it since the list was made
                    if time.perf_counter() >= STARTED + 60 * minutes:
                        left = sum(one == path or free(one) for one in jobs)
                        print(f"{left} or more runs are left, {path.stem} first; the same command goes on with them")
                        return False
                    start = time.perf_counter()
                    job()
                    tell(path, time.perf_counter() - start)
                break
        else:
            time.sleep(10)  # the rest is in other hands
    return True


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this job is ours while the block runs; not where another process has it in hand.

    The lock is the kernel's, which frees it however a process ends; a lock file that lies there says nothing.
    """
    lock = path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield True
        return
    with open(lock, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have removed the file since we opened it: then this lock keeps no one else out.
            mine = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        try:
            yield mine
        finally:
            if mine:
                lock.unlink(missing_ok=True)


def free(path: Path) -> bool:
    """Whether no process has this job in hand."""
    with claimed(path) as mine:
        return mine


def tell(path: Path, seconds: float) -> None:
    """One line about a job that is done."""
    line = f"{path.stem}: {seconds:.0f} s"
    if path.suffix == ".parquet":
        scores = read_scores(path).scores
        decided = scores.decide()
        line += f", accuracy {decided.correct.mean():.3f}, confidence {decided.confidence.mean():.3f}"
        line += f", NLL {nll(scores):.3f}"
    print(line, flush=True)
