"""What a reader of the documents at the root relies on: paths exist, and there is one version."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import peftkit

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES)
OF_A_FOLDER = ("peftkit/", "recipes/", "tests/", "benchmarks/", ".ci/")
WIDTH = 100


def prose_of(name):
    """The lines of a document outside of code blocks and tables."""
    lines, is_code = [], False
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            lines.append(line)
    return lines


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_that_a_document_names_exists(name):
    text = (ROOT / name).read_text("utf-8")
    quoted = re.findall(r"`([\w./*-]+)`", text)
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = []
    for path in quoted:
        if path.startswith(OF_A_FOLDER) and "NAME" not in path and not list(ROOT.glob(path)):
            missing.append(path)
    for path in linked:
        if not (ROOT / name).parent.joinpath(path).exists():
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_of_prose_end_before_column_101(name):
    assert [line for line in prose_of(name) if len(line) > WIDTH] == []


def test_there_is_one_source_of_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "peftkit/__init__.py"
    assert importlib.metadata.version("peftkit") == peftkit.__version__


def test_pre_commit_runs_the_linters_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"}
    assert {hook["language"] for hook in hooks} == {"system"}
