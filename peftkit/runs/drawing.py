"""What all pictures share: colours, an empty figure, labelled axes, short names, the PNG file."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError
from peftkit.files import write_file

# People with any colour vision can tell these apart (Okabe and Ito, 2008).
BLUE = "#0072b2"
VERMILLION = "#d55e00"
COLORS = (BLUE, VERMILLION, "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#000000")

_DOTS_PER_INCH = 120
_NAME_LENGTH = 24
_LOG_SCALE_FROM = 30  # values that differ by this factor are drawn on a logarithmic scale


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, which belongs to no window.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # optional, and slow to import
    except ImportError as problem:
        raise ConfigError("drawing needs matplotlib: pip install 'peftkit[recipes]'") from problem
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Any, xlabel: str, ylabel: str) -> None:
    """Give axes their labels and a light grid behind the data."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def needs_log_scale(values: Sequence[float]) -> bool:
    """Return whether values are positive and too far apart for a linear scale."""
    if not values or min(values) <= 0:
        return False
    return max(values) > _LOG_SCALE_FROM * min(values)


def shorten(name: str) -> str:
    """Return a name, and of a long one the start and the end."""
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 1) // 2
    return f"{name[: half + 1]}…{name[-half:]}"


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A class may have a name that no installed font can write.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(data, format="png", dpi=_DOTS_PER_INCH)
    write_file(path, data.getvalue())
