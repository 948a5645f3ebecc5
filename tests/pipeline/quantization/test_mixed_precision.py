"""The path of assignments, and the search on it: cheapest that holds, few measurements."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.pipeline.quantization.mixed_precision import (
    MOST_MEASUREMENTS,
    Assignment,
    Candidate,
    LayerCandidates,
    cheapest_holding,
    frontier,
    layer_candidates,
)
from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity, bytes_of

Layers = list[LayerCandidates]


def layer(name: str, *candidates: tuple[int | None, int, float]) -> LayerCandidates:
    return LayerCandidates((name,), tuple(Candidate(*each) for each in candidates))


@st.composite
def networks(draw: st.DrawFn) -> Layers:
    found = []
    for index in range(draw(st.integers(1, 7))):
        count = draw(st.integers(1, 50))
        damages = [draw(st.floats(0, 2)), draw(st.floats(0, 1))]
        widths = [(4, damages[0]), (8, damages[1]), (None, 0.0)]
        sizes = [(bits, bytes_of(count, bits or 32), kl) for bits, kl in widths]
        found.append(layer(f"n{index}", *sizes))
    return found


def everything(layers: Layers) -> list[tuple[int, float]]:
    """(bytes, kl) of every assignment there is."""
    choices = itertools.product(*(each.candidates for each in layers))
    return [(sum(c.num_bytes for c in choice), sum(c.kl for c in choice)) for choice in choices]


def test_the_layer_that_saves_most_per_byte_is_widened_first() -> None:
    path = frontier(
        [
            layer("small", (4, 10, 0.3), (8, 20, 0.1), (None, 80, 0.0)),
            layer("large", (4, 100, 0.9), (8, 200, 0.05), (None, 800, 0.0)),
        ]
    )
    assert [dict(each.widths) for each in path] == [
        {"small": 4, "large": 4},
        {"small": 8, "large": 4},
        {"small": 8, "large": 8},
        {"small": None, "large": 8},
        {"small": None, "large": None},
    ]
    assert [each.num_bytes for each in path] == [110, 120, 220, 280, 880]
    assert [each.kl for each in path] == pytest.approx([1.2, 1.0, 0.15, 0.05, 0.0])


def test_a_width_that_a_wider_one_beats_per_byte_is_skipped() -> None:
    path = frontier([layer("a", (4, 10, 1.0), (8, 20, 0.99), (None, 80, 0.0))])
    assert [each.widths["a"] for each in path] == [4, None]
    worse = frontier([layer("a", (4, 10, 0.1), (8, 20, 0.5), (None, 80, 0.0))])
    assert [each.widths["a"] for each in worse] == [4, None]


def test_of_equal_sizes_the_better_is_taken() -> None:
    path = frontier([layer("a", (4, 1, 0.5), (8, 1, 0.1), (None, 4, 0.0))])
    assert [each.widths["a"] for each in path] == [8, None]


def test_nodes_that_share_a_weight_take_its_width_together() -> None:
    shared = LayerCandidates(("a", "b"), (Candidate(4, 10, 0.5), Candidate(None, 80, 0.0)))
    assert [dict(each.widths) for each in frontier([shared])] == [
        {"a": 4, "b": 4},
        {"a": None, "b": None},
    ]


@given(networks())
def test_the_path_is_nested_grows_in_bytes_and_falls_in_damage(layers: Layers) -> None:
    path = frontier(layers)
    order = {4: 0, 8: 1, None: 2}
    for before, after in itertools.pairwise(path):
        assert after.num_bytes > before.num_bytes
        assert after.kl <= before.kl + 1e-9
        steps = [order[after.widths[name]] - order[before.widths[name]] for name in before.widths]
        assert min(steps) >= 0
        assert sum(step > 0 for step in steps) == 1
    assert path[0].num_bytes == min(size for size, _ in everything(layers))
    assert set(path[-1].widths.values()) == {None}
    assert path[-1].kl == pytest.approx(0, abs=1e-9)


@given(networks())
def test_no_assignment_at_all_beats_one_of_the_path_in_both(layers: Layers) -> None:
    path = frontier(layers)
    for size, kl in everything(layers):
        assert not [each for each in path if size < each.num_bytes and kl < each.kl - 1e-9]


@given(networks(), st.floats(0, 0.1))
def test_the_path_holds_the_lagrangian_optimum_of_every_price(layers: Layers, price: float) -> None:
    best = min(kl + price * size for size, kl in everything(layers))
    found = min(each.kl + price * each.num_bytes for each in frontier(layers))
    assert found == pytest.approx(best, abs=1e-9)


def straight(length: int) -> list[Assignment]:
    """A path of ``length`` quantized assignments and the all-float one."""
    names = [f"n{index}" for index in range(length)]
    return [
        Assignment({name: None if index < k else 4 for index, name in enumerate(names)}, k, 0.0)
        for k in range(length + 1)
    ]


@given(st.integers(1, 64), st.integers(0, 80), st.floats(0, 100))
def test_of_a_falling_drop_the_first_that_holds_is_found(
    length: int, first: int, bound: float
) -> None:
    calls: list[int] = []

    def measure(assignment: Assignment) -> float:
        calls.append(assignment.num_bytes)
        return bound + (first - assignment.num_bytes) * 0.5

    search = cheapest_holding(straight(length), measure, bound)
    assert len(calls) <= MOST_MEASUREMENTS
    assert len(calls) == len(set(calls)) == len(search.measured)
    assert search.holds == (first < length)
    assert search.chosen.assignment.num_bytes == min(first, length - 1)


@given(st.lists(st.floats(-5, 100), min_size=1, max_size=300), st.integers(2, 8))
def test_whatever_is_measured_the_cheapest_that_holds_is_chosen(
    drops: list[float], most: int
) -> None:
    length = len(drops)
    calls: list[int] = []

    def measure(assignment: Assignment) -> float:
        calls.append(assignment.num_bytes)
        return drops[assignment.num_bytes]

    search = cheapest_holding(straight(length), measure, 1.0, most=most)
    held = sorted(call for call in calls if drops[call] <= 1)
    assert len(calls) <= most
    assert search.holds == bool(held)
    assert [each.assignment.num_bytes for each in search.measured] == sorted(calls)
    if held:
        assert search.chosen.assignment.num_bytes == held[0]
    else:
        assert search.chosen.drop == min(drops[call] for call in calls)
        assert length - 1 in calls, "the last one that quantizes anything was tried"


def test_a_scheme_that_holds_is_measured_once() -> None:
    search = cheapest_holding(straight(20), lambda _: 0.4, 0.5)
    assert (len(search.measured), search.chosen.assignment.num_bytes) == (1, 0)


def test_all_in_float_is_never_an_answer_unless_nothing_else_exists() -> None:
    search = cheapest_holding(straight(1), lambda assignment: 9.0 - 9 * assignment.num_bytes, 0.5)
    assert (search.holds, search.chosen.drop) == (False, 9.0)
    nothing = frontier([])
    assert [dict(each.widths) for each in nothing] == [{}]
    assert cheapest_holding(nothing, lambda _: 0.0, 0.0).holds


def sensitivity(bits: int, kl: float) -> LayerSensitivity:
    return LayerSensitivity(("a/Conv",), bits, 8, kl, 20.0, 9, bytes_of(9, bits), 9)


def test_candidates_are_the_schemes_width_eight_bits_and_float() -> None:
    (found,) = layer_candidates([sensitivity(4, 0.5)], [sensitivity(8, 0.1)])
    assert found.candidates == (Candidate(4, 5, 0.5), Candidate(8, 9, 0.1), Candidate(None, 36, 0))
    (found,) = layer_candidates([sensitivity(8, 0.1)], [sensitivity(8, 0.1)])
    assert found.candidates == (Candidate(8, 9, 0.1), Candidate(None, 36, 0))
