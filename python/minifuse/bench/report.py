"""Results of a benchmark as a table, a picture or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["format_table", "plot_encode", "write_json"]


def format_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as a Markdown table; columns: key -> heading. Numbers get four significant digits."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return str(value)

    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def plot_encode(result: dict[str, Any], path: str) -> None:
    """The engines' speeds as bars, a chart a workload: a .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    from minifuse.files.plots import new_figure, save_figure

    workloads = result["workloads"]
    rows = max(len(workload["rows"]) for workload in workloads.values())
    figure = new_figure(5.5 * len(workloads), 1.2 + 0.32 * rows)
    charts = figure.subplots(1, len(workloads), squeeze=False)[0]
    for chart, (name, workload) in zip(charts, workloads.items(), strict=True):
        ranked = sorted(workload["rows"], key=lambda row: row["tokens_per_second"])
        names = [f"{row['engine']}, {row['dtype']}" for row in ranked]
        colors = ["C1" if row["engine"] == "minifuse" else "C0" for row in ranked]
        bars = chart.barh(names, [row["tokens_per_second"] for row in ranked], color=colors)
        chart.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        chart.set_title(f"{name}: {workload['num_texts']} texts, tokens/s", fontsize=10)
        chart.margins(x=0.15)
        chart.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{result['machine']['cpu']}, {result['machine']['date']}", fontsize=8)
    save_figure(figure, path)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    from minifuse.files.whole import write_text

    write_text(path, json.dumps(value, indent=1) + "\n")
