"""Bad input on the real road: one line that names it and the next step, nothing published."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from refused import Shell
from safetensors.torch import load_file, save_file


def test_an_unknown_network_brings_near_names(shell: Shell) -> None:
    refused = shell.refused("resnt18", network=None)
    assert refused.code == 1
    assert refused.line.startswith("resnt18: ")
    assert "resnet18" in refused.line


def test_weights_that_are_not_there_are_named(shell: Shell) -> None:
    line = shell.refused(weights=str(shell.folder / "tyni.safetensors")).line
    assert "tyni.safetensors: no such weights file" in line
    assert "tiny.safetensors" in line


def test_weights_of_another_shape_are_counted_and_the_first_shown(
    shell: Shell, tmp_path: Path
) -> None:
    state = load_file(shell.folder / "tiny.safetensors")
    state["head.weight"] = torch.zeros(7, 16)
    del state["stem.weight"]
    save_file(state, tmp_path / "w.safetensors")
    line = shell.refused(weights=str(tmp_path / "w.safetensors")).line
    assert "1 are missing and 1 have the wrong shape" in line
    assert "head.weight is 7x16 in the file and 4x16 in the network" in line
    assert "missing stem.weight" in line


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_wants_to_run_code_runs_none(shell: Shell, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    torch.save({"head.weight": torch.ones(2), "x": Payload(marker)}, tmp_path / "w.pth")
    line = shell.refused(weights=str(tmp_path / "w.pth")).line
    assert "refused, since loading it asks to run" in line
    assert "torch.save(network.state_dict(), FILE)" in line
    assert not marker.exists()


def test_nan_weights_are_named(shell: Shell, tmp_path: Path) -> None:
    state = load_file(shell.folder / "tiny.safetensors")
    state["blocks.1.point.weight"][0, :3] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    line = shell.refused(weights=str(tmp_path / "w.safetensors")).line
    assert "NaN or infinite weights in blocks.1.point.weight (3 of 256)" in line
    assert "use another checkpoint" in line


def test_an_operator_that_onnx_lacks_is_named_with_its_module(shell: Shell) -> None:
    line = shell.refused(network="unwritable").line
    assert "cannot be exported to ONNX" in line
    assert "bessel_j0" in line
    assert "blocks.1.point.1" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--bits 9", 2, "--bits 9: want 2 to 8."),
        ("--bits 1", 2, "--bits 1: want 2 to 8."),
        ("--scheme w4a9", 2, "activations take 2 to 8 bits, or 16"),
        ("--config {bits}", 1, "want 2 to 8."),
        ("--config {key}", 1, "[quantize] obzerver: unknown key. Did you mean 'observer'?"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_made(
    shell: Shell, tmp_path: Path, words: str, code: int, message: str
) -> None:
    (tmp_path / "bits.toml").write_text("[quantize]\nbits = 12\n")
    (tmp_path / "key.toml").write_text("[quantize]\nobzerver = 'mse'\n")
    refused = shell.refused(words.format(bits=tmp_path / "bits.toml", key=tmp_path / "key.toml"))
    assert (refused.code, message in refused.line) == (code, True)
    assert not shell.out.exists()


def test_a_result_folder_below_a_file_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    shell.out = tmp_path / "file" / "out"
    assert "a part of this path is a file, not a folder. Choose another --out." in (
        shell.refused().line
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kib", [1, 100], ids=["at once", "in the middle of training"])
def test_a_result_folder_without_room_is_told(shell: Shell, kib: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, before[1]))
    try:
        line = shell.refused().line
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line.startswith(f"{shell.out}: a file exceeds the size allowed (ulimit -f). Raise it")


def test_a_disk_that_fills_up_says_how_to_go_on(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    write = Path.write_bytes

    def write_to_a_full_disk(path: Path, data: bytes) -> int:
        return write(Path("/dev/full") if path.name == "model.qdq.onnx" else path, data)

    monkeypatch.setattr(Path, "write_bytes", write_to_a_full_disk)
    assert shell.refused().line == (
        f"{shell.out}: the disk is full. Free some space, then run the same command to continue."
    )


def test_without_the_hub_it_says_how_to_pass_weights_and_soon(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("no_proxy", "")
    refused = shell.refused("squeezenet1_1", network=None)
    assert "cannot be downloaded" in refused.line
    assert "pass it with --weights FILE" in refused.line
    assert refused.seconds < 10
