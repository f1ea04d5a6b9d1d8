import pytest
from tqdm import tqdm

from peftkit.data.rows import Rows
from peftkit.data.watched_rows import WatchedRows


def at_once(items, **options):
    return tqdm(items, **(options | {"delay": 0}))


@pytest.mark.parametrize("is_shown", [True, False])
def test_who_goes_through_watched_rows_sees_a_bar(monkeypatch, capsys, is_shown):
    monkeypatch.setattr("peftkit.data.watched_rows.tqdm", at_once)
    rows = Rows.of([{"n": number} for number in range(5)])
    assert list(WatchedRows(rows, "reading labels", is_shown=is_shown)) == list(rows)
    shown = capsys.readouterr().err
    assert ("reading labels: 100%" in shown) == is_shown
    assert ("5/5" in shown) == is_shown


def test_a_bar_does_not_show_within_a_second(capsys):
    assert len(list(WatchedRows(Rows.of([{"n": 1}]), "reading labels"))) == 1
    assert capsys.readouterr().err == ""


def test_watched_rows_are_the_rows_in_all_else():
    rows = Rows.of([{"n": number} for number in range(5)], "five.jsonl")
    watched = WatchedRows(rows, "reading labels")
    assert watched[-1] == {"n": 4}
    assert watched.where(1) == "five.jsonl, row 2"
    assert watched.digest == rows.digest
    assert watched[1:3] == rows[1:3]
