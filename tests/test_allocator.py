"""Memory that is freed and needed again is not fetched from the system again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from caltune.allocator import SETTINGS

# 100 blocks of 8 MB, one after another: 2,048 pages each when every one comes from the system.
COUNT = """
import resource, sys
from caltune.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
b"x" * 2**23, b"x" * 2**24  # the second is freed last: what is at the heap's end would be given back
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    b"x" * len(sys.argv) * 2**22
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, env=clean | environment
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_pages_are_fetched_once() -> None:
    assert faults("plain", MALLOC_MMAP_THRESHOLD_="131072")[1] > 100_000
    done, count = faults("kept")
    assert done == "True"
    assert count < 20_000


def test_what_the_environment_sets_stays() -> None:
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
