"""What a run leaves behind, in memory and on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

import cosmosfl as cf
from conftest import make_clients
from cosmosfl.evaluation.metrics import MOMENTS
from cosmosfl.run import ModelNotLoadedError
from cosmosfl.store import RunDirectory, RunDirectoryError

PROBE = np.linspace(-3, 3, 40, dtype=np.float32).reshape(20, 2)


def custom_module() -> nn.Module:
    return nn.Linear(2, 4)


@pytest.fixture(scope="module")
def run() -> cf.Run:
    learners = iter(
        [
            cf.TorchLearner("mlp"),
            cf.SklearnLearner(RandomForestClassifier(5)),
            cf.TorchLearner(custom_module, learning_rate=0.1),
            cf.SklearnLearner(LogisticRegression()),
            cf.BoostingLearner("xgboost", n_estimators=5),
            cf.BoostingLearner("lightgbm", n_estimators=5),
        ]
    )
    public = np.random.default_rng(0).uniform(-4, 4, (60, 2)).astype(np.float32)
    result = cf.Cosmos().fit(make_clients(6, learner=lambda: next(learners)), public, rounds=1)
    return dataclasses.replace(result, groups={id: i % 2 for i, id in enumerate("abcdef")}, dataset="blobs")


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "first"
    report = run.save(directory)
    assert report == directory / "report.html"
    return directory


def test_a_run_directory_holds_what_it_should(saved):
    files = {path.name for path in saved.iterdir()}
    assert files == {
        "config.toml", "environment.json", "metrics.jsonl", "clustering.json", "summary.json", "models", "report.html",
    }  # fmt: skip
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".joblib")]


def test_summary_has_its_stable_keys(run, saved):
    summary = json.loads((saved / "summary.json").read_text())
    assert summary["schema"] == 1
    assert (summary["method"], summary["dataset"], summary["seed"], summary["rounds"]) == ("cosmos", "blobs", 0, 1)
    assert summary["clients"] == 6
    assert set(summary["accuracy"]) == set(MOMENTS)
    assert set(summary["accuracy"]["client"]) == {"mean", "std", "min", "per_client"}
    assert set(summary["accuracy"]["client"]["per_client"]) == set("abcdef")
    assert 50 < summary["accuracy"]["client"]["mean"] <= 100  # percent
    assert summary["clusters"] == run.clusters
    assert summary["threshold"] == run.clustering.threshold
    assert summary["adjusted_rand_index"] == 1
    assert set(summary["bytes"]) == {"uplink_per_client_round", "downlink_per_client_round"}
    assert summary["bytes"]["uplink_per_client_round"] == 8 + 60 * 5 * 4  # of 4 classes, and a log ratio
    assert summary["wall_seconds"] > 0


def test_a_loaded_run_is_the_run(run, saved):
    loaded = cf.load(saved, trusted=True, learners={"c": cf.TorchLearner(custom_module)})
    for id in run.models:
        np.testing.assert_allclose(
            loaded.model(id).predict_proba(PROBE), run.model(id).predict_proba(PROBE), atol=1e-6, err_msg=id
        )
    for k in range(len(run.clusters)):
        assert np.array_equal(loaded.cluster_model(k).predict_proba(PROBE), run.cluster_model(k).predict_proba(PROBE))
    assert loaded.measurements == run.measurements
    assert loaded.traffic == run.traffic
    assert loaded.summary() == run.summary()


def test_a_loaded_model_can_go_on_learning(saved):
    model = cf.load(saved, trusted=True).model("b")
    model.fit(PROBE, np.arange(20) % 4, n_classes=4, epochs=1, rng=np.random.default_rng(0))
    assert (model.predict_proba(PROBE).argmax(1) == np.arange(20) % 4).mean() > 0.5
    assert "RandomForest" in repr(model)


def test_models_that_could_do_harm_are_refused_unless_trusted(saved):
    loaded = cf.load(saved)
    with pytest.raises(ModelNotLoadedError, match=r"client 'b' .*sklearn.tree.*trusted=True"):
        loaded.model("b")
    assert loaded.model("d").predict_proba(PROBE).shape == (20, 4)  # linear models are harmless
    assert loaded.summary()["clients"] == 6


def test_a_module_of_ones_own_needs_a_learner_to_restore_into(saved):
    with pytest.raises(ModelNotLoadedError, match=r"client 'c' .*not built in; pass a learner .*learners="):
        cf.load(saved).model("c")


@pytest.mark.parametrize("name", ["os:system", "timm:resnet18", "cnn-s@bad", "cnn-s@99999", "cnn-s@"])
def test_a_saved_file_cannot_name_code_to_run(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "crafted")
    index = tmp_path / "crafted" / "models" / "index.json"
    content = json.loads(index.read_text())
    content["clients"]["a"]["model"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelNotLoadedError, match="not built in"):
        cf.load(tmp_path / "crafted").model("a")


def test_saved_models_hold_no_private_samples(run, saved):
    from safetensors.numpy import load_file

    assert any(key.startswith("training.") for key in run.model("b").state())
    for file in (saved / "models").glob("*.safetensors"):
        assert not [key for key in load_file(file) if key.startswith("training.")]


def test_asking_for_what_is_not_there(run):
    with pytest.raises(KeyError, match="no client 'z'; there are a, b"):
        run.model("z")
    with pytest.raises(IndexError, match="no cluster model 7; there are 2"):
        run.cluster_model(7)


def test_a_directory_with_files_is_refused_unless_told_otherwise(run, saved, tmp_path):
    with pytest.raises(RunDirectoryError, match="is not empty; choose another directory"):
        run.save(saved)
    run.save(tmp_path / "twice")
    run.save(tmp_path / "twice", overwrite=True)
    lines = (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(run.measurements) + len(run.traffic)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    with pytest.raises(RunDirectoryError, match="is not a run; not overwritten"):
        run.save(tmp_path / "letters", overwrite=True)
    with pytest.raises(RunDirectoryError, match="is a file"):
        run.save(tmp_path / "letters" / "dear.txt")


def test_what_is_not_a_finished_run_is_refused(run, tmp_path):
    with pytest.raises(RunDirectoryError, match="does not exist"):
        cf.load(tmp_path / "nowhere")
    RunDirectory.create(tmp_path / "begun", {"rounds": 1})
    with pytest.raises(RunDirectoryError, match=r"has no summary.json; expected the directory of a finished run"):
        cf.load(tmp_path / "begun")


def test_a_run_without_its_models_says_so(saved, tmp_path):
    cell = tmp_path / "cell"
    shutil.copytree(saved, cell)
    shutil.rmtree(cell / "models")
    with pytest.raises(RunDirectoryError, match="holds no models: .* keeps them with --save-models only"):
        cf.load(cell)


def test_metrics_are_on_disk_while_the_run_goes_on(public, tmp_path):
    directory = RunDirectory.create(tmp_path / "run", {})
    lines = []

    def count(event) -> None:
        lines.append(len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))

    cf.Cosmos().fit(make_clients(2), public, rounds=1, callbacks=[directory.record, count])
    assert 0 < lines[len(lines) // 2] < lines[-1]


def test_a_run_without_clusters_and_measurements_can_be_saved_and_loaded(public, tmp_path):
    run = cf.Local().fit(make_clients(2, test=False), public, rounds=0)
    run.save(tmp_path / "local")
    loaded = cf.load(tmp_path / "local")
    assert loaded.clusters == []
    assert loaded.summary()["accuracy"] == dict.fromkeys(MOMENTS)
    assert loaded.summary()["adjusted_rand_index"] is None
