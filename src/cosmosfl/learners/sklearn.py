"""Any scikit-learn classifier as a learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from cosmosfl.data.sets import FloatArray, IntArray
from cosmosfl.learners.refit import RefitLearner
from cosmosfl.protocol import State
from cosmosfl.randomness import draw_seed


class SklearnLearner(RefitLearner):
    """A scikit-learn classifier, or a pipeline that ends in one, that can fit, distil and predict.

    Soft labels become sample weights over (sample, class) pairs where the classifier accepts ``sample_weight``, and a
    seeded weighted resample where it does not. Since such a model cannot go on training, it is refitted on the last
    private and the last public samples together. Inputs with more than two dimensions are flattened.

    Parameters
    ----------
    estimator
        An unfitted classifier with ``predict_proba``. It is cloned, and ``random_state`` is set from the run's seed
        wherever it is None.
    private_weight
        Weight of one private sample against one public sample in a refit.
    draws
        Hard labels drawn per soft label, where the estimator does not accept ``sample_weight``.

    Raises
    ------
    TypeError
        If `estimator` has no ``predict_proba``.
    """

    def __init__(self, estimator: Any, *, private_weight: float = 1.0, draws: int = 4) -> None:
        super().__init__(private_weight=private_weight, draws=draws)
        if isinstance(estimator, type) or not hasattr(estimator, "fit") or not hasattr(estimator, "predict_proba"):
            name = estimator.__name__ if isinstance(estimator, type) else type(estimator).__name__
            raise TypeError(
                f"estimator {name} has no predict_proba; expected a scikit-learn classifier that has one, "
                "as an instance (SVC needs probability=True)"
            )
        self.estimator = estimator

    def __repr__(self) -> str:
        return f"SklearnLearner({type(_last_step(self.estimator)).__name__})"

    def saved_as(self) -> dict[str, Any]:
        """Return what a saved run says of this learner; the estimator is part of its state."""
        return {"kind": "sklearn"}

    @staticmethod
    def untrusted_types(state: State) -> list[str]:
        """Return the types in a saved state that skops does not know to be harmless."""
        import skops.io

        model = state["model"].tobytes()
        return list(skops.io.get_untrusted_types(data=model)) if model else []

    @classmethod
    def from_state(cls, state: State) -> SklearnLearner:
        """Return the learner that returned `state`, where nobody has its estimator any more."""
        learner = cls(DummyClassifier())
        learner.restore(state)
        if (model := learner._unpacked()) is not None:
            learner.estimator = clone(model)
        return learner

    def _takes_weights(self) -> bool:
        return bool(has_fit_parameter(_last_step(self.estimator), "sample_weight"))

    def _train(
        self,
        inputs: FloatArray,
        labels: IntArray,
        weights: npt.NDArray[np.float64] | None,
        rng: np.random.Generator,
    ) -> Any:
        model = clone(self.estimator)
        unseeded = [k for k, v in model.get_params().items() if k.split("__")[-1] == "random_state" and v is None]
        model.set_params(**{name: draw_seed(rng) for name in sorted(unseeded)})
        if weights is None:
            return model.fit(inputs, labels)
        prefix = f"{model.steps[-1][0]}__" if isinstance(model, Pipeline) else ""
        return model.fit(inputs, labels, **{f"{prefix}sample_weight": weights})

    def _probabilities(self, model: Any, inputs: FloatArray) -> FloatArray:
        return np.asarray(model.predict_proba(inputs), dtype=np.float32)

    def _to_bytes(self, model: Any) -> bytes:
        import skops.io  # takes as long to import as everything else together

        return bytes(skops.io.dumps(model))

    def _from_bytes(self, data: bytes) -> Any:
        import skops.io

        return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


def _last_step(estimator: Any) -> Any:
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
