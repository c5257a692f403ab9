"""FedSelect: what the paper's algorithm promises."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.fedselect import FedSelect, SharedEntries, only, select, unpack
from cosmosfl.methods.weights import GlobalWeights, LocalWeights
from cosmosfl.protocol import InvalidMessageError
from test_weights import (
    PUBLIC,
    TASK,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradients,
    initial_weights,
    normalised,
    refused,
    two_layers,
    unequal_clients,
)

SHAPES = {name: array.shape for name, array in initial_weights().items()}


def masks(message: SharedEntries) -> dict[str, np.ndarray]:
    """Return which entries are personal, by parameter, from what a client sent."""
    return {name: ~unpack(bits)[: np.prod(SHAPES[name])].reshape(SHAPES[name]) for name, bits in message.shared.items()}


def half_personal(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape) < 0.5 for name, shape in SHAPES.items()}


def side_with(personal, client=None, **options):
    """Return a client side in the middle of a run, with these personal entries, and its weights."""
    client = unequal_clients()[0] if client is None else client
    side = FedSelect(**options).client_side(client.with_learner(copy.deepcopy(client.learner)), PUBLIC, TASK)
    side.build(side.learner)
    side.remember(personal, side.learner.weights())
    return side, side.learner.weights()


# --- which entries are personal ---------------------------------------------------------------------------------------


def test_while_nothing_is_personal_everyone_gets_the_plain_mean():
    """Catches masks that begin all-personal, and a mean that is weighted by samples."""
    history, server = federate(FedSelect(local_epochs=1), unequal_clients())
    for name, start in initial_weights().items():
        mean = np.mean([kept[name] for kept in history[0].kept.values()], axis=0)
        np.testing.assert_allclose(server.weights[name][: start.size].reshape(start.shape), mean, rtol=1e-5)
        assert not any(mask.any() for sent in history[0].sent.values() for mask in masks(sent).values())


def test_the_schedule_of_selections():
    """Catches a selection in every round, one in round 0, a fraction of all entries in place of those still shared, and
    a limit that the last selection oversteps.
    """
    history, _ = federate(FedSelect(local_epochs=1, period=2, rate=0.25, limit=0.6), unequal_clients(), rounds=9)
    counts = [int(masks(round.sent["a"])["2.weight"].sum()) for round in history]  # of 12 entries
    assert counts == [0, 0, 0, 3, 3, 5, 5, 7, 7, 7]
    for before, after in pairwise(history):
        for name, mask in masks(before.sent["a"]).items():
            assert (mask <= masks(after.sent["a"])[name]).all()  # what is personal stays so


def test_those_become_personal_that_moved_most_since_the_last_selection():
    """Catches movement since the last round, since the received means or since the start, entries that moved least, and
    a selection among entries that are personal already.
    """
    history, _ = federate(FedSelect(local_epochs=4, period=2, rate=0.3), unequal_clients(), rounds=6)
    for id in "abc":
        since = initial_weights()
        for t in (2, 4):
            trained, before, after = history[t].kept[id], masks(history[t].sent[id]), masks(history[t + 1].sent[id])
            for name in SHAPES:
                moved = np.abs(trained[name] - since[name])
                new, left = after[name] & ~before[name], ~after[name]
                assert new.any()
                assert moved[new].min() >= moved[left].max()
            since = trained


def test_select_by_hand():
    personal = np.array([[True, False, False], [False, False, False]])
    moved = np.array([[9.0, 1, 5], [4, 3, 2]])
    assert select(moved, personal, 0.4, 1.0).tolist() == [[True, False, True], [True, False, False]]
    assert select(moved, personal, 0.4, 0.4).tolist() == [[True, False, True], [False, False, False]]
    assert select(moved, personal, 0.4, 0.1).tolist() == personal.tolist()
    assert select(moved, personal, 1.0, 1.0).all()


def test_what_becomes_personal_begins_from_the_mean_and_is_left_alone_from_then_on():
    """Catches a selection that is made before the means are taken over, and means that overwrite personal entries."""
    personal = half_personal()
    side, own = side_with(personal, period=1, rate=1.0, limit=1.0)
    means = {name: np.full(-(-array.size // 8) * 8, 7, np.float32) for name, array in own.items()}
    assert side.begin(GlobalWeights(1, means)) == 2
    expected = {name: np.where(personal[name], own[name], np.float32(7)) for name in own}
    assert_same(side.learner.weights(), expected)
    assert all(mask.all() for mask in side.personal().values())
    side.begin(GlobalWeights(2, {name: mean + 1 for name, mean in means.items()}))
    assert_same(side.learner.weights(), expected)


# --- training ---------------------------------------------------------------------------------------------------------


def test_each_epoch_is_a_pass_on_the_personal_entries_and_then_one_on_the_shared():
    """Catches both at once, the other order, and all passes of one kind before those of the other."""
    personal = half_personal()
    side, w = side_with(personal, local_epochs=3)
    side.train(1)
    for _ in range(3):
        for moving in (personal, {name: ~mask for name, mask in personal.items()}):
            gradient = gradients(w, side.private.inputs, side.private.labels)
            w = {name: w[name] - 0.1 * moving[name] * gradient[name] for name in w}
    assert_close(side.learner.weights(), w)


def test_a_pass_holds_all_other_entries_whatever_the_optimiser_does():
    """Catches masked gradients under an optimiser that also decays weights."""
    personal = half_personal()

    def decaying(parameters, rate):
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.5)

    client = unequal_clients(lambda: cf.TorchLearner(two_layers, batch_size=4, optimizer=decaying))[1]
    side, before = side_with(personal, client)
    with only(personal, side.learner.module):
        side.fit(1, 2)
    for name, after in side.learner.weights().items():
        np.testing.assert_array_equal(after[~personal[name]], before[name][~personal[name]])
        assert (after[personal[name]] != before[name][personal[name]]).all()
    side.fit(2, 1)  # and lets go of them
    for name, after in side.learner.weights().items():
        assert (after != before[name]).all()


def test_each_kind_of_entries_has_an_optimiser_for_the_round():
    """Catches momentum and moments that are forgotten in every pass."""
    made = []

    def counting(parameters, rate):
        made.append(torch.optim.Adam(parameters, lr=rate))
        return made[-1]

    client = unequal_clients(lambda: cf.TorchLearner(two_layers, batch_size=5, optimizer=counting))[1]
    side, _ = side_with(half_personal(), client, local_epochs=3)
    side.train(1)
    assert [int(state["step"]) for o in made for state in o.state.values()] == [3 * 4] * 4 * 2


# --- the server -------------------------------------------------------------------------------------------------------


def entries(*values: float | None, round: int = 0, samples: int = 1) -> SharedEntries:
    """Return the message of a client with one parameter, whose entries are shared where they are not None."""
    shared = np.array([value is not None for value in values])
    weights = np.array([value for value in values if value is not None], np.float32)
    return SharedEntries(round, {"w": weights}, samples, {"w": np.packbits(shared)})


def server_for(*ids: str):
    side = FedSelect().server_side(PUBLIC, TASK)
    side.open(ids)
    return side


def test_an_entry_is_averaged_over_those_who_share_it():
    """Catches zeros of those who don't in the mean, and a mean that counts samples."""
    side = server_for("a", "b", "c")
    answers = side.step(
        [
            ("a", entries(1, None, 3, None)),
            ("b", entries(5, 2, None, None, samples=9)),
            ("c", entries(None, 4, 5, None)),
        ]
    )
    np.testing.assert_array_equal(answers["a"].weights["w"][:4], np.float32([3, 3, 4, np.nan]))
    assert answers["a"] is answers["c"]


def test_what_nobody_shares_stays_with_everyone_even_with_those_who_were_not_heard():
    personal = {name: np.zeros(shape, bool) for name, shape in SHAPES.items()}
    side, own = side_with(personal)
    nothing = {name: np.full(-(-array.size // 8) * 8, np.nan, np.float32) for name, array in own.items()}
    side.begin(GlobalWeights(1, nothing))
    assert_same(side.learner.weights(), own)


def test_personal_entries_are_not_on_the_wire():
    history, _ = federate(FedSelect(local_epochs=1, period=1, rate=0.75, limit=1), unequal_clients(), rounds=5)
    for id in "abc":
        for round in history:
            sent, shared = round.sent[id], {name: ~mask for name, mask in masks(round.sent[id]).items()}
            assert_same(sent.weights, {name: round.kept[id][name][mask] for name, mask in shared.items()})
        assert sum(array.size for array in history[0].sent[id].weights.values()) == 9 + 12 + 4
        assert sum(array.size for array in history[-1].sent[id].weights.values()) == 0


def test_what_the_estimate_of_costs_is_told_is_what_happens():
    history, _ = federate(FedSelect(local_epochs=1), unequal_clients(lambda: cf.TorchLearner("mlp")))
    size = sum(array.nbytes for array in history[0].kept["a"].values())
    estimate = FedSelect().message_bytes(4, 4, size)
    assert estimate == pytest.approx(history[0].sent["a"].nbytes, rel=1e-2)
    assert estimate == pytest.approx(size, rel=0.05)
    assert FedSelect(local_epochs=3).training_samples(10, 4) == 60


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LocalWeights(0, {"w": np.ones(4, np.float32)}, 1), "LocalWeights; expected SharedEntries"),
        (entries(1, 2, 3, 4, round=2), "of round 2; expected 0"),
        (entries(1, np.inf, 3, 4), "NaN or infinity in w"),
        (entries(*[1] * 9), "w: float32 for 16 entries; expected float32 for 8 entries"),
        (SharedEntries(0, {"w": np.ones(3, np.float32)}, 1, {"w": np.uint8([240])}), "shape (3,); expected (4,)"),
        (SharedEntries(0, {"w": np.ones(4)}, 1, {"w": np.uint8([240])}), "float64 for 8 entries; expected float32"),
        (SharedEntries(0, {"w": np.ones(4, int)}, 1, {"w": np.uint8([240])}), "w: int64; expected floating point"),
        (SharedEntries(0, {"w": [1.0]}, 1, {"w": np.uint8([128])}), "w: list; expected floating point"),
        (SharedEntries(0, {"w": np.ones(4, np.float32)}, 1, {"w": np.ones(4, bool)}), "not a row of bits"),
        (SharedEntries(0, {"w": np.ones(4, np.float32)}, 1, {"v": np.uint8([240])}), "have different names"),
        (SharedEntries(0, {}, 1, {}), "w: nothing; expected float32 for 8 entries"),
    ],
)
def test_a_bad_message_is_recorded_the_others_are_averaged_and_its_sender_gets_the_means_too(bad, reason):
    side = server_for("a", "b", "c")
    answers = side.step([("a", entries(1, 2, None, 4)), ("b", bad), ("c", entries(3, None, None, 6))])
    np.testing.assert_array_equal(answers["b"].weights["w"][:4], np.float32([2, 2, np.nan, 5]))
    (rejection,) = side.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert reason in rejection.reason


def test_what_was_agreed_on_in_one_round_holds_in_the_next():
    """Else a first message of other sizes would have all others rejected."""
    side = server_for("a", "b")
    side.step([("a", entries(1, 2)), ("b", entries(1, 2))])
    side.step([("a", entries(*[1] * 9, round=1)), ("b", entries(None, 5, round=1))])
    assert [rejection.client for rejection in side.rejections] == ["a"]
    with pytest.raises(InvalidMessageError, match="none of 1 messages was accepted"):
        side.step([("a", entries(np.nan, round=2))])


# --- as a whole -------------------------------------------------------------------------------------------------------


def test_running_means_stay_personal_and_the_model_that_was_measured_last_is_handed_over():
    clients = unequal_clients(lambda: cf.TorchLearner(normalised), test=True)
    method = FedSelect(local_epochs=1, period=1)
    run = method.fit(clients, PUBLIC, rounds=3)
    history, _ = federate(method, clients, rounds=3)
    assert not any("running" in name for name in history[0].sent["a"].weights)
    assert {(m.round, m.moment) for m in run.measurements if m.moment != "local"} == {
        (round, moment) for round in range(4) for moment in ("client_after_fit", "client")
    }
    for client in clients:
        assert_same(run.model(client.id).weights(), history[-1].kept[client.id])
        right = run.model(client.id).predict_proba(client.test.inputs).argmax(axis=1) == client.test.labels
        assert run.accuracy("client").per_client[client.id] == pytest.approx(100 * right.mean())


def test_other_models_are_refused_before_anything_is_trained():
    reason = refused(FedSelect(), cf.TorchLearner("mlp"), cf.SklearnLearner(LogisticRegression()))
    assert "'fedselect' shares weights: client 'b' has a SklearnLearner" in reason
    assert "expected one architecture" in refused(FedSelect(), cf.TorchLearner("mlp"), cf.TorchLearner(two_layers))


@pytest.mark.parametrize("bad", [{"rate": 1.5}, {"rate": float("nan")}, {"limit": -0.1}, {"period": 0}, {"epochs": 3}])
def test_bad_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        FedSelect(**bad)


def test_without_selection_it_is_fedavg_among_equals():
    clients = [c.with_learner(cf.TorchLearner(two_layers, batch_size=4)) for c in unequal_clients()]
    clients = [cf.Client(c.id, c.learner, c.private.inputs[:10], c.private.labels[:10]) for c in clients]
    ours, _ = federate(FedSelect(rate=0, period=1), clients, rounds=2)
    theirs, _ = federate(FedAvg(), clients, rounds=2)
    for id in "abc":
        assert_close(ours[-1].kept[id], theirs[-1].kept[id], atol=1e-5)


def test_on_digits():
    federated, alone = digits_accuracy(FedSelect())
    assert federated == pytest.approx(86.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
