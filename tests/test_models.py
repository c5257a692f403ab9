"""Architectures: what they take and give, and that they learn; names: what they stand for."""

import pickle
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from cosmosfl.models import MODELS, find_model
from cosmosfl.models.blocks import stem_halvings

CONVOLUTIONAL_PARAMETERS = {  # of the originals, without their classifiers
    "alexnet": 2_469_696,
    "resnet18": 11_176_512,
    "mobilenetv2": 2_223_872,
    "squeezenet": 722_496,
    "vgg16": 14_723_136,
    "densenet121": 6_953_856,
}
NAMES = list(CONVOLUTIONAL_PARAMETERS)


def make(name: str, input_shape: tuple[int, ...] = (3, 32, 32), n_classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return find_model(name)(input_shape, n_classes)


def quadrants(n: int, side: int) -> tuple[Tensor, Tensor]:
    """Return noise images (n, 1, side, side) of four classes: which quadrant is bright."""
    images = 0.3 * torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 4
    half = side // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return images, labels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_images_of_all_benchmarks_give_logits(name: str, input_shape: tuple[int, ...]) -> None:
    module = make(name, input_shape, n_classes=7).eval()
    with torch.inference_mode():
        logits = module(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert logits.abs().max() < 100


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_reaches_every_parameter(name: str) -> None:
    module = make(name, (1, 28, 28))  # the smallest images, and two of them: where batch normalisation fails first
    nn.functional.cross_entropy(module(torch.randn(2, 1, 28, 28)), torch.tensor([0, 1])).backward()
    missed = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missed == []


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_initial_weights(name: str) -> None:
    first, again, other = (make(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_convolutional_parts_have_the_size_of_the_originals(name: str) -> None:
    layers = [m for m in make(name).modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    if name == "squeezenet":
        layers.pop()  # its classifier is a convolution
    count = sum(p.numel() for layer in layers for p in layer.parameters())
    assert count == pytest.approx(CONVOLUTIONAL_PARAMETERS[name], rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vgg16", "alexnet")])
def test_large_images_are_halved_more_often(name: str) -> None:
    def positions(side: int) -> int:
        """Return the number of positions that the last pooling averages over."""
        seen: list[torch.Size] = []
        module = make(name, (1, side, side)).eval()
        (pool,) = [m for m in module.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
        pool.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[2:]))
        with torch.inference_mode():
            module(torch.zeros(1, 1, side, side))
        return seen[0].numel()

    assert positions(64) == positions(32) >= 16


@pytest.mark.parametrize(("side", "halvings"), [(28, 0), (63, 0), (64, 1), (127, 1), (128, 2), (512, 2)])
def test_stems_halve_images_that_stay_large_enough(side: int, halvings: int) -> None:
    assert stem_halvings((3, side, 2 * side)) == halvings


@pytest.mark.parametrize("name", ["mobilenetv2", "squeezenet", "alexnet"])
def test_learns_where_an_image_is_bright(name: str) -> None:
    images, labels = quadrants(32, 16)
    module = make(name, (1, 16, 16), n_classes=4)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(60):
        for index in torch.randperm(32).split(16):
            loss = nn.functional.cross_entropy(module(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_flat_features_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"input shape \(20,\); a CNN takes images"):
        find_model(name)((20,), 3)


# --- names ---


def test_unknown_names_lead_to_the_nearest() -> None:
    with pytest.raises(ValueError, match="'resnet-18' is not known; did you mean 'resnet18'"):
        find_model("resnet-18")
    with pytest.raises(ValueError, match="did you mean 'vgg16'"):
        find_model("vgg61@64")


def test_size_after_the_name_resizes_the_images() -> None:
    images = torch.rand(2, 1, 8, 12)
    module = make("cnn-s@20", (1, 8, 12)).eval()
    inner = make("cnn-s", (1, 20, 20)).eval()
    seen = nn.functional.interpolate(images, size=(20, 20), mode="bilinear")
    assert torch.equal(module(images), inner(seen))


def test_shrinking_smooths() -> None:
    seen: list[Tensor] = []
    module = make("cnn-s@8", (1, 32, 32)).eval()
    next(module.children()).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    checkerboard = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    module(checkerboard.float().expand(1, 1, 32, 32))
    assert torch.allclose(seen[0][..., 1:-1, 1:-1], torch.tensor(0.5), atol=0.05)
    assert seen[0].shape == (1, 1, 8, 8)


@pytest.mark.parametrize("size", ["", "0", "-8", "8.5", "large"])
def test_size_has_to_be_a_number_of_pixels(size: str) -> None:
    with pytest.raises(ValueError, match=f"'cnn-s@{size}': size '{size}'; expected a number of pixels"):
        find_model(f"cnn-s@{size}")


def test_names_that_run_code_are_not_built_in() -> None:
    # saved runs rebuild models whose names are in MODELS, and no others
    assert not [name for name in MODELS if ":" in name or "@" in name]


NETS = """
from torch import nn

class Linear(nn.Sequential):
    def __init__(self, input_shape, n_classes, bias=True):
        super().__init__(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], n_classes, bias))

def fixed(n_classes=3):
    return Linear((1, 4, 4), n_classes)

def one_parameter(n_classes): ...
def two_keywords(*, input_shape, n_classes): ...
def nothing(): ...

SHARED = fixed()
NUMBER = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch) -> str:
    """Return the name of a module with factories, in a package."""
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "__init__.py").touch()
    (tmp_path / "somebodys" / "nets.py").write_text(NETS)
    (tmp_path / "somebodys" / "broken.py").write_text("import a_library_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("somebodys", "somebodys.nets", "somebodys.broken"):
        monkeypatch.setitem(sys.modules, name, None)  # so that the end of the test removes what it imports
        del sys.modules[name]
    return "somebodys.nets"


@pytest.mark.parametrize("factory", ["Linear", "fixed"])
def test_factory_by_import(nets: str, factory: str) -> None:
    assert make(f"{nets}:{factory}", (1, 4, 4), n_classes=3)(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_size_applies_to_imported_factories(nets: str) -> None:
    assert make(f"{nets}:Linear@6", (3, 4, 4), n_classes=2)(torch.zeros(2, 3, 4, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobodys.nets:tiny", "there is no module 'nobodys'"),
        ("somebodys.net:tiny", "there is no module 'somebodys.net'"),
        ("somebodys.nets:missing", "module 'somebodys.nets' has no 'missing'"),
        ("somebodys.nets:NUMBER", "an object of type int; expected a factory"),
        ("somebodys.nets:SHARED", "an object of type Linear; expected a factory"),
        ("somebodys.nets:one_parameter", r"takes \(n_classes\); expected a factory"),
        ("somebodys.nets:two_keywords", r"takes \(\*, input_shape, n_classes\); expected a factory"),
        ("somebodys.nets:", "expected 'module:factory'"),
        (":tiny", "expected 'module:factory'"),
        (".nets:tiny", "expected 'module:factory'"),
        ("some/file.py:tiny", "expected 'module:factory'"),
    ],
)
def test_factories_that_cannot_be_had(nets: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^model: '{name}'.*{message}"):
        find_model(name)


def test_a_module_that_fails_to_import_says_why_itself(nets: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        find_model("somebodys.broken:tiny")


def test_a_factory_has_to_make_a_module(nets: str) -> None:
    with pytest.raises(TypeError, match=r"'somebodys\.nets:nothing' made a NoneType; expected a torch module"):
        make(f"{nets}:nothing")


class Recorder:
    """Stands for a library's function that makes models; keeps how it was called."""

    def __init__(self, in_channels: int) -> None:
        self.in_channels = in_channels
        self.calls: list[tuple[str, dict[str, int]]] = []

    def __call__(self, name: str, **options: int) -> nn.Module:
        self.calls.append((name, options))
        return nn.Sequential(
            nn.Conv2d(options.get("in_chans", self.in_channels), options["num_classes"], 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


@pytest.fixture
def torchvision(monkeypatch) -> Recorder:
    recorder = Recorder(3)
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.get_model = recorder
    models.list_models = lambda module=None: ["mobilenet_v2", "resnet50"] if module is models else ["a_detector"]
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return recorder


@pytest.fixture
def timm(monkeypatch) -> Recorder:
    recorder = Recorder(3)
    package = ModuleType("timm")
    package.create_model = recorder
    package.is_model = lambda name: name == "convnext_atto"
    monkeypatch.setitem(sys.modules, "timm", package)
    return recorder


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_model(torchvision: Recorder, channels: int) -> None:
    module = make("torchvision:mobilenet_v2", (channels, 32, 32), n_classes=6)
    assert module(torch.zeros(2, channels, 32, 32)).shape == (2, 6)
    assert torchvision.calls == [("mobilenet_v2", {"num_classes": 6})]


def test_grey_images_come_to_torchvision_as_three_equal_channels(torchvision: Recorder) -> None:
    module = make("torchvision:mobilenet_v2", (1, 9, 9))
    grey = torch.rand(2, 1, 9, 9)
    (inner,) = module.children()
    assert torch.equal(module(grey), inner(torch.cat([grey, grey, grey], dim=1)))


def test_torchvision_model_at_another_size(torchvision: Recorder) -> None:
    module = make("torchvision:mobilenet_v2@48", (1, 32, 32), n_classes=6)
    seen: list[torch.Size] = []
    convolution = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 6)
    assert seen == [(2, 3, 48, 48)]


def test_torchvision_errors(torchvision: Recorder) -> None:
    with pytest.raises(ValueError, match="'mobilenetv2' is not known; did you mean 'mobilenet_v2'"):
        find_model("torchvision:mobilenetv2")
    with pytest.raises(ValueError, match="images of 4 channels"):
        find_model("torchvision:resnet50")((4, 32, 32), 2)


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_model(timm: Recorder, channels: int) -> None:
    module = make("timm:convnext_atto@24", (channels, 16, 16), n_classes=6)
    assert module(torch.zeros(2, channels, 16, 16)).shape == (2, 6)
    assert timm.calls == [("convnext_atto", {"num_classes": 6, "in_chans": channels})]
    with pytest.raises(ValueError, match="'convnext_otto' is not known"):
        find_model("timm:convnext_otto")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed(monkeypatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"{library}.models", raising=False)
    with pytest.raises(ImportError, match=f"need {library}, which is not installed; pip install {library}"):
        find_model(f"{library}:resnet18")


def test_factories_can_be_sent_to_another_process(nets: str, torchvision: Recorder, timm: Recorder) -> None:
    for name in ("resnet18", "cnn-s@16", f"{nets}:fixed", "torchvision:resnet50@224", "timm:convnext_atto"):
        assert callable(pickle.loads(pickle.dumps(find_model(name))))
