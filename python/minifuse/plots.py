"""Figures without a screen: matplotlib's, written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["new_figure", "save_figure"]

_ENDINGS = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a plot needs matplotlib, which is not installed: pip install 'minifuse[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write it aside and rename it.

    Raises:
        ValueError: another ending than .png, .svg or .pdf.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"{path}: wanted an ending of {', '.join(_ENDINGS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: the folder does not exist")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
