"""What the parts of a federation say to each other: learners, messages and the two sides of a method.

Every method of this field is one loop with other messages::

    round t:   downlink_i  --client i-->  uplink_i         (private data stays here)
               {uplink_i}  --server---->  {downlink_i}     (server compute happens here)

A method is a `Method` (its hyper-parameters, a value) that makes a `ClientSide` and a `ServerSide`. An engine passes
messages between them and knows nothing else, so the same method runs in one process and across machines.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeVar,
    get_type_hints,
    runtime_checkable,
)

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, PositiveInt

from cosmosfl.data.sets import EvaluationSet, FloatArray, InputArray, IntArray, PrivateSet, PublicSet
from cosmosfl.evaluation.metrics import Measurement, Moment, score
from cosmosfl.randomness import stream

if TYPE_CHECKING:
    from cosmosfl.events import Callback
    from cosmosfl.run import Run

ClientId = str
State = Mapping[str, npt.NDArray[Any]]

TRAINING_PREFIX = "training."
"""Keys of a `State` that begin like this are needed only to go on training and may hold private data. They stay in
the client's own state directory; saved models leave them out."""
_LEARNER, _MEMORY = "learner.", "memory."


@runtime_checkable
class Learner(Protocol):
    """The least that a model has to offer to take part. `n` samples, `C` classes.

    `epochs` is the budget that the method gives; a learner that is not trained in epochs ignores it. All randomness
    comes from `rng`, so that a run can be repeated. Learners are copied with `copy.deepcopy` before a run.
    """

    def fit(
        self, inputs: InputArray, labels: IntArray, *, n_classes: int, epochs: int, rng: np.random.Generator
    ) -> None:
        """Learn from private `inputs` (n, ...) and hard `labels` (n,) in 0..n_classes-1, keeping what was learned."""

    def distill(self, inputs: InputArray, probabilities: FloatArray, *, epochs: int, rng: np.random.Generator) -> None:
        """Learn from public `inputs` (n, ...) and soft labels (n, C), keeping what was learned."""

    def predict_proba(self, inputs: InputArray) -> FloatArray:
        """Return class probabilities (n, C); rows sum to one."""

    def state(self) -> State:
        """Return everything needed to restore this learner, as arrays."""

    def restore(self, state: State) -> None:
        """Become the learner that returned `state`."""


@runtime_checkable
class JointLearner(Learner, Protocol):
    """A learner that can also learn from private and from soft public labels at once, which not every model can."""

    def fit_jointly(
        self,
        inputs: InputArray,
        labels: IntArray,
        public: InputArray,
        probabilities: FloatArray,
        *,
        n_classes: int,
        epochs: int,
        rng: np.random.Generator,
    ) -> None:
        """Learn from private `inputs` and `labels` and, `epochs` times, from `public` inputs and soft labels."""


class NotFittedError(ValueError):
    """A learner was asked to predict or for its state before it has learned anything."""


@dataclass(frozen=True, eq=False, init=False)
class Client:
    """One party of a federation: a name, a model of any kind, and private data.

    Parameters
    ----------
    id
        Name of the party, unique in the federation.
    learner
        Its model. A run trains a copy; this object stays as it is.
    inputs
        Private inputs, (n, features) or (n, channels, height, width); uint8 images or finite numbers.
    labels
        Private labels (n,), whole numbers 0..C-1.
    test
        Held-out ``(inputs, labels)`` of this party, or an `EvaluationSet`, that its models are measured on; None to
        measure nothing.

    Raises
    ------
    ValueError
        If the data are empty, not finite or do not fit together; the message names the client.
    TypeError
        If `learner` does not have the methods of `Learner`.
    """

    id: ClientId
    learner: Learner
    private: PrivateSet
    test: EvaluationSet | None

    def __init__(
        self,
        id: ClientId,
        learner: Learner,
        inputs: npt.ArrayLike,
        labels: npt.ArrayLike,
        test: EvaluationSet | tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> None:
        if not isinstance(id, str) or not id:
            raise ValueError(f"client id: {id!r}; expected a non-empty string")
        if not isinstance(learner, Learner):
            missing = [m for m in ("fit", "distill", "predict_proba", "state", "restore") if not hasattr(learner, m)]
            raise TypeError(
                f"client {id!r}: learner {type(learner).__name__} lacks {', '.join(missing)}; wrap a scikit-learn "
                "estimator in SklearnLearner, a torch module in TorchLearner, or write these methods"
            )
        try:
            private = PrivateSet(inputs, labels)  # type: ignore[arg-type]
            if test is not None and not isinstance(test, EvaluationSet):
                test = EvaluationSet(*test)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"client {id!r}: {error}") from error
        for name, value in (("id", id), ("learner", learner), ("private", private), ("test", test)):
            object.__setattr__(self, name, value)

    def with_learner(self, learner: Learner) -> Client:
        """Return this client with another learner and the same data."""
        twin = copy.copy(self)
        object.__setattr__(twin, "learner", learner)
        return twin


@dataclass(frozen=True)
class Task:
    """What all parties of a run agree on: the number of classes C and the seed."""

    n_classes: int
    seed: int


# --- messages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Message:
    """What crosses the wire.

    Subclasses are frozen dataclasses of arrays, mappings of names to arrays, integers, floats, strings and None.
    """

    @property
    def nbytes(self) -> int:
        """Size in bytes: arrays as they are, 8 for a number, UTF-8 for a string, nothing for None or for names."""
        return sum(_nbytes(getattr(self, field.name)) for field in fields(self))


def _nbytes(value: object) -> int:
    match value:
        case None:
            return 0
        case np.ndarray():
            return value.nbytes
        case Mapping() if all(isinstance(part, np.ndarray) for part in value.values()):
            return sum(part.nbytes for part in value.values())
        case int() | float():
            return 8
        case str():
            return len(value.encode())
    raise TypeError(f"message field of type {type(value).__name__}; expected arrays, a number, a string or None")


class InvalidMessageError(ValueError):
    """A message from another party that is not what was agreed on."""


def check_probabilities(
    probabilities: object, *, shape: tuple[int, int], source: str, tolerance: float = 1e-3
) -> FloatArray:
    """Check class probabilities at the door and return them as float32.

    Parameters
    ----------
    probabilities
        What came: has to be a floating-point array.
    shape
        The agreed shape (rows, C).
    source
        Who sent it, for the error: ``"client 'clinic-3': predict_proba"``.
    tolerance
        How far a row's sum may be from one.

    Raises
    ------
    InvalidMessageError
        On a wrong type, shape or dtype, values that are not finite or outside [0, 1], rows that do not sum to one.
    """
    if not isinstance(probabilities, np.ndarray):
        raise InvalidMessageError(f"{source} returned {type(probabilities).__name__}; expected an array {shape}")
    if probabilities.shape != shape:
        raise InvalidMessageError(
            f"{source} returned shape {probabilities.shape}; expected {shape}, one row per sample and one column "
            "per class"
        )
    if probabilities.dtype.kind != "f":
        raise InvalidMessageError(f"{source} returned dtype {probabilities.dtype}; expected floating point")
    if not np.isfinite(probabilities).all():
        raise InvalidMessageError(f"{source} returned NaN or infinity; expected probabilities")
    if probabilities.min() < -tolerance or probabilities.max() > 1 + tolerance:
        raise InvalidMessageError(
            f"{source} returned values from {probabilities.min():.4g} to {probabilities.max():.4g}; expected 0 to 1"
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > tolerance:
        raise InvalidMessageError(f"{source} returned rows that do not sum to one (row {worst}: {sums[worst]:.4g})")
    return np.clip(probabilities, 0, 1).astype(np.float32)


# --- the two sides of a method ----------------------------------------------------------------------------------------

Down = TypeVar("Down", bound=Message)
Up = TypeVar("Up", bound=Message)
Item = TypeVar("Item")
Result = TypeVar("Result")


class NotApplicableError(ValueError):
    """A method that cannot run with these clients; raised before anything is trained."""


class ClientSide(ABC, Generic[Down, Up]):
    """What a client does in a method. Subclasses write `step` and `finish` with the helpers below.

    A client side does not live from one message to the next: every message may find it made anew, in another process,
    with `state` restored. So what it needs later is in its learner or in `memory`, and random streams are keyed by
    the round.

    Attributes
    ----------
    memory
        Arrays that the method keeps at the client between messages, beside the learner.
    """

    def __init__(self, client: Client, public: PublicSet, task: Task) -> None:
        self.id = client.id
        self.learner = client.learner
        self.private = client.private
        self.test = client.test
        self.public = public
        self.task = task
        self.memory: dict[str, npt.NDArray[Any]] = {}
        self.measurements: list[Measurement] = []

    def state(self) -> State:
        """Return all that has to survive until the next message: the learner's state and `memory`."""
        try:
            learned = self.learner.state()
        except NotFittedError:
            learned = {}
        return {
            **{_LEARNER + key: np.asarray(value) for key, value in learned.items()},
            **{_MEMORY + key: np.asarray(value) for key, value in self.memory.items()},
        }

    def restore(self, state: State) -> None:
        """Go on where the side that returned `state` stopped."""
        restore_learner(self.learner, state)
        self.memory = {k.removeprefix(_MEMORY): v for k, v in state.items() if k.startswith(_MEMORY)}

    @abstractmethod
    def step(self, message: Down) -> Up:
        """Take the server's message, learn, answer."""

    def finish(self, message: Down) -> None:
        """Take the server's last message; nothing is sent back."""

    def rng(self, purpose: str, round: int) -> np.random.Generator:
        """Return the random stream of this client for a purpose (``"client fit"``) in a round."""
        return stream(self.task.seed, purpose, self.id, round)

    def fit(self, round: int, epochs: int) -> None:
        """Train on the private set."""
        self.learner.fit(
            self.private.inputs,
            self.private.labels,
            n_classes=self.task.n_classes,
            epochs=epochs,
            rng=self.rng("client fit", round),
        )

    def distill(self, round: int, inputs: InputArray, probabilities: FloatArray, epochs: int) -> None:
        """Train on public inputs (n, ...) with soft labels (n, C)."""
        self.learner.distill(inputs, probabilities, epochs=epochs, rng=self.rng("client distill", round))

    def predict(self, inputs: InputArray) -> FloatArray:
        """Return the learner's probabilities (n, C), checked."""
        shape = (len(inputs), self.task.n_classes)
        source = f"client {self.id!r}: predict_proba"
        return check_probabilities(self.learner.predict_proba(inputs), shape=shape, source=source)

    def measure(self, round: int, *moments: Moment) -> None:
        """Measure the learner on this client's test set, if it has one, under the name of each of `moments`."""
        if self.test is not None:
            result = score(self.predict(self.test.inputs), self.test.labels)
            self.measurements += [Measurement(round, moment, self.id, *result) for moment in moments]


def restore_learner(learner: Learner, state: State) -> None:
    """Restore a learner from the `ClientSide.state` of its client; one that had not learned anything stays as it is."""
    if learned := {k.removeprefix(_LEARNER): v for k, v in state.items() if k.startswith(_LEARNER)}:
        learner.restore(learned)


@dataclass(frozen=True)
class Rejection:
    """A message that the server did not accept: when, from whom, and why."""

    round: int
    client: ClientId
    reason: str


@dataclass(frozen=True, eq=False)
class Clustering:
    """Who learns with whom.

    Attributes
    ----------
    clients
        Ids in the order of the rows of `distances`.
    distances
        Pairwise distances (N, N) that the decision was made on.
    metric
        Name of the distance.
    threshold
        B0, the largest distance of a member from the centre of its cluster.
    clusters
        Ids of each cluster's members.
    """

    clients: tuple[ClientId, ...]
    distances: npt.NDArray[np.float64]
    metric: str
    threshold: float
    clusters: tuple[tuple[ClientId, ...], ...]


class Map(Protocol):
    """``map(function, items)``: the list of ``function(item)``, in order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> list[Result]: ...  # noqa: D102


def _one_after_the_other(function: Callable[[Item], Result], items: Sequence[Item], /) -> list[Result]:
    return [function(item) for item in items]


class ServerSide(ABC, Generic[Down, Up]):
    """What the server does in a method.

    Attributes
    ----------
    clients
        Ids of those who take part; `open` sets them.
    clustering
        The clusters, once there are any.
    cluster_models
        The server's own models, one per cluster; empty in methods that have none.
    rejections
        Messages that were not accepted.
    map
        ``map(function, items)`` returns the results in order: what the server computes for one cluster and another
        is independent, and an engine may put a pool of workers here.
    """

    def __init__(self, public: PublicSet, task: Task) -> None:
        self.public = public
        self.task = task
        self.round = 0
        self.clients: tuple[ClientId, ...] = ()
        self.clustering: Clustering | None = None
        self.cluster_models: list[Learner] = []
        self.rejections: list[Rejection] = []
        self.map: Map = _one_after_the_other

    @abstractmethod
    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, Down]:
        """Return the first message for every client."""

    @abstractmethod
    def step(self, uplinks: Iterable[tuple[ClientId, Up]]) -> Mapping[ClientId, Down]:
        """Take the clients' answers of a round and return the next messages.

        `uplinks` is read once, from the first to the last; the answers need not be in memory at the same time, and
        come in an order that does not depend on which client was faster.
        """

    def join(self, client: ClientId) -> Down:
        """Let in a client that comes when others have begun, and return its first message.

        Raises
        ------
        NotApplicableError
            If the method has no place for such clients.
        """
        raise NotApplicableError(f"{type(self).__name__} takes no client that joins later ({client!r})")

    def new_cluster_model(self) -> Learner:
        """Return what a cluster model is before it has learned anything."""
        raise NotApplicableError(f"{type(self).__name__} trains no cluster models")

    def state(self) -> State:
        """Return all that has to survive until the next round, but for the messages that are to be sent."""
        about: dict[str, Any] = {"round": self.round, "clients": self.clients}
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self.clustering is not None:
            about["clustering"] = {
                name: getattr(self.clustering, name) for name in ("clients", "metric", "threshold", "clusters")
            }
            arrays["distances"] = self.clustering.distances
        about["cluster_models"] = len(self.cluster_models)
        for k, model in enumerate(self.cluster_models):
            arrays |= {f"{k}.{key}": np.asarray(value) for key, value in model.state().items()}
        return {"about": pack_json(about), **arrays}

    def restore(self, state: State) -> None:
        """Go on where the side that returned `state` stopped."""
        about = unpack_json(state["about"])
        self.round, self.clients = about["round"], tuple(about["clients"])
        if (found := about.get("clustering")) is not None:
            clusters = tuple(tuple(members) for members in found["clusters"])
            self.clustering = Clustering(
                tuple(found["clients"]), state["distances"], found["metric"], found["threshold"], clusters
            )
        self.cluster_models = [copy.deepcopy(self.new_cluster_model()) for _ in range(about["cluster_models"])]
        for k, model in enumerate(self.cluster_models):
            prefix = f"{k}."
            model.restore({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})


def pack_json(value: Any) -> npt.NDArray[np.uint8]:
    """Return what JSON can hold as an array, to be part of a `State`."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_json(array: npt.NDArray[Any]) -> Any:
    """Return what `pack_json` packed."""
    return json.loads(array.tobytes())


class Method(BaseModel, ABC):
    """A federated algorithm as a value: its hyper-parameters, and the two sides that it makes.

    Subclasses declare their hyper-parameters as fields, `name` and `summary`, and build their sides.

    Attributes
    ----------
    tunable
        Keys of the configuration, the learning rates that the method's clients train with, which `cosmosfl.tuning`
        multiplies by common factors. A method with rates of its own names these: ``("method.learning_rate",)``.
    local_epochs
        Epochs of a client on its private set in each round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: ClassVar[str]
    summary: ClassVar[str]
    tunable: ClassVar[tuple[str, ...]] = ("clients.learning_rate",)

    local_epochs: PositiveInt = 5

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Return this method, ready for these clients: with what it has to know of them, if anything.

        Raises
        ------
        NotApplicableError
            If it cannot run with them.
        """
        return self

    def of_predictions_alone(self) -> Self:
        """Return what a client does that sends its predictions and nothing else; by default, the same."""
        return self

    def training_samples(self, private: int, public: int) -> int:
        """Return how many samples the training steps of a client see in a round, for `cosmosfl.cost`.

        Parameters
        ----------
        private, public
            Samples of the client, and of the public set.
        """
        return self.local_epochs * private

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return the size of a client's answer, and of the server's to it, for `cosmosfl.cost`.

        Parameters
        ----------
        public, n_classes
            Samples of the public set, and classes.
        weights
            Bytes of a client's model.
        """
        return 0

    @abstractmethod
    def client_side(self, client: Client, public: PublicSet, task: Task) -> ClientSide[Any, Any]:
        """Return what `client` does; its learner is trained in place."""

    @abstractmethod
    def server_side(self, public: PublicSet, task: Task) -> ServerSide[Any, Any]:
        """Return what the server does."""

    def fit(
        self,
        clients: Sequence[Client],
        public: PublicSet | npt.ArrayLike,
        rounds: int = 10,
        *,
        seed: int = 0,
        n_classes: int | None = None,
        local_baseline: bool = True,
        callbacks: Sequence[Callback] = (),
        workers: int | Literal["auto"] = 1,
    ) -> Run:
        """Run the federation on this machine.

        Parameters
        ----------
        clients
            The parties. Their learners are copied; the trained ones are in the result.
        public
            Unlabelled inputs (m, ...) that all parties hold.
        rounds
            Rounds after the first; 0 stops after pre-training and one exchange.
        seed
            The same seed gives the same result, bit for bit on a CPU.
        n_classes
            C; by default one more than the largest label of any client.
        local_baseline
            Also train every client alone with the same number of local epochs, so that the result can say what
            federation gave. Only done for clients that have a test set.
        callbacks
            Functions that are called with each event of `cosmosfl.events`.
        workers
            Processes that train side by side, or ``"auto"`` for one per CPU; see `cosmosfl.engine.local.LocalEngine`.
            The result does not depend on it.

        Returns
        -------
        Run
            Models, clusters and measurements.

        Raises
        ------
        ValueError
            If two clients share an id, shapes do not fit together, a label is C or more, or `rounds` is negative.
        """
        from cosmosfl.engine.local import LocalEngine  # the one upward import: fit is a shorthand for this line

        return LocalEngine(callbacks, workers=workers).run(
            self, clients, public, rounds, seed=seed, n_classes=n_classes, local_baseline=local_baseline
        )


def message_types(method: type[Method]) -> tuple[type[Message], type[Message]]:
    """Return which messages a method sends, to a client and to the server, from the annotations of its client side."""
    side = get_type_hints(method.client_side)["return"]
    hints = get_type_hints(side.step)
    return hints["message"], hints["return"]
