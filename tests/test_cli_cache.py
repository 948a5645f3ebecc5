"""`fdda-deploy cache`: every command by its output, its exit code, and its one line of refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from table_graphs import foreign, ranges

from fdda_deploy.calib_cache.store import load_any, load_record
from fdda_deploy.cli import main

TEXT = "TRT-101601-EntropyCalibration2\ninput: 3caa54fc\nrelu: 3d4ccccd\ndead: 0\n"


class Command:
    """Runs `cache ...` and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> str:
        """Returns what a command that succeeds prints."""
        assert main(["cache", *map(str, words)]) == 0
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return captured.out

    def json(self, *words: str | Path, code: int = 0) -> dict[str, object]:
        assert main(["cache", *map(str, words), "--json"]) == code
        found: dict[str, object] = json.loads(self._capsys.readouterr().out)
        return found

    def refused(self, *words: str | Path, code: int = 1) -> str:
        """Returns the one line of a command that fails."""
        assert main(["cache", *map(str, words)]) == code
        captured = self._capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err


@pytest.fixture
def cache(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "old.cache"
    path.write_text(TEXT)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(foreign(), path)
    return path


@pytest.fixture
def graph_table(tmp_path: Path) -> Path:
    """The table of `graph`."""
    lines = [
        f"{name}: {np.float32(amax / 127).view(np.uint32).item():08x}"
        for name, amax in ranges(foreign()).items()
    ]
    path = tmp_path / "graph.cache"
    path.write_text("\n".join(["TRT-8601-MinMaxCalibration", *lines]))
    return path


def test_show_tells_origin_grids_and_that_tables_are_not_portable(
    cache: Command, table: Path
) -> None:
    lines = cache("show", table).splitlines()
    assert "origin     TRT-101601-EntropyCalibration2" in lines
    assert any(line.split()[:2] == ["input", "activation"] for line in lines)
    assert any(line.startswith("dead") and "never excited" in line for line in lines)
    assert "not portable across TensorRT releases" in lines[-1]


def test_show_as_json_has_the_scale_as_hexadecimal_too(cache: Command, table: Path) -> None:
    found = cache.json("show", table)
    assert (found["format"], found["num_tensors"], found["num_unexcited"]) == ("trt", 3, 1)
    rows = found["tensors"]
    assert isinstance(rows, list)
    assert [row["scale_hex"] for row in rows] == ["3caa54fc", "3d4ccccd", "00000000"]
    assert rows[0]["amax"] == pytest.approx(2.6406, abs=1e-4)
    assert (rows[0]["qmin"], rows[0]["qmax"], rows[2]["qmax"]) == (-128, 127, None)


def test_import_keeps_origin_and_bits_so_export_gives_the_same_file(
    cache: Command, table: Path, tmp_path: Path
) -> None:
    record, again = tmp_path / "calibration.json", tmp_path / "again.cache"
    assert "TRT-101601" in cache("import", table, "--out", record)
    assert load_record(record).origin == "TRT-101601-EntropyCalibration2"
    cache("export", record, "--format", "trt", "--out", again)
    assert again.read_text() == TEXT.replace("dead: 0\n", "dead: 00000000\n")


@pytest.mark.parametrize("form", ["ort", "ort-text", "json"])
def test_a_table_survives_the_way_there_and_back(
    cache: Command, table: Path, tmp_path: Path, form: str
) -> None:
    there, back = tmp_path / "there", tmp_path / "back.cache"
    cache("export", table, "--format", form, "--out", there)
    assert load_any(there)[0] == form
    words = ["--trt-version", "10.16.1", "--algorithm", "EntropyCalibration2", "--quiet"]
    assert cache("export", there, "--format", "trt", "--out", back, *words) == ""
    assert back.read_text() == TEXT.replace("dead: 0\n", "dead: 00000000\n")


def test_diff_of_the_same_is_exit_0_and_of_others_1(
    cache: Command, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "new.cache"
    other.write_text(TEXT.replace("3caa54fc", "3cab54fc").replace("dead: 0", "new: 3f800000"))
    assert "3 tensors in both, 0 of them differ" in cache("diff", table, table)
    assert main(["cache", "diff", str(table), str(other)]) == 1
    out = capsys.readouterr().out
    assert "2 tensors in both, 1 of them differ" in out
    assert f"only in  {other}" in out
    found = cache.json("diff", table, other, code=1)
    assert (found["only_first"], found["only_second"]) == (["dead"], ["new"])
    found = cache.json("diff", table, other, "--tolerance", "0.1", code=1)
    assert (found["changed"], found["same"]) == ([], False)


def test_an_inverted_table_is_refused_and_read_if_asked(cache: Command, tmp_path: Path) -> None:
    path, out = tmp_path / "inverted.cache", tmp_path / "calibration.json"
    bits = np.float32(127 / 2.64).view(np.uint32).item()
    path.write_text(f"TRT-8601-EntropyCalibration2\ninput: {bits:08x}\n")
    for words in (["show", path], ["import", path, "--out", out]):
        assert "127/amax where TensorRT wants amax/127. Give --inverted" in cache.refused(*words)
    cache("import", path, "--out", out, "--inverted")
    scale = float(load_record(out).tensors["input"].qparams.scale)
    assert scale == pytest.approx(2.64 / 127, rel=1e-6)


def test_apply_writes_a_graph_and_says_what_it_used(
    cache: Command, graph: Path, graph_table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.qdq.onnx"
    found = cache.json("apply", graph_table, graph, "--out", out, "--target", "rtx")
    assert found["activations"] == {"image": "image", "x2": "x2", "flat": "flat"}
    assert found["weights"] == ["w0", "w1", "fc"]
    assert found["origin"] == "TRT-8601-MinMaxCalibration"
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (3, 6)
    assert main(["check", str(out), "--target", "rtx"]) == 0


def test_apply_prints_a_table_and_quiet_prints_nothing(
    cache: Command, graph: Path, graph_table: Path, tmp_path: Path
) -> None:
    words = ["apply", graph_table, graph, "--out", tmp_path / "q.onnx"]
    assert "3 pairs with the table's scales" in cache(*words)
    assert cache(*words, "--quiet") == ""


def test_a_refused_apply_writes_no_file(
    cache: Command, graph: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.qdq.onnx"
    assert "none of the table's 3 tensors" in cache.refused("apply", table, graph, "--out", out)
    assert not out.exists()


def test_bad_usage_is_exit_2(
    cache: Command, graph: Path, graph_table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export = ["export", graph_table, "--out", out]
    apply = ["apply", graph_table, graph, "--out", out]
    assert "--format: unknown 'npz'. Known: trt," in cache.refused(
        *export, "--format", "npz", code=2
    )
    alone = cache.refused(*export, "--format", "ort", "--trt-version", "8.6", code=2)
    assert "go with --format trt alone" in alone
    assert "--target: unknown 'tpu'." in cache.refused(*apply, "--target", "tpu", code=2)
    assert "--missing: unknown 'no'. Known: error," in cache.refused(
        *apply, "--missing", "no", code=2
    )
    diff = ["diff", graph_table, graph_table]
    assert "--tolerance inf" in cache.refused(*diff, "--tolerance", "inf", code=2)
    assert cache.refused(*diff, "--tolerance", "-1", code=2)


def test_files_that_cannot_be_used_are_named(
    cache: Command, graph: Path, table: Path, tmp_path: Path
) -> None:
    gone, out = tmp_path / "gone.cache", tmp_path / "out"
    for words in (["show", gone], ["diff", table, gone], ["apply", gone, graph, "--out", out]):
        assert f"{gone}: cannot be read" in cache.refused(*words)
    assert f"{gone}: " in cache.refused("apply", table, gone, "--out", out)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01not onnx")
    assert f"{broken}: " in cache.refused("apply", table, broken, "--out", out)
    nowhere = tmp_path / "missing" / "calibration.json"
    assert "Choose a folder that exists" in cache.refused("import", table, "--out", nowhere)
