"""pFedHN: what the paper's algorithm promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import cosmosfl as cf
from cosmosfl.methods.pfedhn import HyperNetwork, PFedHN, PFedHNServer
from cosmosfl.methods.weights import LocalWeights
from cosmosfl.protocol import InvalidMessageError
from test_weights import (
    PUBLIC,
    TASK,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradient_descent,
    gradients,
    initial_weights,
    normalised,
    unequal_clients,
)

IDS = ["a", "b", "c"]


def opened(ids=IDS, **options) -> PFedHNServer:
    server = PFedHN(**options).prepare(unequal_clients()).server_side(PUBLIC, TASK)
    server.open(ids)
    return server


def trained(ids=IDS, **options) -> PFedHNServer:
    """Return a server after a round: its last layer is not zero any more, and all parameters have a gradient."""
    server = opened(ids, **options)
    server.step([(id, answer(0, seed)) for seed, id in enumerate(ids)])
    return server


def answer(round: int, seed: int, size: float = 0.3, **changed) -> LocalWeights:
    rng = np.random.default_rng(seed)
    weights = {name: array + rng.normal(0, size, array.shape) for name, array in initial_weights().items()}
    return LocalWeights(round, {name: array.astype(np.float32) for name, array in weights.items()} | changed, 5)


def flat(weights) -> Tensor:
    return torch.cat([torch.from_numpy(array).reshape(-1) for array in weights.values()])


class ByHand:
    """SGD with momentum and clipping on the product of an explicit Jacobian with Δ, all in a few lines."""

    def __init__(self, server: PFedHNServer) -> None:
        self.network: HyperNetwork = copy.deepcopy(server.network)
        state = server.optimizer.state
        self.velocity = [
            state[p]["momentum_buffer"].clone() if p in state else torch.zeros_like(p)
            for p in server.network.parameters()
        ]
        self.norms: list[float] = []

    def step(self, client: int, returned: Tensor, rate: float, base: Tensor | None = None) -> None:
        parameters = list(self.network.parameters())
        theta = self.network(client)
        delta = (theta if base is None else base).detach() - returned
        rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in theta]
        product = [torch.einsum("i,i...->...", delta, torch.stack(column)) for column in zip(*rows, strict=True)]
        norm = float(torch.cat([g.reshape(-1) for g in product]).norm())
        self.norms.append(norm)
        with torch.no_grad():
            for parameter, gradient, velocity in zip(parameters, product, self.velocity, strict=True):
                velocity.mul_(0.9).add_(gradient * min(1, 50 / norm))
                parameter.sub_(rate * velocity)


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.3, 30])
def test_the_update_is_the_vector_jacobian_product(size):
    """Catches Δ with the other sign, a mean over it, an embedding that does not move, and no clipping."""
    server = trained(learning_rate=0.01, passes=1)
    hand, sent = ByHand(server), answer(1, 7, size)
    server.step([("b", sent)])
    hand.step(1, flat(sent.weights), 0.01)
    assert (hand.norms[0] > 50) == (size == 30)
    for actual, expected in zip(server.network.parameters(), hand.network.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_one_client_a_step_in_the_order_of_their_ids_and_change_is_from_what_h_makes_now():
    """Catches no momentum, one step for the mean of all clients, all passes for one client before the next, and Δ from
    what was sent, which another client's step has moved since.
    """
    server = trained(learning_rate=0.01, passes=2)
    hand, stale = ByHand(server), ByHand(server)
    sent = [answer(1, seed) for seed in (4, 5, 6)]
    bases = [server.network(client).detach().clone() for client in range(3)]
    server.step(zip(IDS, sent, strict=True))
    for _ in range(2):
        for client, message in enumerate(sent):
            hand.step(client, flat(message.weights), 0.01)
            stale.step(client, flat(message.weights), 0.01, bases[client])
    for actual, expected in zip(server.network.parameters(), hand.network.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(server.network(0), stale.network(0), rtol=1e-3)


def test_what_one_client_learned_reaches_all_but_moves_no_embedding_but_its_own():
    """Catches a hypernetwork for each client, and embeddings that are constants or one vector for all."""
    server = trained(passes=1)
    for group in server.optimizer.param_groups:
        group["momentum"] = 0  # else what the others did before goes on
    before = copy.deepcopy(server.network)
    server.step([("b", answer(1, 9))])
    moved = (server.network.embeddings.weight != before.embeddings.weight).any(dim=1)
    assert moved.tolist() == [False, True, False]
    assert not torch.equal(server.network(0), before(0))


def test_at_the_beginning_it_makes_the_initial_weights_and_then_a_model_for_each_client():
    """Catches libraries that send one model to all, and noise in place of an initialisation."""
    server = opened()
    for client in range(3):
        assert_same(server.made(client), initial_weights())
    assert server.open(IDS)["a"].nbytes == 8  # the round: the initial weights are not sent
    downlinks = server.step([(id, answer(0, seed)) for seed, id in enumerate(IDS)])
    made = [flat(downlinks[id].weights) for id in IDS]
    assert not any(torch.equal(made[i], made[j]) for i in range(3) for j in range(i))


def test_it_learns_what_the_clients_return():
    """Catches everything that moves it elsewhere: the more passes, the nearer."""

    def distance(passes: int) -> float:
        server = opened(passes=passes)
        sent = [answer(0, seed) for seed in range(3)]
        downlinks = server.step(zip(IDS, sent, strict=True))
        return max(
            float((flat(downlinks[id].weights) - flat(message.weights)).norm())
            for id, message in zip(IDS, sent, strict=True)
        )

    few, more, many = distance(1), distance(30), distance(200)
    assert few > more > 5 * many


@pytest.mark.parametrize(("n", "size"), [(3, 1), (4, 2), (10, 3), (50, 13)])
def test_the_form_of_the_hypernetwork_is_the_authors(n, size):
    network = opened([f"{i:02}" for i in range(n)]).network
    assert network.embeddings.weight.shape == (n, size)
    shapes = [tuple(layer.weight.shape) for layer in network.features if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(100, size), (100, 100), (100, 100), (100, 100)]
    assert network.output.weight.shape == (len(flat(initial_weights())), 100)
    assert opened(embedding_size=7).network.embeddings.weight.shape == (3, 7)


def test_it_depends_on_the_seed_alone():
    """Catches a hypernetwork that is drawn from torch's global generator."""
    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_same(trained().made(1), first.made(1))
    assert torch.equal(torch.get_rng_state(), state)


# --- the clients ------------------------------------------------------------------------------------------------------


def test_a_client_trains_what_h_made_for_it_and_deploys_what_h_makes_next():
    """Catches clients that go on from their own last weights, and ones that deploy what they trained."""
    method = PFedHN(local_epochs=1, inner_learning_rate=0.05).prepare(unequal_clients())
    clients = unequal_clients()
    history, _ = federate(method, clients, rounds=1)
    _, server = federate(method, clients)
    for n, client in enumerate(clients):
        theta = server.made(n)
        gradient = gradients(theta, client.private.inputs, client.private.labels)
        assert_close(history[1].sent[client.id].weights, {name: theta[name] - 0.05 * gradient[name] for name in theta})
    run = method.fit(clients, PUBLIC, rounds=0)
    for n, client in enumerate(clients):
        assert_same(run.model(client.id).weights(), server.made(n))


def test_the_rates_and_the_optimiser_of_the_learner_have_no_effect_and_only_the_inner_rate_is_searched_for():
    def server(learner) -> PFedHNServer:
        clients = unequal_clients(learner)
        return federate(PFedHN(local_epochs=2).prepare(clients), clients, rounds=1)[1]

    slow = server(lambda: gradient_descent(learning_rate=1e-6))
    adam = server(lambda: cf.TorchLearner(gradient_descent().model, batch_size=1000, learning_rate=1.0))
    assert_same(slow.made(0), adam.made(0))
    assert PFedHN.tunable == ("method.inner_learning_rate",)


def test_clients_hold_a_model_and_nothing_of_the_hypernetwork():
    """Catches φ or embeddings in a message or in a client's state; and buffers that leave the client."""
    clients = unequal_clients(lambda: cf.TorchLearner(normalised))
    method = PFedHN(local_epochs=1).prepare(clients)
    history, server = federate(method, clients, rounds=1)
    parameters = [name for name, _ in normalised().named_parameters()]
    downlinks = server.step([(id, LocalWeights(2, m.weights, m.samples)) for id, m in history[1].sent.items()])
    for client in clients:
        assert list(history[1].sent[client.id].weights) == parameters
        assert list(downlinks[client.id].weights) == parameters
        side = method.client_side(client.with_learner(copy.deepcopy(client.learner)), PUBLIC, TASK)
        side.step(downlinks[client.id])
        assert side.memory == {}
        model = {f"learner.module.{name}" for name in normalised().state_dict()}
        assert side.state().keys() == model | {"learner.n_classes", "learner.input_shape"}


def test_running_means_stay_with_each_client_and_go_on():
    """Catches statistics that are made by the hypernetwork, or begin anew in each round."""
    clients = unequal_clients(lambda: cf.TorchLearner(normalised))
    history, _ = federate(PFedHN(local_epochs=1).prepare(clients), clients, rounds=1)
    means = [history[1].kept[id]["1.running_mean"] for id in IDS]
    assert not any(np.array_equal(means[i], means[j]) for i in range(3) for j in range(i))
    assert [history[1].kept[id]["1.num_batches_tracked"].item() for id in IDS] == [2, 2, 4]  # 10, 20, 40 in 32s


# --- what is not as agreed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (answer(1, 0), "of round 1; expected 0"),
        (answer(0, 0, np.nan), "NaN or infinity in 0.weight"),
        (answer(0, 0, **{"0.bias": np.ones(9, np.float32)}), "0.bias: float32 of shape (9,); expected float32 of"),
        (answer(0, 0, mean=np.ones(1)), "mean: float64 of shape (1,); expected nothing"),
        (LocalWeights(0, {}, 5), "0.bias: nothing; expected float32 of shape (3,)"),
    ],
)
def test_a_bad_message_is_recorded_and_moves_nothing_and_its_client_still_gets_a_model(bad, reason):
    """Also when it is the first of the first round."""
    server, without = opened(), opened()
    good = [("b", answer(0, 1)), ("c", answer(0, 2))]
    downlinks, expected = server.step([("a", bad), *good]), without.step(good)
    (rejection,) = server.rejections
    assert (rejection.round, rejection.client) == (0, "a")
    assert reason in rejection.reason
    assert downlinks.keys() == set(IDS)
    for id in IDS:
        assert_same(downlinks[id].weights, expected[id].weights)
    assert flat(downlinks["a"].weights).isfinite().all()


def test_a_round_without_any_good_message_is_an_error():
    with pytest.raises(InvalidMessageError, match="none of 1 messages was accepted"):
        opened().step([("a", answer(4, 0))])


@pytest.mark.parametrize(
    "bad",
    [{"inner_learning_rate": 0}, {"learning_rate": float("inf")}, {"passes": 0}, {"embedding_size": 0}, {"lr": 1}],
)
def test_bad_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        PFedHN(**bad)


# --- all of it --------------------------------------------------------------------------------------------------------


def test_each_round_is_measured_at_both_moments_and_the_last_is_of_the_model_that_is_handed_over():
    clients = unequal_clients(test=True)
    run = PFedHN(local_epochs=2).fit(clients, PUBLIC, rounds=1)
    assert {(m.round, m.moment) for m in run.measurements if m.moment != "local"} == {
        (0, "client_after_fit"), (0, "client"), (1, "client_after_fit"), (1, "client"),
    }  # fmt: skip
    for client in clients:
        right = run.model(client.id).predict_proba(client.test.inputs).argmax(axis=1) == client.test.labels
        assert run.accuracy("client").per_client[client.id] == pytest.approx(100 * right.mean())


def test_on_digits():
    federated, alone = digits_accuracy(PFedHN())
    assert federated == pytest.approx(85.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
