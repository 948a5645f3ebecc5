"""Tensors of one set share the largest of their scales, and part where that is too coarse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.quant.sharing import MOST_COARSENED, shared_scales

SCALES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(1e-6, 1e3))


@given(SCALES)
def test_each_takes_one_of_the_scales_and_none_gets_finer_or_much_coarser(
    scales: dict[str, float],
) -> None:
    found = shared_scales(scales)
    assert found.keys() == scales.keys()
    assert set(found.values()) <= set(scales.values())
    for tensor, scale in scales.items():
        assert scale <= found[tensor] <= MOST_COARSENED * scale


@given(SCALES)
def test_sharing_twice_is_sharing_once(scales: dict[str, float]) -> None:
    once = shared_scales(scales)
    assert shared_scales(once) == once


@given(SCALES)
def test_all_within_the_bound_share_one(scales: dict[str, float]) -> None:
    if scales and max(scales.values()) <= MOST_COARSENED * min(scales.values()):
        assert len(set(shared_scales(scales).values())) == 1


def test_a_tensor_with_a_bound_of_its_own_parts_or_joins_by_that() -> None:
    scales = {"a": 1.0, "b": 0.5, "c": 0.3}
    assert shared_scales(scales, {"b": 0.9}) == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert shared_scales(scales, {"c": 1.0}) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_no_tensors_share_nothing() -> None:
    assert shared_scales({}) == {}
