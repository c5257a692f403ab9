"""What is imported when: a party on Flower is a new process for every message."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import cosmosfl as cf
from cosmosfl import learners, methods

HEAVY = ("torch", "sklearn", "scipy", "pandas", "plotly", "skops", "xgboost", "lightgbm")


def imported_by(code: str) -> set[str]:
    """Return which of the heavy libraries a fresh process has imported after some code."""
    report = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_imports_no_heavy_library():
    assert imported_by("import cosmosfl; cosmosfl.Cosmos(); 'fedavg' in cosmosfl.METHODS; dir(cosmosfl)") == set()


def test_a_party_imports_the_library_of_its_learner_only():
    pytest.importorskip("flwr")
    assert imported_by("import cosmosfl.flower") == set()
    found = imported_by("import cosmosfl.flower; cosmosfl.SklearnLearner")
    assert "sklearn" in found
    assert "torch" not in found
    assert "sklearn" not in imported_by("import cosmosfl; cosmosfl.TorchLearner('mlp')")


@pytest.mark.parametrize("package", [cf, methods, learners])
def test_all_that_a_package_exports_is_there_and_listed(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Cosmo'"):
        package.Cosmo  # noqa: B018


def test_every_method_is_called_what_its_class_says():
    assert [method.name for method in cf.METHODS.values()] == list(cf.METHODS)


def test_threads_hold_for_a_torch_that_is_imported_later():
    code = """
from cosmosfl.threads import Threads
import os
with Threads(1):
    from cosmosfl import TorchLearner
    import torch
    assert torch.get_num_threads() == 1
assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True)
    assert not done.returncode, done.stderr


def test_threads_hold_for_what_the_experts_import_later():
    code = """
import numpy as np
from threadpoolctl import threadpool_info
from cosmosfl.experts import log_density_ratio
from cosmosfl.threads import Threads
with Threads(1):
    log_density_ratio(np.random.rand(20, 3), np.random.rand(30, 3))
    assert {library["num_threads"] for library in threadpool_info()} == {1}, threadpool_info()
"""
    two = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **two}, capture_output=True)
    assert not done.returncode, done.stderr
