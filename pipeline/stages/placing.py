"""Where a build quantizes, and the network with its quantizers in place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fdda_deploy.config.compact_plan import channel_setter, require_compact_plan
from fdda_deploy.exporters.compact import is_compact, place_compact
from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.quant.points import Placement


def placement_of(context: RunContext) -> Placement:
    """Returns where this build quantizes."""
    return placement_with(context, context.record("assign")["assignment"])


def placement_with(context: RunContext, widths: Mapping[str, int | None] | None) -> Placement:
    """Returns where a build with these widths quantizes; None gives each layer the scheme's."""
    graph, recipe = context.float_graph, context.recipe
    if compacts(context):
        return place_compact(
            graph.proto,
            context.config.quantize.scheme,
            torch_tensors=graph.fx_from_tensor,
            parameters=graph.parameter_from_initializer,
            widths=widths,
        )
    return place(
        graph.proto,
        context.config.quantize.scheme,
        context.target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
        everything=recipe is None or recipe.quantize_everything,
        widths=widths,
    )


def compacts(context: RunContext) -> bool:
    """Whether this build trades for a small plan (`exporters.compact`): where it can, unless told.

    Never under methods that set grids channel by channel, nor as the published recipe has it.

    Raises:
        ConfigError: It was asked for by name, and cannot be here.
    """
    settings, recipe = context.config.quantize, context.recipe
    published = recipe is not None and not recipe.quantize_everything
    require_compact_plan(settings, context.target, published=published)
    wanted = settings.compact_plan is not False and not channel_setter(settings) and not published
    return wanted and is_compact(settings.scheme, context.target)


def converted(
    context: RunContext, placement: Placement, module: fx.GraphModule | None = None
) -> QuantNetwork:
    """Returns the float network, or its equalised twin, with pass-through quantizers."""
    graph = context.float_graph
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module if module is None else module, placement, names)
