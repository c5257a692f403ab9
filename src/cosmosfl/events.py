"""What a run tells its observers. A callback is any function of one event: ``callbacks=[print]`` is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.protocol import Clustering, Rejection


@dataclass(frozen=True)
class Started:
    """A run begins: rounds after the first, who takes part, and how many of them are also trained alone."""

    method: str
    rounds: int
    clients: tuple[str, ...]
    baseline_clients: int


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins.

    ``baseline``: all rounds of every client alone; ``clients``: they learn and predict; ``server``: it learns;
    ``final``: the clients' last distillation.
    """

    round: int
    phase: Literal["baseline", "clients", "server", "final"]


@dataclass(frozen=True)
class ClientDone:
    """A client has done its part of the phase."""

    round: int
    client: str


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client in one round, counted from the messages: to the server (uplink) and back (downlink)."""

    round: int
    client: str
    uplink: int
    downlink: int


Event = Started | PhaseStarted | ClientDone | Traffic | Measurement | Clustering | Rejection
Callback = Callable[[Event], None]
