"""Real networks on real photographs: the accuracies that others measured come out here too."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.evaluate import evaluate, torch_predictor
from fdda_deploy.pipeline.models import load_float_model

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="no trained networks beside the checkout"),
]


@pytest.mark.parametrize(("name", "top1"), [("cifar_resnet20", 91.5), ("cifar_resnet56", 92.6)])
def test_cifar_networks_reach_their_published_accuracy(name, top1):
    model = load_float_model(
        f"{DATA / 'networks.py'}:{name}",
        weights=str(DATA / f"weights/{name}.pth"),
        input_size=(32, 32),
    )
    images = open_images(f"{DATA / 'cifar10.npz'}#test", model.preprocessing, num_classes=10)
    limit = images if name == "cifar_resnet20" else images.subset(range(300))
    result = evaluate(torch_predictor(model.module), limit, 100)
    if name == "cifar_resnet20":
        assert result.top1 == pytest.approx(top1, abs=0.11)
    assert result.low <= top1 <= result.high


def test_mobilenet_v2_classifies_photographs_out_of_a_tar():
    weights = str(DATA / "weights/mobilenet_v2.pth")
    model = load_float_model("mobilenet_v2", weights=weights)
    classes = read_classes(DATA / "images/wnids.txt")
    images = open_images(
        str(DATA / "images/imagenet_val.tar"),
        model.preprocessing,
        classes=classes,
        num_classes=model.num_classes,
        limit=100,
    )
    result = evaluate(torch_predictor(model.module), images, 25)
    assert images.skipped == ()
    assert result.n == 100
    assert result.low < 70.7 < result.high  # on 1000 validation images
    assert result.top5 > 85


def test_folders_of_a_real_archive_need_the_class_list():
    model = load_float_model("squeezenet1_1", weights=str(DATA / "weights/squeezenet1_1.pth"))
    with pytest.raises(DataError, match=r"has 399 class folders .*--classes FILE"):
        open_images(str(DATA / "images/imagenet_val.tar"), model.preprocessing, num_classes=1000)


def test_the_calibration_archive_has_one_image_of_each_class():
    model = load_float_model("mobilenet_v2", weights=str(DATA / "weights/mobilenet_v2.pth"))
    images = open_images(
        str(DATA / "images/imagenet_calib.tar"),
        model.preprocessing,
        classes=read_classes(DATA / "images/wnids.txt"),
        num_classes=1000,
        limit=200,
    )
    assert len(set(images.labels.tolist())) == len(images) == 200
    assert len(images.first_per_class(1)) == 200
