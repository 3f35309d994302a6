"""What every panel is made of: a title, a description, a unit, thresholds and its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

#: Every query asks the source that the dashboard's variable names, and no other.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
#: A contributor's own figures: an evaluator's have the same names and another job.
MINE = 'job=~"zk0d-client.*", node=~"$node"'
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"
#: Where a colour begins; what is below the first number is green.
Limits = Sequence[tuple[float, str]]
Panel = timeseries.Panel | stat.Panel | table.Panel


@dataclass(frozen=True)
class Query:
    """A question to Prometheus and what its answer is called."""

    expr: str
    legend: str = "__auto"


def graph(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    limits: Limits = (),
    below: str = GREEN,
    stacked: bool = False,
    points: bool = False,
    least: float | None = 0.0,
    span: int = 12,
) -> timeseries.Panel:
    """Lines over time.

    Parameters
    ----------
    limits, below
        Thresholds, and the colour under the first.
    stacked
        Put the series on each other.
    points
        What changes once a round: steps with points.
    least
        Lower end of the axis; ``None`` fits it to the values.
    span
        Width, of 24.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(limits, below))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(25 if stacked else 5)
        .show_points(VisibilityMode.AUTO if points else VisibilityMode.NEVER)
        .line_interpolation(LineInterpolation.STEP_AFTER if points else LineInterpolation.LINEAR)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .span(span)
        .height(8)
        .targets([_target(i, query) for i, query in enumerate(queries)])
    )
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if least is not None:
        panel.min(least)
    return panel


def number(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    limits: Limits = (),
    below: str = GREEN,
    words: dict[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
    span: int = 4,
) -> stat.Panel:
    """A figure of this moment, in the colour of its threshold.

    Parameters
    ----------
    words
        For a value the text and colour that are shown in its place.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(limits, below))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("no data")
        .span(span)
        .height(4)
        .targets([_target(i, query) for i, query in enumerate(queries)])
    )
    if words:
        panel.mappings(
            [
                ValueMap(
                    options={
                        value: ValueMappingResult(text=text, color=colour)
                        for value, (text, colour) in words.items()
                    }
                )
            ]
        )
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def listing(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    joined_by: str,
    names: dict[str, str],
    limits: Limits = (),
    below: str = GREEN,
    span: int = 12,
) -> table.Panel:
    """A table of this moment, one row for each value of the label ``joined_by``.

    Parameters
    ----------
    names
        Columns that are shown and what they are called, in this order. A query's own column is
        ``Value #A`` for the first, ``Value #B`` for the second.
    """
    shown = {name: place for place, name in enumerate(names)}
    return (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(limits, below))
        .span(span)
        .height(8)
        .targets(
            [
                _target(i, query).instant().format(PromQueryFormat.TABLE)
                for i, query in enumerate(queries)
            ]
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="joinByField", options={"byField": joined_by, "mode": "outer"}
            )
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="filterFieldsByName", options={"include": {"names": list(names)}}
            )
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="organize", options={"indexByName": shown, "renameByName": names}
            )
        )
    )


def _target(index: int, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + index))
        .datasource(SOURCE)
    )


def _thresholds(limits: Limits, below: str) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color=below), *(Threshold(value=v, color=c) for v, c in limits)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
