from peftkit.data.lint.fingerprints import take_fingerprints
from peftkit.data.lint.items import LintItem
from peftkit.data.lint.labels import find_label_variants, find_single_labels, find_uneven_classes


def found(find, *labels):
    rows = []
    for number, label in enumerate(labels, 1):
        rows.append(LintItem(f"a.csv, row {number}", f"text {number}", labels=(label,)))
    return find(rows, take_fingerprints(rows))


def test_a_label_with_one_row_is_named():
    (finding,) = found(find_single_labels, "billing", "refund", "billing")
    assert (finding.count, finding.rows) == (1, ("a.csv, row 2",))
    assert finding.what == "label has only one row ('refund')"


def test_labels_in_case_and_white_space_are_variants_of_the_most_frequent():
    (finding,) = found(
        find_label_variants, "Billing ", "bug", "billing", "billing", "BUG", "bug", "how  to"
    )
    assert finding.count == 2
    assert finding.rows == ("a.csv, row 5", "a.csv, row 1")
    assert "'BUG' beside 'bug', 'Billing ' beside 'billing'" in finding.what


def test_labels_that_differ_in_a_letter_or_a_sign_are_no_variants():
    assert found(find_label_variants, "c", "c++", "c#", "bug", "bugs", "1", "-1", "übung") == []


def test_a_class_with_a_twentieth_of_the_rows_is_uneven():
    (finding,) = found(find_uneven_classes, *["ham"] * 98, *["spam"] * 2)
    assert (finding.count, finding.rows) == (1, ("a.csv, row 99",))
    assert "('spam' 2.0%; 'ham' 98%)" in finding.what


def test_a_class_with_a_tenth_of_the_rows_is_not():
    assert found(find_uneven_classes, *["ham"] * 90, *["spam"] * 10) == []
    assert found(find_uneven_classes) == []


def test_a_row_with_several_labels_counts_for_each():
    rows = [
        LintItem("a, row 1", "Ada lives in Rome", labels=("PER", "LOC")),
        LintItem("a, row 2", "Rome", labels=("LOC",)),
    ]
    (finding,) = find_single_labels(rows, take_fingerprints(rows))
    assert finding.rows == ("a, row 1",)
