"""Independent jobs in worker processes, or one after the other in this one; joblib does the work."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from cosmosfl.threads import Threads

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer, twice: it was killed, ran out of memory, or crashed."""


def n_workers(workers: int | Literal["auto"], n_jobs: int) -> int:
    """Return the number of processes: as asked, or one per CPU that this process may use; never more than jobs.

    On a machine with a GPU ``"auto"`` is one.

    Raises
    ------
    ValueError
        If `workers` is neither ``"auto"`` nor a number of at least 1.
    """
    if workers == "auto":
        import torch  # only here, for parties and servers without a torch model

        workers = 1 if torch.cuda.is_available() else joblib.cpu_count()
    elif isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers: {workers!r}; expected a number of at least 1, or 'auto'")
    return max(1, min(workers, n_jobs))


class Pool:
    """Runs functions over items; use it in a ``with`` statement.

    Parameters
    ----------
    workers
        Number of processes; with 1 everything runs in this process.
    threads
        Threads of each of them, this one included, so that results do not depend on `workers`.

    Notes
    -----
    Functions, items and results are pickled (with cloudpickle, so that lambdas and classes of a notebook do). Arrays
    of a megabyte or more are written to disk once and memory-mapped, read-only, by the workers. The processes stay
    for the next pool for a while, since starting them takes seconds.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers = workers
        self.threads = threads
        self._limit = Threads(threads)
        self._parallel: joblib.Parallel | None = None
        self._calls = 0

    def __enter__(self) -> Self:
        self._limit.__enter__()
        if self.workers > 1:
            with joblib.parallel_config("loky", inner_max_num_threads=self.threads):
                self._parallel = joblib.Parallel(
                    self.workers, return_as="generator_unordered", batch_size=1, max_nbytes="1M", mmap_mode="r"
                )
            self._parallel.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._parallel is not None:
            self._parallel.__exit__(kind, error, at)
            self._parallel = None
        self._limit.__exit__(kind, error, at)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> list[Result]:
        """Return the list of ``function(item)``, in order."""
        return list(self.imap(function, items, [f"job {n}" for n in range(len(items))]))

    def imap(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        names: Sequence[str],
        begin: Sequence[int] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(item)`` in order, each as soon as it and those before it are there.

        An error of `function` is raised as it is. If a worker dies, the jobs that were under way are done again one
        at a time.

        Parameters
        ----------
        names
            What an error calls each item.
        begin
            The order, as indices of items, in which workers begin them: the longest first wastes least. By default
            the order of the items.

        Raises
        ------
        WorkerDiedError
            If one of them lets its worker die again; the message has its name.
        """
        if self._parallel is None:
            yield from map(function, items)
            return
        remaining = dict.fromkeys(range(len(items)) if begin is None else begin)
        ready: dict[int, Result] = {}
        following = 0
        for n, result in self._unordered(function, items, names, remaining):
            ready[n] = result
            while following in ready:
                yield ready.pop(following)
                following += 1

    def _unordered(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        names: Sequence[str],
        remaining: dict[int, None],
    ) -> Iterator[tuple[int, Result]]:
        """Yield index and result of the remaining items as they come, and take them out of `remaining`."""
        while remaining:
            try:
                for n, result in self._run(function, [(n, items[n]) for n in remaining]):
                    del remaining[n]
                    yield n, result
            except TerminatedWorkerError:
                for n in list(remaining)[: 2 * self.workers]:  # joblib hands out two jobs per worker
                    del remaining[n]
                    yield n, self._alone(function, n, items[n], names[n])

    def _alone(self, function: Callable[[Item], Result], n: int, item: Item, name: str) -> Result:
        try:
            return dict(self._run(function, [(n, item)]))[n]
        except TerminatedWorkerError as error:
            raise WorkerDiedError(
                f"{name}: its worker process died, and again when it ran alone; it may have run out of memory or been "
                "killed"
            ) from error

    def _run(
        self, function: Callable[[Item], Result], items: Sequence[tuple[int, Item]]
    ) -> Iterator[tuple[int, Result]]:
        assert self._parallel is not None
        self._calls += 1
        own = self._calls
        jobs = (joblib.delayed(_in_worker)(self.threads, own, function, n, item) for n, item in items)
        try:
            for call, n, result in cast(Iterator[tuple[int, int, Result]], self._parallel(jobs)):
                if call == own:  # after the death of a worker, joblib (1.6) may give a job of the call before, too
                    yield n, result
        except pickle.PicklingError as error:
            raise ValueError(f"workers: {self.workers}; {error}. With one worker nothing is pickled") from error


def _in_worker(
    threads: int, call: int, function: Callable[[Any], Result], n: int, item: Any
) -> tuple[int, int, Result]:
    if (torch := sys.modules.get("torch")) is not None:  # imported later, it follows OMP_NUM_THREADS, set by joblib
        torch.set_num_threads(threads)
    return call, n, function(item)
