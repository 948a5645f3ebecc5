"""What would crash the parser, or read files it should not, is refused before it gets there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_graphs import GraphMaker, residual_w8a8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fdda_deploy.engines import onnx_gate
from fdda_deploy.engines.onnx_gate import load_onnx, require_sound_onnx
from fdda_deploy.errors import BuildError


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(BuildError) as caught:
        require_sound_onnx(model.SerializeToString())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def move_out(model: onnx.ModelProto, location: str, **numbers: int) -> bytes:
    """Says of one weight that its bytes lie in ``location``; returns the bytes."""
    weight = next(t for t in model.graph.initializer if t.name == "conv2.weight")
    data = bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entries = {"location": location, **{key: str(value) for key, value in numbers.items()}}
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return data


def test_our_own_graph_passes() -> None:
    require_sound_onnx(residual_w8a8().SerializeToString())


@pytest.mark.parametrize(("index", "rule"), [(1, "scale depends"), (2, "zero-point depends")])
def test_a_scale_that_is_fed_crashes_the_parser_and_is_refused(index: int, rule: str) -> None:
    model = residual_w8a8()
    kind = TensorProto.FLOAT if index == 1 else TensorProto.INT8
    model.graph.input.append(helper.make_tensor_value_info("fed", kind, []))
    node = next(n for n in model.graph.node if n.name == "input/dequantize")
    node.input[index] = "fed"
    message = refusal(model)
    assert message.startswith("input/dequantize (DequantizeLinear): its ")
    assert rule in message
    assert message.endswith("Calibrate, and export static ranges.")


def test_a_scale_computed_from_the_input_is_refused_too() -> None:
    make = GraphMaker()
    largest = make.op("ReduceMax", ["input"], "largest", keepdims=0)
    zero = make.constant("zero", np.int8(0))
    x = make.op("QuantizeLinear", ["input", largest, zero], "q")
    y = make.op("DequantizeLinear", [x, largest, zero], "dq")
    message = refusal(make.model(y, ("N", 3, 16, 16), ("N", 3, 16, 16)))
    assert message.startswith("q (QuantizeLinear): its scale depends")
    assert "(T005)" in message


def test_a_scale_computed_from_constants_passes() -> None:
    model = residual_w8a8()
    model.graph.node.insert(0, helper.make_node("Identity", ["input/scale"], ["made"], name="made"))
    node = next(n for n in model.graph.node if n.name == "input/dequantize")
    node.input[1] = "made"
    require_sound_onnx(model.SerializeToString())


def test_bytes_alone_cannot_have_their_weights_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = residual_w8a8()
    (tmp_path / "w.bin").write_bytes(move_out(model, "w.bin"))
    monkeypatch.chdir(tmp_path)  # where the checker would look
    assert "'conv2.weight' lies in another file" in refusal(model)


def test_a_file_and_the_weights_beside_it_become_one_piece(tmp_path: Path) -> None:
    whole, model = residual_w8a8(), residual_w8a8()
    data = move_out(model, "w.bin", offset=5)
    (tmp_path / "w.bin").write_bytes(b"12345" + data)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    joined = onnx.load_from_string(load_onnx(tmp_path / "m.onnx"))
    assert joined == whole
    require_sound_onnx(joined.SerializeToString())


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "link.bin", "", "none.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = residual_w8a8()
    move_out(model, place)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="no file inside the model's own folder"):
        load_onnx(folder / "m.onnx")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"length": 10**6}, "wants bytes 0 to 1,000,000 of w.bin, which has"),
        ({"offset": 10**6}, "wants bytes 1,000,000 to "),
        ({"offset": -5}, "want numbers"),
    ],
    ids=["too long", "behind the end", "negative"],
)
def test_weights_that_are_cut_short_say_by_how_much(
    tmp_path: Path, numbers: dict[str, int], words: str
) -> None:
    model = residual_w8a8()
    (tmp_path / "w.bin").write_bytes(move_out(model, "w.bin", **numbers))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=words):
        load_onnx(tmp_path / "m.onnx")


def test_more_than_two_gigabytes_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # a hole: it takes no room on the disk
    with pytest.raises(BuildError, match=r"2,147,483,649 bytes, and ONNX .* at most 2 GB"):
        load_onnx(path)
    monkeypatch.setattr(onnx_gate, "MAX_BYTES", 100)
    with pytest.raises(BuildError, match="at most 2 GB"):
        require_sound_onnx(residual_w8a8().SerializeToString())


def test_a_file_that_is_none_or_no_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"none\.onnx: cannot be read \(No such file"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf at all")
    with pytest.raises(BuildError, match=r"text\.onnx: no ONNX model"):
        load_onnx(tmp_path / "text.onnx")


@pytest.mark.fuzz
@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(max_size=20), st.sampled_from(["..", ".", "a\0b", "w.bin/x", "~"])),
    st.one_of(st.none(), st.integers(-5, 2**70)),
    st.one_of(st.none(), st.integers(-5, 2**70)),
)
def test_any_place_of_weights_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: str, offset: int | None, length: int | None
) -> None:
    folder = tmp_path_factory.mktemp("gate", numbered=True)
    (folder / "w.bin").write_bytes(bytes(100))
    model = residual_w8a8()
    numbers = {"offset": offset, "length": length}
    try:
        move_out(model, place, **{k: v for k, v in numbers.items() if v is not None})
    except UnicodeEncodeError:
        return  # protobuf itself refuses such a name
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError) as caught:
        load_onnx(folder / "m.onnx")
    assert "\n" not in str(caught.value)


def moved(kind: int, domain: str = "", *, local: bool = False) -> onnx.ModelProto:
    """x -> Relu -> y, the Relu of some domain, on one element type."""
    ends = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"], "rectify", domain=domain)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 21)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    body = helper.make_node("Abs", ["x"], ["y"])
    function = helper.make_function(domain, "Relu", ["x"], ["y"], [body], opsets[:1])
    functions = [function] if local else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


@pytest.mark.parametrize("kind", ["INT16", "FLOAT8E5M2"])
def test_an_input_of_a_type_that_tensorrt_lacks_is_named(kind: str) -> None:
    message = refusal(moved(TensorProto.DataType.Value(kind)))
    assert message == (
        f"input 'x' has type {kind}, which TensorRT does not have (T016). Export it in float32, or "
        "cut off what makes or reads it."
    )


def test_an_output_of_such_a_type_is_named_too() -> None:
    model = moved(TensorProto.FLOAT)
    model.graph.node[0].CopyFrom(
        helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.UINT16)
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT16
    assert refusal(model).startswith("output 'y' has type UINT16, which TensorRT does not have")


def test_an_operator_that_only_sounds_like_one_of_onnx_is_refused() -> None:
    message = refusal(moved(TensorProto.FLOAT, "my.own"))
    assert message == (
        "rectify (my.own.Relu): TensorRT ignores the domain and would run ONNX's Relu (T016). "
        "Export it as ONNX operators, or name it as your plugin is named."
    )


def test_a_function_of_the_model_itself_may_have_that_name() -> None:
    require_sound_onnx(moved(TensorProto.FLOAT, "my.own", local=True).SerializeToString())


def test_a_file_without_a_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(BuildError, match=r"empty\.onnx: no node in its graph\. Want an ONNX file"):
        load_onnx(tmp_path / "empty.onnx")
