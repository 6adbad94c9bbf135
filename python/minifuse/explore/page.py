"""An exploration as one HTML page: a map to hover over, that works offline and asks nobody.

The content security policy forbids every request; texts are data, never markup.
"""

from __future__ import annotations

import html
import json
from importlib import resources
from pathlib import Path

import numpy as np

from minifuse.explore.clusters import Exploration
from minifuse.files.whole import write_text

__all__ = ["write_page"]


def write_page(exploration: Exploration, path: str | Path, title: str) -> None:
    """Write the page; it appears under its name when it is whole.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    low, high = exploration.points.min(axis=0), exploration.points.max(axis=0)
    scaled = (exploration.points - low) / np.maximum(high - low, 1e-12)
    sizes = np.bincount(exploration.labels, minlength=len(exploration.names))
    data = {
        "texts": exploration.texts,
        "labels": exploration.labels.tolist(),
        "x": scaled[:, 0].round(5).tolist(),
        "y": scaled[:, 1].round(5).tolist(),
        "names": exploration.names,
        "sizes": sizes.tolist(),
        "centers": exploration.centers,
        "variance": exploration.variance[:30].astype(float).round(5).tolist(),
        "silhouettes": list(exploration.silhouettes.items()),
    }
    template = resources.files("minifuse.explore").joinpath("page.html").read_text("utf-8")
    # "<" never appears inside the data, so nothing in a text can end the script.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    page = template.replace("{{title}}", html.escape(title)).replace("{{data}}", text)
    write_text(path, page)
