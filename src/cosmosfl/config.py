"""One validated configuration of an experiment: what ``cosmosfl run`` runs, and what a run directory keeps.

Values come from the command line over a TOML file over the defaults, which are those of the demonstration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from cosmosfl.learners import find_learner
from cosmosfl.learners.torch import Departures
from cosmosfl.methods import METHODS
from cosmosfl.naming import unknown
from cosmosfl.protocol import Learner, Method

Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A configuration that is not valid: one line that names the key, the value and what was expected."""


def _model_name(name: str) -> str:
    find_learner(name)
    return name


ModelName = Annotated[str, AfterValidator(_model_name)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetConfig(Section):
    """Which data, and what the public set is.

    Attributes
    ----------
    name
        A name that ``cosmosfl datasets`` lists, or a directory of one's own.
    data_dir
        Where data sets are looked for; by default the environment variable ``COSMOSFL_DATA``.
    public
        Another data set, whose training inputs become the public set; by default a part of `name`.
    public_fraction
        The fraction of every class of the training data that is set aside as the public set. Without effect if
        `public` is given.
    public_samples
        Take at most this many public samples, at random; ``"all"`` is no limit (TOML has no null).
    """

    name: str = "digits"
    data_dir: str | None = None
    public: str | None = None
    public_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.4
    public_samples: Annotated[int, Field(ge=2)] | Literal["all"] = "all"


class PartitionConfig(Section):
    """Who holds what.

    Attributes
    ----------
    name
        ``grouped-dirichlet`` (the paper's), or a partitioner of flwr_datasets: ``iid``, ``dirichlet``,
        ``pathological``, ``quantity-skew``.
    clients
        Their number.
    groups, mixing
        Label groups, and the fraction of every client's samples that is pooled and dealt out again
        (``grouped-dirichlet``).
    alpha
        Of the Dirichlet distribution (``grouped-dirichlet``, ``dirichlet``).
    classes_per_client
        (``pathological``)
    growth
        How sizes grow from client to client: ``linear``, ``square`` or ``exponential`` (``quantity-skew``).
    samples_per_client, test_samples_per_client
        Keep at most this many, at random, or ``"all"``.
    """

    name: Literal["grouped-dirichlet", "iid", "dirichlet", "pathological", "quantity-skew"] = "grouped-dirichlet"
    clients: PositiveInt = 10
    groups: PositiveInt = 2
    mixing: Fraction = 0.1
    alpha: PositiveFloat = 5.0
    classes_per_client: PositiveInt = 2
    growth: Literal["linear", "square", "exponential"] = "linear"
    samples_per_client: PositiveInt | Literal["all"] = 15
    test_samples_per_client: PositiveInt | Literal["all"] = "all"

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> Self:
        for key in self.model_fields_set - self.effective_keys():
            users = [name for name, keys in PARTITION_OPTIONS.items() if key in keys]
            raise ValueError(f"{key} has no effect on a {self.name!r} partition; it belongs to {' and '.join(users)}")
        return self

    def effective_keys(self) -> set[str]:
        """Return the keys that matter for a partition of this name."""
        options = {key for keys in PARTITION_OPTIONS.values() for key in keys}
        return set(type(self).model_fields) - options | set(PARTITION_OPTIONS[self.name])

    def options(self) -> dict[str, Any]:
        """Return the options of this partitioner."""
        return {key: getattr(self, key) for key in PARTITION_OPTIONS[self.name]}

    @model_serializer(mode="wrap")
    def _only_what_matters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.effective_keys()}


PARTITION_OPTIONS: dict[str, tuple[str, ...]] = {
    "grouped-dirichlet": ("groups", "mixing", "alpha"),
    "iid": (),
    "dirichlet": ("alpha",),
    "pathological": ("classes_per_client",),
    "quantity-skew": ("growth",),
}
"""Partition name -> the keys of `PartitionConfig` that it uses beside the numbers of clients and samples."""


class TorchConfig(Section):
    """How torch models are trained (`cosmosfl.TorchLearner` says what each of these is)."""

    learning_rate: PositiveFloat = 1e-3
    distill_learning_rate: PositiveFloat | None = None
    batch_size: PositiveInt = 32
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: NonNegativeFloat = 1.0
    consistency: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | Literal["none"] = 1.0
    augment: Literal["none", "flip-crop"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"

    def learner(self, model: str, departures: Departures | None = None) -> Learner:
        """Return a learner of this name; the training settings and departures go to torch models only."""
        entry = find_learner(model)
        if entry.library != "torch":
            return entry.make()
        options = self.model_dump(exclude={"model", "models"})
        settings = {key: None if value == "none" else value for key, value in options.items()}
        return entry.make(**settings, departures=departures)


class ClientsConfig(TorchConfig):
    """The clients' models, dealt out in turn to the clients in an order drawn from the seed."""

    models: Annotated[tuple[ModelName, ...], Field(min_length=1)] = (
        "cnn-s",
        "mlp",
        "random-forest",
        "logistic-regression",
    )


class TeacherConfig(TorchConfig):
    """The server's model."""

    model: ModelName = "cnn-s"


class ResearchCodeConfig(Section):
    """Departures of the public research code from the paper, to see what each is worth; all are off by default.

    Each is a row of the table "What the public research code does otherwise" in method.md, quoted at its end.

    Attributes
    ----------
    known_groups
        The threshold is the one that gives as many clusters as the partition has groups, which nobody knows outside
        an experiment: ``method.n_clusters`` becomes ``partition.groups``. ("the threshold is found by searching for
        the *known* number of groups")
    consistency_without_gradient
        The consistency term of a torch model is a constant, so its weight changes nothing but the random stream.
        ("the consistency term is computed without gradient")
    second_softmax
        A torch model's soft targets pass through another softmax, which makes them nearly uniform. ("soft targets
        were passed through a second softmax")
    shared_initialisation
        Clients of the same torch architecture start from the same weights. ("same-architecture clients share one
        initialisation")
    ordered_public
        Torch models distil the public set in one fixed order, without the samples that fill no batch. ("the tail
        batch of `U` is dropped and `U` is never shuffled")
    frozen_augmentation
        Every image, be it private, test or public, is mirrored and shifted at random once, before anything else.
        This takes the place of the fresh augmentation: ``augment`` is without effect. ("a frozen random flip/crop is
        applied once to train *and test* images")

    Notes
    -----
    The other rows are not offered. Client distillation weighted by the true labels of the public set: there are none,
    they end where the public set is made. Models at chance accuracy on labelled test data initialised anew: tests
    never steer training. Splits without a seed: such a run cannot be repeated. Colliding label groups of EMNIST: what
    is known, that nine classes reach no client, does not say which. TinyImageNet cropped to 32×32: that is another
    data set rather than another training. The oracle is no switch: it is always reported, beside the others.
    """

    known_groups: bool = False
    consistency_without_gradient: bool = False
    second_softmax: bool = False
    shared_initialisation: bool = False
    ordered_public: bool = False
    frozen_augmentation: bool = False

    def learner(self, training: TorchConfig, model: str, initial_seed: int | None = None) -> Learner:
        """Return a learner of this name, with the departures that concern it."""
        if self.frozen_augmentation:
            training = training.model_copy(update={"augment": "none"})
        departures = Departures(
            self.consistency_without_gradient, self.second_softmax, self.ordered_public, initial_seed
        )
        return training.learner(model, departures)


class _Tables(Section):
    """All of the configuration but the method, whose keys depend on its name."""

    seed: NonNegativeInt = 0
    rounds: NonNegativeInt = 3
    local_baseline: bool = True
    workers: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt = 1
    dataset: DatasetConfig = DatasetConfig()
    partition: PartitionConfig = PartitionConfig()
    clients: ClientsConfig = ClientsConfig()
    teacher: TeacherConfig = TeacherConfig()
    research_code: ResearchCodeConfig = ResearchCodeConfig()


class ExperimentConfig(_Tables):
    """The configuration of an experiment.

    Attributes
    ----------
    seed
        The one seed.
    rounds
        Rounds after the first.
    local_baseline
        Whether every client is also trained alone, to compare with.
    workers
        Processes that train side by side; ``"auto"`` for one per CPU. The result does not depend on it.
    threads
        Threads of each of them. One is fastest for small models, and gives the same numbers on every machine of a
        kind.
    dataset, partition, clients, teacher, research_code, method
        Tables; see their classes.
    """

    method: Method

    @classmethod
    def parse(cls, *layers: Mapping[str, Any]) -> ExperimentConfig:
        """Merge nested mappings, the first has precedence, over the defaults, and validate the result.

        Raises
        ------
        ConfigError
            With one line that names the key, what was expected, and the nearest valid name.
        """
        merged: dict[str, Any] = {}
        for layer in reversed(layers):
            merged = _merge(merged, layer)
        method = merged.pop("method", {})
        if not isinstance(method, Mapping):
            raise ConfigError(f"method: {method!r}; expected a table with a name, such as method.name = 'cosmos'")
        settings = dict(method)
        name = settings.pop("name", "cosmos")
        if name not in METHODS:
            raise ConfigError(unknown("method.name", name, METHODS))
        defaults = _DEMO if name == "cosmos" else {"local_epochs": _DEMO["local_epochs"]}
        try:
            tables = _Tables.model_validate(merged)
            parsed = METHODS[name].model_validate({**defaults, **settings})
        except ValidationError as error:
            prefix = ("method",) if error.title == METHODS[name].__name__ else ()
            raise ConfigError(_one_line(error.errors()[0], prefix, name)) from None
        if "teacher" in METHODS[name].model_fields:
            teacher = tables.research_code.learner(tables.teacher, tables.teacher.model)
            parsed = parsed.model_copy(update={"teacher": teacher})
        if tables.research_code.known_groups:
            parsed = parsed.model_copy(update={"n_clusters": _known_groups(tables, parsed)})
        return cls(method=parsed, **{field: getattr(tables, field) for field in _Tables.model_fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the fully resolved configuration as nested plain values, as `parse` reads it."""
        tables = self.model_dump(mode="json", exclude={"method"})
        derived = {"n_clusters"} if self.research_code.known_groups else None
        return {**tables, "method": {"name": self.method.name, **self.method.model_dump(mode="json", exclude=derived)}}


_DEMO = {"local_epochs": 20, "server_epochs": 10, "distill_epochs": 5}


def presets() -> dict[str, str]:
    """Return the presets that come with the package, by name: the text of their TOML files.

    Comments at the top say what a preset is and what it costs.
    """
    root = resources.files("cosmosfl") / "presets"
    return {
        f"{family.name}/{file.name.removesuffix('.toml')}": file.read_text(encoding="utf-8")
        for family in sorted(root.iterdir(), key=lambda item: item.name)
        if family.is_dir()
        for file in sorted(family.iterdir(), key=lambda item: item.name)
        if file.name.endswith(".toml")
    }


def read_preset(name: str) -> dict[str, Any]:
    """Return the content of a preset.

    Raises
    ------
    ConfigError
        If there is none of this name; the message names the nearest.
    """
    known = presets()
    if name not in known:
        raise ConfigError(unknown("preset", name, known))
    return tomllib.loads(known[name])


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["partition.alpha=1", "method.distance=l2"]`` into nested values; a value is TOML, or else a string.

    Raises
    ------
    ConfigError
        If an assignment has no ``=`` or no key, or a key is both a value and a table.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(f"{assignment!r}; expected key=value, such as partition.alpha=1")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = result
        for step in path[:-1]:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{assignment!r}: {step} was set to a value before; expected a table")
        table[path[-1]] = value
    return result


def _known_groups(tables: _Tables, method: Method) -> int:
    """Return the number of groups that the method is to search for; for `ResearchCodeConfig.known_groups`."""
    options = tables.partition.options()
    if "n_clusters" not in type(method).model_fields:
        raise ConfigError(
            f"research_code.known_groups: {method.name!r} searches for no clusters; expected a method that does"
        )
    if "groups" not in options:
        raise ConfigError(
            f"research_code.known_groups: a {tables.partition.name!r} partition has no groups; expected one that has"
        )
    if "n_clusters" in method.model_fields_set:
        raise ConfigError(
            f"method.n_clusters: research_code.known_groups makes it {options['groups']}, as partition.groups; "
            "leave out one of them"
        )
    return int(options["groups"])


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _one_line(error: ErrorDetails, prefix: tuple[str, ...], method: str) -> str:
    path = [*prefix, *(str(part) for part in error["loc"])]
    # pydantic adds the member of a union to the path ("threshold.constrained-float"); users do not know these
    keys = [part for part in path if part.replace("_", "").isalnum()]
    key = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return unknown(key, keys[-1], known_keys(keys[:-1], method)).replace(
            f": {keys[-1]!r} is not known", ": no such key"
        )
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']!s}" if "ctx" in error else f"{key}: {error['msg']}"
    expected = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {error['input']!r}; {expected.replace('input should be', 'expected')}"


def known_keys(path: Sequence[str], method: str) -> list[str]:
    """Return the keys that the table at `path` may have, in a configuration of this method."""
    if not path:
        return [*_Tables.model_fields, "method"]
    if path[0] == "method":
        return ["name", *(field for field in METHODS[method].model_fields if field != "teacher")]
    table = _Tables.model_fields[path[0]].default
    return list(type(table).model_fields) if isinstance(table, BaseModel) else []
