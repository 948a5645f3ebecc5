"""How a plan is built: batches in order, other batches refused, and every option read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.config import EngineConfig, config_from, config_from_text, to_toml
from fdda_deploy.engines.build_options import BuildOptions, options_from
from fdda_deploy.errors import ConfigError

DIGITS = {"model": "digits"}
BATCH = st.one_of(st.none(), st.integers(1, 300))


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, (1, 8, 64)),
        ({"max_batch": 4}, (1, 4, 4)),
        ({"min_batch": 16}, (16, 16, 64)),
        ({"opt_batch": 200}, (1, 200, 200)),
        ({"min_batch": 2, "opt_batch": 4, "max_batch": 8}, (2, 4, 8)),
    ],
    ids=["nothing asked", "largest", "smallest", "best", "all"],
)
def test_batches_left_out_fit_those_that_were_asked_for(
    given: dict[str, int], want: tuple[int, int, int]
) -> None:
    assert EngineConfig(**given).batches(1) == want


def test_the_plan_takes_the_batches_that_are_timed() -> None:
    assert EngineConfig(bench_batches=(1, 128)).batches(1) == (1, 8, 128)


def test_a_batch_to_time_that_the_plan_excludes_is_refused() -> None:
    with pytest.raises(ConfigError, match="--bench-batches 32: the plan takes at most 16"):
        EngineConfig(bench_batches=(1, 32), max_batch=16)


def test_the_plan_takes_the_batch_that_is_evaluated() -> None:
    assert EngineConfig().batches(256) == (1, 8, 256)


@given(BATCH, BATCH, BATCH, st.integers(1, 300))
def test_batches_are_in_order_or_refused(
    low: int | None, best: int | None, high: int | None, batch_size: int
) -> None:
    try:
        engine = EngineConfig(min_batch=low, opt_batch=best, max_batch=high)
    except ConfigError as error:
        assert "want each at least as large as the one before" in str(error)  # noqa: PT017
    else:
        found = engine.batches(batch_size)
        assert list(found) == sorted(found)
        BuildOptions((), *found)
        assert high is not None or found[2] >= batch_size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"max_batch": 16},
            "--batch-size 32: the plan takes at most 16 images (--max-batch).",
        ),
        (
            {"min_batch": 8, "batch_size": 4},
            "--batch-size 4: the plan takes 8 images or more (--min-batch).",
        ),
        (
            {"min_batch": 8, "max_batch": 4},
            "--min-batch 8, --opt-batch 8, --max-batch 4: want each at least as large",
        ),
    ],
    ids=["too large", "too small", "out of order"],
)
def test_a_profile_that_excludes_the_batch_asked_for_is_refused(
    flags: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(None, DIGITS | flags)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(".")


def test_every_option_is_read_from_flags_and_survives_a_file() -> None:
    flags = {
        "min_batch": 2,
        "opt_batch": 4,
        "max_batch": 64,
        "opt_level": 5,
        "workspace": 512,
        "hardware_compatible": "ampere-plus",
        "version_compatible": True,
        "strip": True,
        "timing_cache": "timings",
        "calibrator": "trt",
    }
    config = config_from(None, DIGITS | flags | {"bench_batches": "2,32"})
    assert config.engine.bench_batches == (2, 32)
    for name, value in flags.items():
        assert getattr(config.engine, name) == value
    options = options_from(config.engine, config.run.batch_size)
    assert options.workspace_bytes == 512 * 2**20
    assert (options.min_batch, options.opt_batch, options.max_batch) == (2, 4, 64)
    assert (options.hardware, options.optimization_level) == ("ampere-plus", 5)
    assert config_from_text(to_toml(config), {}) == config


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("opt_level", 6, "--opt-level"),
        ("workspace", 0, "--workspace"),
        ("max_batch", 0, "--max-batch"),
        ("hardware_compatible", "hopper", "--hardware-compatible"),
        ("calibrator", "none", "--calibrator"),
    ],
)
def test_values_out_of_range_are_refused_by_name(flag: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from(None, DIGITS | {flag: value})
