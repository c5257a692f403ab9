"""What the files of a run say: the outcome in words and by client. Pure functions; no HTML, no pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmosfl.evaluation.metrics import Measurement, Moment
from cosmosfl.events import Traffic
from cosmosfl.methods.local import Local
from cosmosfl.protocol import ClientId, Clustering, Rejection
from cosmosfl.store import RunDirectory

SAME = 0.05
"""Averages that differ by less than this many points are the same: they would be printed alike."""

Curves = dict[Moment, dict[int, dict[ClientId, float]]]


@dataclass(frozen=True, eq=False)
class Results:
    """The content of a run directory. `summary` has the keys of `Run.summary`."""

    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    clustering: Clustering | None
    measurements: tuple[Measurement, ...]
    traffic: tuple[Traffic, ...]
    rejections: tuple[Rejection, ...]

    @classmethod
    def read(cls, directory: RunDirectory) -> Results:
        """Read the files."""
        history = directory.history()
        return cls(
            config=directory.config(),
            environment=directory.environment(),
            summary=directory.summary(),
            clustering=directory.clustering(),
            measurements=tuple(event for event in history if isinstance(event, Measurement)),
            traffic=tuple(event for event in history if isinstance(event, Traffic)),
            rejections=tuple(event for event in history if isinstance(event, Rejection)),
        )

    def per_client(self, moment: Moment) -> dict[ClientId, float]:
        """Return top-1 accuracy in percent by client, at the end of the run; empty if it was not measured."""
        summary = self.summary["accuracy"].get(moment)
        return dict(summary["per_client"]) if summary else {}

    @property
    def is_local(self) -> bool:
        """Whether the clients only trained alone, so that there is nothing to compare with."""
        return bool(self.summary["method"] == Local.name)


@dataclass(frozen=True)
class ClientRow:
    """One client at the end of the run: its cluster, and top-1 accuracy in percent by moment."""

    id: ClientId
    cluster: int | None
    accuracy: Mapping[Moment, float]

    @property
    def change(self) -> float | None:
        """Points that the client's own model gained over training alone; None if either was not measured."""
        if "local" not in self.accuracy or "client" not in self.accuracy:
            return None
        # rounded, since 0.3 - 0.1 is not 0.2 and a client that stayed the same should be counted so
        return round(self.accuracy["client"] - self.accuracy["local"], 9)


def client_rows(results: Results) -> list[ClientRow]:
    """Return every client that left a trace, by cluster, within it the greatest change (or accuracy) first."""
    cluster = {id: k for k, members in enumerate(results.summary["clusters"]) for id in members}
    moments: tuple[Moment, ...] = ("local", "client_after_fit", "client", "cluster")
    if results.is_local:  # the three others are the same model, or none
        moments = ("client",)
    accuracy = {moment: results.per_client(moment) for moment in moments}
    ids = dict.fromkeys(t.client for t in results.traffic) | dict.fromkeys(cluster)
    for values in accuracy.values():
        ids |= dict.fromkeys(values)
    rows = [ClientRow(id, cluster.get(id), {m: v[id] for m, v in accuracy.items() if id in v}) for id in ids]
    return sorted(rows, key=_place)


def _place(row: ClientRow) -> tuple[float, float, float]:
    """Not clustered and not measured come last."""
    change = -math.inf if row.change is None else row.change
    return (math.inf if row.cluster is None else row.cluster, -change, -row.accuracy.get("client", -math.inf))


def curves(measurements: Iterable[Measurement]) -> Curves:
    """Return top-1 accuracy in percent by moment, round and client."""
    found: Curves = {}
    for m in measurements:
        found.setdefault(m.moment, {}).setdefault(m.round, {})[m.client] = m.top1
    return found


def headline(results: Results) -> str:
    """Return the result in a few plain sentences: better, worse, or why that cannot be said."""
    local, client = results.per_client("local"), results.per_client("client")
    if not results.measurements:
        return "Nothing was measured: no client of this run has a test set."
    if not client:
        return "The clients' own models were not measured in this run."
    if results.is_local:
        return f"Every client trained alone and nothing was exchanged: {_reach(client)}."
    both = [id for id in client if id in local]
    if not both:
        return (
            f"With federation, {_reach(client)}. Without a baseline of the clients trained alone, this run "
            "cannot say what federation gave."
        )
    sentences = [_compare([local[id] for id in both], [client[id] for id in both])]
    if 1 < len(both) < results.summary["clients"]:
        sentences.append(f"These are the {len(both)} of {results.summary['clients']} clients with a test set.")
    return " ".join(sentences)


def _reach(accuracy: Mapping[ClientId, float]) -> str:
    mean, low, high = _mean(accuracy.values()), min(accuracy.values()), max(accuracy.values())
    if len(accuracy) == 1:
        return f"the model of the only client measured reaches {percent(mean)}"
    return f"the clients' own models reach {percent(mean)} on average, from {percent(low)} to {percent(high)}"


def _compare(before: Sequence[float], after: Sequence[float]) -> str:
    changes = np.round(np.subtract(after, before), 9)
    mean = float(changes.mean())
    many = len(changes) > 1
    whose = "the clients' own models" if many else "the model of the only client measured"
    on_average = " on average" if many else ""
    old, new = percent(_mean(before)), percent(_mean(after))
    if abs(mean) < SAME:
        as_alone = "reach {}, as they do alone" if many else "reaches {}, as it does alone"
        text = f"Federation changed nothing{on_average}: {whose} {as_alone.format(new)}."
    else:
        verb = "lifted" if mean > 0 else "lowered"
        text = f"Federation {verb} {whose} from {old} (alone) to {new}{on_average}: {points(mean)} points."
    if not many:
        return text
    text += f" {_count(changes)}"
    # twice the standard error: a rule of thumb, since clients that share a teacher are not independent
    if abs(mean) >= SAME and abs(mean) < 2 * changes.std(ddof=1) / math.sqrt(len(changes)):
        text += " The changes differ so much between clients that their average may be chance."
    return text


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _count(changes: Iterable[float]) -> str:
    """Return a sentence of how many clients gained, lost and stayed the same."""
    changes = list(changes)
    n = len(changes)
    counts = {
        "gained": sum(c > 0 for c in changes),
        "lost": sum(c < 0 for c in changes),
        "stayed the same": sum(c == 0 for c in changes),
    }
    some = [(word, count) for word, count in counts.items() if count]
    if len(some) == 1:
        return f"{'Both' if n == 2 else f'All {n}'} clients {some[0][0]}."
    (word, count), *rest = some
    return f"{count} of {n} clients {word}, " + ", ".join(f"{count} {word}" for word, count in rest) + "."


# --- numbers for people ---------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """Return an accuracy with its unit, which stays on the same line."""
    return f"{value:.1f}\u00a0%"


def points(change: float) -> str:
    """Return a difference of accuracies with its sign: ``+10.8``, ``−2.0``, ``0.0``."""
    text = f"{change:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def size(n_bytes: float) -> str:
    """Return bytes in the unit that gives a number below 1024."""
    value, unit = scaled(n_bytes)
    return f"{value:.0f}\u00a0{unit}" if unit == "B" else f"{value:.1f}\u00a0{unit}"


def scaled(n_bytes: float) -> tuple[float, str]:
    """Return bytes as a number below 1024 and its unit."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    # 1023.96 KiB would be printed as 1024.0 KiB
    power = next((p for p in range(len(units)) if n_bytes < 1023.95 * 1024**p), len(units) - 1)
    return n_bytes / 1024**power, units[power]


def duration(seconds: float) -> str:
    """Return a time in the two largest units that say something."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u00a0h {minutes}\u00a0min"


def plural(n: int, word: str) -> str:
    """Return the number and the word: ``1 client``, ``2 clients``."""
    return f"{number(n)} {word}{'' if n == 1 else 's'}"


def number(n: int) -> str:
    """Return a whole number with thin spaces between its thousands."""
    return f"{n:,}".replace(",", "\u202f")
