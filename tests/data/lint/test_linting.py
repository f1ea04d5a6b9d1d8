import itertools
import sys
from dataclasses import replace

import pytest

from peftkit.data.lint import linting
from peftkit.data.lint.items import LintItem, LintItems, spread
from peftkit.data.lint.linting import lint
from peftkit.data.rows import Rows
from peftkit.errors import DataError, EmptyRowError


def texts(count, file="train.jsonl"):
    items = []
    for number in range(1, count + 1):
        items.append(
            LintItem(f"{file}, row {number}", f"question {number} of {file}", answer="Yes.")
        )
    return items


@pytest.mark.parametrize(("count", "limit"), [(0, 5), (3, 5), (5, 5), (12, 5), (100, 7)])
def test_a_sample_is_evenly_spread(count, limit):
    numbers = spread(count, limit)
    assert len(numbers) == min(count, limit)
    steps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
    assert not steps or max(steps) - min(steps) <= 1
    assert set(numbers) <= set(range(count))
    assert numbers[:1] == [0][:count]


def test_clean_rows_have_no_warnings():
    assert str(lint(texts(3), texts(2, "test.jsonl"))) == (
        "lint of 3 training rows and 2 held-out rows: no warnings"
    )


def test_each_finding_is_a_line_with_its_count_first():
    copies = [replace(item, where=f"more.jsonl, {item.where[13:]}") for item in texts(12)]
    rows = [*texts(30), *copies, LintItem("more.jsonl, row 13", "question", answer=" ")]
    report = str(lint(rows, counts={"answers_cut": 1_234, "rows": 9_000}))
    assert report.splitlines() == [
        "lint of 43 training rows: 3 warnings",
        "     12 rows are copies of earlier rows: leave copies out, or they count more than once",
        "        more.jsonl, row 1 = train.jsonl, row 1; row 2 = train.jsonl, row 2; row 3 = "
        "train.jsonl, row 3; ...",
        "  1,234 of 9,000 rows lose the end of an answer at data.max_length: raise it, or leave "
        "such rows out",
        "      1 answer is empty: fill it in, or leave the row out with data.skip_empty: true",
        "        more.jsonl, row 13",
    ]


def test_copies_are_found_in_all_rows_and_not_only_in_the_sample():
    rows = [*texts(50), replace(texts(50)[7], where="train.jsonl, row 51")]
    report = lint(rows, limit=5)
    assert [finding.kind for finding in report.findings] == ["exact duplicates"]
    assert report.looked_at == "51 training rows (5 of them closely)"


def test_a_quick_lint_reads_the_sample_alone():
    read = []

    def item(row, where):
        read.append(where)
        return LintItem(where, row["text"])

    rows = Rows.of([{"text": f"text {number}"} for number in range(1_000)])
    items = LintItems(rows, item)
    report = lint(items, limit=20, thorough=False)
    assert len(set(read)) <= 120  # 100 are looked at for their length
    assert report.looked_at == "20 of 1,000 training rows"
    assert report.notes == (
        "`peftkit preview RECIPE --lint` looks at more rows, and at their languages",
    )


def test_a_quick_lint_of_few_rows_promises_no_more_rows():
    report = lint(texts(3), thorough=False)
    assert report.notes == ("`peftkit preview RECIPE --lint` looks at languages, too",)


def test_long_rows_make_the_sample_smaller(monkeypatch):
    monkeypatch.setattr(linting, "_CHARACTERS", 10_000)
    rows = []
    for number in range(500):
        rows.append(LintItem(f"long.jsonl, row {number + 1}", f"{number:1000}"))
    assert lint(rows).looked_at == "500 training rows (10 of them closely)"


def test_what_could_not_be_looked_for_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    report = lint(texts(2))
    assert report.notes == ("phone numbers were not looked for: pip install 'peftkit[lint]'",)
    assert "phone numbers were not looked for" in str(report)


def test_the_report_is_the_same_each_time():
    rows = [*texts(40), *texts(9)]
    assert lint(rows, texts(3), limit=20) == lint(rows, texts(3), limit=20)


def test_a_row_that_holds_nothing_is_an_empty_answer():
    def read(row):
        if not row["text"]:
            raise EmptyRowError("nothing to learn")
        return row

    rows = Rows.of([{"text": "one"}, {"text": ""}, {"text": ""}], "rows.jsonl").map(read)
    items = LintItems(rows, lambda row, where: LintItem(where, answer=row["text"]))
    (finding,) = lint(items).findings
    assert finding.kind == "empty answers"
    assert finding.rows == ("rows.jsonl, row 2", "rows.jsonl, row 3")


def test_rows_that_cannot_be_read_are_counted_and_do_not_stop_the_lint():
    def read(row):
        if row["label"] is None:
            raise DataError("'label' is None; it must be a text")
        return row

    rows = [{"label": "a"}, {"label": None}, {"label": "a"}, {"label": None}, {"label": None}]
    items = LintItems(Rows.of(rows, "a.jsonl").map(read), lambda row, where: LintItem(where))
    (finding,) = lint(items).findings
    assert finding.sentence == (
        "3 rows cannot be read: of the first, 'label' is None; it must be a text"
    )
    assert finding.rows == ("a.jsonl, row 2", "a.jsonl, row 4", "a.jsonl, row 5")


def test_no_rows_have_no_warnings():
    assert lint([]).findings == ()
