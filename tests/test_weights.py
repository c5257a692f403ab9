"""What methods that exchange weights share; and the small federations that their own tests use."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import cosmosfl as cf
from conftest import blobs
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods import METHODS, WEIGHT_SHARING
from cosmosfl.methods.ditto import Ditto
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.fedbabu import FedBABU
from cosmosfl.methods.feddf import FedDF
from cosmosfl.methods.fedprox import FedProx
from cosmosfl.methods.fedrep import FedRep
from cosmosfl.methods.pfedme import PFedMe
from cosmosfl.methods.weights import LocalWeights, WeightServer, head_of, mean_weights, parameters, proximal
from cosmosfl.models import MODELS
from cosmosfl.protocol import InvalidMessageError, NotApplicableError, Task
from cosmosfl.randomness import stream

SHARING_ALL = (FedAvg, FedProx, Ditto, FedRep, FedBABU, PFedMe)
"""Those whose global model has what all clients send of it, statistics of batch normalisation too."""
ALL = [METHODS[name] for name in WEIGHT_SHARING]
TASK = Task(n_classes=4, seed=0)
PUBLIC = PublicSet(np.zeros((4, 2), np.float32))


# --- tiny federations, for this file and the methods' own -------------------------------------------------------------


def two_layers(shape: tuple[int, ...] = (2,), n_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 3), nn.Tanh(), nn.Linear(3, n_classes))


def normalised(shape: tuple[int, ...] = (2,), n_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, n_classes))


def gradient_descent(model=two_layers, *, learning_rate: float = 0.1, batch_size: int = 1000) -> cf.TorchLearner:
    """Return a learner without momentum, whose epoch is one full batch unless told otherwise."""
    return cf.TorchLearner(
        model,
        learning_rate=learning_rate,
        batch_size=batch_size,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    )


def unequal_clients(learner=gradient_descent, *, test: bool = False) -> list[cf.Client]:
    """Return three clients with 10, 20 and 40 samples of different classes."""
    clients = []
    for i, (n, classes) in enumerate([(10, (0, 1)), (20, (1, 2)), (40, (2, 3, 0))]):
        rng = np.random.default_rng(i)
        data = blobs(n, classes, rng)
        clients.append(cf.Client("abc"[i], learner(), *data, test=blobs(20, classes, rng) if test else None))
    return clients


def initial_weights(model=two_layers) -> dict[str, np.ndarray]:
    """Return what every client starts from."""
    learner = cf.TorchLearner(model)
    learner.build((2,), TASK.n_classes, stream(TASK.seed, "shared initialisation"))
    return learner.weights()


def gradients(weights, inputs, labels, model=two_layers) -> dict[str, np.ndarray]:
    """Return the gradient of the mean cross-entropy, computed without anything of this library."""
    module = model()
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    loss = F.cross_entropy(module(torch.from_numpy(inputs)), torch.from_numpy(labels))
    named = dict(module.named_parameters())
    values = torch.autograd.grad(loss, list(named.values()))
    return {name: value.numpy() for name, value in zip(named, values, strict=True)}


def assert_close(actual, expected, **tolerance) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


def assert_same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@dataclass
class Round:
    """What the clients sent, and what they kept: their learners' weights."""

    sent: dict[str, LocalWeights]
    kept: dict[str, dict[str, np.ndarray]]


def federate(method, clients, rounds: int = 0) -> tuple[list[Round], WeightServer]:
    """Run a federation message by message, each client side made anew as an engine would, and show what happened."""
    server = method.prepare(clients).server_side(PUBLIC, TASK)
    downlinks, states, history = server.open([client.id for client in clients]), {}, []
    for _ in range(rounds + 1):
        sent, kept = {}, {}
        for client in clients:
            side = method.client_side(client.with_learner(copy.deepcopy(client.learner)), PUBLIC, TASK)
            if client.id in states:
                side.restore(states[client.id])
            sent[client.id] = side.step(downlinks[client.id])
            states[client.id] = side.state()
            kept[client.id] = side.learner.weights()
        history.append(Round(sent, kept))
        downlinks = server.step(sent.items())
    return history, server


def digits_clients() -> list[cf.Client]:
    """Return six clients with 40 digits each: 80% of classes 0 to 4 or 5 to 9 in turn, 20% of the others."""
    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:600], order[600:]

    def make(shape: tuple[int, ...], n_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(*shape, 64), nn.ReLU(), nn.Linear(64, n_classes))

    clients = []
    for i in range(6):

        def mixed(indices: np.ndarray, own: int, others: int, half: int = i % 2) -> np.ndarray:
            mine = labels[indices] // 5 == half
            return np.concatenate([indices[mine][:own], indices[~mine][:others]])

        private, held_out = mixed(train, 32, 8), mixed(test, 80, 20)
        train = np.setdiff1d(train, private)
        learner = cf.TorchLearner(make, learning_rate=3e-3, batch_size=8)
        test_set = (inputs[held_out], labels[held_out])
        clients.append(cf.Client("abcdef"[i], learner, inputs[private], labels[private], test=test_set))
    return clients


def digits_accuracy(method) -> tuple[float, float]:
    """Return the mean accuracy of the clients in percent, with `method` and alone."""
    clients = digits_clients()
    run = method.fit(clients, clients[0].private.inputs[:4], rounds=6)
    assert run.rejections == []
    return run.accuracy("client").mean, run.accuracy("local").mean


# --- before anything is trained ---------------------------------------------------------------------------------------


def refused(method, *learners: object) -> str:
    """Return the reason why a method does not run with clients that have these learners."""
    clients = [
        cf.Client("abcdef"[i], learner, *blobs(4, (0, 1), np.random.default_rng(i)))
        for i, learner in enumerate(learners)
    ]
    with pytest.raises(NotApplicableError) as refusal:
        method.fit(clients, PUBLIC, rounds=0, n_classes=4)
    return str(refusal.value)


@pytest.mark.parametrize("method", ALL)
def test_a_mixture_of_models_is_refused_before_anything_is_trained(method):
    reason = refused(method(), cf.TorchLearner("mlp"), cf.SklearnLearner(LogisticRegression()))
    assert f"'{method.name}' shares weights: client 'b' has a SklearnLearner" in reason
    if method is FedDF:
        return  # it averages each architecture on its own
    reason = refused(method(), cf.TorchLearner("mlp"), cf.TorchLearner(two_layers))
    assert "client 'a' has TorchLearner(mlp) and client 'b' has TorchLearner(two_layers)" in reason
    assert "expected one architecture" in reason


def test_modules_of_other_shapes_are_refused():
    wider = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4))
    assert "expected one architecture" in refused(FedAvg(), cf.TorchLearner(two_layers()), cf.TorchLearner(wider))


def test_models_that_start_from_different_weights_are_refused():
    """Their mean would be the mean of unrelated networks."""
    module = two_layers()
    reason = refused(FedAvg(), cf.TorchLearner(module), cf.TorchLearner(two_layers()))
    assert "clients 'a' and 'b' start from different weights" in reason
    assert "different weights" in refused(FedAvg(), trained(cf.TorchLearner("mlp")), cf.TorchLearner("mlp"))
    twins = [cf.TorchLearner(copy.deepcopy(module)) for _ in range(2)]
    clients = [cf.Client("ab"[i], twins[i], *blobs(4, (0, 1), np.random.default_rng(i))) for i in range(2)]
    FedAvg().prepare(clients)


def trained(learner: cf.TorchLearner) -> cf.TorchLearner:
    learner.fit(*blobs(4, (0, 1), np.random.default_rng(0)), n_classes=4, epochs=1, rng=stream(0, "before"))
    return learner


@pytest.mark.parametrize("method", [FedRep, FedBABU])
def test_a_model_of_one_layer_has_no_body_to_share(method):
    reason = refused(method(), *(cf.TorchLearner(lambda: nn.Linear(2, 4)),) * 2)
    assert f"'{method.name}' shares the body" in reason
    assert "one layer only" in reason


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        (FedAvg, {"local_epochs": 0}),
        (FedProx, {"mu": -0.1}),
        (FedProx, {"mu": float("nan")}),
        (Ditto, {"lam": -1}),
        (Ditto, {"lam": float("inf")}),
        (FedBABU, {"fine_tune_epochs": -1}),
        (FedBABU, {"fine_tune": "neck"}),
        (FedRep, {"head_epochs": 0}),
        (PFedMe, {"beta": 0}),
        (PFedMe, {"lam": 0}),
        (PFedMe, {"learning_rate": -1}),
        (PFedMe, {"personal_learning_rate": float("inf")}),
        (PFedMe, {"inner_steps": 0}),
        (PFedMe, {"batches": 0}),
        *((method, {"epochs": 3}) for method in ALL),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(method, bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        method(**bad)


# --- the client's start -----------------------------------------------------------------------------------------------


def test_all_clients_start_from_the_same_weights_without_a_byte_on_the_wire():
    history, _ = federate(FedAvg(local_epochs=1), unequal_clients(lambda: gradient_descent(learning_rate=1e-12)))
    for sent in history[0].sent.values():
        assert_close(sent.weights, initial_weights(), atol=1e-6)
    opening = FedAvg().server_side(PUBLIC, TASK).open(["a"])["a"]
    assert opening.nbytes == 8  # the round


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_the_layer_that_makes_the_logits(name):
    """It has a weight and a bias for each class."""
    shape = (2,) if name == "mlp" else (3, 32, 32)
    module = MODELS[name](shape, 7)
    named = dict(module.named_parameters())
    assert [named[parameter].shape[0] for parameter in head_of(module)] == [7, 7]


def test_the_gradient_of_the_proximal_term_is_the_distance_of_each_parameter():
    """Catches a mean over parameters in place of the sum, and a missing or a doubled half."""
    module = two_layers()
    anchor = {name: array + 0.5 for name, array in parameters(module).items()}
    proximal(3.0, anchor)(module).backward()
    for parameter in module.parameters():
        np.testing.assert_allclose(parameter.grad, np.full(parameter.shape, 3.0 * -0.5), rtol=1e-5)


# --- the server's mean ------------------------------------------------------------------------------------------------


def test_the_mean_is_weighted_and_keeps_types_and_shapes():
    """Counters without dimensions came out as numpy scalars once, which no message takes."""
    members = [
        ({"w": np.float32([1, 2]), "scale": np.float32(3), "count": np.int64(5).reshape(())}, 1),
        ({"w": np.float32([5, 6]), "scale": np.float32(7), "count": np.int64(4).reshape(())}, 3),
    ]
    mean = mean_weights(iter(members))
    assert_same(mean, {"w": np.float32([4, 5]), "scale": np.float32(6), "count": np.int64(5)})
    assert all(isinstance(array, np.ndarray) for array in mean.values())
    assert [array.dtype.name for array in mean.values()] == ["float32", "float32", "int64"]


def weights(value: float = 1.0, **changed) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, np.float32), "b": np.full(2, value, np.float32)} | changed


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LocalWeights(1, weights(), 5), "of round 1; expected 0"),
        (LocalWeights(0, weights(), 0), "samples: 0; expected at least 1"),
        (LocalWeights(0, weights(np.nan), 5), "NaN or infinity in w, b"),
        (LocalWeights(0, weights(b=np.float32([1, 2, 3])), 5), "b: float32 of shape (3,); expected float32 of shape"),
        (LocalWeights(0, weights(b=np.ones(2, np.int64)), 5), "b: int64 of shape (2,); expected float32 of shape (2,)"),
        (LocalWeights(0, {"w": weights()["w"]}, 5), "b: nothing; expected float32 of shape (2,)"),
        (LocalWeights(0, weights(c=np.ones(1)), 5), "c: float64 of shape (1,); expected nothing"),
        (LocalWeights(0, weights(b=np.array(["x"])), 5), "b: <U1; expected numbers"),
        (LocalWeights(0, weights(b=[1.0, 1.0]), 5), "b: list; expected numbers"),
    ],
)
def test_a_bad_message_is_recorded_and_the_others_are_averaged(bad, reason):
    side = FedAvg().server_side(PUBLIC, TASK)
    side.open(["a", "b", "c"])
    answers = [("a", LocalWeights(0, weights(1), 1)), ("b", bad), ("c", LocalWeights(0, weights(5), 3))]
    downlinks = side.step(iter(answers))
    assert_same(downlinks["b"].weights, weights(4))
    (rejection,) = side.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert reason in rejection.reason


def test_what_was_agreed_on_in_one_round_holds_in_the_next():
    """Else a first message of other shapes would have all others rejected."""
    side = FedAvg().server_side(PUBLIC, TASK)
    side.open(["a", "b"])
    side.step([("a", LocalWeights(0, weights(1), 1))])
    side.step([("a", LocalWeights(1, {"w": np.ones(1)}, 1)), ("b", LocalWeights(1, weights(2), 1))])
    assert [rejection.client for rejection in side.rejections] == ["a"]
    assert_same(side.weights, weights(2))


def test_a_round_in_which_nobody_is_accepted_is_an_error_with_all_reasons():
    side = FedAvg().server_side(PUBLIC, TASK)
    reason = "none of 1 messages was accepted; client 'a': weights are of round 3"
    with pytest.raises(InvalidMessageError, match=reason):
        side.step([("a", LocalWeights(3, weights(), 1))])


# --- all of them as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_every_method_measures_each_round_at_both_moments(method):
    clients = unequal_clients(lambda: cf.TorchLearner(normalised), test=True)
    run = method(local_epochs=1).fit(clients, PUBLIC, rounds=1)
    assert {(m.round, m.moment) for m in run.measurements if m.moment != "local"} == {
        (0, "client_after_fit"), (0, "client"), (1, "client_after_fit"), (1, "client"),
    }  # fmt: skip


@pytest.mark.parametrize("method", SHARING_ALL)
def test_batch_normalisation_is_averaged(method):
    clients = unequal_clients(lambda: cf.TorchLearner(normalised))
    history, server = federate(method(local_epochs=1), clients)
    means = [sent.weights["1.running_mean"] for sent in history[0].sent.values()]
    counts = [1, 1, 1] if method is PFedMe else [10, 20, 40]
    np.testing.assert_allclose(server.weights["1.running_mean"], np.average(means, axis=0, weights=counts), rtol=1e-5)
    assert server.weights["1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("method", ALL)
def test_the_last_measurement_is_of_the_model_that_is_handed_over(method):
    clients = unequal_clients(test=True)
    run = method(local_epochs=2).fit(clients, PUBLIC, rounds=1)
    for client in clients:
        right = run.model(client.id).predict_proba(client.test.inputs).argmax(axis=1) == client.test.labels
        assert run.accuracy("client").per_client[client.id] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("method", ALL)
def test_measuring_changes_nothing(method):
    """Catches a model that is fine-tuned for a measurement and then goes on from there."""
    models = [
        method(local_epochs=1).fit(unequal_clients(test=test), PUBLIC, rounds=2, n_classes=4).model("b").weights()
        for test in (True, False)
    ]
    assert_same(*models)


@pytest.mark.parametrize("method", ALL)
def test_it_can_be_sent_to_a_worker(method):
    client, *others = unequal_clients()
    side = method(local_epochs=1).client_side(client, PUBLIC, TASK)
    downlink = method().prepare([client, *others]).server_side(PUBLIC, TASK).open(["a", "b", "c"])["a"]
    sent, message, there = cloudpickle.loads(cloudpickle.dumps((method(local_epochs=1), downlink, client)))
    assert_same(sent.client_side(there, PUBLIC, TASK).step(message).weights, side.step(downlink).weights)
