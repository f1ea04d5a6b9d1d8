"""A preview as text for a terminal."""

from peftkit.data.preview.charts import named_bins, text_bars, text_wave
from peftkit.data.preview.contents import Preview
from peftkit.data.preview.shown import Kind, Section, Shown
from peftkit.data.preview.statistics import Figure, most_common
from peftkit.data.preview.visible import LINE_END, marks, printable

_PLAIN = "\033[0m"
_STYLES: dict[Kind, str] = {"learned": "\033[1;32m", "read": "", "cut": "\033[2;9;31m"}
_BOLD, _DIM, _YELLOW = "\033[1m", "\033[2m", "\033[33m"
_BRACKETS: dict[Kind, tuple[str, str]] = {
    "learned": ("⟦", "⟧"),
    "read": ("", ""),
    "cut": ("⟨", "⟩"),
}
_MOST_CLASSES = 15


def in_terminal(preview: Preview, *, color: bool = False) -> str:
    """Return a preview as text.

    Learned tokens are between ⟦ and ⟧ and cut ones between ⟨ and ⟩, or green and red.

    Args:
        preview: The preview.
        color: Whether the terminal shows colours.
    """
    paint = _Paint(color)
    lines = [paint(_BOLD, printable(preview.title))]
    for warning in preview.warnings:
        lines.append(paint(_YELLOW, f"! {printable(warning)}"))
    lines += ["", _legend(paint), ""]
    for number, shown in enumerate(preview.examples, 1):
        lines += [*_example(number, shown, paint), ""]
    statistics = preview.statistics
    bars = text_bars(named_bins(statistics.bins()))
    if bars:
        lines += [paint(_BOLD, "length in tokens"), *bars, ""]
    if statistics.classes:
        classes = [
            (printable(name), n) for name, n in most_common(statistics.classes, _MOST_CLASSES)
        ]
        lines += [paint(_BOLD, "to predict"), *text_bars(classes), ""]
    figures = [*statistics.figures(), Figure("in words", preview.remarks)]
    margin = max(len(figure.name) for figure in figures)
    for figure in figures:
        lines.append(f"{figure.name:<{margin}}  {printable(str(figure))}")
    return "\n".join(lines)


def example_in_text(shown: Shown) -> str:
    """Return an example as text, learned tokens between ⟦ and ⟧ and cut ones between ⟨ and ⟩."""
    lines = []
    for section in shown.sections:
        lines += _section(section, _Paint(color=False))
    return "\n".join(lines)


class _Paint:
    """Puts text into a style, if there are colours."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def __call__(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self.color and style and text else text

    def stretch(self, kind: Kind, text: str) -> str:
        """Return a text that is learned, read or cut."""
        if self.color:
            return self(_STYLES[kind], text)
        left, right = _BRACKETS[kind]
        return f"{left}{text}{right}"


def _legend(paint: _Paint) -> str:
    cut = paint.stretch("cut", "cut: beyond max_length")
    return f"{paint.stretch('learned', 'learned')}  read  {cut}"


def _example(number: int, shown: Shown, paint: _Paint) -> list[str]:
    head = [f"{number}. {printable(shown.where)}", shown.count()]
    lines = [paint(_BOLD, ": ".join(filter(None, head)))]
    for section in shown.sections:
        lines += _section(section, paint)
    for note in shown.notes:
        lines.append(paint(_YELLOW, f"! {printable(note)}"))
    return lines


def _section(section: Section, paint: _Paint) -> list[str]:
    text = _text(section, paint)
    name = paint(_DIM, f"{printable(section.name)}: ") if section.name else ""
    if section.wave is not None:
        seconds = f"{section.wave.seconds:.1f} seconds"
        if section.wave.read_seconds < section.wave.seconds:
            seconds += f", of which the model hears {section.wave.read_seconds:g}"
        text = f"{text_wave(section.wave)} {seconds}"
    elif section.picture is not None:
        text = f"[{section.picture.description}; --html shows it]"
    separator = "\n" if name and "\n" in text else ""
    return [f"{name}{separator}{text}"]


def _text(section: Section, paint: _Paint) -> str:
    """Return the text of a section, with marks for what is not seen."""
    omitted = dict(section.omitted)
    found = ""
    stretch, kind = "", None
    own_marks = marks(section.pieces)
    for number, piece in enumerate([*section.pieces, None]):
        gap = omitted.get(number)
        if kind is not None and (piece is None or gap or piece.kind != kind):
            found += paint.stretch(kind, stretch)
            stretch = ""
        if gap:
            found += paint(_DIM, f" … {gap:,} more tokens … ")
        if piece is None:
            break
        kind = piece.kind
        for character, mark in zip(piece.text, own_marks[number], strict=True):
            stretch += f"{LINE_END}\n" if character == "\n" else mark or character
        if piece.tag:
            stretch += f"[{printable(piece.tag)}]"
    return found
