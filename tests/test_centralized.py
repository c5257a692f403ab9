"""The reference that has all data in one place. Comments name the mistake that a test is there to catch."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from conftest import digits_federation, make_clients
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.centralized import Centralized
from cosmosfl.methods.local import Nothing
from cosmosfl.protocol import Task

TASK = Task(n_classes=4, seed=0)


class Recorder:
    """A learner that writes down what it is fitted on."""

    def __init__(self) -> None:
        self.fits: list[tuple[np.ndarray, np.ndarray, int]] = []

    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        self.fits.append((inputs, labels, epochs))

    def distill(self, inputs, probabilities, *, epochs, rng):
        raise AssertionError("the public set is of no use here")

    def predict_proba(self, inputs):
        return np.full((len(inputs), 4), 0.25, np.float32)

    def state(self):
        return {"fits": np.array(len(self.fits))}

    def restore(self, state):
        self.restored = int(state["fits"])


def mixed_clients() -> list[cf.Client]:
    makers = [
        lambda: cf.TorchLearner("mlp"),
        lambda: cf.SklearnLearner(RandomForestClassifier(5)),
        lambda: cf.TorchLearner("mlp"),
        lambda: cf.TorchLearner("mlp", learning_rate=0.01),
        lambda: cf.SklearnLearner(LogisticRegression()),
    ]
    learners = iter([make() for make in makers])
    return make_clients(5, learner=lambda: next(learners))


def test_one_model_learns_from_every_sample_of_every_client_and_goes_on_in_every_round(public):
    # Caught: the data of one client; a mean of models; a model that begins anew in every round.
    clients = make_clients(3, learner=Recorder)
    side = Centralized(local_epochs=2).prepare(clients).server_side(PublicSet(public), TASK)
    ids = [client.id for client in clients]
    side.open(ids)
    for round in range(3):
        answers = side.step((id, Nothing()) for id in ids)
        assert {(m.round, int(m.state["fits"])) for m in answers.values()} == {(round, round + 1)}
    (learner,) = side.learners.values()
    for inputs, labels, epochs in learner.fits:
        assert epochs == 2
        pairs = sorted(zip(inputs.tolist(), labels.tolist(), strict=True))
        wanted = ((c.private.inputs.tolist(), c.private.labels.tolist()) for c in clients)
        assert pairs == sorted(pair for x, y in wanted for pair in zip(x, y, strict=True))


def test_with_one_client_it_is_that_client_alone_bit_for_bit(public):
    # Caught: another number of epochs than clients have; an initialisation of its own.
    for learner in (cf.TorchLearner("mlp"), cf.SklearnLearner(RandomForestClassifier(5))):
        clients = make_clients(1, learner=lambda learner=learner: learner)
        run = Centralized(local_epochs=2).fit(clients, public, rounds=2)
        alone = cf.Local(local_epochs=2).fit(clients, public, rounds=2)
        np.testing.assert_array_equal(run.model("a").predict_proba(public), alone.model("a").predict_proba(public))
        assert run.accuracy("client") == run.accuracy("local") == run.accuracy("client_after_fit")
        assert sorted({m.round for m in run.measurements if m.moment == "client"}) == [0, 1, 2]


def test_there_is_one_model_for_each_kind_and_its_clients_get_it(public):
    # Caught: settings that do not count, so that a client ends with a model that it would not have trained.
    prepared = Centralized().prepare(mixed_clients())
    run = Centralized(local_epochs=1).fit(mixed_clients(), public, rounds=1)
    assert prepared._pool.kinds == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}
    predicted = {id: run.model(id).predict_proba(public).tobytes() for id in "abcde"}
    assert predicted["a"] == predicted["c"]
    assert len(set(predicted.values())) == 4


def test_a_learner_that_cannot_be_pickled_is_a_kind_of_its_own():
    clients = make_clients(2, learner=lambda: cf.TorchLearner(lambda shape, C: None))
    assert Centralized().prepare(clients)._pool.kinds == {"a": "a", "b": "b"}


def test_no_bytes_are_counted_and_no_samples_are_sent_or_written_down(public):
    clients = mixed_clients()
    run = Centralized(local_epochs=1).fit(clients, public, rounds=1)
    assert {(t.uplink, t.downlink) for t in run.traffic} == {(0, 0)}
    assert run.config["method"] == {"name": "centralized", "local_epochs": 1}
    assert not [key for id in "abcde" for key in run.model(id).state() if key.startswith("training.")]
    assert "pool" not in repr(Centralized().prepare(clients)).lower()


def test_the_caller_s_objects_stay_as_they_are(public):
    clients, method = make_clients(2, learner=Recorder), Centralized()
    method.fit(clients, public, rounds=1, local_baseline=False)
    assert [client.learner.fits for client in clients] == [[], []]
    assert method._pool is None


def test_hyper_parameters_are_checked_and_the_private_sets_have_to_be_known(public):
    with pytest.raises(ValidationError, match="local_epochs"):
        Centralized(local_epochs=0)
    with pytest.raises(ValidationError, match="model"):
        Centralized(model="mlp")
    with pytest.raises(ValueError, match=r"call prepare\(clients\) first"):
        Centralized().server_side(PublicSet(public), TASK)


# --- as a whole ---


def test_all_data_are_better_than_few_on_digits():
    federation = digits_federation()
    run = Centralized().fit(federation.clients, federation.public, rounds=3)
    assert run.accuracy("local").mean == pytest.approx(76.94, abs=1.5)
    assert run.accuracy("client").mean == pytest.approx(87.02, abs=1.5)


def test_neither_the_number_of_workers_nor_the_order_of_the_clients_changes_anything(public, tmp_path):
    one = Centralized().fit(mixed_clients(), public, rounds=2)
    two = Centralized().fit(mixed_clients()[::-1], public, rounds=2, workers=2)
    for id in "abcde":
        np.testing.assert_array_equal(one.model(id).predict_proba(public), two.model(id).predict_proba(public))
    assert one.accuracy("client") == two.accuracy("client")
    assert one.save(tmp_path / "run").is_file()
