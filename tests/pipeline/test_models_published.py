"""Published networks: torchvision by name, each with its own preprocessing and class names."""

from __future__ import annotations

import sys

import pytest
import torch

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.models import list_models, load_float_model


def test_a_torchvision_network_takes_weights_from_a_file(tmp_path):
    import torchvision

    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    model = load_float_model("resnet18", weights=str(tmp_path / "r18.pth"))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.module(x), source.eval()(x))
    assert model.preprocessing.describe().startswith("RGB 224x224, centre crop of shorter side 256")
    assert model.num_classes == len(model.class_names) == 1000
    assert model.class_names[0] == "tench"
    assert model.origin == "torchvision resnet18, weights r18.pth"


def test_a_torchvision_network_can_have_another_last_layer(tmp_path):
    import torchvision

    state = torchvision.models.mobilenet_v2(weights=None, num_classes=7).state_dict()
    path = tmp_path / "m.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    model = load_float_model("mobilenet_v2", weights=str(path), num_classes=7)
    assert (model.num_classes, model.class_names) == (7, None)
    with pytest.raises(ModelError, match=r"classifier\.1\.weight is 7x1280 .* 1000x1280.*--num-cl"):
        load_float_model("mobilenet_v2", weights=str(path))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "efficientnet_b0"])
def test_torchvision_preprocessing_is_the_networks_own(name, tmp_path):
    from fdda_deploy.pipeline.definitions import definition_from_name

    definition = definition_from_name(name, own_weights=False, num_classes=None)
    wanted = {
        "googlenet": ((3, 224, 224), 256, "bilinear"),
        "inception_v3": ((3, 299, 299), 342, "bilinear"),
        "efficientnet_b0": ((3, 224, 224), 256, "bicubic"),
    }[name]
    hints = definition.hints
    assert (hints.input_size, hints.resize, hints.interpolation) == wanted
    assert getattr(definition.module, "transform_input", name == "efficientnet_b0")
    assert definition.hub_url.startswith("https://")


def test_timm_networks_name_the_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'fdda-deploy\[timm\]'"):
        load_float_model("timm:resnet18")


def test_an_unreachable_hub_says_how_to_pass_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ModelError, match=r"cannot be downloaded \(.*https://\S+\.pth .*--weights"):
        load_float_model("resnet18")


def test_the_list_of_networks_is_complete_and_says_what_each_is():
    entries = {entry.name: entry for entry in list_models()}
    assert next(iter(entries)) == "digits"
    assert entries["mobilenet_v2"].note == "hub weights IMAGENET1K_V2"
    assert {"resnet18", "resnet50", "squeezenet1_1"} < set(entries)
    patterns = [name for name, entry in entries.items() if entry.kind == "pattern"]
    assert patterns == ["timm:NAME", "package.module:callable", "path/file.py:callable"]
