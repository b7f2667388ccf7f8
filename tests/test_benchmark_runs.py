"""The queue of runs that benchmark processes share, and `make bench`, which starts two of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import sharing

ROOT = Path(__file__).parents[1]


def some_jobs(folder: Path, names: str, done: list[str]) -> Any:
    """`ready` for a file a letter; each job notes its name."""

    def do(path: Path) -> None:
        done.append(path.stem)
        path.write_text("done", encoding="utf-8")

    paths = [folder / f"{name}.txt" for name in names]
    return lambda: {path: lambda path=path: do(path) for path in paths if not path.exists()}


def test_the_same_command_goes_on_where_the_limit_stopped_it(tmp_path, monkeypatch, capsys):
    done: list[str] = []
    ready = some_jobs(tmp_path, "abcde", done)
    clock = iter(range(0, 10_000, 20))  # each look at the clock is 20 s later
    monkeypatch.setattr(sharing, "STARTED", 0.0)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    # It looks before, at the start and at the end of a run: a may begin at 0, b at 60, c at 120, which is after 90.
    assert not sharing.work(ready, minutes=1.5)
    assert done == ["a", "b"]
    assert capsys.readouterr().out == (
        "a: 20 s\nb: 20 s\n3 or more runs are left, c first; the same command goes on with them\n"
    )
    assert list(tmp_path.glob("*.lock")) == []
    assert sharing.work(ready)
    assert done == list("abcde")


def test_runs_in_other_hands_are_waited_for_and_not_counted(tmp_path, monkeypatch, capsys):
    done: list[str] = []
    other = sharing.claimed(tmp_path / "a.txt")
    assert other.__enter__()
    assert not sharing.work(some_jobs(tmp_path, "abc", done), minutes=0)
    assert capsys.readouterr().out.startswith("2 or more runs are left, b first;")

    def other_ends(_: float) -> None:
        (tmp_path / "a.txt").write_text("done", encoding="utf-8")
        other.__exit__(None, None, None)

    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=sharing.time.perf_counter, sleep=other_ends))
    assert sharing.work(some_jobs(tmp_path, "a", done), minutes=0)  # it was the last one
    assert done == []
    assert capsys.readouterr().out == ""
    assert list(tmp_path.glob("*.lock")) == []


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(20)
"""


@pytest.mark.skipif(sharing.fcntl is None, reason="one process only")
def test_the_run_of_a_killed_process_is_done_anew(tmp_path, monkeypatch):
    done: list[str] = []
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        def killed(_: float) -> None:
            assert done == ["b"]
            other.kill()
            other.wait()

        clock = SimpleNamespace(perf_counter=sharing.time.perf_counter, sleep=killed)
        monkeypatch.setattr(sharing, "time", clock)
        assert sharing.work(some_jobs(tmp_path, "ab", done))
    assert done == ["b", "a"]


@pytest.mark.parametrize("text", ["", "1"], ids=["empty", "number of a living process"])
def test_a_lock_file_that_no_one_holds_says_nothing(text, tmp_path):
    done: list[str] = []
    (tmp_path / "a.lock").write_text(text, encoding="utf-8")
    assert not sharing.work(some_jobs(tmp_path, "a", done), minutes=0)  # it is free, so it is left
    (tmp_path / "a.lock").write_text(text, encoding="utf-8")
    assert sharing.work(some_jobs(tmp_path, "a", done))
    assert done == ["a"]


@pytest.mark.skipif(sharing.fcntl is None, reason="one process only")
@pytest.mark.parametrize("anew", [True, False])
def test_a_lock_file_removed_while_it_is_opened_is_no_claim(anew, tmp_path, monkeypatch):
    path, lock, flock = tmp_path / "a.txt", tmp_path / "a.lock", sharing.fcntl.flock
    third = sharing.claimed(path)

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(sharing.fcntl, "flock", flock)
        lock.unlink()  # the owner ends between our opening and locking the file
        assert not anew or third.__enter__()
        flock(*arguments)

    monkeypatch.setattr(sharing.fcntl, "flock", late)
    with sharing.claimed(path) as mine:
        assert not mine
    assert lock.exists() == anew  # that of the third is left to it
    if anew:
        third.__exit__(None, None, None)
    with sharing.claimed(path) as mine:
        assert mine


def test_a_run_outlives_the_loss_of_its_lock_file(tmp_path):
    path = tmp_path / "a.txt"

    def job() -> None:
        (tmp_path / "a.lock").unlink(missing_ok=True)
        path.write_text("done", encoding="utf-8")

    assert sharing.work(lambda: {} if path.exists() else {path: job})


STAND_IN = """
import os, pathlib, sys, time
behind = os.path.samestat(os.fstat(1), os.stat(os.devnull))
pathlib.Path(f"{'behind' if behind else 'shown'}.pid").write_text(str(os.getpid()))
while len(list(pathlib.Path().glob("*.pid"))) < 2:
    time.sleep(0.01)
time.sleep({"fail": 0.0, "work": 0.1, "long": 20.0}[sys.argv[1 + behind]])
sys.exit(sys.argv[1 + behind] == "fail")
"""


@pytest.mark.skipif(not (shutil.which("make") and os.name == "posix"), reason="needs make")
@pytest.mark.parametrize(
    ("shown", "behind", "passes"),
    [("work", "work", True), ("work", "fail", False), ("fail", "long", False), ("long", "long", False)],
)
def test_make_bench_ends_with_both_its_processes(shown, behind, passes, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/ready", "bench"]
    command += ["BIN=bin", "BENCH=stand_in", f"ARGS={shown} {behind}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    files = [tmp_path / "shown.pid", tmp_path / "behind.pid"]
    with subprocess.Popen(command, cwd=tmp_path, process_group=0, **pipes) as make:
        if (shown, behind) == ("long", "long"):
            while not all(file.exists() and file.read_text(encoding="utf-8") for file in files):
                time.sleep(0.01)
            os.killpg(make.pid, signal.SIGINT)  # what Ctrl-C sends
        told = make.communicate(timeout=30)
    assert (make.returncode == 0) == passes, told
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text(encoding="utf-8")), 0)
