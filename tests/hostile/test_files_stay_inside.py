"""Names inside files that lead elsewhere: nothing there is read as ours, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from payloads import Command, network

TABLE = "TRT-101601-EntropyCalibration2\nx: 3c010a14\ny: 3c010a14\n"
LOCATIONS = {
    "above": "../secret.bin",
    "absolute": "{root}/secret.bin",
    "link": "link.bin",
    "hard link": "hard.bin",
    "nothing": "",
    "folder": ".",
    "null": "a\0b",
    "device": "/dev/zero",
    "address": "file:///etc/passwd",
    "steers a terminal": "\x1b[2J\n",
}
COMMANDS = {
    "check": "check {model}",
    "repair": "check {model} --fix --out {out}",
    "plan": "engine {model} --out {out}",
    "apply": "cache apply {table} {model} --out {out}",
    "bench": "bench {model} --seconds 0.02",
    "compare": "compare {model} {model}",
}
MAY_READ = {("plan", "hard link"), ("bench", "hard link"), ("compare", "hard link")}
"""A hard link is a file of the folder: only ONNX's own reader, which the others use, refuses it."""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Returns a folder with links to a file beside it that has the right size."""
    secret, folder = tmp_path / "secret.bin", tmp_path / "in"
    secret.write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    os.link(secret, folder / "hard.bin")
    (folder / "t.cache").write_text(TABLE)
    return {"model": folder / "m.onnx", "table": folder / "t.cache", "out": tmp_path / "out"}


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("kind", LOCATIONS)
def test_weights_outside_the_folder_are_refused_by_every_command(
    command: Command, tmp_path: Path, places: dict[str, Path], kind: str, case: str
) -> None:
    places["model"].write_bytes(network(LOCATIONS[kind].format(root=tmp_path)))
    words = [word.format(**places) for word in COMMANDS[case].split()]
    if (case, kind) in MAY_READ:
        assert command.run(*words)[0] in {0, 1}
        return
    told = command.refused(*words)
    assert told.isprintable()
    assert not places["out"].exists()


@pytest.mark.parametrize(
    ("offset", "length"),
    [("-5", "432"), ("0", str(2**70)), ("0x10", "1"), (str(2**62), ""), ("", "433")],
)
def test_lengths_that_lie_are_refused(
    command: Command, places: dict[str, Path], offset: str, length: str
) -> None:
    data = places["model"].parent / "plain.bin"
    data.write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    places["model"].write_bytes(network("plain.bin", offset=offset, length=length))
    command.refused("check", places["model"])
    command.refused("bench", places["model"], "--seconds", "0.02")
    command.refused("engine", places["model"], "--out", places["out"])
