"""A pickle in the place of any file that a command reads: nothing of it runs."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from payloads import Command, Payload, network, pickled

SUFFIXES = {
    "checkpoint": ".pth",
    "old": ".pt",
    "safetensors": ".safetensors",
    "arrays": ".npz",
    "plan": ".plan",
    "graph": ".onnx",
    "table": ".cache",
    "settings": ".toml",
    "document": ".json",
}
BUILD = "build digits --recipe none --effort none --no-finetune --out {out}"
COMMANDS = {
    "weights .pth": f"{BUILD} --weights {{checkpoint}}",
    "weights .pt": f"{BUILD} --weights {{old}}",
    "weights .safetensors": f"{BUILD} --weights {{safetensors}}",
    "settings": f"{BUILD} --config {{settings}}",
    "check": "check {graph}",
    "repair": "check {graph} --fix --out {out}",
    "plan of a graph": "engine {graph} --out {out}",
    "bench of a graph": "bench {graph}",
    "bench of a plan": "bench {plan}",
    "bench on a feed": "bench {sound} --feed {arrays}",
    "bench against": "bench {sound} --against {document}",
    "compare": "compare {sound} {graph}",
    "show a table": "cache show {table}",
    "import a table": "cache import {table} --out {out}",
    "apply a table": "cache apply {table} {sound} --out {out}",
    "compare tables": "cache diff {table} {table}",
    "package": "package {folder} --out {out}",
    "verify": "verify {folder}",
}


def test_the_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickled(tmp_path / "ran"))  # noqa: S301 - proves that the tests below can fail
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("form", ["plain", "torch", "arrays"])
def test_no_command_runs_what_a_file_holds(
    command: Command, tmp_path: Path, case: str, form: str
) -> None:
    marker = tmp_path / "ran"
    places = {name: tmp_path / f"hostile{suffix}" for name, suffix in SUFFIXES.items()}
    for place in places.values():
        write(place, form, marker)
    sound, folder = tmp_path / "sound.onnx", tmp_path / "folder"
    sound.write_bytes(network())
    folder.mkdir()
    write(folder / "manifest.json", form, marker)
    places |= {"sound": sound, "folder": folder, "out": tmp_path / "out"}
    command.refused(*(word.format(**places) for word in COMMANDS[case].split()))
    assert not marker.exists()


def write(place: Path, form: str, marker: Path) -> None:
    """Writes the payload as a plain pickle, as torch.save's archive, or inside an .npz."""
    if form == "plain":
        place.write_bytes(pickled(marker))
    elif form == "torch":
        torch.save({"state_dict": {"w": torch.ones(2)}, "x": Payload(marker)}, place)
    else:
        objects = np.array([Payload(marker)], dtype=object)
        with place.open("wb") as file:
            np.savez(file, x=objects, y=objects)


@pytest.mark.parametrize("name", ["x.npy", "../x.npy", "/x.npy", "x.npy/../../x.npy"])
def test_member_names_of_arrays_write_nothing(command: Command, tmp_path: Path, name: str) -> None:
    place, sound = tmp_path / "in" / "feed.npz", tmp_path / "sound.onnx"
    place.parent.mkdir()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(name, pickled(tmp_path / "ran"))
    sound.write_bytes(network())
    before = sorted(tmp_path.rglob("*"))
    command.refused("bench", sound, "--feed", place)
    command.run("check", sound, "--fix", "--out", tmp_path / "fixed.onnx", "--feed", place)
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "fixed.onnx"}) == before
