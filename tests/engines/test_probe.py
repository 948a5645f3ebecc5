"""The self-test of a package: the same answer as when it was made, or a plain no."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from package_samples import sample_manifest

from fdda_deploy.engines import probe as probe_module
from fdda_deploy.engines.probe import (
    Probe,
    compare_probe,
    open_graph,
    probe_bytes,
    probe_from_bytes,
    probe_images,
    take_probe,
)
from fdda_deploy.errors import EngineError, FddaDeployError

PREPROCESSING = sample_manifest()["preprocessing"]


def graph(factor: float = 1.0, *, external: bool = False) -> bytes:
    """Mean over the pixels, then a product: ``(N, 3, 16, 20)`` to ``(N, 3)``."""
    weight = numpy_helper.from_array(np.full(3, factor, np.float32), "weight")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "../../secret"
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "weight"], ["logits"]),
    ]
    batch = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 16, 20]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
    ]
    made = helper.make_graph(nodes, "g", batch[:1], batch[1:], [weight])
    opset = [helper.make_opsetid("", 13)]
    data: bytes = helper.make_model(made, opset_imports=opset, ir_version=8).SerializeToString()
    return data


@pytest.fixture(scope="module")
def probe() -> Probe:
    with open_graph(graph()) as runner:
        return take_probe(runner, probe_images(PREPROCESSING, 4), "logits")


def test_probe_images_are_normalised_pixels_and_the_same_each_time() -> None:
    images = probe_images(PREPROCESSING, 4)
    assert images.shape == (4, 3, 16, 20)
    assert images.dtype == np.float32
    mean, std = (np.array(PREPROCESSING[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    pixels = (images * std + mean) * 255
    assert np.abs(pixels - pixels.round()).max() < 1e-3
    assert 0 <= pixels.min() < 30
    np.testing.assert_array_equal(images, probe_images(PREPROCESSING, 4))


def test_the_same_graph_passes_and_another_does_not(probe: Probe) -> None:
    stored = probe_from_bytes(probe_bytes(probe))
    with open_graph(graph()) as runner:
        same = compare_probe(runner, stored, "logits")
    with open_graph(graph(1.2)) as runner:
        other = compare_probe(runner, stored, "logits")
    assert same.passed
    assert same.relative_l2 < 1e-6
    assert same.same_top1 == 1
    assert not other.passed
    assert other.relative_l2 == pytest.approx(0.2, abs=1e-3)


def test_a_network_that_answers_infinity_is_not_packaged() -> None:
    with (
        open_graph(graph(float("inf"))) as runner,
        pytest.raises(EngineError, match="answers NaN or infinity"),
    ):
        take_probe(runner, probe_images(PREPROCESSING, 4), "logits")


def test_an_infinite_difference_does_not_pass(probe: Probe) -> None:
    with open_graph(graph(float("inf"))) as runner:
        assert not compare_probe(runner, probe, "logits").passed


def test_weights_outside_the_package_are_refused_before_they_are_looked_for() -> None:
    with pytest.raises(EngineError, match="'weight' in another file"):
        open_graph(graph(external=True))


def test_weights_outside_are_found_in_a_subgraph_too() -> None:
    inner = onnx.load_model_from_string(graph(external=True)).graph
    model = onnx.load_model_from_string(graph())
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    with pytest.raises(EngineError, match="in another file"):
        open_graph(model.SerializeToString())


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(EngineError, match="no ONNX file"):
        open_graph(b"\x0a\xff\xff")


def _npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # also what is no array
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read"),
        (_npz(input=np.ones((1, 2))), "cannot be read"),
        (_npz(input=np.ones((1, 2)), logits=np.ones((2, 2))), "logits is float64"),
        (_npz(input=np.ones((1, 2)), logits=np.ones(1)), "logits is float64"),
        (_npz(input=np.ones((1, 2), int), logits=np.ones((1, 2))), "input is int64"),
        (_npz(input=np.ones((0, 2)), logits=np.ones((0, 2))), "input is float64"),
        (_npz(input=np.full((1, 2), np.nan), logits=np.ones((1, 2))), "NaN or infinity"),
        (_npz(input=np.array([[print]], object), logits=np.ones((1, 2))), "cannot be read"),
    ],
    ids=["empty", "no logits", "count", "flat", "integers", "nothing", "NaN", "pickle"],
)
def test_a_probe_that_is_none_is_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        probe_from_bytes(data)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_that_unpacks_to_too_much_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_module, "MAX_PROBE_BYTES", 2**20)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.npy", bytes(2**20 + 1))
    assert len(bomb.getvalue()) < 2**13
    with pytest.raises(EngineError, match="unpacks to 1,048,577 bytes"):
        probe_from_bytes(bomb.getvalue())


def test_a_declared_shape_of_astronomic_size_asks_for_no_memory() -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"
    npy = b"\x93NUMPY\x01\x00" + (len(head) + 1).to_bytes(2, "little") + head + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("input.npy", npy)
        archive.writestr("logits.npy", npy)
    with pytest.raises(EngineError, match="cannot be read"):
        probe_from_bytes(stream.getvalue())


@pytest.mark.fuzz
@given(st.data())
def test_a_damaged_probe_is_read_or_refused(probe: Probe, data: st.DataObject) -> None:
    damaged = bytearray(probe_bytes(Probe(probe.images[:1, :, :2, :2], probe.logits[:1])))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = probe_from_bytes(bytes(damaged))
    except FddaDeployError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert len(found.images) == len(found.logits)
    assert "\n" not in refusal
