"""The page of a preview is well formed, escapes what it shows, and loses no character."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from peftkit.data.preview.contents import Preview
from peftkit.data.preview.page import page
from peftkit.data.preview.shown import Piece, Section, Shown, Wave
from peftkit.data.preview.statistics import Statistics
from peftkit.data.preview.style import STYLE
from peftkit.data.preview.terminal import in_terminal
from peftkit.data.preview.tokens import token_section

VOID = {"meta", "input", "img", "br"}
KINDS = {"l": "learned", "r": "read", "c": "cut"}


class Reader(HTMLParser):
    """Reads a page: checks that tags are closed in order, and collects the tokens by kind."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.tokens, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        is_token = tag == "span" and "title" in attributes
        if is_token:
            self.tokens.append((KINDS[attributes["class"].split()[1]], attributes["title"], ""))
        if tag not in VOID:
            self.open.append((tag, attributes.get("class", ""), is_token))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [is_token for _, _, is_token in self.open]
        is_tag = any(name.startswith("tag") for _, name, _ in self.open)
        if any(inside) and not is_tag:
            kind, title, text = self.tokens.pop()
            self.tokens.append((kind, title, text + data))

    def text(self, kind):
        return "".join(text for found, _, text in self.tokens if found == kind)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def preview_of(*sections, notes=(), warnings=(), lengths=(5, 9), **statistics):
    values = {"rows": 2, "seen_rows": 2, "learned": 4, "units": 2, "step_size": 8} | statistics
    figures = Statistics(lengths=np.array(lengths), **values)
    shown = Shown(tuple(sections), 9, 4, tuple(notes), "rows.jsonl, row 1")
    return Preview("chat: a & b", figures, tuple(warnings), "2 rows", (shown,))


def section_of(tokenizer, read_text, learned_text, cut_text):
    ids, kinds = [], []
    for text, kind in ((read_text, "read"), (learned_text, "learned"), (cut_text, "cut")):
        own = tokenizer(text)["input_ids"]
        ids += own
        kinds += [kind] * len(own)
    return token_section("", ids, kinds, tokenizer)


@pytest.mark.parametrize(
    "learned",
    [
        "plain",
        "<script>alert('x & y')</script>",
        " space before, two  inside, tab\there, line\nend \n",
        "naïve 日本語 🤖👩‍👩‍👧 शब्द",
        "zero\u200bwidth, right\u202eto left, \u00a0",
        '"quoted" &lt;b&gt;<|im_end|>',
    ],
)
def test_the_learned_text_of_the_page_is_the_learned_text(tokenizer, learned):
    section = section_of(tokenizer, "What? ", learned, "<b>lost")
    reader = read(page(preview_of(section)))
    assert reader.text("learned") == learned
    assert reader.text("read") == "What? "
    assert reader.text("cut") == "<b>lost"


def test_a_page_needs_no_script_and_no_network(tokenizer):
    section = section_of(tokenizer, "<script src='https://x.org/x.js'>", "<img src=x>", "")
    html = page(preview_of(section, notes=["<script>"], warnings=["<script>"]))
    reader = read(html)
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert reader.links == []
    assert "url(" not in html
    assert "@import" not in html


def test_each_token_has_its_number_in_a_tooltip(tokenizer):
    ids = tokenizer("a🤖")["input_ids"]
    section = token_section("", ids, ["read"] + ["learned"] * 4, tokenizer)
    titles = [title for _, title, _ in read(page(preview_of(section))).tokens]
    assert titles[0] == f"token {ids[0]}: read"
    assert titles[1].startswith(f"tokens {' '.join(map(str, ids[1:]))}: learned")


def test_a_command_to_the_terminal_is_shown_and_not_obeyed():
    piece = Piece("a\033[2Jb\rc", "learned")
    text = in_terminal(preview_of(Section("", (piece,)), notes=["\033[2J"]))
    assert "\033" not in text
    assert "\r" not in text
    assert "aU+001B[2JbU+000Dc" in text
    html = page(preview_of(Section("", (piece,))))
    assert "\033" not in html


def test_half_a_surrogate_pair_does_not_stop_a_page():
    html = page(preview_of(Section("", (Piece("\ud83d", "read"),)), warnings=["\ud83d"]))
    assert html.encode()


def test_the_terminal_marks_what_is_learned_and_cut_in_brackets_or_colours(tokenizer):
    preview = preview_of(section_of(tokenizer, "one?", "1.<|im_end|>", "two?"))
    assert "one?⟦1.<|im_end|>⟧⟨two?⟩" in in_terminal(preview)
    assert "one?\033[1;32m1.<|im_end|>\033[0m" in in_terminal(preview, color=True)


def test_what_the_model_does_not_hear_of_a_sound_is_cut():
    wave = Wave((-0.5,) * 4, (0.5,) * 4, seconds=40.0, read_seconds=30.0)
    html = page(preview_of(Section("audio", wave=wave)))
    assert html.count('<rect class="read"') == 3
    assert html.count('<rect class="cut"') == 1
    assert "the model hears the first 30" in html


def test_the_histogram_holds_every_example_once():
    lengths = [1, 2, 2, 50, 99, 100]
    bins = preview_of(lengths=lengths, max_length=100).statistics.bins()
    assert sum(each.count for each in bins) == len(lengths)
    assert bins[-1].end == 100
    assert [bins[0].start, bins[0].count] == [0, 3]


def test_figures_of_some_rows_say_so_and_are_estimates_for_all():
    statistics = preview_of(
        rows=300_000, seen_rows=1000, lengths=[125] * 1000, units=1000, learned=50_000
    ).statistics
    found = {figure.name: str(figure) for figure in statistics.figures()}
    assert found["rows"] == "1,000 (a sample of 300,000)"
    assert found["tokens in an epoch"] == "about 38,000,000"  # 37.5 million
    assert found["learned"] == "40.0% (of the tokens)"
    assert found["steps in an epoch"] == "about 38,000 (of 8 examples each)"


def test_figures_of_all_rows_are_exact():
    statistics = preview_of(lengths=[10, 20, 30, 40], units=4, learned=25, step_size=3).statistics
    found = {figure.name: str(figure) for figure in statistics.figures()}
    assert found["tokens in an epoch"] == "100"
    assert found["learned"] == "25.0% (of the tokens)"
    assert found["longest, in tokens"] == "40 (shortest 10, median 30, 95th percentile 40)"
    assert found["steps in an epoch"] == "2 (of 3 examples each)"


def luminance(colour):
    """The relative luminance of a colour such as #fff or #1b2330, as WCAG 2 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_of_the_page_stands_out_from_its_background(theme):
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", STYLE.split("prefers-color-scheme")[theme]))
    pairs = [("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card")]
    pairs += [("learned-ink", "learned"), ("learned-ink", "learned-2"), ("cut-ink", "cut")]
    pairs += [("cut-ink", "cut-2"), ("special-ink", "special"), ("warn-ink", "warn")]
    for text, background in pairs:
        low, high = sorted(luminance(colours[name]) for name in (text, background))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)
