"""The record of the machine: what is not known is None, and nvidia-smi's text is only text."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.engines.bench_environment import CLOCKS, bench_environment, clocks_from_csv
from fdda_deploy.engines.gpu import gpu_name


def test_environment_is_json_and_names_processor_and_runtime() -> None:
    found = bench_environment()
    assert json.loads(json.dumps(asdict(found)))["cpu"] == found.cpu
    assert found.cpu
    assert any("onnxruntime" in name for name in found.libraries)


@pytest.mark.skipif(gpu_name() is not None, reason="the claim is about a machine without a GPU")
def test_without_a_gpu_nothing_is_said_about_one() -> None:
    found = bench_environment()
    assert (found.gpu, found.driver, found.sm_clock_mhz, found.max_sm_clock_mhz) == (None,) * 4


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("1980, 2619, 1980, 2619, 570.86\n", ("1980", "2619", "1980", "2619", "570.86")),
        ("[N/A], 2619, [N/A], 2619, 570.86", (None, "2619", None, "2619", "570.86")),
        ("", (None,) * 5),
        ("1980", ("1980", None, None, None, None)),
    ],
    ids=["all", "some", "silent", "short"],
)
def test_clocks_that_are_not_told_are_none(text: str, fields: tuple[str | None, ...]) -> None:
    assert clocks_from_csv(text) == fields


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_any_text_of_the_tool_gives_five_fields(text: str) -> None:
    assert len(clocks_from_csv(text)) == len(CLOCKS.split(","))
