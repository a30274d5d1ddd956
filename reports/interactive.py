"""Variance against cost as a picture that answers: hover, filters and zoom, from the one file, without a network.

A Vega-Lite specification made by Altair, and the bundle of Vega's own scripts that draws it. The page's policy forbids
``eval``, so Vega runs its expressions by its interpreter (``ast``).
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from .labels import family
from .looks import PALETTE
from .statistics import COSTS, sound
from .wording import BLOCKS

SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left"]
EMBED = """
for (const place of document.querySelectorAll("[data-vega]")) {
  const options = {renderer: "svg", actions: false, ast: true};
  vegaEmbed(place, JSON.parse(document.getElementById(place.dataset.vega).textContent), options);
}
"""
"""What vega-embed's documentation says to call; the one statement that stands between the bundle and the page."""

ALL = "all"


@lru_cache(maxsize=1)
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, of the versions that Altair's schema is made for."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    known = vl_convert.get_vegalite_versions()
    return str(vl_convert.javascript_bundle(EMBED, vl_version=version if version in known else known[-1]))


def cost_chart(means: pd.DataFrame) -> dict[str, Any] | None:
    """The specification, with its data, of all problems' variance against cost; ``None`` where there is nothing to draw."""
    meters = {name: noun for name, noun in COSTS.items() if (means[name] > 0).any()}
    rows = means[(means["block"] != "value") & (means["variance"] > 0) & means["variance_exists"].astype(bool)]
    rows = rows[(rows[list(meters)] > 0).any(axis=1)]
    if not len(rows):
        return None
    rows = rows.assign(kin=[family(*pair) for pair in zip(rows["family"], rows["library"], strict=True)])
    problems, labels = sorted(set(rows["title"])), [str(one) for one in rows["label"].cat.categories]
    aims = ["none" if not isinstance(one, str) else one for one in rows["target"]]
    aims = [f"{aim}-{key}" if key else aim for aim, key in zip(aims, rows["target_key"], strict=True)]
    targets = sorted(set(aims), key=lambda one: (one.rpartition("-")[0] or one, len(one), one))
    kins = dict(sorted({row.kin: int(row.hue) for row in rows.itertuples()}.items(), key=lambda item: item[1]))
    data = _data(rows.assign(aim=aims, good=sound(rows)), list(meters), problems, labels, targets, list(kins))
    spec = _specification(list(meters.values()), problems, labels, targets, kins)
    spec["data"] = {"values": data}
    return spec


def _data(
    rows: pd.DataFrame, meters: list[str], problems: list[str], labels: list[str], targets: list[str], kins: list[str]
) -> list[dict[str, Any]]:
    """One short object a row: places in the lists of names, numbers to four digits."""
    place = {name: code for code, name in enumerate(problems)}
    found = []
    for row, label in zip(rows.to_dict(orient="records"), rows["label"].cat.codes, strict=True):
        one = {
            "p": place[row["title"]], "e": int(label), "k": int(row["num_samples"]), "b": BLOCKS[row["block"]],
            "t": targets.index(row["aim"]),
            "n": row["aim"].removesuffix(f"-{row['target_key']}") if row["target_key"] else row["aim"], "f": kins.index(row["kin"]), "m": int(row["mark"]) % len(SHAPES),
            "v": _short(row["variance"]), "l": _short(row["variance_low"]), "h": _short(row["variance_high"]),
            "c": [_short(row[meter]) for meter in meters], "d": row["verdict"], "g": int(row["good"]),
        }  # fmt: skip
        if "seconds_per_gradient" in meters:
            one["s"] = [_short(row["seconds_low"]), _short(row["seconds_high"])]
        found.append({key: value for key, value in one.items() if value is not None})
    return found


def _short(number: Any) -> float | None:
    if number is None or not math.isfinite(number) or number <= 0:
        return None
    return float(f"{number:.4g}")


def _specification(
    nouns: list[str], problems: list[str], labels: list[str], targets: list[str], kins: dict[str, int]
) -> dict[str, Any]:
    seconds = next((place for place, noun in enumerate(nouns) if noun == COSTS["seconds_per_gradient"]), -1)
    lists = [alt.param(name=name, value=value) for name, value in
             (("problems", problems), ("labels", labels), ("targets", targets), ("kins", list(kins)))]  # fmt: skip
    choices = [
        _select("problem", "Problem ", list(range(len(problems))), problems, 0),
        _select("block", "Gradient in ", ["φ", "θ"], ["φ, of the guide", "θ, of the model"], "φ"),
        _select("meter", "Cost ", list(range(len(nouns))), nouns, 0),
        _select("kin", "Family ", [-1, *range(len(kins))], [ALL, *kins], -1),
        _select("aim", "Target ", [-1, *range(len(targets))], [ALL, *targets], -1),
        _select("chosen", "Highlight ", [-1, *range(len(labels))], ["none", *labels], -1),
    ]
    text = "format({0}, '.3~g')"
    span = f"(isValid({{1}}) ? ' [' + {text.format('{1}')} + ', ' + {text.format('{2}')} + ']' : ' (no interval)')"
    shown = text.format("datum.v") + " + " + span.format("", "datum.l", "datum.h")
    timed = f"(meter == {seconds} && isValid(datum.s) ? {span.format('', 'datum.s[0]', 'datum.s[1]')} : '')"
    base = alt.Chart()
    chosen = (
        alt.layer(data=alt.Data(values=[]))
        .transform_filter("datum.p == problem && datum.b == block && datum.c[meter] > 0")
        .transform_filter("(kin < 0 || datum.f == kin) && (aim < 0 || datum.t == aim)")
        .transform_calculate(
            cost="datum.c[meter]",
            estimator="labels[datum.e]",
            family="kins[datum.f]",
            target="targets[datum.t]",
            shown=shown,
            paid=f"{text.format('datum.c[meter]')} + {timed}",
            faded="chosen >= 0 && datum.e != chosen",
        )
    )
    x = alt.X("cost:Q", scale=alt.Scale(type="log", nice=False, padding=20), title=None, axis=alt.Axis(format="~g"))
    y = alt.Y("v:Q", scale=alt.Scale(type="log", nice=False, padding=20), title="variance (95 % interval)")
    range_ = [PALETTE[hue % len(PALETTE)] for hue in kins.values()]
    columns = alt.ExprRef("width < 480 ? 2 : 4")  # a phone has room for two
    legend = alt.Legend(orient="bottom", columns=columns, symbolType="circle", title="family")
    colour = alt.Color("family:N", scale=alt.Scale(domain=list(kins), range=range_), legend=legend)
    pale = alt.condition("datum.faded", alt.value(0.08), alt.value(0.95))
    lines = base.mark_line(strokeWidth=1.4, aria=False).encode(
        x, y, colour, detail="e:N", order="k:Q", opacity=alt.condition("datum.faded", alt.value(0.05), alt.value(0.75)),
        strokeDash=alt.StrokeDash("n:N", legend=None),
    )  # fmt: skip
    bars = base.transform_filter("isValid(datum.l)").mark_rule(aria=False).encode(
        x, alt.Y("l:Q", scale=alt.Scale(type="log")), alt.Y2("h:Q"), colour, opacity=pale
    )  # fmt: skip
    hints = [alt.Tooltip("estimator:N"), alt.Tooltip("k:Q", title="K"), alt.Tooltip("target:N"),
             alt.Tooltip("shown:N", title="variance"), alt.Tooltip("paid:N", title="cost"),
             alt.Tooltip("d:N", title="verdict"), alt.Tooltip("family:N")]  # fmt: skip
    points = (
        base.mark_point(size=60, strokeWidth=1.4)
        .encode(
            x,
            y,
            colour,
            fill=alt.Fill("family:N", scale=alt.Scale(domain=list(kins), range=range_), legend=legend),
            shape=alt.Shape("m:N", scale=alt.Scale(domain=list(range(len(SHAPES))), range=SHAPES), legend=None),
            fillOpacity=alt.condition("datum.g", alt.value(0.9), alt.value(0.0)),
            opacity=pale,
            tooltip=hints,
        )
        .properties(name="points")
    )
    grip = alt.selection_interval(name="grip", bind="scales", zoom="wheel![event.shiftKey]")
    chosen.layer = [lines, bars, points.add_params(grip)]
    chart = chosen.add_params(*lists, *choices).properties(
        width="container", height=430, background="transparent", padding=5,
        description="Variance against cost on logarithmic axes, one line per estimator through its K. The same numbers "
        "are in the tables of section 2 and in the CSV.",
    )  # fmt: skip
    soft = {name: "currentColor" for name in ("labelColor", "titleColor", "tickColor", "domainColor")}
    chart = chart.configure(
        axis=alt.AxisConfig(gridColor="currentColor", gridOpacity=0.12, labelOverlap=True, labelSeparation=6, **soft),
        legend=alt.LegendConfig(labelColor="currentColor", titleColor="currentColor", labelLimit=220),
        view=alt.ViewConfig(stroke=None),
        font="system-ui, sans-serif",
    )
    return json.loads(chart.to_json(indent=None))


def _select(name: str, title: str, options: list[Any], names: list[str], value: Any) -> alt.Parameter:
    return alt.param(name=name, value=value, bind=alt.binding_select(options=options, labels=names, name=title))
