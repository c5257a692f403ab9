"""Any PyTorch module as a learner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmosfl.data.sets import FloatArray, InputArray, IntArray
from cosmosfl.distillation import (
    Augmentation,
    Loss,
    Schedule,
    consistency,
    cosine,
    flip_crop,
    kl_to_targets,
    n_batches,
    second_softmax,
    temper,
    train,
)
from cosmosfl.learners.codistillation import CoDistillation
from cosmosfl.models import find_model
from cosmosfl.protocol import NotFittedError, State
from cosmosfl.randomness import draw_seed
from cosmosfl.threads import torch_is_imported

torch_is_imported()

ModuleFactory = Callable[..., nn.Module]
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]

_OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, fused=True),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, fused=True),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
}
_MODULE = "module."


@dataclass(frozen=True)
class Departures:
    """How the public research code departs from the paper in what a torch model does; only to compare with it.

    Attributes
    ----------
    consistency_without_gradient
        The consistency term is added to the loss as a constant, so its weight changes nothing but the random stream
        (and the running means of batch normalisation, which see the noisy inputs too).
    second_softmax
        Soft targets pass through `cosmosfl.distillation.second_softmax`, after the temperature.
    ordered_distillation
        `distill` takes `cosmosfl.distillation.ordered_batches`: no shuffling, the tail is dropped.
    initial_seed
        The module is initialised under this seed instead of the run's stream, like every other of its architecture.
    """

    consistency_without_gradient: bool = False
    second_softmax: bool = False
    ordered_distillation: bool = False
    initial_seed: int | None = None


def supports_bfloat16(device: str) -> bool:
    """Say whether a device computes in bfloat16 natively: a GPU since Ampere, a CPU with AVX-512 BF16 or AMX."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest supported torch
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class TorchLearner:
    """A PyTorch module that can fit, distil and predict.

    Parameters
    ----------
    model
        One of: a name, as `cosmosfl.models.find_model` takes it (``"cnn-s"``, ``"torchvision:vgg16@224"``); a factory
        without required parameters; a factory ``f(input_shape, n_classes)``; a module. The module maps a float batch
        (n, ...) to logits (n, C). A factory is called when the learner first learns, under the run's seed, so every
        client starts from its own initialisation; a module starts from the weights that it has.
    learning_rate
        Of `fit`.
    distill_learning_rate
        Of `distill`; by default the same as `learning_rate`.
    batch_size
        Samples a step.
    optimizer
        ``"adam"`` (the paper's), ``"adamw"``, ``"sgd"`` (momentum 0.9), or ``f(parameters, learning_rate)``. Made
        anew for every call of `fit` and `distill`, as in the paper.
    label_smoothing
        Of the cross-entropy in `fit`, in [0, 1).
    temperature
        T of the soft labels in `distill`: targets become ``p ** (1 / T)``, normalised; 0 means one-hot.
    consistency
        λ, the weight of the consistency term in `distill` (the paper's server uses 5).
    consistency_noise
        Standard deviation of its input noise.
    clip_norm
        Largest gradient norm in `distill`; None for no clipping.
    augment
        Applied to each training batch afresh: ``"flip-crop"`` (`cosmosfl.distillation.flip_crop`),
        ``f(inputs, generator) -> inputs``, or None for none.
    precision
        Of the forward pass in training and prediction; weights, losses and optimiser stay in float32. ``"bfloat16"``
        is faster where the processor knows it, and ``"auto"`` takes it there (`supports_bfloat16`) and ``"float32"``
        elsewhere.
    device
        ``"auto"`` takes a GPU where there is one.
    departures
        From the paper, towards its public research code; None for none.

    Notes
    -----
    Images are (n, channels, height, width). uint8 inputs are scaled to [-1, 1]; floats are taken as they are.
    """

    def __init__(
        self,
        model: str | nn.Module | ModuleFactory,
        *,
        learning_rate: float = 1e-3,
        distill_learning_rate: float | None = None,
        batch_size: int = 32,
        optimizer: Literal["adam", "adamw", "sgd"] | OptimizerFactory = "adam",
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        consistency: float = 0.0,
        consistency_noise: float = 0.05,
        clip_norm: float | None = 1.0,
        augment: Literal["flip-crop"] | Augmentation | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        device: str = "auto",
        departures: Departures | None = None,
    ) -> None:
        _at_least("learning_rate", learning_rate, 0, strictly=True)
        if distill_learning_rate is not None:
            _at_least("distill_learning_rate", distill_learning_rate, 0, strictly=True)
        _at_least("batch_size", batch_size, 1)
        _at_least("temperature", temperature, 0)
        _at_least("consistency", consistency, 0)
        _at_least("consistency_noise", consistency_noise, 0)
        if isinstance(optimizer, str) and optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer: {optimizer!r}; expected one of {', '.join(_OPTIMIZERS)} or a function")
        if isinstance(augment, str) and augment != "flip-crop":
            raise ValueError(f"augment: {augment!r}; expected 'flip-crop', a function or None")
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision: {precision!r}; expected 'auto', 'float32' or 'bfloat16'")
        self.model = model
        self.learning_rate = learning_rate
        self.distill_learning_rate = learning_rate if distill_learning_rate is None else distill_learning_rate
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.consistency = consistency
        self.consistency_noise = consistency_noise
        self.clip_norm = clip_norm
        self.augment = flip_crop if augment == "flip-crop" else augment
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if precision == "auto":
            precision = "bfloat16" if supports_bfloat16(self.device) else "float32"
        self.precision = precision
        self.departures = departures or Departures()
        self._factory = find_model(model) if isinstance(model, str) else model
        self._module: nn.Module | None = None
        self._n_classes = 0
        self._input_shape: tuple[int, ...] = ()

    def __repr__(self) -> str:
        model = (
            self.model if isinstance(self.model, str) else getattr(self.model, "__name__", type(self.model).__name__)
        )
        return f"TorchLearner({model})"

    def saved_as(self) -> dict[str, Any]:
        """Return what a saved run says of this learner; a model that has no name cannot be made again from that."""
        return {"kind": "torch", "model": self.model if isinstance(self.model, str) else None}

    @property
    def module(self) -> nn.Module:
        """The module itself, in evaluation mode; it exists once the learner has learned something."""
        if self._module is None:
            raise NotFittedError(f"{self!r} has not learned anything yet; call fit or distill first")
        return self._module

    def fit(
        self,
        inputs: InputArray,
        labels: IntArray,
        *,
        n_classes: int,
        epochs: int,
        rng: np.random.Generator,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        trainable: Callable[[str], bool] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        """Train on hard labels with cross-entropy, starting from what was learned before.

        Parameters
        ----------
        penalty
            Added to the loss of every batch, such as the proximal term of FedProx.
        trainable
            Says of a parameter's name whether it is trained; by default all are.
        schedule
            Of the learning rate, such as `cosmosfl.distillation.cosine`; None keeps it constant.
        """
        self.build(inputs.shape[1:], n_classes, rng)

        def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = F.cross_entropy(self.logits(module, x), y, label_smoothing=self.label_smoothing)
            return value if penalty is None else value + penalty(module)

        named = dict(self.module.named_parameters())
        frozen = [p for name, p in named.items() if p.requires_grad and trainable is not None and not trainable(name)]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            self.train(self.module, inputs, labels, loss, epochs=epochs, rng=rng, schedule=schedule)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def distill(self, inputs: InputArray, probabilities: FloatArray, *, epochs: int, rng: np.random.Generator) -> None:
        """Train on soft labels: ``KL(p^(T) || g(x)) + λ · consistency`` (the paper's server loss; clients: λ = 0)."""
        self.build(inputs.shape[1:], probabilities.shape[1], rng)
        departures = self.departures

        def loss(module: nn.Module, x: Tensor, p: Tensor) -> Tensor:
            logits = self.logits(module, x)
            value = kl_to_targets(logits, p)
            if self.consistency:
                with torch.set_grad_enabled(not departures.consistency_without_gradient):
                    noisy = self.logits(module, x + self.consistency_noise * torch.randn_like(x))
                    term = consistency(logits, noisy)
                value = value + self.consistency * term
            return value

        targets = temper(_as_tensor(np.asarray(probabilities, np.float32)), self.temperature)
        if departures.second_softmax:
            targets = second_softmax(targets)
        ordered = departures.ordered_distillation
        self._train(
            self.module,
            inputs,
            targets,
            loss,
            self.distill_learning_rate,
            self.clip_norm,
            epochs,
            rng,
            ordered=ordered,
        )

    def fit_jointly(
        self,
        inputs: InputArray,
        labels: IntArray,
        public: InputArray,
        probabilities: FloatArray,
        *,
        n_classes: int,
        epochs: int,
        rng: np.random.Generator,
    ) -> None:
        """Train on hard labels and on soft ones at once: cross-entropy on a private batch plus KL on a public one.

        With the settings of `fit`; the learning rate falls to zero along half a cosine. Those of `distill` alone
        (temperature, consistency, clipping, its learning rate) have no effect.

        Parameters
        ----------
        public, probabilities
            Public inputs (m, ...) and their soft labels (m, C).
        epochs
            Of the public set. The private set is gone through as often as its batches are needed, at least once.
        """
        public_rng, rng = rng.spawn(2)
        self.fit(
            inputs,
            labels,
            n_classes=n_classes,
            epochs=self._joint_epochs(len(inputs), len(public), epochs),
            rng=rng,
            penalty=CoDistillation(self, public, np.asarray(probabilities, np.float32), public_rng),
            schedule=cosine,
        )

    def _joint_epochs(self, private: int, public: int, epochs: int) -> int:
        """Return how often `fit_jointly` goes through the private set."""
        return max(1, round(epochs * n_batches(public, self.batch_size) / n_batches(private, self.batch_size)))

    def joint_samples(self, private: int, public: int, epochs: int) -> int:
        """Return how many samples, private and public ones together, the steps of `fit_jointly` see.

        Parameters
        ----------
        private, public
            Samples of the two sets.
        epochs
            Of the public set.
        """
        own = self._joint_epochs(private, public, epochs)
        steps = own * n_batches(private, self.batch_size)
        return own * private + round(steps * public / n_batches(public, self.batch_size))

    def predict_proba(self, inputs: InputArray, *, batch_size: int = 1024) -> FloatArray:
        """Return class probabilities (n, C), float32."""
        module = self.module
        module.eval()
        with torch.inference_mode():
            parts = [
                self.logits(module, self.tensor(inputs[start : start + batch_size])).softmax(dim=1).cpu()
                for start in range(0, len(inputs), batch_size)
            ]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self._n_classes), np.float32)

    def state(self) -> State:
        """Return the module's parameters and buffers, and the shapes it was built for."""
        return {
            **{_MODULE + k: v for k, v in self.weights().items()},
            "n_classes": np.array(self._n_classes),
            "input_shape": np.array(self._input_shape, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Load what `state` returned; the learner has to have been made with the same model."""
        self.build(tuple(int(n) for n in state["input_shape"]), int(state["n_classes"]), np.random.default_rng(0))
        self.load_weights({k.removeprefix(_MODULE): v for k, v in state.items() if k.startswith(_MODULE)})

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the module's parameters and buffers, by name."""
        return {k: v.detach().cpu().numpy().copy() for k, v in self.module.state_dict().items()}

    def load_weights(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `weights` returned, all of it or some."""
        arrays = {k: _as_tensor(v) for k, v in weights.items()}
        if unknown := self.module.load_state_dict(arrays, strict=False).unexpected_keys:
            raise ValueError(f"{self!r}: the module has no {', '.join(unknown)}")
        self.module.eval()

    def build(self, input_shape: tuple[int, ...], n_classes: int, rng: np.random.Generator) -> None:
        """Make the module, initialised from `rng`, if there is none yet; `fit` and `distill` do so themselves.

        Raises
        ------
        ValueError
            If the module does not map inputs of this shape to one logit per class, or was built for other shapes.
        """
        if self._module is None:
            drawn = draw_seed(rng)  # in any case, for what comes after not to depend on where the seed is from
            given = self.departures.initial_seed
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(drawn if given is None else given)
                module = _make(self._factory, input_shape, n_classes)
            self._module = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._input_shape, self._n_classes = input_shape, n_classes
            self._module.eval()
            with torch.inference_mode():
                probe = self._module(torch.zeros(1, *input_shape, device=self.device))
            if tuple(probe.shape) != (1, n_classes):
                self._module = None
                raise ValueError(
                    f"{self!r}: the module maps a batch (1, {', '.join(map(str, input_shape))}) to shape "
                    f"{tuple(probe.shape)}; expected (1, {n_classes}), one logit per class"
                )
        elif (input_shape, n_classes) != (self._input_shape, self._n_classes):
            raise ValueError(
                f"{self!r}: inputs {input_shape} with {n_classes} classes; expected {self._input_shape} with "
                f"{self._n_classes}, as in the call before"
            )

    # --- how it is done ---

    def train(
        self,
        module: nn.Module,
        inputs: InputArray,
        labels: IntArray,
        loss: Loss,
        *,
        epochs: int,
        rng: np.random.Generator,
        schedule: Schedule | None = None,
    ) -> None:
        """Train a module with a loss of the caller's, in all else as `fit` trains the learner's own."""
        targets = _as_tensor(labels)
        self._train(module, inputs, targets, loss, self.learning_rate, None, epochs, rng, schedule=schedule)

    def make_optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Return a new optimiser of this learner's kind."""
        make = _OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameters, learning_rate)

    def _train(
        self,
        module: nn.Module,
        inputs: InputArray,
        targets: Tensor,
        loss: Loss,
        learning_rate: float,
        clip_norm: float | None,
        epochs: int,
        rng: np.random.Generator,
        *,
        ordered: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        train(
            module,
            self.tensor(inputs),
            targets.to(self.device),
            loss,
            self.make_optimizer((p for p in module.parameters() if p.requires_grad), learning_rate),
            epochs=epochs,
            batch_size=self.batch_size,
            rng=rng,
            clip_norm=clip_norm,
            augment=self.augment,
            ordered=ordered,
            schedule=schedule,
        )

    def logits(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Return the module's logits (n, C), float32, computed in this learner's precision."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: Tensor = module(inputs)
        return logits.float()

    def tensor(self, inputs: InputArray) -> Tensor:
        """Return inputs (n, ...) as the module takes them: scaled floats on its device, images with channels last."""
        tensor = _as_tensor(inputs).to(self.device)
        tensor = tensor.float().div_(127.5).sub_(1) if tensor.dtype == torch.uint8 else tensor.float()
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return an array as a tensor; one that may not be written to, such as the memory map of a worker, is copied."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _make(factory: nn.Module | ModuleFactory, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    required = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (0, 2):
        raise ValueError(
            f"model factory {factory!r} has {len(required)} required parameters; expected none, or two: "
            "(input_shape, n_classes)"
        )
    return factory(input_shape, n_classes) if required else factory()


def _at_least(name: str, value: float, least: float, *, strictly: bool = False) -> None:
    if not (value > least if strictly else value >= least):
        raise ValueError(f"{name}: {value!r}; expected a number {'above' if strictly else 'of at least'} {least}")
