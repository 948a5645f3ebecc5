"""A network's definition by name: embedded, torchvision, timm, or a callable of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.digits import network as digits_network
from fdda_deploy.pipeline.image_sources import near
from fdda_deploy.pipeline.preprocessing import Interpolation

DIGITS = "digits"
TIMM_PREFIX = "timm:"
BUILD_OPTIONS: dict[str, dict[str, bool]] = {
    # Their published weights expect inputs scaled once more inside; random weights take minutes.
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


@dataclass(frozen=True)
class Hints:
    """What a source knows of a network's input: fields as in Preprocessing, None for unknown.

    ``input_size`` is ``(C, H, W)``, ``(H, W)`` or one side in pixels.
    """

    input_size: Sequence[int] | int | None = None
    resize: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: Interpolation | None = None
    class_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Definition:
    """A network as built, before weights of the user's are loaded.

    Attributes:
        name: The same on every machine; part of the digest.
        module: As its builder returned it.
        source: What defines it, for the digest: source bytes or a library's name and version.
        origin: In words, for the report.
        hints: What is known about its input.
        hub_url: Where its trained weights are, if they are still to be loaded.
        weights_file: The shipped checkpoint, if there is one.
    """

    name: str
    module: nn.Module
    source: bytes
    origin: str
    hints: Hints
    hub_url: str | None = None
    weights_file: Path | None = None


def definition_from_name(name: str, *, own_weights: bool, num_classes: int | None) -> Definition:
    """Returns the network that ``name`` names.

    Args:
        name: What the user wrote; its forms are those of ``models.load_float_model``.
        own_weights: The user has a weights file, so none are fetched.
        num_classes: Classes of the user's weights, where the builder can be told.

    Raises:
        ModelError: There is no such network, or building it failed.
    """
    told = {"num_classes": num_classes} if own_weights and num_classes is not None else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that nobody loads are at least the same each time
        return _definition(name, own_weights, told)


def _definition(name: str, own_weights: bool, told: dict[str, int]) -> Definition:
    if name == DIGITS:
        return _digits()
    if name.startswith(TIMM_PREFIX):
        return _timm(name.removeprefix(TIMM_PREFIX), own_weights, told)
    if ":" in name:
        return _callable(name)
    if name in torchvision_names():
        return _torchvision(name, own_weights, told)
    if Path(name).suffix in {".py", ".pth", ".pt", ".safetensors", ".onnx"} or Path(name).is_file():
        raise ModelError(
            f"{name}: a file alone names no network. Write path/file.py:callable for a definition "
            "and pass trained weights with --weights FILE."
        )
    raise ModelError(
        f"{name}: no such network{near(name, [DIGITS, *torchvision_names()])}. See `fdda-deploy "
        "models`, or name your own as path/file.py:callable."
    )


def torchvision_names() -> list[str]:
    """Returns the names of torchvision's classification networks."""
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def hints_from_module(module: nn.Module) -> Hints:
    """Returns what a network's own attributes say about its input.

    Only plain numbers count: a network with mean and std as tensors normalises its input itself.
    """
    size = getattr(module, "input_size", None)
    names = getattr(module, "class_names", None)
    mean, std = (getattr(module, attribute, None) for attribute in ("mean", "std"))
    return Hints(
        input_size=size if isinstance(size, int) or _all_of(size, int) else None,
        mean=mean if _all_of(mean, int | float) else None,
        std=std if _all_of(std, int | float) else None,
        class_names=names if _all_of(names, str) else None,
    )


def _digits() -> Definition:
    side = digits_network.IMAGE_SIZE
    hints = Hints(
        input_size=(1, side, side),
        mean=(digits_network.PIXEL_MEAN,),
        std=(digits_network.PIXEL_STD,),
        class_names=tuple("0123456789"),
    )
    return Definition(
        name=DIGITS,
        module=digits_network.DigitsResNet(),
        source=Path(digits_network.__file__).read_bytes(),
        origin="the embedded digits network",
        hints=hints,
        weights_file=digits_network.WEIGHTS_FILE,
    )


def _torchvision(name: str, own_weights: bool, told: dict[str, int]) -> Definition:
    import torchvision

    published = torchvision.models.get_model_weights(name)
    # A file of the user's is taken for the plain recipe (the first published), whose test crop is
    # 224 of 256; later recipes crop a little differently and say so.
    recipe = next(iter(published)) if own_weights else published.DEFAULT
    preset = recipe.transforms()
    hints = Hints(
        input_size=(3, preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation.value == "bicubic" else "bilinear",
        class_names=tuple(recipe.meta["categories"]),
    )
    builder = torchvision.models.get_model_builder(name)
    options = BUILD_OPTIONS.get(name, {}) | told
    return Definition(
        name=name,
        module=_built(name, lambda: builder(weights=None, **options)),
        source=f"torchvision {torchvision.__version__}".encode(),
        origin=f"torchvision {name}" + ("" if own_weights else f", weights {recipe.name}"),
        hints=hints,
        hub_url=None if own_weights else recipe.url,
    )


def _timm(name: str, own_weights: bool, told: dict[str, int]) -> Definition:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"timm:{name} needs timm. Install it with: pip install 'fdda-deploy[timm]'"
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm:{name}: no such network{near(name, timm.list_models())}.")
    try:
        module = timm.create_model(name, pretrained=not own_weights, **told)
    except Exception as error:
        raise ModelError(
            f"timm:{name} cannot be built with its trained weights ({_first_line(error)}). Pass a "
            "file with --weights FILE."
        ) from error
    config = timm.data.resolve_data_config({}, model=module)
    side = config["input_size"][-1]
    hints = Hints(
        input_size=tuple(config["input_size"]),
        resize=int(side / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
    )
    version = f"timm {timm.__version__}"
    return Definition(f"timm:{name}", module, version.encode(), f"timm {name}", hints)


def _callable(name: str) -> Definition:
    place, _, attribute = name.rpartition(":")
    path = Path(place)
    is_file = path.suffix == ".py"
    folder = path.resolve().parent if is_file else Path.cwd()
    with _importable(folder):
        imported = _module_from_file(path) if is_file else _module_from_package(name, place)
        target = getattr(imported, attribute, None)
        if target is None:
            hint = near(attribute, vars(imported))
            raise ModelError(f"{name}: {place} has no {attribute!r}{hint}.")
        module = target if isinstance(target, nn.Module) else _built(name, target)
    return Definition(
        name=f"{path.name if is_file else place}:{attribute}",
        module=module,
        source=_source_of(imported) + _source_of(type(module)),
        origin=name,
        hints=hints_from_module(module),
    )


def _module_from_file(path: Path) -> ModuleType:
    """Returns the file imported under a private name, so that it shadows no other module."""
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"{path}: no such file{near(path.name, beside)}. Want FILE.py:NAME.")
    private_name = f"_fdda_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(private_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private_name] = module  # dataclasses and torch look their own module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[private_name]
        raise ModelError(f"{path}: importing it failed with {_first_line(error)}.") from error
    return module


def _module_from_package(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name}: no module {error.name!r} found. Install it, or write path/file.py:callable."
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}: importing it failed with {_first_line(error)}.") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets imports find ``folder`` inside the block, last in line, and leaves no bytecode there."""
    wrote_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_nothing
        with contextlib.suppress(ValueError):  # the user's code may have taken it out already
            sys.path.remove(str(folder))


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    if not callable(build):
        raise ModelError(f"{name}: is a {type(build).__name__}, wanted a function or class.")
    try:
        module = build()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}: calling it failed with {_first_line(error)}.") from error
    if not isinstance(module, nn.Module):
        found = type(module).__name__
        raise ModelError(f"{name}: returned a {found}, wanted a network (torch.nn.Module).")
    return module


def _source_of(part: ModuleType | type) -> bytes:
    try:
        return Path(inspect.getsourcefile(part) or "").read_bytes()
    except (TypeError, OSError):  # compiled, or defined where no file is
        return b""


def _all_of(values: object, kind: Any) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(isinstance(value, kind) for value in values)


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}".rstrip(" .:")
