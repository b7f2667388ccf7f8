"""One thread that owns the model, and a bounded queue before it: what waits together is worked on together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """Nothing more is taken in: as many wait as may, or the queue is closed."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: Future[Result]


class Batcher(Generic[Item, Result]):
    """Items from any thread go through `work` in one thread, at most `batch` at once and in the order they came.

    A batch is whatever waits when the thread becomes free, so that nothing waits for company: a lone item starts at
    once, and batches grow as the load does. `work` gives for each item its result, or an exception for that item
    alone; if it raises, all items of the batch fail. At most `waiting` items wait.

    >>> batcher = Batcher(lambda numbers: [number * 10 for number in numbers])
    >>> batcher.submit(4).result()
    40
    >>> batcher.close()
    """

    def __init__(
        self, work: Callable[[list[Item]], Sequence[Result | Exception]], *, waiting: int = 64, batch: int = 16
    ) -> None:
        self._work = work
        self._batch = batch
        self._queue: queue.Queue[_Waiting[Item, Result] | None] = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="caltune-model", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """What will hold the item's result; cancelled before its turn, it is left out. Raises `Busy`."""
        future: Future[Result] = Future()
        with self._lock:  # nothing may come in behind the word to stop
            if self._closed:
                raise Busy
            try:
                self._queue.put_nowait(_Waiting(item, future))
            except queue.Full:
                raise Busy from None
        return future

    @property
    def waiting(self) -> int:
        """About how many items wait."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether items are taken in and worked on."""
        return not self._closed and self._thread.is_alive()

    def close(self) -> None:
        """Take in nothing more, finish what waits, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            while len(taken) < self._batch and taken[-1] is not None:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            stopping = taken[-1] is None
            self._answer([one for one in taken if one is not None and one.future.set_running_or_notify_cancel()])

    def _answer(self, taken: list[_Waiting[Item, Result]]) -> None:
        if not taken:
            return
        try:
            results = self._work([one.item for one in taken])
        except Exception as error:
            results = [error] * len(taken)
        for one, result in zip(taken, results, strict=True):
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
