"""How many threads the numerical libraries of this process use."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from threadpoolctl import threadpool_limits

_limits: list[Threads] = []


class Threads:
    """So many threads for BLAS, OpenMP and torch in a ``with`` statement, in which torch may be imported later.

    Parameters
    ----------
    number
        Of threads. Some results depend on it in their last bits.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._torch_before: int | None = None

    def __enter__(self) -> Self:
        _limits.append(self)
        if "torch" in sys.modules:
            self.limit_torch()  # first: it tells the number of OpenMP's threads as its own
        self._others = [threadpool_limits(self.number)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _limits.remove(self)
        for limit in reversed(self._others):
            limit.restore_original_limits()
        if self._torch_before is not None:
            import torch

            torch.set_num_threads(self._torch_before)
            self._torch_before = None

    def limit_torch(self) -> None:
        """Limit torch too, once it is there."""
        if self._torch_before is None:
            import torch

            self._torch_before = torch.get_num_threads()
            torch.set_num_threads(self.number)

    def limit_others(self) -> None:
        """Limit libraries that have come since, too."""
        self._others.append(threadpool_limits(self.number))


def torch_is_imported() -> None:
    """Say that torch is there, for the limits that are in force."""
    for limit in _limits:
        limit.limit_torch()


def libraries_are_imported() -> None:
    """Say that other numerical libraries may be there now, for the limits that are in force."""
    for limit in _limits[-1:]:  # the innermost is the one that counts
        limit.limit_others()
