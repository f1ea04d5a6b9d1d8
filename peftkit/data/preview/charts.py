"""Bar charts: in letters for a terminal, and as SVG for a page."""

from collections.abc import Callable, Sequence
from html import escape

from peftkit.data.preview.shown import Wave
from peftkit.data.preview.statistics import Bin

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 640, 190  # of the SVG
_WIDEST_BAR = 80.0
_LEFT, _TOP, _BOTTOM = 44, 14, 34  # around the bars


def text_bars(named: Sequence[tuple[str, int]], width: int = 40) -> list[str]:
    """Return a line for each count: its name, a bar and the number."""
    if not named:
        return []
    largest = max(1, *(count for _, count in named))
    margin = max(len(name) for name, _ in named)
    lines = []
    for name, count in named:
        eighths = round(8 * width * count / largest)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"  {name:>{margin}}  {bar or ('▏' if count else '')} {count:,}".rstrip())
    return lines


def text_wave(wave: Wave, width: int = 60) -> str:
    """Return a sound's loudness as one line of small bars."""
    loudest = [max(high, -low) for low, high in zip(wave.lows, wave.highs, strict=True)]
    top = max(*loudest, 1e-6)
    line = ""
    for place in range(width):
        level = loudest[place * len(loudest) // width]
        line += _LEVELS[min(7, int(8 * level / top))]
    return line


def svg_histogram(bins: Sequence[Bin], max_length: int | None) -> str:
    """Return the lengths of examples as an SVG, with a line at the longest that is allowed."""
    largest = max(1, *(each.count for each in bins), 1)
    first, last = bins[0].start, bins[-1].end + 1
    across, down = _WIDTH - _LEFT - 10, _HEIGHT - _TOP - _BOTTOM
    base = _TOP + down

    def x(length: float) -> float:
        return _LEFT + across * (length - first) / (last - first)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="How many examples have which length in tokens">',
        f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - 10}" y2="{base}"/>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 5}" text-anchor="end">{largest:,}</text>',
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>',
    ]
    for each in bins:
        height = down * each.count / largest
        width = min(_WIDEST_BAR, max(1.0, x(each.end + 1) - x(each.start) - 2))
        parts.append(
            f'<rect class="bar" x="{x(each.start) + 1:.1f}" y="{base - height:.1f}" rx="2" '
            f'width="{width:.1f}" height="{height:.1f}">'
            f"<title>{_range(each)} tokens: {each.count:,}</title></rect>"
        )
    parts += _length_labels(bins, base, x)
    if max_length is not None and first < max_length < last:
        place = x(max_length + 1)
        parts.append(
            f'<line class="limit" x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{base}"/>'
            f'<text class="limit" x="{place - 5:.1f}" y="{_TOP - 3}" text-anchor="end">'
            "max_length</text>"
        )
    return "".join([*parts, "</svg>"])


def _length_labels(bins: Sequence[Bin], base: float, x: Callable[[float], float]) -> list[str]:
    """Return the lengths below the axis: about six of them, and what they are."""
    every = -(-len(bins) // 6)
    parts = []
    for each in bins[::every]:
        parts.append(
            f'<text x="{x(each.start):.1f}" y="{base + 15}" text-anchor="middle">'
            f"{each.start:,}</text>"
        )
    end = _WIDTH - 10
    parts.append(f'<text x="{end}" y="{base + 30}" text-anchor="end">length in tokens</text>')
    return parts


def _range(each: Bin) -> str:
    return f"{each.start:,}" if each.start == each.end else f"{each.start:,}-{each.end:,}"


def named_bins(bins: Sequence[Bin]) -> list[tuple[str, int]]:
    """Return the lengths of bins in words, and their counts."""
    return [(_range(each), each.count) for each in bins]


def html_bars(named: Sequence[tuple[str, int]]) -> str:
    """Return counts as rows of bars in HTML, each with its name."""
    largest = max(1, *(count for _, count in named), 1)
    parts = []
    for name, count in named:
        share = 100 * count / largest
        parts.append(
            f'<div class="name" dir="auto">{escape(name)}</div>'
            f'<div class="row"><i style="width:{share:.1f}%"></i> {count:,}</div>'
        )
    return f'<div class="bars">{"".join(parts)}</div>'


def svg_wave(wave: Wave) -> str:
    """Return a sound's loudness over time as an SVG; what the model does not hear is grey."""
    many = len(wave.lows)
    top = max(*wave.highs, *(-low for low in wave.lows), 1e-6)
    heard = many * min(1.0, wave.read_seconds / wave.seconds)
    parts = [
        f'<svg class="wave" viewBox="0 0 {2 * many} 64" preserveAspectRatio="none" role="img" '
        f'aria-label="A sound of {wave.seconds:.1f} seconds">'
    ]
    for place, (low, high) in enumerate(zip(wave.lows, wave.highs, strict=True)):
        upper, lower = 32 - 30 * high / top, 32 - 30 * low / top
        kind = "read" if place < heard else "cut"
        parts.append(
            f'<rect class="{kind}" x="{2 * place}" width="1.4" y="{upper:.1f}" '
            f'height="{max(1.0, lower - upper):.1f}"/>'
        )
    return "".join([*parts, "</svg>"])
