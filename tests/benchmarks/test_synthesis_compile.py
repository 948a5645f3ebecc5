"""benchmarks/synthesis_compile.py: when compiling pays, and that children's work is counted."""

from __future__ import annotations

import subprocess
import sys

import pytest
import synthesis_compile


def test_compiling_pays_after_the_steps_that_save_what_it_took():
    found = synthesis_compile.worth([2.0, 4.0, 2.0], [1.0, 2.0, 1.0], cost=30.0, steps=100)
    assert found["step_speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["pays_after_steps"] == pytest.approx(30)
    assert found["schedule_speedup"] == pytest.approx(200 / 130)


def test_a_compiled_step_that_is_slower_never_pays():
    found = synthesis_compile.worth([1.0], [1.5], cost=10.0, steps=100)
    assert found["pays_after_steps"] is None
    assert found["schedule_speedup"] < 1


def test_a_row_says_what_it_found_in_one_line():
    row = {"network": "tiny", "recipe": "fdda", **synthesis_compile.worth([2.0], [1.0], 30.0, 100)}
    said = synthesis_compile.line(row)
    assert "a step x2.00 (2.00 to 2.00), compiling 30 s, pays after 30 of 100 steps" in said
    row |= synthesis_compile.worth([1.0], [1.5], 10.0, 100)
    assert "pays never" in synthesis_compile.line(row)


def test_the_processor_time_of_children_counts():
    busy = "import time\nwhile time.process_time() < 0.15: pass"
    spent = synthesis_compile.timed(
        lambda: subprocess.run([sys.executable, "-c", busy], check=True)
    )
    assert spent >= 0.15
