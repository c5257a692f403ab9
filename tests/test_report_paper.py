"""The paper's curves in a report: which one, what it is called, and that it is never taken for something else."""

from __future__ import annotations

import pytest

import cosmosfl as cf
from cosmosfl.data.sources import SOURCES
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.models import MODELS
from cosmosfl.report.figures import accuracy_figure
from cosmosfl.report.page import render
from cosmosfl.report.paper import _mixture, _points, paper_curve
from cosmosfl.report.results import Results
from cosmosfl.store import RunDirectory

USUAL = ("mobilenetv2", "squeezenet")


def measured(last: int) -> list[Measurement]:
    return [Measurement(r, moment, id, 50.0, 80.0, 50) for r in range(last + 1) for moment in ("client", "oracle")
            for id in "ab"]  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """Render the report of a run with this data set and these models."""

    def make(dataset: str, models=USUAL, method: str = "cosmos") -> str:
        config = {"rounds": 1, "dataset": {"name": dataset}, "clients": {"models": list(models)}}
        history = measured(1)
        run = cf.Run(config, method, 1, 0, 2, {"a": None, "b": None}, {}, None, history, 75.0, dataset=dataset)
        made = RunDirectory.create(tmp_path / "run", config)
        for event in history:
            made.record(event)
        made.write_summary(run.summary())
        return render(Results.read(made))

    return make


# --- which curve ---


def test_the_curve_of_a_data_set_is_that_of_figure_2():
    curve = paper_curve("cifar100", USUAL)
    assert (curve.figure, curve.metric, curve.caveat) == ("fig. 2", "top1", "")
    assert curve.label == "paper, fig. 2 (best cluster model per client)"
    assert curve.rounds == tuple(range(10))
    assert curve.accuracies == (24.4, 33.7, 39.0, 41.6, 42.5, 43.7, 43.8, 44.0, 43.8, 44.3)


def test_a_mixture_of_figure_3_is_found_in_any_order_and_at_any_image_size():
    curve = paper_curve("cifar100", ("squeezenet@224", "ResNet18"))
    assert (curve.figure, curve.caveat, curve.accuracies[0]) == ("fig. 3", "", 24.9)


@pytest.mark.parametrize("models", [("mlp", "cnn-s"), ("mobilenetv2",), (*USUAL, "resnet18"), ()])
def test_another_mixture_has_the_usual_curve_and_says_that_it_is_another_setting(models):
    curve = paper_curve("cifar100", models)
    assert curve.accuracies == paper_curve("cifar100", USUAL).accuracies
    assert "another setting" in curve.label
    assert curve.caveat == "its clients are MobileNetV2 and SqueezeNet"


def test_a_mixture_of_figure_3_is_of_no_other_data_set():
    assert paper_curve("cifar10", ("alexnet", "resnet18")).caveat == "its clients are MobileNetV2 and SqueezeNet"


def test_emnist47_is_said_not_to_be_comparable_even_with_the_same_models():
    curve = paper_curve("emnist47", USUAL)
    assert curve.accuracies == paper_curve("emnist-balanced", USUAL).accuracies
    assert "not comparable" in curve.label
    assert curve.caveat == "emnist47 is another selection of images than emnist-balanced, hence not comparable"
    assert not paper_curve("emnist-balanced", USUAL).caveat


def test_points_that_could_not_be_read_are_left_out():
    curve = paper_curve("cifar100", ("mobilenetv2", "resnet18"))
    assert curve.rounds == (0, 1, 2, 3, 4, 5, 6, 8, 9)
    assert len(curve.accuracies) == 9


@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "./cifar100", ""])
def test_other_data_sets_have_no_curve(dataset):
    assert paper_curve(dataset, USUAL) is None


def test_a_method_that_the_paper_does_not_have_has_no_curve():
    assert paper_curve("cifar100", USUAL, "local") is None
    assert paper_curve("cifar100", USUAL, "FedMD").accuracies != paper_curve("cifar100", USUAL).accuracies


def test_the_file_speaks_of_data_sets_and_models_by_our_names():
    assert {point.dataset for point in _points()} <= set(SOURCES)
    assert {name for point in _points() for name in _mixture(point.client_models)} <= set(MODELS)
    assert all(0 < float(point.accuracy_percent or 1) < 100 for point in _points())


# --- in the report ---


def test_the_curve_is_one_dotted_line_that_ends_with_the_run():
    curve = paper_curve("cifar100", USUAL)
    without, beside = accuracy_figure(measured(3)), accuracy_figure(measured(3), paper=curve)
    (line,) = (trace for trace in beside.data if trace.name == curve.label)
    assert len(beside.data) == len(without.data) + 1
    assert (list(line.x), list(line.y), line.line.dash) == ([0, 1, 2, 3], [24.4, 33.7, 39.0, 41.6], "dot")
    assert beside.layout.xaxis.range == without.layout.xaxis.range


def test_the_report_says_what_the_curve_compares_with(page):
    source = page("cifar100")
    assert "paper, fig. 2 (best cluster model per client)" in source
    assert "compares with the oracle here, not with the clients&#x27; own models" in source
    assert "It is another setting" not in source


def test_the_report_says_that_the_setting_is_another_one(page):
    assert "It is another setting: its clients are MobileNetV2 and SqueezeNet." in page("cifar100", ["mlp"])


def test_top_5_accuracy_is_stated_but_not_drawn_among_top_1(page):
    source = page("tinyimagenet")
    assert "has top-5 accuracy, so it is not in this chart: from 31.5\u00a0% in round 0" in source
    assert "best cluster model per client" not in source


@pytest.mark.parametrize(("dataset", "method"), [("digits", "cosmos"), ("cifar100", "local")])
def test_a_run_that_the_paper_has_nothing_of_has_no_such_line(page, dataset, method):
    assert "arXiv 2605.11165" not in page(dataset, method=method)
