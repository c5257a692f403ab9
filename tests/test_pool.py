"""Jobs in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from conftest import hear_ctrl_c
from cosmosfl.engine.pool import Pool, WorkerDiedError, n_workers


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as pool:
        yield pool


def die_once(marker: str) -> str:
    """Kill the worker that this runs in, the first time."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_results_come_in_order_from_other_processes(pool):
    def slow_first(n: int) -> tuple[int, int]:
        time.sleep(0.3 if n == 0 else 0)
        return n, os.getpid()

    results = pool.map(slow_first, range(6))
    assert [n for n, _ in results] == list(range(6))
    assert os.getpid() not in {pid for _, pid in results}


def test_the_order_of_beginning_does_not_change_the_order_of_results(pool, tmp_path):
    def note(n: int) -> int:
        (tmp_path / f"{time.monotonic_ns()}-{n}").touch()
        time.sleep(0.05)
        return n

    assert list(pool.imap(note, range(6), ["job"] * 6, [5, 4, 3, 2, 1, 0])) == list(range(6))
    begun = [int(file.name.split("-")[1]) for file in sorted(tmp_path.iterdir())]
    assert begun[0] in (4, 5)
    assert begun[-1] in (0, 1)


def test_one_worker_is_this_process():
    with Pool(1) as pool:
        assert pool.map(lambda _: os.getpid(), [0]) == [os.getpid()]


def test_every_process_has_the_number_of_threads_that_was_asked_for(pool):
    before = torch.get_num_threads()
    assert set(pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}
    torch.set_num_threads(2)
    with Pool(1) as alone:
        assert alone.map(lambda _: torch.get_num_threads(), [0]) == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_large_arrays_are_memory_mapped_and_read_only(pool):
    array = np.zeros(2**20)
    kinds = pool.map(lambda a: (type(a).__name__, a.flags.writeable), [array, array[:10]])
    assert kinds == [("memmap", False), ("ndarray", True)]


def test_an_error_keeps_its_type_and_its_notes(pool):
    def fail(n: int) -> None:
        error = ArithmeticError(f"job {n}")
        error.add_note("whose")
        raise error

    with pytest.raises(ArithmeticError) as caught:
        pool.map(fail, [0])
    assert caught.value.__notes__ == ["whose"]
    assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("time", range(5))
def test_a_worker_that_dies_once_costs_nothing_but_time(time, pool, tmp_path):
    """Five times, since what joblib does with the jobs that were under way depends on who is faster."""
    marker = str(tmp_path / "died")
    jobs = [("", n) for n in range(3)] + [(marker, 3)] + [("", n) for n in range(4, 9)]
    assert pool.map(lambda job: (job[0] and die_once(job[0]), job[1])[1], jobs) == list(range(9))
    assert os.path.exists(marker)


def test_a_worker_that_dies_again_is_an_error_that_names_the_job(pool):
    def die(n: int) -> int:
        if n == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with pytest.raises(WorkerDiedError, match="client 'c': its worker process died, and again"):
        list(pool.imap(die, range(4), [f"client {id!r}" for id in "abcd"]))
    assert pool.map(abs, [-1]) == [1]


def test_what_cannot_be_pickled_is_an_error_that_says_what_to_do(pool):
    with pytest.raises(ValueError, match="With one worker nothing is pickled"):
        pool.map(lambda generator: 0, [(n for n in range(3))])


def test_ctrl_c_ends_the_workers_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, time
        from cosmosfl.engine.pool import Pool

        def work(n):
            os.write(1, f"{os.getpid()}\\n".encode())  # a line at once: two workers write
            time.sleep(60)

        with Pool(2) as pool:
            pool.map(work, range(8))
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    pids = [int(process.stdout.readline()) for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_number_of_workers():
    assert n_workers(3, 2) == 2
    assert n_workers("auto", 1) == 1
    assert n_workers("auto", 1000) >= 1
    for bad in (0, True, "all", 1.5):
        with pytest.raises(ValueError, match="workers: .*expected a number of at least 1, or 'auto'"):
            n_workers(bad, 2)
