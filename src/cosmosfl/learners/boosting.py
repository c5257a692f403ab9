"""Gradient boosting with XGBoost or LightGBM as a learner (``pip install cosmosfl[boosting]``)."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import FloatArray, IntArray
from cosmosfl.learners.refit import RefitLearner
from cosmosfl.randomness import draw_seed


class BoostingLearner(RefitLearner):
    """Boosted trees that can fit, distil and predict; refitted like `SklearnLearner`, stored in the library's format.

    Parameters
    ----------
    library
        ``"xgboost"`` or ``"lightgbm"``.
    n_estimators, learning_rate, max_depth
        Trees per class, shrinkage, and depth of a tree.
    private_weight
        Weight of one private sample against one public sample in a refit.
    **parameters
        Any other parameter of the library's own ``train`` function.

    Raises
    ------
    ImportError
        If the library is not installed; the message says how to get it.
    """

    def __init__(
        self,
        library: Literal["xgboost", "lightgbm"] = "xgboost",
        *,
        n_estimators: int = 50,
        learning_rate: float = 0.3,
        max_depth: int = 4,
        private_weight: float = 1.0,
        **parameters: Any,
    ) -> None:
        super().__init__(private_weight=private_weight)
        if library not in ("xgboost", "lightgbm"):
            raise ValueError(f"library: {library!r}; expected 'xgboost' or 'lightgbm'")
        _load(library)
        self.library = library
        self.n_estimators = n_estimators
        self.parameters = {"learning_rate": learning_rate, "max_depth": max_depth, **parameters}

    def __repr__(self) -> str:
        return f"BoostingLearner({self.library})"

    def saved_as(self) -> dict[str, Any]:
        """Return what a saved run says of this learner."""
        return {"kind": "boosting", "library": self.library}

    def _takes_weights(self) -> bool:
        return True

    def _train(
        self,
        inputs: FloatArray,
        labels: IntArray,
        weights: npt.NDArray[np.float64] | None,
        rng: np.random.Generator,
    ) -> Any:
        library = _load(self.library)
        k = int(labels.max()) + 1
        seed = draw_seed(rng)
        if self.library == "xgboost":
            parameters = {"objective": "multi:softprob", "num_class": k, "seed": seed, "verbosity": 0}
            data = library.DMatrix(inputs, labels, weight=weights)
            return library.train(parameters | self.parameters, data, num_boost_round=self.n_estimators)
        parameters = {
            "objective": "multiclass", "num_class": k, "seed": seed, "verbosity": -1, "deterministic": True,
            "force_row_wise": True, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0.1,
        }  # fmt: skip
        data = library.Dataset(inputs, labels, weight=weights, params={"verbosity": -1, "min_data_in_bin": 1})
        return library.train(parameters | self.parameters, data, num_boost_round=self.n_estimators)

    def _probabilities(self, model: Any, inputs: FloatArray) -> FloatArray:
        data = _load("xgboost").DMatrix(inputs) if self.library == "xgboost" else inputs
        return np.asarray(model.predict(data), dtype=np.float32)

    def _to_bytes(self, model: Any) -> bytes:
        return bytes(model.save_raw("ubj")) if self.library == "xgboost" else model.model_to_string().encode()

    def _from_bytes(self, data: bytes) -> Any:
        library = _load(self.library)
        if self.library == "lightgbm":
            return library.Booster(model_str=data.decode())
        booster = library.Booster()
        booster.load_model(bytearray(data))
        return booster


def _load(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{library} is not installed; pip install 'cosmosfl[boosting]'") from error
