"""Float networks by name: built, loaded, checked, and with the preprocessing they expect."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError, ModelError
from fdda_deploy.pipeline.definitions import (
    DIGITS,
    TIMM_PREFIX,
    Definition,
    Hints,
    definition_from_name,
    torchvision_names,
)
from fdda_deploy.pipeline.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    default_resize,
    per_channel,
)
from fdda_deploy.pipeline.weights import (
    check_finite,
    load_weights,
    state_dict_from_file,
    state_dict_from_hub,
    weights_digest,
)

DEFAULT_INPUT_SIZE = 224
"""Pixels a side where nothing is known about a network: ImageNet's usual crop."""
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
"""ImageNet's mean and deviation averaged over its three channels, for one-channel networks."""


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A trained float network and everything the stages need to know about it.

    Attributes:
        name: As the user wrote it.
        module: In eval mode, float32, on the CPU; ``(N, C, H, W)`` to logits ``(N, classes)``.
        preprocessing: From image files to its input.
        class_names: In label order, or None where they are not known.
        num_classes: Width of the logits.
        origin: Definition and weights in words, for the report.
        digest: SHA-256 hex of name, definition source and weights.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    num_classes: int
    origin: str
    digest: str


@dataclass(frozen=True)
class ModelEntry:
    """One line of ``fdda-deploy models``: what can be named, of which kind, and a note."""

    name: str
    kind: str
    note: str


def load_float_model(
    name: str,
    *,
    weights: str | None = None,
    input_size: tuple[int, int] | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_classes: int | None = None,
) -> FloatModel:
    """Returns the network that ``name`` names, ready to be judged and quantized.

    Args:
        name: ``digits``, a torchvision name, ``timm:NAME``, ``package.module:callable`` or
            ``path/file.py:callable`` (called without arguments; its file is run).
        weights: A ``.pth``, ``.pt`` or ``.safetensors`` file; None for the published weights, or
            for a callable what it returns.
        input_size: ``(H, W)`` in pixels; None for the network's own.
        resize: Shorter side in pixels before the centre crop; None for the network's own.
        mean: Per channel, or one value for all, for pixels in [0, 1]; None for the network's own.
        std: The same.
        num_classes: Classes the network should have; checked against what it returns.

    Raises:
        ModelError: The network or its weights cannot be found, loaded or run.
        ConfigError: The preprocessing options contradict each other or the network.
    """
    definition = definition_from_name(
        name, own_weights=weights is not None, num_classes=num_classes
    )
    origin = _with_weights(definition, weights)
    module = definition.module.to(device="cpu", dtype=torch.float32).eval()
    check_finite(module, name)
    hints = definition.hints
    given = Hints(resize=resize, mean=mean, std=std)
    preprocessing = _preprocessing(name, module, input_size, given, hints)
    found = _classes_of(name, module, preprocessing)
    if num_classes is not None and num_classes != found:
        raise ModelError(
            f"{name}: returns {found} classes, but --num-classes is {num_classes}. Leave the "
            "option out, or give the definition and weights of that many classes."
        )
    return FloatModel(
        name=name,
        module=module,
        preprocessing=preprocessing,
        class_names=_class_names(hints, found),
        num_classes=found,
        origin=origin,
        digest=_digest(definition, module),
    )


def list_models() -> tuple[ModelEntry, ...]:
    """Returns everything that can be named: networks first, then the patterns for one's own."""
    import torchvision

    get_weights = torchvision.models.get_model_weights
    named = [ModelEntry(DIGITS, "embedded", "handwritten digits, 32x32 grey, weights shipped")]
    named += [
        ModelEntry(name, "torchvision", f"hub weights {get_weights(name).DEFAULT.name}")
        for name in torchvision_names()
    ]
    patterns = (
        ModelEntry(f"{TIMM_PREFIX}NAME", "pattern", "any timm network; needs the extra 'timm'"),
        ModelEntry(
            "package.module:callable", "pattern", "returns your network; must be importable"
        ),
        ModelEntry("path/file.py:callable", "pattern", "returns your network; the file is run"),
    )
    return (*named, *patterns)


def _with_weights(definition: Definition, weights: str | None) -> str:
    """Loads the weights that belong to a definition and returns where all came from."""
    path = Path(weights) if weights is not None else definition.weights_file
    if path is not None:
        shipped = weights is None
        origin = "the shipped checkpoint" if shipped else str(path)
        load_weights(definition.module, state_dict_from_file(path), definition.name, origin)
        return definition.origin if shipped else f"{definition.origin}, weights {path.name}"
    if definition.hub_url is not None:
        state = state_dict_from_hub(definition.name, definition.hub_url)
        load_weights(definition.module, state, definition.name, definition.hub_url)
    return definition.origin


def _preprocessing(
    name: str,
    module: nn.Module,
    input_size: tuple[int, int] | None,
    given: Hints,
    hints: Hints,
) -> Preprocessing:
    """Returns what the options say, else what the network says, else ImageNet's habits."""
    channels, known_size = _channels_and_size(name, module, hints)
    height, width = input_size or known_size
    fallback = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
    resize = given.resize
    if resize is None:
        own = hints.resize if (height, width) == tuple(known_size) else None
        resize = own if own is not None else default_resize(height, width)
    preprocessing = Preprocessing(
        height=height,
        width=width,
        channels=channels,
        resize=resize,
        mean=per_channel(given.mean or hints.mean or fallback[0], channels),
        std=per_channel(given.std or hints.std or fallback[1], channels),
    )
    if hints.interpolation is None:
        return preprocessing
    return replace(preprocessing, interpolation=hints.interpolation)


def _channels_and_size(name: str, module: nn.Module, hints: Hints) -> tuple[int, tuple[int, int]]:
    """Returns the input's channels and ``(H, W)`` by what the network itself says or shows."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    channels = len(hints.mean) if hints.mean and len(hints.mean) > 1 else None
    channels = channels or (first.in_channels if first is not None else 3)
    match hints.input_size:
        case None:
            return channels, (DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE)
        case int(side):
            return channels, (side, side)
        case [height, width]:
            return channels, (height, width)
        case [declared, height, width]:
            return declared, (height, width)
        case other:
            raise ConfigError(
                f"{name}: its attribute input_size is {other}, wanted (C, H, W), (H, W) or one "
                "side. Mend it, or pass --input-size."
            )


def _classes_of(name: str, module: nn.Module, preprocessing: Preprocessing) -> int:
    """Returns the width of the logits, by running a batch of two blank images."""
    images = torch.zeros(2, *preprocessing.shape)
    wanted = f"a batch of {'x'.join(map(str, preprocessing.shape))} images"
    try:
        with torch.inference_mode():
            logits = module(images)
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{name}: cannot run {wanted}: {reason}. Check --input-size, and that forward() takes "
            "one image batch."
        ) from error
    while isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{name}: returns {got} for {wanted}, wanted logits (N, classes). Only classifiers can "
            "be deployed; wrap the network so that it returns its logits."
        )
    return int(logits.shape[1])


def _class_names(hints: Hints, num_classes: int) -> tuple[str, ...] | None:
    """Returns the known class names, unless the network was given another last layer."""
    names = hints.class_names
    return tuple(names) if names is not None and len(names) == num_classes else None


def _digest(definition: Definition, module: nn.Module) -> str:
    digest = hashlib.sha256(definition.name.encode())
    digest.update(hashlib.sha256(definition.source).digest())
    digest.update(weights_digest(module))
    return digest.hexdigest()
