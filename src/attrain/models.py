"""The architectures of the papers, and one function that builds any model by its name."""

import importlib
import inspect
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from attrain.errors import AttrainError, InputError, unknown
from attrain.spiking import secant_spike

_PADDED_BELOW = 16  # two 5x5 convolutions, each pooled by two, need a side of 16


class Step(nn.Module):
    """The Heaviside step: 1 where the input is above 0, else 0. It has no gradient."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the step of `z`, in its shape and type."""
        return (z > 0).to(z.dtype)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "step": Step,
    "tanh": nn.Tanh,
}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class MLP(nn.Sequential):
    """Dense layers `fc1`, `fc2`, ... with an activation between them; [N, ...] -> [N, classes].

    `inputs` is the number of values per sample, `hidden` the width of each hidden layer. Raises
    InputError for an unknown activation.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], classes: int, activation: str = "relu"
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        widths = [inputs, *hidden]
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"act{number}"] = _activation(activation)
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
        super().__init__(layers)


class LeNet(nn.Sequential):
    """Two convolutions of 5x5, each with activation and 2x2 max-pooling, and three dense layers.

    [N, C, H, W] -> [N, classes]. `width` is the number of channels of each convolution; the dense
    layers (120, 84) grow and shrink with it. Pictures smaller than 16x16 are padded by 2 in both
    convolutions (8x8 digits become 2x2 maps); larger ones are not padded. Raises InputError below
    4x4, and for an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        activation: str = "relu",
        width: int = 16,
    ) -> None:
        channels, *sides = _picture(input_shape, "lenet", smallest=4)
        padding = 2 if min(sides) < _PADDED_BELOW else 0
        for _ in range(2):
            sides = [(side - 4 + 2 * padding) // 2 for side in sides]
        dense = [width * math.prod(sides), 120 * width // 16, 84 * width // 16]
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, width, 5, padding=padding),
                act1=_activation(activation),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(width, width, 5, padding=padding),
                act2=_activation(activation),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(dense[0], dense[1]),
                act3=_activation(activation),
                fc2=nn.Linear(dense[1], dense[2]),
                act4=_activation(activation),
                fc3=nn.Linear(dense[2], classes),
            )
        )


class VGGLike(nn.Sequential):
    """Three blocks of two 3x3 convolutions and a 2x2 max-pooling, then three dense layers.

    Paper 001, A.6.2: 32, 64, 128, 128, 256, 256 channels; 1024 and 512 neurons, with half of them
    dropped out in training. [N, C, H, W] -> [N, classes]. The convolutions are padded by 1, which
    the paper leaves open. `width` is the number of channels of the first one; everything grows and
    shrinks with it. Raises InputError below 8x8, and for an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        activation: str = "relu",
        width: int = 32,
    ) -> None:
        channels, height, side = _picture(input_shape, "vgg-like", smallest=8)
        widths = [channels, *(width * times for times in (1, 2, 4, 4, 8, 8))]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, after, 3, padding=1)
            layers[f"act{number}"] = _activation(activation)
            if number % 2 == 0:
                layers[f"pool{number // 2}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        features = widths[-1] * (height // 8) * (side // 8)
        for number, neurons in enumerate((32 * width, 16 * width), start=1):
            layers[f"fc{number}"] = nn.Linear(features, neurons)
            layers[f"act{number + 6}"] = _activation(activation)
            layers[f"dropout{number}"] = nn.Dropout(0.5)
            features = neurons
        layers["fc3"] = nn.Linear(features, classes)
        super().__init__(layers)


class SpikingNet(nn.Module):
    """Layers of leaky integrate-and-fire neurons of snnTorch, [N, ...] -> spike counts [N, C].

    `stages` make the currents of each layer of neurons. A sample is shown in each of the `steps`
    (constant encoding), so the currents of the first layer are computed once for all of them.
    Layers are run one after the other over all steps, which for a network without connections back
    is the same as step by step. `beta` is the decay of the membrane, `threshold` where it fires.
    `spikes` says what the neurons hand back: "secant" (credit) or "surrogate" (the derivative of
    x / (1 + slope |x|), whose `slope` is 25 in the paper); paper 001, A.5 and A.6.4. Raises
    InputError for numbers out of range and without the extra `snn`.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        steps: int = 15,
        beta: float = 0.9,
        threshold: float = 1.0,
        rule: Literal["pure", "paper"] = "pure",
        spikes: Literal["secant", "surrogate"] = "secant",
        slope: float = 25.0,
    ) -> None:
        super().__init__()
        if steps < 1 or not 0.0 <= beta <= 1.0 or not 0.0 < slope < math.inf:
            raise InputError(
                "a spiking model needs steps of at least 1, beta in 0..1 and a slope above 0, got "
                f"steps={steps}, beta={beta} and slope={slope}."
            )
        try:
            from snntorch import Leaky
        except ImportError as error:
            raise InputError(
                f"spiking models need an extra that is missing ({error}): pip install attrain[snn]."
            ) from error
        self.steps, self.beta, self.threshold, self.rule = steps, beta, threshold, rule
        self.slope = slope
        self.stages = nn.ModuleList(stages)
        self.neurons = nn.ModuleList(Leaky(beta=beta, threshold=threshold) for _ in stages)
        self.spike_by(spikes)

    def spike_by(self, spikes: Literal["secant", "surrogate"]) -> None:
        """Give every neuron its way back, a secant (for credit) or a surrogate's slope."""
        if spikes not in ("secant", "surrogate"):
            raise unknown("way back through spikes", str(spikes), ("secant", "surrogate"))
        from snntorch.surrogate import fast_sigmoid

        last = len(self.neurons) - 1
        for index, neuron in enumerate(cast(Iterable[Any], self.neurons)):
            del neuron.spike_grad
            neuron.state_quant = False
            if spikes == "surrogate":
                neuron.spike_grad = fast_sigmoid(slope=self.slope)
                continue
            spike = secant_spike(self.threshold, output=index == last, rule=self.rule)
            neuron.spike_grad = spike
            if self.rule == "paper":
                neuron.state_quant = spike.membrane
        self.spikes = spikes

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Return the spike counts [N, C], or with `per_step` the spikes [steps, N, C]."""
        layers = zip(self.stages, cast(Iterable[Any], self.neurons), strict=True)
        stage, neuron = next(layers)
        current = stage(x)
        if current.ndim == 4:
            # Pools are faster where channels lie together, and what is made of this stays so.
            current = current.contiguous(memory_format=torch.channels_last)
        spikes = self._fire(neuron, [current] * self.steps)
        for stage, neuron in layers:
            current = stage(torch.cat(spikes))
            spikes = self._fire(neuron, current.chunk(self.steps))
        out = torch.stack(spikes)
        return out if per_step else out.sum(0)

    @staticmethod
    def _fire(neuron: Any, currents: Sequence[Tensor]) -> list[Tensor]:
        """Return the spikes of one layer of neurons in every step."""
        membrane = torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            fired, membrane = neuron(current, membrane)
            spikes.append(fired)
        # The neuron would keep the graph of this batch, and copies of the model fail on that.
        neuron.mem, neuron.reset = membrane.new_zeros(0), None
        return spikes


class SpikingMLP(SpikingNet):
    """Dense layers of spiking neurons, with the options of `SpikingNet`.

    [N, ...] -> spike counts [N, classes].
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (1000, 1000),
        classes: int = 10,
        **options: Any,
    ) -> None:
        widths = [inputs, *hidden, classes]
        stages: list[nn.Module] = [
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        ]
        stages[0] = nn.Sequential(nn.Flatten(), stages[0])
        super().__init__(stages, **options)


class SpikingLeNet(SpikingNet):
    """Two 5x5 convolutions, each pooled before its neurons, and two dense layers.

    [N, C, H, W] -> spike counts [N, classes]; `channels` and `neurons` are the widths. Padding and
    the smallest picture are those of `LeNet`, the options those of `SpikingNet`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int = 10,
        channels: tuple[int, int] = (12, 64),
        neurons: int = 1024,
        **options: Any,
    ) -> None:
        planes, *sides = _picture(input_shape, "lenet-snn", smallest=4)
        padding = 2 if min(sides) < _PADDED_BELOW else 0
        for _ in range(2):
            sides = [(side - 4 + 2 * padding) // 2 for side in sides]
        first, second = channels
        features = second * math.prod(sides)
        super().__init__(
            [
                nn.Sequential(nn.Conv2d(planes, first, 5, padding=padding), nn.MaxPool2d(2)),
                nn.Sequential(nn.Conv2d(first, second, 5, padding=padding), nn.MaxPool2d(2)),
                nn.Sequential(nn.Flatten(), nn.Linear(features, neurons)),
                nn.Linear(neurons, classes),
            ],
            **options,
        )


def _picture(input_shape: Sequence[int], name: str, smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"model {name!r} needs pictures of shape [channels, height, width], at least "
            f"{smallest}x{smallest}: the data has input shape {list(input_shape)}. "
            "Models for any shape: mlp, mlp-1000, toy-mlp."
        )
    channels, height, width = input_shape
    return channels, height, width


def _dense(hidden: Sequence[int]) -> Callable[[Sequence[int], int, str], nn.Module]:
    return lambda shape, classes, activation: MLP(math.prod(shape), hidden, classes, activation)


ARCHITECTURES: dict[str, Callable[[Sequence[int], int, str], nn.Module]] = {
    "lenet": LeNet,
    "lenet-snn": lambda shape, classes, activation: SpikingLeNet(shape, classes),
    "mlp": _dense((64, 64)),
    "mlp-1000": _dense((1000, 1000)),
    "mlp-snn": lambda shape, classes, activation: SpikingMLP(math.prod(shape), classes=classes),
    "toy-mlp": _dense((32, 16)),  # paper 001, A.6.1
    "vgg-like": VGGLike,
}

# Without these, the training forward of the two returns a tuple of three outputs.
_TORCHVISION_SETTINGS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    activation: str = "relu",
    seed: int | None = None,
) -> nn.Module:
    """Build a model by its name and check that it maps one sample to `num_classes` outputs.

    Args:
        name: one of `ARCHITECTURES`, a torchvision classification model (unmodified, random
            weights), or `module:function`, imported from the current folder too and called with
            those of `input_shape`, `num_classes` and `seed` that it accepts.
        input_shape: shape of one sample, without the batch.
        num_classes: number of outputs.
        activation: of the hidden layers, one of `ACTIVATIONS`; for `ARCHITECTURES` only.
        seed: of the initial weights; the random state outside is untouched. None draws from it.

    Raises InputError for an unknown name, a missing extra, and a model that does not fit the data.
    """
    with seeded(seed):
        model = _make(name, tuple(input_shape), num_classes, activation, seed)
    _check_output(name, model, tuple(input_shape), num_classes)
    return model


@contextmanager
def _forked() -> Iterator[None]:
    """Keep what happens inside from moving the random state outside."""
    # Naming the devices keeps torch from starting CUDA, and from a warning where there are many.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw random numbers from `seed` inside, and leave the random state outside untouched."""
    if seed is None:
        yield
        return
    with _forked():
        torch.manual_seed(seed)
        yield


def _make(
    name: str, input_shape: tuple[int, ...], num_classes: int, activation: str, seed: int | None
) -> nn.Module:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](input_shape, num_classes, activation)
    if activation != "relu":
        raise InputError(
            f"activation {activation!r} cannot be set for model {name!r}: it applies to "
            f"{', '.join(sorted(ARCHITECTURES))}."
        )
    if ":" in name:
        offered = {"input_shape": input_shape, "num_classes": num_classes, "seed": seed}
        return _call(name, offered)
    return _torchvision_model(name, input_shape, num_classes)


def _torchvision_model(name: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:
        # The wheel for another build of torch is found, but fails while it is imported.
        raise InputError(
            f"{unknown('model', name, ARCHITECTURES)} Models of torchvision need an extra that is "
            f"missing or does not fit this torch ({type(error).__name__}): "
            "pip install attrain[vision]. Your own: module:function."
        ) from error
    names = models.list_models(module=models)
    if name not in names:
        near = get_close_matches(name, names, n=1)
        others = ["module:function", "torchvision's classification models"]
        raise unknown("model", name, [*ARCHITECTURES, *near, *others])
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise InputError(
            f"torchvision's {name} needs colour pictures, [3, height, width]: the data has input "
            f"shape {list(input_shape)}. Models for it: {', '.join(sorted(ARCHITECTURES))}."
        )
    settings = _TORCHVISION_SETTINGS.get(name, {})
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **settings)
    return model


def _call(name: str, offered: dict[str, Any]) -> nn.Module:
    """Call the function that `module:function` names with what it accepts of `offered`."""
    module_name, _, function_name = name.partition(":")
    with _current_folder_importable():
        function = _find(name, module_name, function_name)
        chosen = _accepted(function, offered)
        try:
            model = function(**chosen)
        except AttrainError:
            raise
        except Exception as error:
            raise InputError(
                f"{name} failed when called with the keywords {list(chosen)} ({_told(error)}): "
                f"it is given those of {', '.join(offered)} that it accepts, and nothing else."
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name} must return a torch.nn.Module: it returned a {type(model).__name__}."
        )
    for weight, values in model.named_parameters():
        if values.is_meta:
            raise InputError(
                f"{name} returned a model that has no values yet ({weight} is on the meta device): "
                "fill it with model.to_empty(device='cpu') and its initialisation."
            )
    return model


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of `offered` that `function` takes as keywords."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it does not tell
        return offered
    kinds = {parameter.name: parameter.kind for parameter in parameters}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return offered
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {key: value for key, value in offered.items() if kinds.get(key) in by_keyword}


def _find(name: str, module_name: str, function_name: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"model {name!r}: cannot import {module_name!r} ({_told(error)}). "
            "It is looked for in the current folder and among the installed packages."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise unknown(f"function in {module_name}", function_name, known)
    return function  # type: ignore[no-any-return]


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _check_output(
    name: str, model: nn.Module, input_shape: tuple[int, ...], num_classes: int
) -> None:
    """Run one sample through `model`, which stays as it is, and raise if the output is not its."""
    first = next(model.parameters(), None)
    sample = torch.zeros(1, *input_shape, device=None if first is None else first.device)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, key, buffer, buffer.clone())
        for module in model.modules()
        for key, buffer in module.named_buffers(recurse=False)
    ]
    with torch.no_grad(), _forked():
        try:
            output = model.eval()(sample)
        except AttrainError:
            raise
        except Exception as error:
            raise InputError(
                f"model {name!r} cannot take input of shape {[1, *input_shape]}: {_told(error)}."
            ) from error
        finally:
            for module, training in modes:
                module.training = training
            for module, key, buffer, value in buffers:
                setattr(module, key, buffer.copy_(value))  # it may have been replaced
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"model {name!r} must map input of shape {[1, *input_shape]} to outputs of shape "
            f"{[1, num_classes]}, one per class: got {got}."
        )


def _told(error: Exception) -> str:
    """Return the kind of `error` and its first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}".rstrip(".") if text else type(error).__name__
