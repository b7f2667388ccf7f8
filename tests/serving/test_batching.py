"""The queue before the model: order, batches, bounds, failures, and the end."""

from __future__ import annotations

import threading
import time

import pytest

from caltune.serving.batching import Batcher, Busy


class Held:
    """Work that waits until it is let go, and remembers its batches."""

    def __init__(self):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.begun.set()
        assert self.go.wait(10)
        return [ValueError(item) if item < 0 else item * 2 for item in items]


@pytest.fixture
def held():
    work = Held()
    batcher = Batcher(work, waiting=5, batch=3)
    first = batcher.submit(0)
    assert work.begun.wait(10)
    yield work, batcher, first
    work.go.set()
    batcher.close()


def test_what_waits_together_is_worked_on_together_in_order(held):
    work, batcher, first = held
    futures = [first, *(batcher.submit(number) for number in range(1, 6))]
    assert batcher.waiting == 5
    work.go.set()
    assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10]
    # The first was alone when it came; then three, the most there may be; then what was left.
    assert work.batches == [[0], [1, 2, 3], [4, 5]]
    assert batcher.waiting == 0


def test_more_than_may_wait_is_refused_and_the_others_are_not_lost(held):
    work, batcher, _ = held
    futures = [batcher.submit(number) for number in range(1, 6)]
    with pytest.raises(Busy):
        batcher.submit(6)
    work.go.set()
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10]
    assert batcher.submit(7).result(10) == 14


def test_one_failing_item_fails_alone(held):
    work, batcher, _ = held
    good, bad, other = (batcher.submit(number) for number in (1, -2, 3))
    work.go.set()
    assert (good.result(10), other.result(10)) == (2, 6)
    with pytest.raises(ValueError, match="-2"):
        bad.result(10)


def test_cancelled_items_are_left_out(held):
    work, batcher, _ = held
    one, two = batcher.submit(1), batcher.submit(2)
    assert one.cancel()
    work.go.set()
    assert two.result(10) == 4
    assert work.batches == [[0], [2]]


def test_work_that_raises_fails_its_batch_only():
    def work(items):
        if "bad" in items:
            raise MemoryError("none left")
        return items

    batcher = Batcher(work)
    with pytest.raises(MemoryError, match="none left"):
        batcher.submit("bad").result(10)
    assert batcher.submit("good").result(10) == "good"
    batcher.close()


def test_closing_finishes_what_waits_and_takes_in_nothing_more(held):
    work, batcher, first = held
    futures = [batcher.submit(number) for number in range(1, 6)]  # as many as may wait: the word to stop must wait too
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.alive:
        time.sleep(0.001)
    work.go.set()
    closing.join(10)
    assert not closing.is_alive()
    assert [future.result(0) for future in [first, *futures]] == [0, 2, 4, 6, 8, 10]
    with pytest.raises(Busy):
        batcher.submit(1)
    batcher.close()  # once more does no harm
