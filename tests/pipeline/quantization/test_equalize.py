"""Equalization: the function stays, and every channel comes to use its tensor's range."""

from __future__ import annotations

import copy

import pytest
import torch
from equalize_networks import (
    Inverted,
    Multilayer,
    Residual,
    batches,
    channel_ranges,
    uneven,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_networks import Plain, float_graph, images
from torch import Tensor, fx, nn

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.equalize import MOST, equalize


class InvertedReLU(Inverted):
    """The same without an upper clip."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU)


class Pooled(nn.Module):
    """A clip whose output is pooled before a layer reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.relu6(self.stem(x)).mean((2, 3)))


class Doubled(nn.Module):
    """A clipped tensor, and twice that tensor beyond the clip's bound, each read by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.once, self.twice = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        return self.once(x) + self.twice(x + x)


class Wide(Inverted):
    """The same with a clip so wide that no channel reaches it."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Hardtanh(0, 1e4))  # type: ignore[arg-type]  # called, no more


def equalized(graph: fx.GraphModule, given_batches: list[Tensor], **exponents: float):
    copied = copy.deepcopy(graph)
    return copied, equalize(copied, given_batches, **exponents)


def assert_same(one: fx.GraphModule, other: fx.GraphModule, x: Tensor) -> None:
    with torch.no_grad():
        wanted, found = one(x), other(x)
    assert (wanted - found).abs().max() < 2e-5 * wanted.abs().max()


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([Inverted, InvertedReLU, Residual, Multilayer]),
    st.integers(0, 100),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_function_stays_on_the_images(kind, seed, dense, depthwise):
    graph = uneven(kind, seed)
    copied, _ = equalized(graph, batches(), dense=dense, depthwise=depthwise)
    assert_same(graph, copied, torch.cat(batches()))


@pytest.mark.parametrize("kind", [InvertedReLU, Residual, Multilayer])
def test_the_function_stays_on_other_images_where_nothing_clips(kind):
    graph = uneven(kind)
    copied, result = equalized(graph, batches(), dense=0.5)
    assert result.num_groups > 0
    assert_same(graph, copied, torch.cat(batches(4, seed=9)) * 3)


def test_a_folded_network_keeps_its_function():
    graph = float_graph(Plain).module
    copied, result = equalized(graph, [images(16)])
    assert (result.num_groups, result.tensors) == (2, ("relu", "mean", "relu_1"))
    assert_same(graph, copied, images(16, seed=8))


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        (InvertedReLU, ["relu", "relu_1", "relu_2", "relu_3"]),
        (Residual, ["relu_1", "relu_3"]),
        (Multilayer, ["leaky_relu", "relu"]),
    ],
)
def test_with_exponent_one_all_channels_have_the_range_of_the_widest(kind, alone):
    graph = uneven(kind)
    before = channel_ranges(graph, batches())
    copied, result = equalized(graph, batches(), dense=1.0)
    after = channel_ranges(copied, batches())
    for name in alone:
        widest = before[name].max()
        alive = before[name] > widest / MOST
        assert name in result.tensors
        assert alive.sum() > 1
        torch.testing.assert_close(
            after[name][alive], widest.expand(int(alive.sum())), rtol=1e-4, atol=0
        )


def test_tensors_joined_by_a_shortcut_share_one_range_at_exponent_one():
    copied, _ = equalized(uneven(Residual), batches(), dense=1.0)
    after = channel_ranges(copied, batches())
    joined = torch.stack([after[name] for name in ("max_pool2d", "relu_2", "flatten")]).amax(0)
    alive = joined > joined.max() / MOST
    assert torch.allclose(joined[alive], joined.max(), rtol=1e-4)


def test_the_exponent_is_the_share_of_the_way_in_logarithms():
    graph = uneven(Multilayer)
    before = channel_ranges(graph, batches())
    copied, _ = equalized(graph, batches(), dense=0.25)
    after = channel_ranges(copied, batches())
    ratio = before["relu"].max() / before["relu"]
    alive = before["relu"] > before["relu"].max() / MOST
    torch.testing.assert_close(
        after["relu"][alive], (before["relu"] * ratio**0.25)[alive], rtol=1e-4, atol=0
    )


def test_exponents_go_to_depthwise_and_to_dense_readers():
    graph = uneven(InvertedReLU)
    _, both = equalized(graph, batches(), dense=0.5, depthwise=0.5)
    _, free = equalized(graph, batches(), dense=0.0, depthwise=0.5)
    _, paid = equalized(graph, batches(), dense=0.5, depthwise=0.0)
    assert set(both.tensors) == set(free.tensors) | set(paid.tensors)
    assert free.tensors == ("relu", "relu_2")
    assert {"relu_1", "relu_3"} < set(paid.tensors)


def test_exponents_of_zero_change_nothing():
    graph = uneven(Inverted)
    copied, result = equalized(graph, batches(), dense=0.0, depthwise=0.0)
    assert (result.num_groups, result.tensors) == (0, ())
    before = dict(graph.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in copied.named_parameters())


def test_channels_under_a_clip_come_to_its_bound_and_never_shrink():
    graph = uneven(Inverted)
    before = channel_ranges(graph, batches())
    copied, _ = equalized(graph, batches(), dense=1.0)
    after = channel_ranges(copied, batches())
    for name in ("hardtanh", "hardtanh_1", "hardtanh_2", "hardtanh_3"):
        assert (after[name] >= before[name] * (1 - 1e-5)).all()
        alive = before[name] > 6 / MOST
        assert torch.allclose(after[name][alive], torch.tensor(6.0), rtol=1e-4)
        assert after[name].max() <= 6


def test_a_clip_that_is_pooled_before_it_is_read_bounds_the_factors_by_its_own_maximum():
    graph = uneven(Pooled)
    before = channel_ranges(graph, batches())
    copied, result = equalized(graph, batches(), dense=1.0)
    after = channel_ranges(copied, batches())
    assert result.tensors == ("mean",)
    assert before["mean"].max() == pytest.approx(after["mean"].max())
    assert (after["mean"] > before["mean"] * 1.1).sum() > 3
    assert_same(graph, copied, torch.cat(batches()))


def test_a_clipped_channel_never_shrinks_though_a_tied_tensor_exceeds_the_bound():
    graph = uneven(Doubled)
    copied, result = equalized(graph, batches(), dense=1.0)
    assert result.tensors == ("relu6", "add")
    assert channel_ranges(graph, batches())["add"].max() > 6
    assert_same(graph, copied, torch.cat(batches()))


def test_a_channel_of_rounding_errors_is_not_brought_to_the_target():
    graph = uneven(Multilayer)
    with torch.no_grad():
        graph.get_parameter("two.weight")[3] = 0
        graph.get_parameter("two.bias")[3] = 1e-6
    copied, _ = equalized(graph, batches(), dense=1.0)
    assert copied.get_parameter("two.bias")[3].item() == pytest.approx(1e-6 * MOST)


def test_under_a_clip_an_unseen_image_saturates_at_its_channels_own_maximum():
    graph = uneven(Wide)
    copied, _ = equalized(graph, batches(), depthwise=1.0)
    x = torch.cat(batches())
    with torch.no_grad():
        assert_same(graph, copied, x)
        assert (graph(x * 10) - copied(x * 10)).abs().max() > 0.01 * graph(x * 10).abs().max()


def test_channels_that_the_images_do_not_show_are_left_alone():
    graph = uneven(Multilayer)
    with torch.no_grad():
        graph.get_parameter("two.weight")[3].zero_()
        graph.get_parameter("two.bias")[3] = -1.0
    copied, _ = equalized(graph, batches(), dense=1.0)
    row, column = (copied.get_parameter(name) for name in ("two.bias", "head.weight"))
    assert row[3] == -1.0
    assert torch.equal(column[:, 3], graph.get_parameter("head.weight")[:, 3])


def test_all_batches_count():
    graph = uneven(Inverted)
    together, _ = equalized(graph, [torch.cat(batches(3))])
    apart, _ = equalized(graph, batches(3))
    for name, parameter in together.named_parameters():
        torch.testing.assert_close(apart.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


def test_parameters_are_changed_in_place():
    graph = uneven(Inverted)
    held = {name: p.data_ptr() for name, p in graph.named_parameters()}
    before = graph.get_parameter("grow.weight").detach().clone()
    equalize(graph, batches())
    assert {name: p.data_ptr() for name, p in graph.named_parameters()} == held
    assert not torch.equal(graph.get_parameter("grow.weight"), before)
    assert all(p.requires_grad and p.grad_fn is None for p in graph.parameters())


@pytest.mark.parametrize("name", ["dense", "depthwise"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_an_exponent_outside_its_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: {value} is not an exponent\. Give a number"):
        equalize(uneven(Multilayer), batches(), **{name: value})


def test_no_images_are_refused():
    with pytest.raises(CalibrationError, match=r"^no images to measure channels on\. Give"):
        equalize(uneven(Multilayer), [])


def test_a_tensor_that_is_not_finite_is_named():
    graph = uneven(Inverted)
    with torch.no_grad():
        graph.get_parameter("grow.weight")[0] = float("inf")
    with pytest.raises(CalibrationError, match=r"^hardtanh: not finite on the images\. Check"):
        equalize(graph, batches())


def test_a_pooled_tensor_keeps_its_own_range_where_the_clip_is_not_reached():
    graph = uneven(Pooled)
    with torch.no_grad():
        for name in ("stem.weight", "stem.bias"):
            graph.get_parameter(name).mul_(0.1)
    before = channel_ranges(graph, batches())["mean"].max()
    copied, _ = equalized(graph, batches(), dense=1.0)
    assert channel_ranges(copied, batches())["mean"].max() == pytest.approx(before)


def test_a_tensor_of_a_depthwise_and_a_dense_reader_takes_the_dense_exponent():
    _, result = equalized(float_graph(Plain).module, [images(8)], dense=0.0, depthwise=1.0)
    assert result.num_groups == 0


def test_negative_values_count_as_range():
    graph = uneven(InvertedReLU)
    with torch.no_grad():
        graph.get_parameter("stem.bias")[0] = -500.0
    copied, _ = equalized(graph, batches(), dense=1.0)
    after = channel_ranges(copied, batches())
    joined = torch.stack([after[name] for name in ("conv2d", "add")]).amax(0)
    assert torch.allclose(joined, joined.max(), rtol=1e-4)
