"""A spread-out sample of the coverage benchmark; the whole of it is `python -m
benchmarks.coverage`.
"""

import json

import pytest

from benchmarks import coverage, zoo
from benchmarks.coverage_checks import METHODS


def test_the_zoo_knows_every_pair_that_transformers_has():
    assert len(zoo.pairs()) > 500
    assert len({task for task, *_ in map(tuple_of, zoo.pairs())}) == 6


def tuple_of(pair):
    return (pair.task, pair.model_type) if hasattr(pair, "task") else tuple(pair)


@pytest.mark.slow
def test_every_method_passes_on_a_sample_of_architectures(tmp_path, monkeypatch):
    out = tmp_path / "coverage.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["coverage", "--sample", "30", "--libraries", "peftkit", "--out", str(out)]
    )
    coverage.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 30 * len(METHODS)
    assert not [row for row in rows if row["outcome"] == "failed"]
    assert sum(row["outcome"] == "ok" for row in rows) > 150
