"""`fdda-deploy sensitivity`: a ranking for eyes, the whole record for scripts."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fdda_deploy.cli import main
from fdda_deploy.config import BuildConfig


def layer(node: str, kl: float, bits: int = 4, act_bits: int | None = 8) -> dict[str, Any]:
    found = {"nodes": [node], "weight_bits": bits, "act_bits": act_bits, "kl": kl}
    return found | {
        "sqnr_db": 12.345,
        "num_weights": 3000,
        "grid_bytes": 1500,
        "stored_bytes": 3000,
    }


RECORD = {
    "schema": 1,
    "narrow": [
        layer("stem/Conv", 0.01, 8),
        layer("conv/Conv", 0.5),
        layer("fc/Gemm", 0.2, 4, None),
    ],
    "wide": [layer("stem/Conv", 0.01, 8), layer("conv/Conv", 0.00012, 8), layer("fc/Gemm", 0.0, 8)],
}


@dataclass(frozen=True)
class Result:
    out: Path
    follows: bool = False


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[BuildConfig, str]]:
    """Stands where the pipeline is, and leaves a record as it would."""
    calls: list[tuple[BuildConfig, str]] = []

    def build(config: BuildConfig, *, until: str, console: object) -> Result:
        calls.append((config, until))
        (tmp_path / "sensitivity.json").write_text(json.dumps(RECORD))
        return Result(tmp_path)

    module = types.ModuleType("fdda_deploy.pipeline.run")
    module.__dict__["build"] = build
    monkeypatch.setitem(sys.modules, "fdda_deploy.pipeline.run", module)
    return calls


def test_layers_are_printed_in_falling_order_of_damage(
    asked: list[tuple[BuildConfig, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "digits", "--scheme", "w4a8"]) == 0
    assert [until for _, until in asked] == ["sensitivity"]
    assert asked[0][0].quantize.scheme.name == "w4a8"
    assert capsys.readouterr().out.splitlines() == [
        "rank  layer      bits W/A  KL [nats]  SQNR [dB]  bytes  KL at 8 bits [nats]",
        "1     conv/Conv  4/8       0.5        12.3       1,500  0.00012",
        "2     fc/Gemm    4/float   0.2        12.3       1,500  0",
        "3     stem/Conv  8/8       0.01       12.3       1,500  0.01",
    ]


def test_json_is_the_record_and_quiet_is_silent(
    asked: list[tuple[BuildConfig, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RECORD
    assert main(["sensitivity", "digits", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_bound_and_its_images_reach_the_configuration(
    asked: list[tuple[BuildConfig, str]],
) -> None:
    line = "sensitivity digits --max-drop 0.5 --tune-data tune/ --quiet"
    assert main(line.split()) == 0
    config = asked[0][0]
    assert (config.quantize.max_drop, config.data.tune_data) == (0.5, "tune/")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max-drop -1", "error: --max-drop: got -1.0, wanted 0 or more."),
        ("--max-drop 101", "error: --max-drop: got 101.0, wanted 100 or less."),
        ("--max-drop nan", "error: --max-drop: got nan, wanted a finite number."),
        ("--max-drop much", "error: Invalid value for '--max-drop'"),
        (
            "--max-drop 1 --tune-data val/ --eval-data val/",
            "error: --tune-data and --eval-data are both val/: what chooses the widths cannot",
        ),
    ],
)
def test_a_bound_or_images_that_make_no_sense_are_wrong_usage(
    asked: list[tuple[BuildConfig, str]],
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    assert main(["build", "digits", *line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert not asked


def test_fp16_has_no_layer_to_rank_and_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sensitivity", "digits", "--scheme", "fp16", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "FP16 quantizes no layer, so there is none to rank" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
