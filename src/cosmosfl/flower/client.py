"""A party's side on Flower: what runs on its SuperNode, in a fresh process for every message."""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy.typing as npt
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from cosmosfl.data.sets import PublicSet
from cosmosfl.engine.local import agree
from cosmosfl.engine.states import read_state, write_state
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import Traffic
from cosmosfl.flower import wire
from cosmosfl.methods import METHODS, check_exchanges_predictions
from cosmosfl.methods.local import Local, Nothing
from cosmosfl.protocol import Client, InvalidMessageError, Learner, Message, Method, NotFittedError, Task, message_types
from cosmosfl.run import Run
from cosmosfl.store import write_atomically
from cosmosfl.threads import Threads

Labelled = tuple[npt.ArrayLike, npt.ArrayLike]
Value = TypeVar("Value")
Given: TypeAlias = Value | Callable[[Context], Value]
"""A value, or a function of the node's context that returns it: paths are in ``context.node_config``."""
SERVER = "the server"
STEP, LAST = "step", "last"
log = logging.getLogger("cosmosfl.flower")


class RefusalError(ValueError):
    """Why this party does not take part."""


def client_app(
    *,
    learner: Given[Learner],
    data: Given[Labelled],
    public: Given[PublicSet | npt.ArrayLike],
    test: Given[Labelled | None] = None,
    name: Given[str | None] = None,
    state_dir: Given[str | Path | None] = None,
    share_metrics: bool = False,
    share_log_ratios: bool = False,
    local_baseline: bool = True,
    threads: int = 1,
) -> ClientApp:
    """Return the Flower app of a party. Which method runs, and for how long, is the server's to say.

    Every argument may be a function of the node's `flwr.app.Context`, as long as it returns the same every time.

    Parameters
    ----------
    learner
        The party's model: any `cosmosfl.Learner`.
    data
        Private ``(inputs, labels)``; they never leave the node.
    public
        The unlabelled public set. Everybody has to hold the same one: its hash is compared before anything is trained.
    test
        Held-out ``(inputs, labels)`` to measure the model on.
    name
        What this party is called in reports; by default the ``name`` of the node's configuration, or else
        ``node-`` and its number. No two parties may have the same.
    state_dir
        Where the model, its random state and the party's own report live; by default the ``state-dir`` of the node's
        configuration. Each node needs one of its own; a SuperNode that restarts goes on from there.
    share_metrics
        Whether the server is told the accuracies that were measured on `test`, and on how many samples.
    share_log_ratios
        Whether the server may be told how much likelier each public sample is among the private inputs, as COSMOS asks
        by its recipes with experts. It tells more about the private inputs than predictions do. Without it this party
        takes part as by the recipe without experts: others learn less from it, it learns as much from them.
    local_baseline
        Whether to train the model a second time, alone, for the same number of epochs: what there would be without the
        federation. Done only with `test`.
    threads
        Threads to train with. Small models gain nothing from more than one.

    Returns
    -------
    flwr.clientapp.ClientApp
        Give it a name in a module, and name that in the app's pyproject.toml.
    """
    app = ClientApp()

    def party(context: Context) -> Party:
        config = context.node_config
        directory = value_of(state_dir, context) or config.get("state-dir")
        if not directory:
            raise RefusalError("no directory for its state: start the SuperNode with --node-config 'state-dir=\"DIR\"'")
        called = value_of(name, context) or config.get("name") or f"node-{context.node_id}"
        given = value_of(public, context)
        return Party(
            str(called),
            value_of(learner, context),
            value_of(data, context),
            given if isinstance(given, PublicSet) else PublicSet(given),  # type: ignore[arg-type]
            value_of(test, context),
            Path(str(directory)) / str(context.node_id),
            share_metrics,
            share_log_ratios,
            local_baseline,
        )

    @app.query("hello")
    def hello(message: FlowerMessage, context: Context) -> FlowerMessage:
        return _answer(message, lambda content: party(context).hello(content))

    @app.train()
    def train(message: FlowerMessage, context: Context) -> FlowerMessage:
        def work(content: RecordDict) -> RecordDict:
            taking_part = party(context)  # its learner has imported what it needs, so that this can be limited
            with Threads(threads):
                return taking_part.train(content)

        return _answer(message, work)

    return app


def value_of(given: Given[Value], context: Context) -> Value:
    """Return a value that was given as it is, or as a function of the context."""
    return given(context) if callable(given) else given


def _answer(message: FlowerMessage, work: Callable[[RecordDict], RecordDict]) -> FlowerMessage:
    """Work; if that is not possible, say so. Of an error of this party's own code, only the kind leaves the node."""
    try:
        content = work(message.content)
    except (RefusalError, InvalidMessageError) as error:
        reason = " ".join(str(error).split())
    except Exception as error:
        log.exception("This party cannot take part:")
        reason = f"{type(error).__name__} at the party; the log of its SuperNode has the rest"
    else:
        return FlowerMessage(content, reply_to=message)
    log.error("This party cannot take part: %s", reason)
    return FlowerMessage(wire.encode(None, {"refusal": reason}), reply_to=message)


@dataclass(frozen=True)
class Terms:
    """What the server says of the federation; the same in every message."""

    federation: str
    method: Method
    task: Task
    public: str
    rounds: int

    @classmethod
    def of(cls, about: dict[str, wire.Scalar]) -> Terms:
        """Read the terms.

        Raises
        ------
        InvalidMessageError
            If a part is missing, or there is no such method among those that exchange predictions.
        """
        federation, name = wire.text(about, "federation", SERVER), wire.text(about, "method", SERVER)
        if not re.fullmatch("[0-9a-f]{32}", federation):  # it becomes the name of a directory
            raise InvalidMessageError(f"{SERVER}: federation: {federation!r}; expected 32 hexadecimal digits")
        if name not in METHODS:
            raise InvalidMessageError(f"{SERVER}: method: {name!r}; this cosmosfl has {', '.join(METHODS)}")
        try:
            method = METHODS[name].model_validate_json(wire.text(about, "parameters", SERVER))
            check_exchanges_predictions(method)  # whatever the server asks for, weights and data stay here
        except ValueError as error:
            raise InvalidMessageError(f"{SERVER}: {name!r}: {error}") from error
        task = Task(wire.whole(about, "n_classes", SERVER), wire.whole(about, "seed", SERVER))
        return cls(federation, method, task, wire.text(about, "public", SERVER), wire.whole(about, "rounds", SERVER))


@dataclass
class Party:
    """A party for the length of one message."""

    name: str
    learner: Learner
    data: Labelled
    public: PublicSet
    test: Labelled | None
    directory: Path
    share_metrics: bool
    share_log_ratios: bool
    local_baseline: bool

    def hello(self, content: RecordDict) -> RecordDict:
        """Check, before anything is trained, that this party and the federation fit together; say its name."""
        terms = Terms.of(wire.about(content, SERVER))
        self._join(terms, self.name)
        return wire.encode(None, {"federation": terms.federation, "name": self.name})

    def train(self, content: RecordDict) -> RecordDict:
        """Do what the method asks for, and keep what it needs for the next message."""
        start = time.perf_counter()
        about = wire.about(content, SERVER)
        terms, round = Terms.of(about), wire.whole(about, "round", SERVER)
        last = wire.text(about, "kind", SERVER) == LAST
        if reason := about.get("rejected"):
            log.warning("The server did not accept the last answer of this party: %s", reason)
        client = self._join(terms, wire.text(about, "client", SERVER))
        down, _ = message_types(type(terms.method))
        limit = 2 * terms.method.message_bytes(len(self.public), terms.task.n_classes, 0) + 2**20
        message = wire.decode(content, down, SERVER, limit)
        home = self.directory / terms.federation
        events = Events(home / "events.json")
        if client.test is not None and self.local_baseline and not last:
            alone = Local(local_epochs=terms.method.local_epochs)
            _, baseline, _ = _work(alone, client, self.public, terms.task, Nothing(), home / "alone", round, last)
            events.add([m for m in baseline if m.moment == "local"])
        method = terms.method if self.share_log_ratios else terms.method.of_predictions_alone()
        uplink, measured, learned = _work(
            method, client, self.public, terms.task, message, home / "states", round, last
        )
        events.add(measured)
        if uplink is not None:
            events.add([Traffic(round, client.id, uplink.nbytes, message.nbytes)])
        events.seconds += time.perf_counter() - start
        events.save()
        if last:
            self._leave(terms, client, learned, events, home / "run")
        shared = events.new if self.share_metrics else []
        answer: dict[str, wire.Scalar] = {
            "federation": terms.federation,
            "round": round,
            "kind": LAST if last else STEP,
        }
        return wire.encode(uplink, answer, shared)

    def _join(self, terms: Terms, id: str) -> Client:
        """Return this party as a client, if it fits.

        Raises
        ------
        RefusalError
            If the public sets differ, or the data do not fit.
        """
        if terms.public != self.public.digest:
            raise RefusalError(
                f"another public set: the server's has SHA-256 {terms.public[:16]}..., that of {id!r} has "
                f"{self.public.digest[:16]}... ({len(self.public)} samples); all parties need the same one"
            )
        client = Client(id, self.learner, *self.data, test=self.test)
        try:
            agree([client], self.public, terms.rounds, terms.task.seed, terms.task.n_classes)
        except ValueError as error:
            raise RefusalError(str(error)) from error
        return client

    def _leave(self, terms: Terms, client: Client, learned: Learner, events: Events, directory: Path) -> None:
        """Write the party's own run: its model, to use from now on, and its report."""
        run = Run(
            config={
                "method": {"name": terms.method.name, **terms.method.model_dump()},
                "rounds": terms.rounds,
                "seed": terms.task.seed,
            },
            method=terms.method.name,
            rounds=terms.rounds,
            seed=terms.task.seed,
            n_classes=terms.task.n_classes,
            models={client.id: learned},
            cluster_models={},
            clustering=None,
            history=[*events.all],
            wall_seconds=events.seconds,
        )
        try:
            log.info("The model of this party and its report: %s", run.save(directory, overwrite=True))
        except NotFittedError:
            log.warning("This party has no model: it was never trained")


def _work(
    method: Method,
    client: Client,
    public: PublicSet,
    task: Task,
    message: Message,
    states: Path,
    round: int,
    last: bool,
) -> tuple[Message | None, list[Measurement], Learner]:
    """Restore the client's side of a method, let it work, keep its state; return answer, measurements, learner.

    The state before this round stays too: a message that comes again, as the answer was lost, is worked on again.
    """
    states.mkdir(parents=True, exist_ok=True)
    found = {int(path.stem): path for path in states.glob("[0-9]*.safetensors")}
    before = [number for number in found if number < round]
    if found and round and not before:
        raise RefusalError(f"the state before round {round} is gone; the oldest is that of round {min(found)}")
    learner = copy.deepcopy(client.learner)
    side = method.client_side(client.with_learner(learner), public, task)
    if before:
        side.restore(read_state(found[max(before)]))
    uplink: Message | None = None
    if last:
        side.finish(message)
    else:
        uplink = side.step(message)
    write_state(states / f"{round:06d}.safetensors", side.state())
    for number in sorted(before)[:-1]:
        found[number].unlink(missing_ok=True)
    return uplink, side.measurements, side.learner


class Events:
    """What a party measured and sent, in a file; what a round that is done again says replaces what it said before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: dict[str, Any] = {"seconds": 0.0, "events": []}
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, type[Measurement] | type[Traffic]] = {"measurement": Measurement, "traffic": Traffic}
        self.seconds: float = content["seconds"]
        self.new: list[Measurement] = []
        self._events = {self._key(e): e for e in (kinds[d.pop("event")](**d) for d in content["events"])}

    @staticmethod
    def _key(event: Measurement | Traffic) -> tuple[Any, ...]:
        return (event.round, event.moment if isinstance(event, Measurement) else "traffic")

    @property
    def all(self) -> list[Measurement | Traffic]:
        """All events, in the order in which they first happened."""
        return list(self._events.values())

    def add(self, events: list[Measurement] | list[Traffic]) -> None:
        """Take events in; measurements are in `new` as well."""
        for event in events:
            self._events[self._key(event)] = event
            if isinstance(event, Measurement):
                self.new.append(event)

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"event": type(event).__name__.lower(), **asdict(event)} for event in self.all]
        write_atomically(self.path, json.dumps({"seconds": self.seconds, "events": lines}))
