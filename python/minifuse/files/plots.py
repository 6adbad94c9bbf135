"""Figures without a screen: matplotlib's, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minifuse.files.whole import replacing

__all__ = ["check_plot", "new_figure", "save_figure"]

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


def check_plot(path: str | Path) -> None:
    """Raise what save_figure would raise, before hours of work and not behind them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending than .png, .svg or .pdf.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"{path}: wanted an ending of {', '.join(_ENDINGS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: the folder does not exist")
    new_figure(1, 1)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write the figure; the file appears when it is whole.

    Raises:
        ValueError: another ending than .png, .svg or .pdf.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    check_plot(path)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
