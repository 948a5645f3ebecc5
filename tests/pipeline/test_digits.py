"""The embedded digits: a fixed split, a network as good as its header says, a script that runs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fdda_deploy.pipeline.digits import train as training
from fdda_deploy.pipeline.digits.network import WEIGHTS_FILE, DigitsResNet
from fdda_deploy.pipeline.digits.split import digit_images, split_digest, split_indices


@pytest.fixture(scope="module")
def network() -> DigitsResNet:
    shipped = DigitsResNet()
    shipped.load_state_dict(load_file(WEIGHTS_FILE))
    return shipped.eval()


def test_split_is_1200_and_597_without_overlap():
    labels = np.concatenate([digit_images(side)[1] for side in ("train", "test")])
    parts = split_indices(np.sort(labels))
    assert [len(parts[side]) for side in ("train", "test")] == [1200, 597]
    assert len(np.union1d(parts["train"], parts["test"])) == 1797


def test_every_class_keeps_its_share():
    train, test = (np.bincount(digit_images(side)[1]) for side in ("train", "test"))
    np.testing.assert_allclose(train / (train + test), 1200 / 1797, atol=0.006)


def test_split_takes_each_class_by_the_hash_of_its_indices():
    from sklearn.datasets import load_digits

    labels = load_digits().target.astype(np.int64)
    threes = np.flatnonzero(labels == 3).tolist()
    by_hash = sorted(threes, key=lambda index: hashlib.sha256(b"digits %d" % index).digest())
    in_train = np.isin(by_hash, split_indices(labels)["train"])
    assert in_train.tolist() == sorted(in_train.tolist(), reverse=True)
    assert in_train.sum() == 122


def test_images_show_the_scans_at_32_pixels():
    from sklearn.datasets import load_digits

    data = load_digits()
    index = split_indices(data.target.astype(np.int64))["train"][5]
    image = digit_images("train")[0][5].astype(float)
    assert image.shape == (32, 32)
    cells = image.reshape(8, 4, 8, 4).mean(axis=(1, 3)) * 16 / 255
    # Interpolation smooths, so cells agree in the main and not to the unit.
    assert np.corrcoef(cells.ravel(), data.images[index].ravel())[0, 1] > 0.97


def test_network_has_about_175_thousand_parameters(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 174_970
    assert WEIGHTS_FILE.stat().st_size < 1_000_000


def test_shipped_network_is_as_good_as_its_header_says(network):
    pixels, labels = training.normalizable("test")
    measured = training.top1(network, training.normalized(pixels), labels)
    with safe_open(WEIGHTS_FILE, "pt") as file:
        header = file.metadata()
    assert header["split_digest"] == split_digest()
    assert measured == pytest.approx(float(header["test_top1"]), abs=0.17)  # one image of 597
    assert measured >= 98.8


def test_batch_norm_statistics_are_those_of_the_clean_training_images(network):
    pixels, _ = training.normalizable("train")
    inputs: dict[str, torch.Tensor] = {}
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        network(training.normalized(pixels))
    for hook in hooks:
        hook.remove()
    assert len(inputs) == 15
    for name, layer in layers.items():
        mean, var = inputs[name].mean((0, 2, 3)), inputs[name].var((0, 2, 3), unbiased=True)
        scale = var.sqrt().mean()
        assert (mean - layer.running_mean).abs().max() < 0.02 * scale, name
        torch.testing.assert_close(layer.running_var, var, rtol=0.02, atol=1e-5)


def test_augmentation_moves_digits_but_keeps_their_ink():
    pixels, _ = training.normalizable("train")
    torch.manual_seed(0)
    moved = training.augmented(pixels[:100])
    assert moved.shape == (100, 1, 32, 32)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved != pixels[:100]).any(dim=(1, 2, 3)).all()
    assert 0.8 < float(moved.sum() / pixels[:100].sum()) < 1.2


def test_training_script_writes_a_checkpoint_with_its_provenance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "NUM_EPOCHS", 1)
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for file in files:
        training.main(["--out", str(file), "--seed", "7"])
    assert "of 597 test images" in capsys.readouterr().err
    with safe_open(files[0], "pt") as file:
        assert file.metadata()["seed"] == "7"
        assert set(file.metadata()) == {"seed", "split_digest", "test_top1", "torch"}
    first, second = (load_file(file) for file in files)
    assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f.name for f in files)
