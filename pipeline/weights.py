"""Trained weights into a network: read without running code, fitted key by key, checked for NaN."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
import sys
import urllib.error
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fdda_deploy.config.values import plain_name
from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.image_sources import near

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights inside a checkpoint, tried in this order."""
PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before every key."""
COUNTER_SUFFIX = "num_batches_tracked"
"""BatchNorm's step counter: it may be absent, for it changes nothing in a trained network."""
SHOWN = 3
"""Keys that a message spells out; the rest are counted."""


def state_dict_from_file(path: Path) -> StateDict:
    """Returns the weights in a ``.pth``/``.pt`` or ``.safetensors`` file, by key, on the CPU.

    Raises:
        ModelError: The file is missing, damaged, of another kind, or would run code when loaded.
    """
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"{path}: no such weights file{near(path.name, beside)}.")
    if path.suffix in {".pth", ".pt"}:
        return _tensors(str(path), _torch_loaded(path))
    if path.suffix == ".safetensors":
        return _safetensors_loaded(path)
    raise ModelError(
        f"{path}: a {path.suffix or 'nameless'} file is refused. Weights are read from .pth, .pt "
        "(a state dict saved by torch.save) or .safetensors."
    )


def state_dict_from_hub(name: str, url: str) -> StateDict:
    """Returns torchvision's weights for ``name``, from torch's cache or downloaded and verified.

    Raises:
        ModelError: The hub cannot be reached, or what it sent is not what was published.
    """
    watched = sys.stderr.isatty()
    # torch announces the download on stdout, where results go.
    announcements = sys.stderr if watched else io.StringIO()
    try:
        with contextlib.redirect_stdout(announcements):
            loaded = torch.hub.load_state_dict_from_url(
                url,
                map_location="cpu",
                progress=watched,
                check_hash=True,
                weights_only=True,
            )
    except (urllib.error.URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{name}: the trained weights cannot be downloaded ({error}). Fetch {url} where there "
            "is a network and pass it with --weights FILE."
        ) from error
    return _tensors(url, loaded)


def load_weights(module: nn.Module, state: StateDict, name: str, origin: str) -> None:
    """Copies ``state`` into ``module``, every key of which must be there in the right shape.

    Raises:
        ModelError: Keys are missing, unexpected or of another shape; the message counts them and
            shows the first.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER_SUFFIX)]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} is {_shape(state[key])} in the file and {_shape(expected[key])} in the network"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        shown = misshapen[:SHOWN]
        shown += [f"missing {plain_name(key)}" for key in missing[:SHOWN]]
        shown += [f"unexpected {plain_name(key)}" for key in unexpected[:SHOWN]]
        raise ModelError(
            f"{origin} does not fit {name}: of {len(expected)} keys {len(missing)} are missing and "
            f"{len(misshapen)} have the wrong shape, {len(unexpected)} are unexpected: "
            f"{'; '.join(shown)}. Name the network these weights were trained for"
            f"{', or pass its --num-classes' if misshapen and not missing else ''}."
        )
    try:
        module.load_state_dict(state, strict=False)  # only step counters may be missing by now
    except (RuntimeError, NotImplementedError) as error:  # a type that no copy turns into float
        reason = " ".join(str(error).split())[-120:]
        raise ModelError(
            f"{origin}: a weight cannot be copied into {name} ({reason}). Save plain float tensors."
        ) from error


def check_finite(module: nn.Module, name: str) -> None:
    """Raises if a weight or a running statistic of ``module`` is NaN or infinite.

    Raises:
        ModelError: The message names the first such tensors.
    """
    broken = [
        f"{key} ({int((~torch.isfinite(tensor)).sum())} of {tensor.numel()})"
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ModelError(
            f"{name}: NaN or infinite weights in {', '.join(broken[:SHOWN])}{more}. The training "
            "diverged or the file is damaged; use another checkpoint."
        )


def weights_digest(module: nn.Module) -> bytes:
    """Returns the SHA-256 of every key, shape, dtype and value that ``module`` holds."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _torch_loaded(path: Path) -> object:
    try:
        _refuse_packed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks to run {asked[1]}" if asked else "would unpickle more than tensors"
        raise ModelError(
            f"{path}: refused, since loading it {what}. Save the weights alone: "
            "torch.save(network.state_dict(), FILE)."
        ) from error
    except ModelError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _refuse_packed(path: Path) -> None:
    """Refuses an archive that unpacks to more than itself, before any of it is unpacked.

    Raises:
        ModelError: It does; torch.save stores its tensors as they are.
        zipfile.BadZipFile: The archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
    if unpacked > path.stat().st_size and script:
        raise _damaged(path, RuntimeError("TorchScript"))  # which packs its code
    if unpacked > path.stat().st_size:
        raise ModelError(
            f"{path}: refused, since its {path.stat().st_size:,} bytes unpack to {unpacked:,}. "
            "Save it again with torch.save, which packs nothing."
        )


def _safetensors_loaded(path: Path) -> StateDict:
    from safetensors.torch import load_file

    load: Callable[[Path], Mapping[str, object]] = load_file
    try:
        loaded = load(path)
    except Exception as error:
        raise _damaged(path, error) from error
    return _tensors(str(path), loaded)


def _damaged(path: Path, error: Exception) -> ModelError:
    if "TorchScript" in str(error):
        return ModelError(
            f"{path}: refused, since a TorchScript archive holds code. Save the weights alone: "
            "torch.save(network.state_dict(), FILE)."
        )
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return ModelError(f"{path}: damaged or no checkpoint ({reason}). Fetch or save it again.")


def _tensors(origin: str, loaded: object) -> StateDict:
    """Returns the table of tensors in a checkpoint, out of its wrapper, without ``module.``."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(
            f"{origin}: holds a {type(loaded).__name__}, wanted a table of weights by name (or one "
            f"under {', '.join(WRAPPERS)})."
        )
    wrong = next((key for key, value in loaded.items() if _kind(value) is not None), None)
    if wrong is not None:
        raise ModelError(
            f"{origin}: {str(wrong)[:60]!r} is {_kind(loaded[wrong])}, not a plain tensor. "
            "Save the weights alone: torch.save(network.state_dict(), FILE)."
        )
    state = {str(key): value for key, value in loaded.items()}
    if all(key.startswith(PARALLEL_PREFIX) for key in state):
        return {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
    return state


def _kind(value: object) -> str | None:
    """Returns what ``value`` is instead of a dense tensor of real numbers in memory, or None."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided:
        return "a sparse tensor"
    if value.is_quantized or value.is_complex():
        return "a quantized tensor" if value.is_quantized else "a complex tensor"
    return "a tensor without numbers" if value.is_meta else None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
