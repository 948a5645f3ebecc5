"""Float networks: every way to name one, and an error in words for every way to fail."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fdda_deploy.errors import ConfigError, ModelError
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.evaluate import evaluate, torch_predictor
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.network import trace

ROOT = Path(__file__).parents[2]
NETWORKS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes=5, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))

def tiny(): return Tiny()
def grey(): return Tiny(channels=1)
def doubled(): return Tiny().double().train()
def infrared(): return Tiny(channels=4)
def described():
    network = Tiny()
    network.input_size, network.mean, network.std = (3, 20, 24), [0.1, 0.2, 0.3], (0.5, 0.6, 0.7)
    network.class_names = list("abcde")
    return network
def normalising():
    network = Tiny()
    network.register_buffer("mean", torch.ones(1, 3, 1, 1))
    return network
def missized():
    network = Tiny()
    network.input_size = (1, 2, 3, 4)
    return network
def diverged():
    network = Tiny()
    with torch.no_grad():
        network.fc.weight[2, 1] = float("nan")
        network.bn.running_var[:2] = float("inf")
    return network
ready = Tiny()
def number(): return 7
def needs(argument): return Tiny()
def fails(): raise RuntimeError("no such luck")
def exits(): raise SystemExit(3)
constant = 3
class Pixels(nn.Module):
    def forward(self, x): return x
def pixels(): return Pixels()
class Dictionary(Tiny):
    def forward(self, x): return {"logits": super().forward(x)}
class Several(Tiny):
    def forward(self, x): return super().forward(x), x
class Unfinished(nn.Module): pass
"""


@pytest.fixture
def networks(tmp_path):
    path = tmp_path / "own_networks.py"
    path.write_text(NETWORKS)
    return path


def test_digits_are_ready_and_as_good_as_promised():
    model = load_float_model("digits")
    assert model.num_classes == 10
    assert model.class_names == tuple("0123456789")
    assert model.preprocessing.shape == (1, 32, 32)
    assert not model.module.training
    images = open_images("digits:test", model.preprocessing, num_classes=model.num_classes)
    assert evaluate(torch_predictor(model.module), images, 199).top1 >= 98.8


def test_digits_fill_the_range_that_synthesis_starts_from():
    model = load_float_model("digits")
    images, _ = open_images("digits:train", model.preprocessing).load(range(1200))
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


def test_a_callable_in_a_file_is_loaded_without_a_trace(networks, monkeypatch):
    (networks.parent / "sibling_layers.py").write_text("WIDTH = 6\n")
    networks.write_text(
        NETWORKS + "\nimport sibling_layers\ndef wide(): return Tiny(sibling_layers.WIDTH)\n"
    )
    path_before = list(sys.path)
    model = load_float_model(f"{networks}:wide")
    assert model.num_classes == 6
    assert sys.path == path_before
    assert "own_networks" not in sys.modules
    assert {path.name for path in networks.parent.iterdir()} == {networks.name, "sibling_layers.py"}
    monkeypatch.delitem(sys.modules, "sibling_layers")
    trace(model.module, (3, 16, 16))  # torch looks the module of the class up


def test_a_callable_in_a_package_is_found_in_the_working_folder(networks, monkeypatch):
    monkeypatch.chdir(networks.parent)
    monkeypatch.setitem(sys.modules, "own_networks", None)  # restored after the test
    monkeypatch.delitem(sys.modules, "own_networks")
    model = load_float_model("own_networks:tiny")
    assert (model.num_classes, model.origin) == (5, "own_networks:tiny")


def test_unknown_networks_get_imagenets_habits(networks):
    chosen = load_float_model(f"{networks}:tiny").preprocessing
    assert chosen.describe() == (
        "RGB 224x224, centre crop of shorter side 256 (bilinear), mean (0.485, 0.456, 0.406), "
        "std (0.229, 0.224, 0.225)"
    )
    grey = load_float_model(f"{networks}:grey").preprocessing
    assert (grey.channels, grey.mean, grey.std) == (1, (0.449,), (0.226,))


def test_a_networks_own_attributes_are_honoured(networks):
    model = load_float_model(f"{networks}:described")
    chosen = model.preprocessing
    assert (chosen.shape, chosen.resize) == ((3, 20, 24), None)
    assert (chosen.mean, chosen.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert model.class_names == tuple("abcde")


def test_tensors_named_mean_are_the_networks_own_business(networks):
    chosen = load_float_model(f"{networks}:normalising").preprocessing
    assert chosen.mean == (0.485, 0.456, 0.406)


def test_options_win_over_everything_known(networks):
    chosen = load_float_model(
        f"{networks}:described", input_size=(96, 96), resize=100, mean=[0.5], std=[0.25]
    ).preprocessing
    assert (chosen.shape, chosen.resize) == ((3, 96, 96), 100)
    assert (chosen.mean, chosen.std) == ((0.5,) * 3, (0.25,) * 3)
    assert load_float_model(f"{networks}:tiny", input_size=(32, 32)).preprocessing.resize == 32


def test_networks_arrive_in_float32_and_eval_mode(networks):
    for name in ("doubled", "ready"):
        model = load_float_model(f"{networks}:{name}")
        assert not model.module.training
        assert {tensor.dtype for tensor in model.module.parameters()} == {torch.float32}
    assert load_float_model(f"{networks}:Several").num_classes == 5


def test_digest_follows_name_source_and_weights(networks, tmp_path):
    first = load_float_model(f"{networks}:tiny")
    assert load_float_model(f"{networks}:tiny", input_size=(64, 64)).digest == first.digest
    torch.save(first.module.state_dict(), tmp_path / "same.pth")
    same = load_float_model(f"{networks}:tiny", weights=str(tmp_path / "same.pth"))
    assert same.digest == first.digest
    first.module.fc.bias.data[0] += 1
    torch.save(first.module.state_dict(), tmp_path / "other.pth")
    others = [
        load_float_model(f"{networks}:tiny", weights=str(tmp_path / "other.pth")).digest,
        load_float_model(f"{networks}:Tiny").digest,
    ]
    networks.write_text(NETWORKS + "\n# edited\n")
    others.append(load_float_model(f"{networks}:tiny").digest)
    assert len({first.digest, *others}) == 4


def test_loading_a_network_leaves_the_random_state_alone(networks):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_float_model(f"{networks}:tiny")
    assert torch.equal(torch.rand(3), wanted)


OWN_ERRORS = {
    "number": r"number: returned a int, wanted a network",
    "needs": r"calling it failed with TypeError: needs\(\) missing 1 required",
    "fails": r"calling it failed with RuntimeError: no such luck\.$",
    "exits": r"calling it failed with SystemExit: 3",
    "constant": r"constant: is a int, wanted a function or class",
    "tinny": r"has no 'tinny' \(did you mean tiny",
    "diverged": r"NaN or infinite weights in bn\.running_var \(2 of 4\), fc\.weight \(1 of 20\)\.",
    "pixels": r"returns \(2, 3, 224, 224\) for a batch .*wanted logits",
    "Dictionary": r"returns dict for a batch of 3x224x224 images, wanted logits",
    "Unfinished": r"cannot run a batch .*missing the required \"forward\" function",
    "missized": r"attribute input_size is .*1, 2, 3, 4.*wanted \(C, H, W\)",
    "infrared": r"input has 4 channels; images have 1 \(grey\) or 3",
}


@pytest.mark.parametrize("attribute", OWN_ERRORS)
def test_callables_that_give_no_classifier_are_refused(networks, attribute):
    with pytest.raises((ModelError, ConfigError), match=OWN_ERRORS[attribute]) as raised:
        load_float_model(f"{networks}:{attribute}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"resnet81: no such network \(did you mean resnet18.*`fdda-deploy models`"),
        ("digitz", r"did you mean digits"),
        ("network.py", r"a file alone names no network\. Write path/file\.py:callable"),
        (str(ROOT / "README.md"), r"README\.md: a file alone names no network"),
        ("absent.py:net", r"absent\.py: no such file\. Want FILE\.py:NAME"),
        ("no_such_package.nets:net", r"no module 'no_such_package' found"),
        ("torch.nn:Conv9d", r"torch\.nn has no 'Conv9d' \(did you mean Conv"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, message):
    with pytest.raises(ModelError, match=message):
        load_float_model(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:", r"importing it failed with SyntaxError: invalid syntax"),
        ("import no_such_library", r"ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(1)", r"importing it failed with SystemExit"),
    ],
    ids=["syntax", "import", "exit"],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path, source, message):
    (tmp_path / "own.py").write_text(textwrap.dedent(source))
    modules = set(sys.modules)
    with pytest.raises(ModelError, match=message):
        load_float_model(f"{tmp_path / 'own.py'}:net")
    assert set(sys.modules) == modules


def test_a_wrong_class_count_names_both(networks):
    with pytest.raises(ModelError, match=r"returns 5 classes, but --num-classes is 6"):
        load_float_model(f"{networks}:tiny", num_classes=6)


def test_an_input_the_network_cannot_take_says_so(networks):
    with pytest.raises(ModelError, match=r"cannot run a batch of 3x2x2 images: .*--input-size"):
        load_float_model(f"{networks}:tiny", input_size=(2, 2))


def test_preprocessing_that_contradicts_itself_is_refused(networks):
    with pytest.raises(ConfigError, match=r"resize 200 is less than the input 224x224"):
        load_float_model(f"{networks}:tiny", resize=200)
    with pytest.raises(ConfigError, match=r"mean \(0\.1, 0\.2\): wanted 3"):
        load_float_model(f"{networks}:tiny", mean=[0.1, 0.2])
