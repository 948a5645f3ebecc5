"""A compact plan out of anybody's Q/DQ graph: INT8 where it pays, few scales, float skips."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import pytest
from compact_graphs import PEERS, float_network, own_compact, peer
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_graphs import constant, distance, outputs, plan_of, quantizer_of, shaped
from shiftable_graphs import Shiftable, residual
from trt_rules_graphs import INT8

from fdda_deploy.exporters.repair.repairing import Repaired, repair
from fdda_deploy.exporters.rules.shapes import tensor_types
from fdda_deploy.exporters.trt_rules import check

COMPACT = {"R13", "R14", "R15", "R16"}


def compacted(model: onnx.ModelProto, **options: object) -> Repaired:
    done = repair(shaped(model), target="rtx", compact_plan=True, **options)  # type: ignore[arg-type]
    onnx.checker.check_model(done.model, full_check=True)
    return done


def changed(done: Repaired, *repairs: str) -> list[str]:
    """Returns the nodes that these repairs changed."""
    return [change.node for change in done.applied if change.repair in repairs]


def scales_by_shape(model: onnx.ModelProto) -> dict[object, set[float]]:
    shapes, found = tensor_types(model)[1], defaultdict(set)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found[shapes[node.input[0]][1:]].add(float(constant(model, node.input[1])))
    return dict(found)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")  # ONNX Runtime's quantizer warns of itself
def test_a_peer_gets_a_plan_no_larger_than_our_own_default(name: str) -> None:
    done = compacted(peer(name))
    plain = repair(peer(name), target="rtx").model
    own, theirs, before = (plan_of(model) for model in (own_compact(), done.model, plain))
    assert own is not None
    assert theirs is not None
    assert before is not None
    assert len(theirs) <= 1.005 * len(own)  # names differ by a few hundred bytes
    assert len(theirs) < len(before)
    assert not [f.message for f in check(done.model, target="rtx") if f.severity == "error"]


@pytest.mark.parametrize("name", [PEERS[0], PEERS[2]])
@pytest.mark.filterwarnings("ignore")
def test_layers_alone_read_int8_and_only_where_it_pays(name: str) -> None:
    model = compacted(peer(name)).model
    made = {node.output[0]: node for node in model.graph.node}
    held = {tensor.name for tensor in model.graph.initializer}
    quantized = set()
    for node in model.graph.node:
        reads = [made[t] for t in node.input if t in made and made[t].op_type == "DequantizeLinear"]
        assert not reads or node.op_type == "Conv", node.name
        if reads:
            quantized.add(len(reads))
            assert {constant(model, dq.input[1]).size for dq in reads} == {1}
    assert quantized == {2}
    weights = [
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held
    ]
    assert sorted(constant(model, node.input[0]).shape[:2] for node in weights) == [
        *[(128, 3)],
        *[(128, 512)] * 2,
        *[(512, 128)] * 2,
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_layer_behind_a_pool_of_integers_is_left_as_it_is() -> None:
    done = compacted(peer("ONNX Runtime's operators"))
    (last,) = [node for node in done.model.graph.node if node.name.startswith("last")][-1:]
    assert last.op_type == "Conv"
    assert last.name not in changed(done, "R14", "R15")


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_activations_of_one_shape_have_one_scale(name: str) -> None:
    scales = scales_by_shape(compacted(peer(name)).model)
    assert scales.keys() == {(3, 4, 4), (128, 4, 4), (512, 4, 4)}
    assert [len(found) for found in scales.values()] == [1, 1, 1]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_making_it_compact_twice_changes_nothing_more(name: str) -> None:
    once = compacted(peer(name)).model
    again = compacted(once)
    assert again.applied == ()
    assert again.model.SerializeToString() == once.SerializeToString()


@pytest.mark.filterwarnings("ignore")
def test_where_nothing_pays_every_layer_stays_in_int8() -> None:
    done = compacted(peer("ModelOpt's", 16))
    assert changed(done, "R14") == []
    layers = [n.name for n in float_network(16).graph.node if n.op_type == "Conv"]
    assert sorted(changed(done, "R15")) == sorted(layers)


@pytest.mark.parametrize("target", ["trt11", "trt10.16"])
def test_other_targets_are_left_alone(target: str) -> None:
    model = peer("ModelOpt's")
    done = repair(model, target=target, compact_plan=True)
    assert not {change.repair for change in done.applied} & COMPACT
    plain = repair(model, target=target).model.SerializeToString()
    assert done.model.SerializeToString() == plain


def in_a_row(grids: list[tuple[float, int]], between: str = "") -> onnx.ModelProto:
    """Layers whose outputs all have one shape, on these (scale, zero-point) of UINT8."""
    g = Shiftable()
    y = g.start()
    for scale, zero in grids:
        y = g.add(between, y) if between else y
        y = g.layer(g.pair(y, scale, zero), 16, 16)
    return shaped(g.model(y))


@pytest.mark.parametrize("between", ["", "Relu"])
def test_tensors_that_layers_multiply_keep_their_integers(between: str) -> None:
    model = in_a_row([(0.02, 0), (0.3, 0), (0.1, 0)], between)
    plain = repair(model, target="rtx").model
    done = compacted(model)
    assert len(changed(done, "R16")) == 2
    assert all("times as large out of" in c.what for c in done.applied if c.repair == "R16")
    only_scales = {"R15"}
    coarse = repair(model, target="rtx", compact_plan=True, only=only_scales | PLAIN).model
    assert distance(coarse, done.model) < 1e-5
    assert scales_by_shape(done.model)[16, 6, 6] == {np.float32(0.3)}
    assert len(scales_by_shape(plain)[16, 6, 6]) == 3


PLAIN = {f"R{n:02}" for n in range(1, 13)}


@settings(max_examples=8, deadline=None)
@given(grids=st.lists(st.tuples(st.floats(0.01, 0.2), st.integers(0, 255)), min_size=2, max_size=3))
def test_any_scales_and_zero_points_in_a_row_are_shared_for_nothing(
    grids: list[tuple[float, int]],
) -> None:
    model = in_a_row(grids)
    done = compacted(model).model
    coarse = repair(model, target="rtx", compact_plan=True, only={"R15"} | PLAIN).model
    # a sum on a tie may round the other way, and then counts for a step of one number
    assert np.abs(outputs(coarse) - outputs(done)).max() < 2 * max(scale for scale, _ in grids)
    assert len(scales_by_shape(done)[16, 6, 6]) == 1


def padded(scales: list[float], zero: int = 0) -> onnx.ModelProto:
    """3x3 layers that pad with zeros, so biases take nothing up; a ReLU dropped before each."""
    g = Shiftable()
    y = g.conv(g.pair("x", 0.03, dtype=INT8), g.weights(16, 16, 3, 3), g.floats(16))
    for scale in scales:
        y = g.conv(g.pair(y, scale, zero), g.weights(16, 16, 3, 3), g.floats(16))
    return g.model(y)


def test_tensors_that_nothing_multiplies_share_up_to_the_bound_and_part_beyond() -> None:
    assert scales_by_shape(compacted(padded([0.4, 0.2, 0.1])).model)[16, 8, 8] == {
        np.float32(0.03),
        np.float32(0.1) * 255 / np.float32(127),
        np.float32(0.4) * 255 / np.float32(127),
    }


def test_a_grid_that_may_stand_for_relu6_takes_no_scale_that_ends_later() -> None:
    scales = scales_by_shape(compacted(padded([0.03, 0.02])).model)[16, 8, 8]
    assert min(scale for scale in scales if scale > 0.03) == pytest.approx(0.02 * 255 / 127)
    beyond = scales_by_shape(compacted(padded([0.06, 0.03])).model)[16, 8, 8]
    assert max(beyond) == pytest.approx(0.06 * 255 / 127)
    assert len(beyond) == 2


def quantized_y(model: onnx.ModelProto) -> str:
    return str(quantizer_of(model, "y").output[0])


def test_a_tensor_cut_off_below_keeps_its_pair_wherever_it_is_read() -> None:
    model = repair(shaped(residual()), target="rtx").model
    free, held = compacted(model), compacted(model, bounded={"y"})
    assert len(changed(held, "R13")) == len(changed(free, "R13")) - 1
    (ends,) = {n.output[0] for n in held.model.graph.node if n.input[0] == quantized_y(held.model)}
    assert {n.op_type for n in held.model.graph.node if ends in n.input} == {"Add", "Conv"}


def test_a_file_whose_zero_points_are_taken_up_already_is_shared_as_well() -> None:
    model = in_a_row([(0.02, 0), (0.05, 0)])
    plain = repair(shaped(model), target="rtx").model
    done = compacted(plain)
    coarse = repair(plain, target="rtx", compact_plan=True, only={"R15"}).model
    assert distance(coarse, done.model) < 1e-5
