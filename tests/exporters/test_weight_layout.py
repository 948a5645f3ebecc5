"""How weights are stored: width, INT4 or INT8, and the axis of their scales."""

from __future__ import annotations

import pytest
from export_grids import gemm_model, place_plain, placed, weights_of
from export_networks import (
    EVERY_NETWORK,
    Depthwise,
    FreshlyMade,
    Residual,
    SharedModule,
    Transposed,
    graph_of,
)

from fdda_deploy.exporters.placement_table import TARGETS


@pytest.mark.parametrize("kind", EVERY_NETWORK, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("target", TARGETS)
def test_weight_only_touches_no_activation(kind, target):
    placement = placed(graph_of(kind), "w8a16", target)
    assert placement.activations == ()
    assert {point.num_bits for point in placement.weights} == {8}


def test_int4_convolutions_are_stored_as_int4_on_rtx_alone():
    layouts = {
        target: weights_of(placed(graph_of(Residual), "w4a16", target))["conv1.weight"]
        for target in TARGETS
    }
    assert {t: p.storage for t, p in layouts.items()} == {
        "rtx": "int4",
        "trt": "int8",
        "ort-cpu": "int8",
    }
    assert {(p.num_bits, p.axis, p.block_size) for p in layouts.values()} == {(4, 0, None)}


@pytest.mark.parametrize(
    ("k", "block"), [(256, 128), (192, 64), (128, 128), (96, None), (63, None)]
)
def test_int4_matrices_take_the_longest_block_that_divides_k(k, block):
    for target in TARGETS:
        (point,) = place_plain(gemm_model(k), target, "w4a16", 4).weights
        if block is None or target == "ort-cpu":
            assert (point.storage, point.block_size, point.axis) == ("int8", None, 0)
        else:
            assert (point.storage, point.block_size, point.axis) == ("int4", block, 1)


def test_depthwise_filters_keep_eight_bits_in_weight_only_schemes():
    points = weights_of(placed(graph_of(Depthwise), "w4a16", "rtx"))
    assert points["depthwise.weight"].num_bits == 8
    assert points["expand.weight"].num_bits == 4


def test_output_axis_follows_the_operator():
    axes = {
        name: p.axis for name, p in weights_of(placed(graph_of(Transposed), "w8a8", "trt")).items()
    }
    assert axes == {"stem.weight": 0, "up.weight": 1, "grouped.weight": 0, "head.weight": 0}


def test_shared_weight_is_one_point_with_both_readers():
    point = weights_of(placed(graph_of(SharedModule), "w8a8", "trt"))["block.weight"]
    assert point.consumers == ("block/Conv", "block/Conv_1")


def test_equal_layers_are_two_points():
    assert {"fc1.weight", "fc2.weight"} <= set(
        weights_of(placed(graph_of(FreshlyMade), "w8a8", "trt"))
    )
