"""Weights: every honest file format loads alike, and what does not fit is counted and shown."""

from __future__ import annotations

import hashlib
import os
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.weights import (
    check_finite,
    load_weights,
    state_dict_from_file,
    state_dict_from_hub,
    weights_digest,
)


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


WRITERS = {
    "plain": ("w.pth", torch.save),
    "pt": ("w.pt", torch.save),
    "old format": (
        "w.pth",
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    ),
    "state_dict": (
        "w.pth",
        lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    ),
    "model": ("w.pth", lambda state, path: torch.save({"model": state, "optimizer": {}}, path)),
    "parallel": (
        "w.pth",
        lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    ),
    "half": (
        "w.pth",
        lambda state, path: torch.save({k: v.half() for k, v in state.items()}, path),
    ),
    "safetensors": ("w.safetensors", lambda state, path: save_file(dict(state), path)),
    "without counters": (
        "w.pth",
        lambda state, path: torch.save({k: v for k, v in state.items() if "num_b" not in k}, path),
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_honest_format_loads_alike(tmp_path, writer):
    name, write = WRITERS[writer]
    source, target = network(), network()
    write(source.state_dict(), tmp_path / name)
    load_weights(target, state_dict_from_file(tmp_path / name), "net", name)
    for key, value in source.state_dict().items():
        tolerance = 1e-3 if writer == "half" else 0
        torch.testing.assert_close(target.state_dict()[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (network(5).state_dict(), r"of 9 keys 0 are missing and 7 have the wrong shape"),
        (network(5).state_dict(), r"0\.weight is 5x3x3x3 in the file and 4x3x3x3 in the network"),
        (network(5).state_dict(), r"or pass its --num-classes\.$"),
        (network()[:2].state_dict(), r"2 are missing .*missing 2\.weight; missing 2\.bias"),
        (network().state_dict() | {"ema": torch.ones(1)}, r"1 are unexpected: unexpected ema"),
    ],
    ids=["counts", "shapes", "hint", "missing", "unexpected"],
)
def test_weights_of_another_network_are_counted_and_shown(state, message):
    target = network()
    before = weights_digest(target)
    with pytest.raises(ModelError, match=message):
        load_weights(target, state, "net", "w.pth")
    assert weights_digest(target) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (network(), r"asks to run torch\.nn\S*Sequential.*torch\.save\(network\.state_dict"),
        ({}, r"holds a dict, wanted a table of weights"),
        ([torch.ones(2)], r"holds a list, wanted a table of weights"),
        ({"w": torch.ones(2), "lr": 0.1}, r"'lr' is a float, not a plain tensor"),
    ],
    ids=["whole network", "empty", "list", "extras"],
)
def test_checkpoints_that_are_no_table_of_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        state_dict_from_file(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "noise", "cut"])
def test_damaged_checkpoints_are_refused(tmp_path, suffix, kind):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(network().state_dict(), path)
    else:
        save_file(network().state_dict(), path)
    good = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "noise": b"\x93noise" * 50, "cut": good[: len(good) // 2]}[kind]
    )
    with pytest.raises(ModelError, match=r"damaged or no checkpoint|refused") as raised:
        state_dict_from_file(path)
    assert "\n" not in str(raised.value)


def test_a_torchscript_archive_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writing one is deprecated; they are still around
        scripted = torch.jit.trace(network().eval(), torch.zeros(1, 3, 8, 8))
        torch.jit.save(scripted, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"TorchScript archive holds code|asks to run"):
        state_dict_from_file(tmp_path / "w.pt")


def test_missing_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "resnet18.pth").write_bytes(b"")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no such weights file \(did you mean resnet18\.pth\?\)"):
        state_dict_from_file(tmp_path / "resnet81.pth")
    with pytest.raises(ModelError, match=r"a \.bin file is refused"):
        state_dict_from_file(tmp_path / "weights.bin")


def test_nan_and_infinite_weights_are_named():
    broken = network()
    check_finite(broken, "net")
    with torch.no_grad():
        for tensor in (*broken.parameters(), broken[1].running_mean):
            tensor.view(-1)[0] = float("nan")
    with pytest.raises(ModelError, match=r"0\.weight \(1 of 108\), 0\.bias .* and 4 more\."):
        check_finite(broken, "net")


def test_the_hub_serves_what_was_published_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save(network().state_dict(), tmp_path / "net.pth")
    published = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
    good = (tmp_path / "net.pth").rename(tmp_path / f"net-{published}.pth")
    state = state_dict_from_hub("net", good.as_uri())
    assert set(state) == set(network().state_dict())
    forged = tmp_path / "net-00000000.pth"
    forged.write_bytes(good.read_bytes())
    with pytest.raises(ModelError, match=r"cannot be downloaded \(invalid hash value.*--weights"):
        state_dict_from_hub("net", forged.as_uri())


def test_the_hub_may_not_run_code_either(tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save({"x": Payload()}, tmp_path / "net.pth")
    published = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "net.pth").rename(tmp_path / f"net-{published}.pth")
    with pytest.raises(ModelError, match="cannot be downloaded"):
        state_dict_from_hub("net", path.as_uri())
    assert not (tmp_path / "ran").exists()
