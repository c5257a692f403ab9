"""A small search for learning rates, alike for every method, that never looks at the test set; ``cosmosfl tune``.

A method's learning rates (`Method.tunable`; for most it is ``clients.learning_rate``) are multiplied by common factors,
evenly spaced on a logarithmic scale from ``1 / span`` to `span`; of several rates the ratio stays. So every method gets
the same number of trials and, where it trains with the clients' learning rate, the same candidates. An odd number of
trials has the factor 1 in the middle, the configuration as it is: with it no method is worse off for being tuned. The
rate of distillation follows the clients' learning rate unless the configuration gives it a value of its own.

A trial is a run of the whole configuration on each client's private set without its validation part, which takes the
place of the client's test set. What counts is the mean accuracy over clients in the last round, of the model that each
would deploy. Of trials that are equally good, the one nearest to the configuration is taken.

The result is a directory:

=================== =================================================================================================
``METHOD.toml``     the best learning rates as a partial configuration, and how they were found in comments
``trials.journal``  all trials, a study of Optuna for each method; what is finished there is not run again
=================== =================================================================================================
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tomli_w

from cosmosfl.config import ConfigError, ExperimentConfig, parse_assignments
from cosmosfl.data.sets import IntArray
from cosmosfl.events import Event
from cosmosfl.experiment import Federation, build_federation, check_models, run_experiment
from cosmosfl.layers import NOT_DECIDING, Layer, check_method_keys, choose_methods, flat, for_method
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods import METHODS
from cosmosfl.protocol import Client, InvalidMessageError, NotApplicableError
from cosmosfl.randomness import stream
from cosmosfl.store import write_atomically

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.journal"
_FACTOR, _SEARCH, _RATES, _ERROR = "factor", "search", "rates", "error"


class TuningError(ConfigError):
    """A search that cannot be made or went wrong: one line that says why."""


@dataclass(frozen=True)
class Candidate:
    """Learning rates to try: dotted key -> value, and a whole configuration with them."""

    factor: float
    rates: Mapping[str, float]
    config: ExperimentConfig


@dataclass(frozen=True)
class Trial:
    """Learning rates that were tried, and the mean validation accuracy in percent; 0, with an error, if they failed."""

    factor: float
    rates: Mapping[str, float]
    accuracy: float
    error: str | None = None


@dataclass(frozen=True)
class Tuned:
    """The trials of a method, by ascending factor; at least one has no error."""

    method: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the greatest accuracy, of equally good ones that with a factor nearest to 1."""
        return max(self.trials, key=lambda trial: (trial.error is None, trial.accuracy, -abs(math.log(trial.factor))))

    @property
    def edge(self) -> Literal["lowest", "highest"] | None:
        """Whether the best is the lowest or highest that was tried, so that a better one may lie beyond."""
        factors = [trial.factor for trial in self.trials]
        return {min(factors): "lowest", max(factors): "highest"}.get(self.best.factor)  # type: ignore[return-value]


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins: the `number`-th `of` all that the method gets."""

    method: str
    number: int
    of: int
    rates: Mapping[str, float]


@dataclass(frozen=True)
class NotTuned:
    """A method that has no result, and why."""

    method: str
    reason: str


Callback = Callable[[Event | TrialStarted | Tuned | NotTuned], None]


@dataclass(frozen=True)
class Search:
    """What is searched, checked before anything is trained; see `plan_search`.

    Attributes
    ----------
    configs
        Method -> its configuration as it is.
    candidates
        Method -> what is tried.
    left_out
        Methods that cannot run with these clients; there are some only where all methods were asked for.
    by_name
        Whether the methods were named, so that one that cannot run is an error.
    trials, span, validation
        As `plan_search` took them.
    federation
        The clients as all trials have them, with validation sets instead of test sets.
    """

    configs: Mapping[str, ExperimentConfig]
    candidates: Mapping[str, tuple[Candidate, ...]]
    left_out: tuple[NotTuned, ...]
    by_name: bool
    trials: int
    span: float
    validation: float
    federation: Federation

    def identity(self, method: str) -> dict[str, Any]:
        """Return all that decides about the trials of a method: dotted key -> value."""
        config = flat(self.configs[method].to_dict())
        return {
            "trials": self.trials,
            "span": self.span,
            "validation": self.validation,
            "tunable": list(METHODS[method].tunable),
            **{f"config.{'.'.join(path)}": value for path, value in config if path not in NOT_DECIDING},
        }


def plan_search(
    methods: str,
    assigned: Sequence[Layer] = (),
    files: Sequence[Layer] = (),
    *,
    trials: int = 5,
    span: float = 10.0,
    validation: float = 0.25,
) -> Search:
    """Make the candidates of every method, build the federation and ask the methods whether they can run there.

    Parameters
    ----------
    methods
        ``"all"``, or names with commas between them.
    assigned
        Partial configurations that were set by hand; the first has precedence.
    files
        Those below them, from a file or a preset. Each layer is taken as `cosmosfl.layers.for_method` says.
    trials
        For every method.
    span
        Learning rates are searched from their configured value divided by this to that multiplied by it.
    validation
        The fraction of every client's private set that is set aside.

    Raises
    ------
    ConfigError
        If a configuration is not valid, a method is not known or cannot run although it was named, or an argument is
        out of range.
    ValueError
        If the data cannot be had or split.
    """
    factors = search_factors(trials, span)
    chosen, by_name = choose_methods(methods)
    own = {name: [for_method(layer, name) for layer in (*assigned, *files)] for name in chosen}
    if any("name" in layer.get("method", {}) for layer in assigned):
        raise TuningError("method.name: the methods are given with --methods; expected none to be set")
    check_method_keys(chosen, (*assigned, *files))
    configs = {name: _parse(name, *layers) for name, layers in own.items()}
    candidates = {
        name: tuple(_candidate(name, configs[name], factor, own[name]) for factor in factors) for name in chosen
    }
    federation = hold_out(build_federation(configs[chosen[0]]), validation, configs[chosen[0]].seed)
    left_out = []
    for name in chosen:
        try:
            check_models(configs[name], federation)
            _check_applicable(configs[name], federation)
        except NotApplicableError as error:
            left_out.append(NotTuned(name, str(error)))
    if left_out and (by_name or len(left_out) == len(chosen)):
        raise TuningError("; ".join(dict.fromkeys(entry.reason for entry in left_out)))
    for entry in left_out:
        del configs[entry.method], candidates[entry.method]
    return Search(configs, candidates, tuple(left_out), by_name, trials, span, validation, federation)


def search_factors(trials: int, span: float) -> tuple[float, ...]:
    """Return factors from 1 / span to span, in ascending order and evenly spaced on a logarithmic scale.

    They are rounded to six digits, so that they are the same numbers on every machine.
    """
    if trials < 2:
        raise TuningError(f"trials: {trials}; expected at least 2")
    if not 1 < span < math.inf:
        raise TuningError(f"span: {span:g}; expected a number above 1")
    return tuple(float(f"{span ** (2 * n / (trials - 1) - 1):.6g}") for n in range(trials))


def hold_out(federation: Federation, fraction: float, seed: int) -> Federation:
    """Return a federation whose clients are tested on a part of their own private data, which they no longer train on.

    The real test sets are not in it.

    Raises
    ------
    ConfigError
        If the fraction is not between 0 and 1, or a client has one sample only.
    """
    if not 0 < fraction < 1:
        raise TuningError(f"validation: {fraction:g}; expected a fraction between 0 and 1")
    clients = []
    for client in federation.clients:
        inputs, labels = client.private.inputs, client.private.labels
        if len(labels) < 2:
            raise TuningError(f"client {client.id!r}: 1 private sample; expected 2, one of them to validate on")
        kept, held = split_validation(labels, fraction, stream(seed, "validation", client.id))
        clients.append(Client(client.id, client.learner, inputs[kept], labels[kept], test=(inputs[held], labels[held])))
    return Federation(clients, federation.public, federation.n_classes, federation.groups)


def split_validation(labels: IntArray, fraction: float, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Split the indices of labels (n,), n at least 2, into a part to train on and one to validate on.

    The classes are as frequent in one as in the other, as far as whole numbers allow, and as long as it can be, one
    sample of every class stays to be trained on. Each part has at least one sample.
    """
    n = len(labels)
    wanted = min(max(round(fraction * n), 1), n - 1)
    turn = np.empty(n)  # even steps within every class, so that the first in turn have all classes in proportion
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        turn[members] = (np.arange(len(members)) + 0.5) / len(members)
        turn[members[-1]] = 1
    order = np.lexsort((rng.random(n), turn))
    return np.sort(order[wanted:]), np.sort(order[:wanted])


def run_search(
    search: Search, out: Path, *, command: str = "cosmosfl tune", callbacks: Sequence[Callback] = ()
) -> list[Tuned]:
    """Run the trials that are not finished, and write the best of each method, as soon as it is known, to `out`.

    Parameters
    ----------
    search
        What is searched.
    out
        The directory of the result, new or an earlier one of the same search.
    command
        Said in the files to be what they were made by.
    callbacks
        Called with the beginning of each trial, each method's result, and the events of all runs.

    Returns
    -------
    list of Tuned
        Of the methods that have a result.

    Raises
    ------
    ImportError
        If Optuna is not installed.
    ConfigError
        Before anything is trained: if `out` holds something else, or trials of another search. At the end: if a method
        has no result, since no trial succeeded or, although it was named, it cannot run.
    """
    check_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what there is to say of trials is said in events
    _check_directory(out)
    out.mkdir(parents=True, exist_ok=True)
    storage = _open_journal(out)
    _check_same_search(search, storage, out)
    results, failed = [], []
    for method in search.candidates:
        study = optuna.create_study(storage=storage, study_name=method, direction="maximize", load_if_exists=True)
        study.set_user_attr(_SEARCH, search.identity(method))
        outcome: Tuned | NotTuned
        try:
            outcome = _tune(search, method, study, callbacks)
        except NotApplicableError as error:  # some methods know only when they see the models
            outcome = NotTuned(method, str(error))
            failed += [outcome] if search.by_name else []
        except TuningError as error:
            outcome = NotTuned(method, str(error))
            failed.append(outcome)
        if isinstance(outcome, Tuned):
            write_atomically(out / f"{method}.toml", _as_toml(outcome, search, command))
            results.append(outcome)
        for callback in callbacks:
            callback(outcome)
    if failed:
        raise TuningError("; ".join(entry.reason for entry in failed))
    return results


def check_optuna() -> None:
    """Raise an ImportError that says what to do if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ImportError("optuna is not installed; pip install 'cosmosfl[tune]'")


# --- planning ---------------------------------------------------------------------------------------------------------


def _parse(method: str, *layers: Layer) -> ExperimentConfig:
    return ExperimentConfig.parse({"local_baseline": False, "method": {"name": method}}, *layers)


def _candidate(method: str, config: ExperimentConfig, factor: float, layers: Sequence[Layer]) -> Candidate:
    values = {".".join(path): value for path, value in flat(config.to_dict())}
    rates = {}
    for key in METHODS[method].tunable:
        value = values.get(key)
        if not isinstance(value, int | float):
            raise TuningError(f"{key}: {value!r}; expected a number that a search of {method!r} can start from")
        rates[key] = float(f"{value * factor:.3g}")
    return Candidate(factor, rates, _parse(method, _nested(rates), *layers))


def _check_applicable(config: ExperimentConfig, federation: Federation) -> None:
    method = config.method
    method.prepare(federation.clients)
    ours = all(key.startswith("clients.") for key in method.tunable)
    if ours and not any(isinstance(client.learner, TorchLearner) for client in federation.clients):
        raise NotApplicableError(
            f"method {method.name!r}: {' and '.join(method.tunable)} has no effect on any of the clients' models "
            f"({', '.join(config.clients.models)}); expected a torch model among them"
        )


def _nested(rates: Mapping[str, float]) -> dict[str, Any]:
    return parse_assignments([f"{key}={value!r}" for key, value in rates.items()])


# --- trials -----------------------------------------------------------------------------------------------------------


def _check_directory(out: Path) -> None:
    if out.is_file():
        raise TuningError(f"{out} is a file; expected a directory to write the result to")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise TuningError(f"{out} is not empty and holds no {JOURNAL}; choose another directory")


def _open_journal(out: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(out / JOURNAL)))


def _check_same_search(search: Search, storage: optuna.storages.BaseStorage, out: Path) -> None:
    """Refuse to go on with trials of another search, or to put beside them what could not be compared."""
    import optuna

    for method in optuna.get_all_study_names(storage):
        before = optuna.load_study(study_name=method, storage=storage).user_attrs.get(_SEARCH)
        if before is None:  # nothing came of it
            continue
        now = search.identity(method if method in search.configs else next(iter(search.configs)))
        keys = [
            key
            for key in {**before, **now}
            if before.get(key) != now.get(key) and (method in search.configs or _is_shared(key))
        ]
        if keys:
            key = keys[0]
            was, will = ("its default" if value is None else repr(value) for value in (before.get(key), now.get(key)))
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise TuningError(
                f"{out} holds trials of {method!r} from another search: {key.removeprefix('config.')} was {was} and is "
                f"{will} now{more}; choose another directory with --out"
            )


def _is_shared(key: str) -> bool:
    return not key.startswith(("tunable", "config.method.", "config.research_code.known_groups"))


def _tune(search: Search, method: str, study: optuna.Study, callbacks: Sequence[Callback]) -> Tuned:
    """Run the trials of a method that are missing, and return all."""
    import optuna

    candidates = {candidate.factor: candidate for candidate in search.candidates[method]}

    def objective(trial: optuna.Trial) -> float:
        candidate = candidates[trial.suggest_float(_FACTOR, min(candidates), max(candidates), log=True)]
        number = list(candidates).index(candidate.factor) + 1
        for callback in callbacks:
            callback(TrialStarted(method, number, len(candidates), candidate.rates))
        try:
            return _validation_accuracy(candidate.config, search.validation, callbacks)
        except (ArithmeticError, InvalidMessageError) as error:  # training diverged: a result, and not a good one
            trial.set_user_attr(_ERROR, " ".join(str(error).split()))
            return 0.0

    while missing := [candidate for factor, candidate in candidates.items() if factor not in _finished(study)]:
        # an interrupted search leaves one that failed, which does not count, and some that wait, which are still to run
        waiting = [trial.user_attrs[_FACTOR] for trial in study.get_trials(states=[optuna.trial.TrialState.WAITING])]
        for candidate in missing:
            if candidate.factor not in waiting:
                about = {_FACTOR: candidate.factor, _RATES: dict(candidate.rates)}
                study.enqueue_trial({_FACTOR: candidate.factor}, user_attrs=about)
        study.optimize(objective, n_trials=len(missing))
    finished = _finished(study)
    trials = tuple(finished[factor] for factor in candidates)
    if all(trial.error for trial in trials):
        raise TuningError(f"method {method!r}: no trial of {len(trials)} succeeded; {trials[0].error}")
    return Tuned(method, trials)


def _finished(study: optuna.Study) -> dict[float, Trial]:
    import optuna

    trials = {}
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        about = trial.user_attrs
        assert trial.value is not None
        trials[about[_FACTOR]] = Trial(about[_FACTOR], about[_RATES], trial.value, about.get(_ERROR))
    return trials


def _validation_accuracy(config: ExperimentConfig, validation: float, callbacks: Sequence[Callback]) -> float:
    federation = hold_out(build_federation(config), validation, config.seed)
    accuracy = run_experiment(config, federation, callbacks).accuracy("client")
    if accuracy is None:
        raise TuningError(f"method {config.method.name!r} does not measure the models that its clients would deploy")
    return accuracy.mean


# --- the result -------------------------------------------------------------------------------------------------------


def _as_toml(tuned: Tuned, search: Search, command: str) -> str:
    """Return a partial configuration, with comments that say how it was found."""
    config, best = search.configs[tuned.method], tuned.best
    lines = [
        f"Learning rates of {tuned.method!r}, found by",
        f"  {' '.join(command.split())}",
        f"on {config.dataset.name}, {len(search.federation.clients)} clients, {config.rounds} rounds after the first, "
        f"seed {config.seed}.",
        f"The best of {len(tuned.trials)} trials by the mean accuracy over clients in the last round,",
        f"on {100 * search.validation:g} % of each client's training data; the test set was not looked at.",
        "",
    ]
    width = max(len(describe_rates(trial.rates)) for trial in tuned.trials)
    for trial in tuned.trials:
        outcome = f"failed: {trial.error}" if trial.error else f"{trial.accuracy:6.2f} %"
        lines.append(f"  {describe_rates(trial.rates):<{width}} {outcome}{'  <- the best' if trial is best else ''}")
    if tuned.edge:
        lines += ["", f"This is the {tuned.edge} that was tried: a better one may lie beyond."]
    content = _nested(best.rates)
    content["method"] = {"name": tuned.method, **content.get("method", {})}
    comments = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return f"{comments}\n{tomli_w.dumps(content)}"


def describe_rates(rates: Mapping[str, float]) -> str:
    """Return ``clients.learning_rate = 0.001``, with commas between several."""
    return ", ".join(f"{key} = {value:g}" for key, value in rates.items())
