"""Files that anybody may have written: read whole, from their own folder, or refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import trt_rules_graphs as graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import onnx_file
from fdda_deploy.exporters.onnx_file import read_onnx


def external(folder: Path, location: str, **facts: str) -> Path:
    """Writes a model whose first initializer lies in ``location``."""
    model = graphs.conv()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = b""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **facts}.items():
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return folder / "a.onnx"


def refusal(path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        read_onnx(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = external(tmp_path, "a.data")
    (tmp_path / "a.data").write_bytes(np.float32(0.5).tobytes())
    tensor = read_onnx(path).graph.initializer[0]
    assert onnx.numpy_helper.to_array(tensor).reshape(-1).tolist() == [0.5]


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", ""])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    assert "outside the file's folder" in refusal(external(tmp_path / "in", location))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    path = external(tmp_path / "in", "a.data")
    (tmp_path / "in" / "a.data").symlink_to(tmp_path / "secret")
    assert "outside the file's folder" in refusal(path)


def test_missing_data_is_told(tmp_path: Path) -> None:
    assert "no file 'a.data' beside it" in refusal(external(tmp_path, "a.data"))


@pytest.mark.parametrize(
    "facts", [{"length": "9"}, {"offset": "9"}, {"offset": "-1"}, {"length": "many"}]
)
def test_data_cut_short_is_told(tmp_path: Path, facts: dict[str, str]) -> None:
    path = external(tmp_path, "a.data", **facts)
    (tmp_path / "a.data").write_bytes(bytes(4))
    assert "which has 4. Copy both files again." in refusal(path)


def test_over_2_gb_is_told_without_reading_it(tmp_path: Path) -> None:
    large = tmp_path / "a.onnx"
    with large.open("wb") as file:
        file.truncate(onnx_file.MAX_BYTES + 1)
    assert "2.1 GB with its data, over the 2 GB" in refusal(large)


def test_over_2_gb_of_data_is_told_without_reading_it(tmp_path: Path) -> None:
    path = external(tmp_path, "a.data")
    with (tmp_path / "a.data").open("wb") as file:
        file.truncate(onnx_file.MAX_BYTES)
    assert "over the 2 GB" in refusal(path)


def test_an_element_type_that_onnx_lacks_is_told(tmp_path: Path) -> None:
    model = graphs.conv()
    model.graph.initializer[0].data_type = 99
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert "tensor c0: element type 99 is none that ONNX has" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no node in its graph"),
        (b"\xff" * 90, "not a readable ONNX file"),
        (None, "No such file"),
    ],
    ids=["empty", "garbage", "missing"],
)
def test_no_onnx_file_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    assert words in refusal(tmp_path / "a.onnx")


WHOLE = graphs.conv().SerializeToString()


@pytest.mark.fuzz
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=12))
def test_flipped_bytes_give_a_model_or_a_refusal(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for place, value in flips:
        data[place] = value
    (tmp_path / "a.onnx").write_bytes(data)
    with suppress(ExportError):
        assert read_onnx(tmp_path / "a.onnx").graph.node
