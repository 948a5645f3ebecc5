"""Reconstruction that diverges, or has too few images or bytes, says so and does no harm."""

from __future__ import annotations

import dataclasses
import re

import pytest
from quant_networks import CPU, Plain, images, quant_network
from reconstruct_networks import PLENTY, SETTINGS, float_module, network_of, run, state_of

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization import reconstruct as module
from fdda_deploy.pipeline.quantization import reconstruction_unit
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.reconstruction_settings import (
    RECONSTRUCTION,
    ReconstructionSettings,
)

RATES = ("rounding_lr", "scale_lr", "step_lr", "bias_lr")


@pytest.mark.parametrize(
    ("rate", "steps"),
    [(3.0, 5), (1e30, 5), (1e4, 1)],
    ids=["worse", "not finite", "not finite after the last step"],
)
def test_divergence_keeps_the_old_solution_to_the_bit_and_warns(rate: float, steps: int) -> None:
    network = network_of(Plain)
    before = state_of(network)
    result = run(network, Plain, num_steps=steps, **dict.fromkeys(RATES, rate))
    assert state_of(network) == before
    assert not any(outcome.kept for outcome in result.blocks)
    assert {outcome.restarts for outcome in result.blocks} == {1}
    assert all(outcome.error_after == outcome.error_before for outcome in result.blocks)
    wanted = (
        f"conv2d and {len(result.blocks) - 1} more: reconstruction did not lower the error at "
        "either rate; kept as it was. Lower the rates or give more images."
    )
    assert result.warnings == (wanted,)


def test_a_restart_at_a_tenth_of_the_rate_may_still_succeed() -> None:
    network = network_of(Plain)
    rates = {"scale_lr": 0.0, "step_lr": 0.0, "bias_lr": 0.05}
    result = run(network, Plain, **rates)
    restarted = [outcome for outcome in result.blocks if outcome.restarts]
    assert restarted
    assert any(outcome.kept for outcome in restarted)


def test_an_interruption_puts_the_unit_back() -> None:
    network = network_of(Plain)
    before = state_of(network)

    def stop(done: int, total: int, text: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network, Plain, progress=stop)
    assert state_of(network) == before


def test_activations_on_disk_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = network_of(Plain)
    wanted = run(in_memory, Plain)
    spilled: list[int] = []
    append = ActivationStore.append

    def spy(self: ActivationStore, x: object) -> None:
        append(self, x)  # type: ignore[arg-type]
        spilled.append(self.bytes_spilled)

    monkeypatch.setattr(ActivationStore, "append", spy)
    monkeypatch.setattr(module, "MOST_STORES", 10_000)
    on_disk = network_of(Plain)
    assert run(on_disk, Plain, memory_limit_bytes=2**24) == wanted
    assert max(spilled) > 0
    assert state_of(on_disk) == state_of(in_memory)


def test_every_store_is_closed_whether_it_ends_well_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ActivationStore] = []
    start = ActivationStore.__init__

    def spy(self: ActivationStore, limit_bytes: int) -> None:
        start(self, limit_bytes)
        made.append(self)

    def fail(*_: object, **__: object) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(ActivationStore, "__init__", spy)
    run(network_of(Plain), Plain, num_steps=1, granularity="layer")
    monkeypatch.setattr(reconstruction_unit, "relative_error", fail)
    with pytest.raises(RuntimeError, match="no"):
        run(network_of(Plain), Plain)
    with pytest.raises(CalibrationError):
        run(network_of(Plain), Plain, num_images=3)
    assert len(made) > 10
    assert [len(store) for store in made] == [0] * len(made)


def test_a_batch_that_does_not_fit_is_halved_and_said_so() -> None:
    network = network_of(Plain)
    result = run(network, Plain, memory_limit_bytes=300_000)
    assert {outcome.batch_size for outcome in result.blocks} < {1, 2, 4, 8}
    smallest = min(outcome.batch_size for outcome in result.blocks)
    assert smallest < 8
    assert result.warnings[-1] == (
        f"reconstruction took {smallest} images a step in place of 8 to stay within the memory "
        "limit. Allow more memory for the schedule as it is."
    )


def test_an_image_that_does_not_fit_is_refused() -> None:
    wanted = (
        r"reconstruction needs about \S+ MiB for one image of a block and may take 0\.000488\. "
        r"Allow more memory, or round in closed form\."
    )
    with pytest.raises(CalibrationError, match=wanted):
        run(network_of(Plain), Plain, memory_limit_bytes=1024)


@pytest.mark.parametrize(("count", "batch_size", "wanted"), [(15, 8, 16), (0, 8, 16), (20, 32, 32)])
def test_too_few_images_are_refused_with_how_many_it_takes(
    count: int, batch_size: int, wanted: int
) -> None:
    network = network_of(Plain)
    with pytest.raises(
        CalibrationError,
        match=rf"^reconstruction has {count} images and wants {wanted} or more\. Give more",
    ):
        module.reconstruct(
            network,
            float_module(Plain),
            [images(count)] if count else [],
            settings=dataclasses.replace(SETTINGS, batch_size=batch_size),
            device=CPU,
            seed=0,
            memory_limit_bytes=PLENTY,
        )


def test_a_network_without_grids_is_refused() -> None:
    network: QuantNetwork = quant_network(Plain, "w3a4")
    with pytest.raises(CalibrationError, match=r"no range yet\. Calibrate first\."):
        run(network, Plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "net"}, "granularity 'net': want one of block, layer."),
        ({"num_steps": 0}, "num_steps 0: want 1 or more."),
        ({"batch_size": 0}, "batch_size 0: want 1 or more."),
        ({"rounding_lr": -1.0}, "rounding_lr -1.0: want 0 or more."),
        ({"step_lr": float("nan")}, "step_lr nan: want 0 or more."),
        ({"drop": 1.0}, r"drop 1.0: want a share in [0, 1)."),
        ({"warmup": -0.1}, r"warmup -0.1: want a share in [0, 1)."),
        ({"predict": 0.1, "granularity": "layer"}, "predict needs whole blocks"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"reconstruction {message}")):
        dataclasses.replace(SETTINGS, **changes)


def test_the_best_schedule_is_the_published_one() -> None:
    best = RECONSTRUCTION["best"]
    assert (best.num_steps, best.batch_size, best.decide, best.rounding_lr, best.drop) == (
        20_000,
        32,
        0.01,
        1e-3,
        0.5,
    )
    assert best.step_lr == 4e-5
    assert best.scale_lr > 0
    assert RECONSTRUCTION["short"].num_steps < 1000
    assert isinstance(RECONSTRUCTION["short"], ReconstructionSettings)
