"""FedDF: what the paper's algorithm promises."""

from __future__ import annotations

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
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.feddf import FedDF, FedDFServer
from cosmosfl.methods.weights import LocalWeights
from cosmosfl.protocol import Client, InvalidMessageError, NotApplicableError
from test_weights import (
    TASK,
    assert_close,
    assert_same,
    digits_clients,
    gradient_descent,
    normalised,
    two_layers,
    unequal_clients,
)

UNLABELLED = PublicSet(np.random.default_rng(7).normal(size=(12, 2)))
RATE = 0.1


def three_layers(shape: tuple[int, ...] = (2,), n_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, n_classes))


def rectified(shape: tuple[int, ...] = (2,), n_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 3), nn.ReLU(), nn.Linear(3, n_classes))


def mixture(other=three_layers) -> list[Client]:
    """Return the unequal clients a and c with two layers, and b with another model."""
    return [
        client.with_learner(gradient_descent(model))
        for client, model in zip(unequal_clients(), (two_layers, other, two_layers), strict=True)
    ]


def opened(clients: list[Client], **options) -> FedDFServer:
    server = FedDF(**options).prepare(clients).server_side(UNLABELLED, TASK)
    server.open([client.id for client in clients])
    return server


def answer(module: nn.Module, samples: int, *, round: int = 0, factor: float = 1.0) -> LocalWeights:
    return LocalWeights(round, {k: factor * v.numpy() for k, v in module.state_dict().items()}, samples)


def confident(seed: int, model=two_layers) -> nn.Module:
    """Return a module whose predictions are so sure that means of logits and of probabilities differ."""
    torch.manual_seed(seed)
    module = model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 4
    return module


def infinite(model=two_layers) -> nn.Module:
    """Return a module with finite weights and logits beyond single precision."""
    module = model()
    for parameter in module.parameters():
        nn.init.constant_(parameter, 3e38)
    return module


def ensemble(*modules: nn.Module) -> torch.Tensor:
    """Return the softmax of the mean of the logits."""
    with torch.no_grad():
        return torch.stack([module(torch.from_numpy(UNLABELLED.inputs)) for module in modules]).mean(dim=0).softmax(1)


def mean_of(*members: tuple[nn.Module, float], model=two_layers) -> nn.Module:
    module, total = model(), sum(weight for _, weight in members)
    states = [(member.state_dict(), weight / total) for member, weight in members]
    module.load_state_dict({name: sum(weight * state[name] for state, weight in states) for name in states[0][0]})
    return module


def descended(module: nn.Module, targets: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the weights after one step of gradient descent on KL(targets || module)."""
    loss = F.kl_div(module(torch.from_numpy(UNLABELLED.inputs)).log_softmax(1), targets, reduction="batchmean")
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    clip = min(1.0, 1.0 / float(torch.stack([g.square().sum() for g in found]).sum().sqrt()))  # the learner's clip_norm
    return {k: (p - RATE * clip * g).detach().numpy() for (k, p), g in zip(named.items(), found, strict=True)}


@pytest.mark.parametrize("model", [two_layers, normalised])
def test_without_epochs_at_the_server_it_is_fedavg_bit_for_bit(model):
    """Catches a server that trains a model of its own instead of the average, and a mean that ignores samples."""

    def clients() -> list[Client]:
        return unequal_clients(lambda: cf.TorchLearner(model, batch_size=8))

    df = FedDF(local_epochs=2, server_epochs=0).fit(clients(), UNLABELLED, rounds=2, n_classes=4)
    avg = FedAvg(local_epochs=2).fit(clients(), UNLABELLED, rounds=2, n_classes=4)
    for id in "abc":
        assert_same(df.model(id).weights(), avg.model(id).weights())


def test_the_average_goes_one_step_towards_the_softmax_of_the_mean_of_the_logits():
    """Catches the mean of probabilities; teachers weighted by samples; an average that is not; a student that starts
    anew or from the model of the last round.
    """
    server = opened(unequal_clients(), server_epochs=1)
    for round in range(2):
        modules = [confident(10 * round + seed) for seed in range(3)]
        sizes = (10, 20, 70)
        uplinks = [(id, answer(m, n, round=round)) for id, m, n in zip("abc", modules, sizes, strict=True)]
        downlinks = server.step(iter(uplinks))
        expected = descended(mean_of(*zip(modules, sizes, strict=True)), ensemble(*modules))
        for id in "abc":
            assert downlinks[id].round == round
            assert_close(downlinks[id].weights, expected)


@pytest.mark.parametrize("other", [three_layers, rectified])
def test_every_architecture_is_averaged_on_its_own_and_learns_from_all(other):
    """Catches an ensemble of the clients with the student's architecture only; and groups by the shapes of weights,
    which do not tell a ReLU from a tanh.
    """
    server = opened(mixture(other), server_epochs=1)
    a, b, c = confident(0), confident(1, other), confident(2)
    downlinks = server.step([("a", answer(a, 10)), ("b", answer(b, 20)), ("c", answer(c, 30))])
    teacher = ensemble(a, b, c)
    assert_close(downlinks["a"].weights, descended(mean_of((a, 10), (c, 30)), teacher))
    assert_close(downlinks["b"].weights, descended(b, teacher))
    assert_same(downlinks["c"].weights, downlinks["a"].weights)


def test_without_epochs_at_the_server_each_architecture_has_its_own_fedavg_bit_for_bit():
    """Catches a start that differs from the clients' own, and clients that get another architecture's average."""
    run = FedDF(local_epochs=2, server_epochs=0).fit(mixture(), UNLABELLED, rounds=2, n_classes=4)
    for ids in ("ac", "b"):
        members = [client for client in mixture() if client.id in ids]
        alone = FedAvg(local_epochs=2).fit(members, UNLABELLED, rounds=2, n_classes=4)
        for id in ids:
            assert_same(run.model(id).weights(), alone.model(id).weights())


def test_an_architecture_without_answers_still_learns_from_the_others():
    """Catches a round that fails, and a student that is left at the refused weights or gets no answer."""
    server = opened(mixture(), server_epochs=1)
    a, c = confident(0), confident(2)
    start = three_layers()
    start.load_state_dict({k: torch.from_numpy(v) for k, v in server.own["b"].model.weights().items()})
    refused = answer(infinite(three_layers), 20)
    downlinks = server.step([("a", answer(a, 10)), ("b", refused), ("c", answer(c, 30))])
    assert [(r.round, r.client) for r in server.rejections] == [(0, "b")]
    assert_close(downlinks["b"].weights, descended(start, ensemble(a, c)))
    server.step([("a", answer(a, 10, round=1)), ("b", answer(confident(1, three_layers), 20, round=1))])
    assert len(server.rejections) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (answer(two_layers(), 20, round=1), "client 'b': weights are of round 1; expected 0"),
        (answer(two_layers(), 0), "client 'b': weights: samples: 0; expected at least 1"),
        (answer(two_layers(), 20, factor=np.nan), "client 'b': weights: NaN or infinity in 0.weight"),
        (answer(infinite(), 20), "client 'b': model has logits that are NaN or infinity"),
        (answer(three_layers(), 20), "client 'b': weights: 0.bias: float32 of shape (5,); expected float32 of shape"),
    ],
)
def test_a_bad_message_is_recorded_and_neither_averaged_nor_believed(bad, reason):
    """Catches an ensemble of everyone beside an average of those that were accepted. Weights can be finite and what
    they predict infinite.
    """
    server = opened(unequal_clients(), server_epochs=1)
    a, c = confident(0), confident(2)
    downlinks = server.step([("a", answer(a, 10)), ("b", bad), ("c", answer(c, 30))])
    assert_close(downlinks["b"].weights, descended(mean_of((a, 10), (c, 30)), ensemble(a, c)))
    (rejection,) = server.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert reason in rejection.reason


def test_a_client_cannot_send_another_architecture():
    server = opened(mixture())
    downlinks = server.step([("a", answer(three_layers(), 10)), ("b", answer(confident(1, three_layers), 20))])
    assert [rejection.client for rejection in server.rejections] == ["a"]
    assert downlinks["a"].weights.keys() == two_layers().state_dict().keys()


def test_a_round_in_which_nobody_is_accepted_is_an_error_with_all_reasons():
    server = opened(mixture())
    with pytest.raises(InvalidMessageError, match="round 0: no message was accepted; client 'a': .*; client 'b': "):
        server.step([("a", answer(two_layers(), 0)), ("b", answer(two_layers(), 5))])


def test_models_without_weights_and_different_starts_are_refused():
    """Architectures may differ; within one, the mean of unrelated networks means nothing."""
    forest = unequal_clients()[1].with_learner(cf.SklearnLearner(LogisticRegression()))
    with pytest.raises(NotApplicableError, match="'feddf' shares weights: client 'b' has a SklearnLearner"):
        FedDF().fit([unequal_clients()[0], forest], UNLABELLED, rounds=0, n_classes=4)
    unrelated = unequal_clients(lambda: gradient_descent(two_layers()))
    with pytest.raises(NotApplicableError, match="clients 'a' and 'b' start from different weights"):
        FedDF().prepare(unrelated)
    with pytest.raises(ValidationError, match="server_epochs"):
        FedDF(server_epochs=-1)


def test_the_averages_can_be_taught_by_workers():
    """Catches models that are trained in place, which stay as they were when a worker does it."""
    servers = [opened(mixture(), server_epochs=2) for _ in range(2)]
    servers[1].map = lambda function, items: [function(cloudpickle.loads(cloudpickle.dumps(item))) for item in items]
    a, b = confident(0), confident(1, three_layers)
    for round in range(2):
        uplinks = [("a", answer(a, 10, round=round)), ("b", answer(b, 9, round=round))]
        here, there = (server.step(uplinks) for server in servers)
        for id in "abc":
            assert_same(here[id].weights, there[id].weights)


def on_digits(method) -> tuple[float, float, cf.Run]:
    """Return the mean accuracy of the clients in percent, with `method` and alone, on public digits of all classes."""
    clients = digits_clients()
    taken = {row.tobytes() for client in clients for part in (client.private, client.test) for row in part.inputs}
    inputs = (load_digits().data / 16).astype(np.float32)
    public = [row for row in inputs if row.tobytes() not in taken][:300]
    run = method.fit(clients, np.array(public), rounds=6)
    assert run.rejections == []
    return run.accuracy("client").mean, run.accuracy("local").mean, run


def test_on_digits():
    federated, alone, _ = on_digits(FedDF())
    assert federated == pytest.approx(88.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
