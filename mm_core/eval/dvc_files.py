"""The files of an evaluation that DVC shows: a few headline numbers, and the curves over the training stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mm_core.core.deferred import Deferred
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.records import CATEGORIES, write_bytes, write_json
from mm_core.eval.blind import NAME as BLIND_NAME

if TYPE_CHECKING:
    import matplotlib
    from matplotlib import figure as figures
else:
    matplotlib = Deferred("matplotlib")
    figures = Deferred("matplotlib.figure")

HEADLINE_ROWS = ("macro", *CATEGORIES)
"""The mean over the six judged categories, and each of them."""
PLOTTED = {"mse": "MSE", "conn": "connectivity error"}
"""Metric → its name on the axis; lower is better for both."""
Scores = Mapping[tuple[str, str], pd.DataFrame]
"""(model, precision) → `category_scores` of that model."""


def write_headline(path: Path, scores: Scores) -> None:
    """Write the candidate's MSE per judged category and their mean: `{"mse": {"macro": …, "portrait": …}}`.

    The int8 files count, because these are released; without them the float model does. `dvc metrics show`,
    `dvc metrics diff` and `dvc exp show` print these numbers. The table of all models is `evaluation/metrics.json`.
    """
    candidate = scores.get((TRAIN_STAGES[-1], "int8"), scores.get((TRAIN_STAGES[-1], "float")))
    rows = {} if candidate is None else candidate["mse"].to_dict()
    write_json(path, {"mse": {name: round(float(rows[name]), 6) for name in HEADLINE_ROWS if name in rows}})


def plot_stages(folder: Path, scores: Scores) -> list[Path]:
    """Write one SVG per metric of PLOTTED: a panel per category, the training stages on the x axis, the blind matte.

    `dvc plots show` embeds pictures as they are, so that its page needs no network. Equal scores give equal bytes.

    Returns:
        The files, `<metric>.svg`.
    """
    stages = [stage for stage in TRAIN_STAGES if (stage, "float") in scores]
    tables = [scores[stage, "float"] for stage in stages]
    categories = [str(name) for name in tables[0].index] if tables else []
    blind = scores.get((BLIND_NAME, "float"))
    written = []
    for metric, label in PLOTTED.items():
        columns = min(3, max(1, len(categories)))
        rows = -(-len(categories) // columns) or 1
        width, height = 3.0 * columns, 2.0 * rows + 0.4
        figure = figures.Figure(figsize=(width, height))
        # Margins in inches. To compute them (`layout="constrained"`) takes as long as to draw the panels.
        figure.subplots_adjust(
            left=0.55 / width,
            right=1 - 0.3 / width,
            bottom=0.3 / height,
            top=1 - 0.65 / height,
            wspace=0.26,
            hspace=0.36,
        )
        for place, category in enumerate(categories, 1):
            axes = figure.add_subplot(rows, columns, place)
            values = [float(table.loc[category, metric]) for table in tables]
            axes.plot(stages, values, marker="o")
            if blind is not None and category in blind.index:
                axes.axhline(float(blind.loc[category, metric]), color="0.5", linestyle="--", linewidth=1)
                values.append(float(blind.loc[category, metric]))
            axes.set_title(category, fontsize=9)
            # Room above the highest point, whose marker is cut off otherwise.
            axes.set_ylim(0, 1.1 * max(filter(math.isfinite, values), default=0.0) or 1.0)
            axes.tick_params(labelsize=7)
        figure.suptitle(f"{label} by training stage (float models, eval set; dashed: blind)", fontsize=10)
        stream = BytesIO()
        # Without a date and with fixed ids, equal scores give equal files, and DVC sees no change.
        with matplotlib.rc_context({"svg.hashsalt": "matting", "svg.fonttype": "none"}):
            figure.savefig(stream, format="svg", metadata={"Date": None})
        written.append(folder / f"{metric}.svg")
        write_bytes(written[-1], stream.getvalue())
    return written
