"""A preview as one HTML file, which needs no script and no network."""

import base64
import itertools
from collections.abc import Sequence
from html import escape

from peftkit.data.preview.charts import html_bars, svg_histogram, svg_wave
from peftkit.data.preview.contents import Preview
from peftkit.data.preview.shown import Kind, Picture, Piece, Section, Shown, Wave
from peftkit.data.preview.statistics import Figure, Statistics, most_common
from peftkit.data.preview.style import STYLE
from peftkit.data.preview.visible import LINE_END, SPACE, marks

_CLASSES: dict[Kind, str] = {"learned": "l", "read": "r", "cut": "c"}
_MOST_CLASSES = 40
_NOT_IN_TILES = ("format", "max_length")


def page(preview: Preview) -> str:
    """Return a preview as HTML: the examples in tabs, the lengths and the figures."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_escaped(preview.title)}</title><style>{STYLE}</style></head><body><main>",
        f'<h1>What is learned</h1><p class="sub">{_escaped(preview.title)}</p>',
        _warnings(preview.warnings),
        _tiles(preview.statistics),
        _examples(preview.examples),
        _charts(preview.statistics),
        _table(preview),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _escaped(text: str) -> str:
    """Return a text as HTML; half of a surrogate pair, which no file can hold, is replaced."""
    return escape(text.encode("utf-8", "replace").decode())


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = [f"<li>{_escaped(warning)}</li>" for warning in warnings]
    return f'<ul class="warnings">{"".join(items)}</ul>'


def _tiles(statistics: Statistics) -> str:
    """Return the most important figures, in large letters."""
    parts = []
    for figure in statistics.figures():
        if figure.name not in _NOT_IN_TILES:
            detail = f"<small>{_escaped(figure.detail)}</small>" if figure.detail else ""
            parts.append(
                f'<div class="card"><dt>{_escaped(figure.name)}</dt>'
                f"<dd>{_escaped(figure.value)}{detail}</dd></div>"
            )
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def _examples(examples: Sequence[Shown]) -> str:
    """Return the examples in tabs: one that is checked is shown, by style alone."""
    if not examples:
        return ""
    parts = []
    rows = [
        shown.where.rpartition(", ")[2] or f"example {n}" for n, shown in enumerate(examples, 1)
    ]
    for number, shown in enumerate(examples):
        checked = " checked" if number == 0 else ""
        mark = ' class="noted"' if shown.notes else ""
        parts.append(
            f'<input type="radio" name="example" id="e{number}"{checked}>'
            f'<label for="e{number}"{mark}>{_escaped(rows[number])}</label>{_example(shown)}'
        )
    return f'<h2>Examples</h2>{_legend()}<div class="tabs">{"".join(parts)}</div>'


def _legend() -> str:
    return (
        '<p class="legend"><span><span class="t l">learned</span> the loss is on it</span>'
        '<span><span class="t r">read</span> the model only sees it</span>'
        '<span><span class="t c">cut</span> beyond max_length</span>'
        '<span><span class="t s">&lt;special&gt;</span> a special token</span>'
        f"<span>{LINE_END} a new line</span><span>{SPACE} a space that is easily missed</span></p>"
    )


def _example(shown: Shown) -> str:
    count = shown.count()
    parts = [f"<header><span>{_escaped(shown.where)}</span><span>{count}</span></header>"]
    parts += map(_section, shown.sections)
    parts += [f'<p class="note">{_escaped(note)}</p>' for note in shown.notes]
    return f'<article class="card">{"".join(parts)}</article>'


def _section(section: Section) -> str:
    parts = []
    if section.name:
        parts.append(f"<h3>{_escaped(section.name)}</h3>")
    if section.wave is not None:
        parts.append(_wave(section.wave))
    if section.picture is not None:
        parts.append(_picture(section.picture))
    if section.pieces:
        parts.append(f'<div class="text" dir="auto">{_text(section)}</div>')
    return "".join(parts)


def _text(section: Section) -> str:
    """Return the pieces of a text, each with its token in a tooltip."""
    omitted = dict(section.omitted)
    text = ""
    for number, (piece, own) in enumerate(zip(section.pieces, marks(section.pieces), strict=True)):
        text += _gap(omitted.get(number)) + _piece(piece, own)
    return text + _gap(omitted.get(len(section.pieces)))


def _gap(count: int | None) -> str:
    return f'<span class="gap"> … {count:,} more tokens … </span>' if count else ""


def _piece(piece: Piece, own_marks: Sequence[str]) -> str:
    kind = _CLASSES[piece.kind] + (" s" if piece.is_special else "")
    title = f"{piece.kind}"
    if piece.ids:
        ids = " ".join(map(str, piece.ids))
        title = f"{'token' if len(piece.ids) == 1 else 'tokens'} {ids}: {piece.kind}"
    if piece.text != piece.text.strip() or not piece.text.isprintable():
        title += f", {piece.text!r}"
    text = ""
    for plain, group in itertools.groupby(
        zip(piece.text, own_marks, strict=True), key=lambda marked: not marked[1]
    ):
        if plain:
            text += _escaped("".join(character for character, _ in group))
        else:
            text += "".join(itertools.starmap(_marked, group))
    if piece.tag:
        outside = " o" if piece.tag == "O" else ""
        text += f'<span class="tag{outside}">{_escaped(piece.tag)}</span>'
    return f'<span class="t {kind}" title="{_escaped(title)}">{text}</span>'


def _marked(character: str, mark: str) -> str:
    """Return a character that is not seen, with its mark; the text stays as it is to copy."""
    if mark == LINE_END:
        return '<b class="n">\n</b>'
    if mark == SPACE:
        return '<b class="p"> </b>'
    is_command = character != "\t" and (character < " " or character == "\x7f")
    kept = "" if is_command else _escaped(character)
    return f'<b class="u" data-u="{mark}">{kept}</b>'


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    text = _escaped(picture.description)
    return (
        f'<figure><img class="picture" src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _wave(wave: Wave) -> str:
    seconds = f"{wave.seconds:.1f} seconds"
    if wave.read_seconds < wave.seconds:
        seconds += f"; the model hears the first {wave.read_seconds:g}"
    return f"<figure>{svg_wave(wave)}<figcaption>{seconds}</figcaption></figure>"


def _charts(statistics: Statistics) -> str:
    parts = []
    bins = statistics.bins()
    if bins:
        chart = svg_histogram(bins, statistics.max_length)
        parts.append(f'<h2>Lengths of the examples</h2><div class="card pad">{chart}</div>')
    if statistics.classes:
        bars = html_bars(most_common(statistics.classes, _MOST_CLASSES))
        parts.append(f'<h2>What is to be predicted</h2><div class="card pad">{bars}</div>')
    return "".join(parts)


def _table(preview: Preview) -> str:
    cells = []
    for figure in [*preview.statistics.figures(), Figure("in words", preview.remarks)]:
        cells.append(f"<tr><th>{_escaped(figure.name)}</th><td>{_escaped(str(figure))}</td></tr>")
    return f'<h2>Figures</h2><div class="card pad"><table>{"".join(cells)}</table></div>'
