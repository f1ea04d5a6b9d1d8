"""The space of a search: which keys of a config are tried, with which values."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat, PositiveInt

from peftkit.config.keys import section
from peftkit.config.reading import build, load_yaml, read
from peftkit.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MOST_CORNERS = 1000


@section
class Range:
    """Numbers from `low` to `high`, both included: whole numbers where both bounds and the step are
    whole.
    """

    low: int | float
    """Smallest value."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Draw evenly by orders of magnitude."""
    step: PositiveInt | PositiveFloat | None = None
    """Distance between values; null is 1 for whole numbers, and any number between for others."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, which must be less than high, {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0 (got {self.low})")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")

    @property
    def last(self) -> int | float:
        """The largest value that the steps from `low` reach."""
        return (
            self.high
            if self.step is None
            else self.low + self.step * math.floor((self.high - self.low) / self.step + 1e-9)
        )

    def distribution(self) -> "BaseDistribution":
        """Return it for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if (
            isinstance(self.low, int)
            and isinstance(self.high, int)
            and isinstance(self.step, int | None)
        ):
            return IntDistribution(self.low, int(self.last), log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.last, log=self.log, step=self.step)


@dataclass(frozen=True)
class Space:
    """The dotted keys that are tried, each with a range or a list of values. Optuna is given the
    values of lists as JSON.
    """

    dimensions: Mapping[str, Range | list[Any]]

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """Return the space for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return {
            key: each.distribution()
            if isinstance(each, Range)
            else CategoricalDistribution([*map(json.dumps, each)])
            for key, each in self.dimensions.items()
        }

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config's values for what Optuna has drawn."""
        return {key: drawn[key] if isinstance(each, Range) else json.loads(drawn[key])
                for key, each in self.dimensions.items()}  # fmt: skip

    def grid(self) -> list[dict[str, str]]:
        """Return every point of the space as Optuna would draw it.

        Raises:
            ConfigError: a key has a range and no list.
        """
        ranges = [key for key, each in self.dimensions.items() if isinstance(each, Range)]
        if ranges:
            raise ConfigError(
                f"a grid is made of lists of values; {', '.join(ranges)} has a range: write the values out"
            )
        texts = [list(map(json.dumps, each)) for each in self.dimensions.values()]  # type: ignore[arg-type]
        return [
            dict(zip(self.dimensions, point, strict=True)) for point in itertools.product(*texts)
        ]

    def check(self, kind: type, base: Path, output: Path) -> None:
        """Build the config at every corner of the space, or where these are too many at those of
        every two keys.

        Raises:
            ConfigError: names every key that is unknown and every value that is refused, with the
                values at that corner.
        """
        problems: dict[str, str] = {}
        for values in self._corners():
            try:
                read(kind, words(base, values, output))
            except ConfigError as problem:
                lines = str(problem).splitlines()
                for line in lines[1:] or lines:
                    problems.setdefault(line.strip(), spelled(values))
        if problems:
            lines = [f"  {line} (with {where})" for line, where in problems.items()]
            raise ConfigError(
                "\n".join(["the recipe does not take every point of the space:", *lines])
            )

    def _corners(self) -> Iterator[dict[str, Any]]:
        ends = {
            key: [each.low, each.last] if isinstance(each, Range) else each
            for key, each in self.dimensions.items()
        }
        if math.prod(map(len, ends.values())) <= _MOST_CORNERS:
            yield from (
                dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())
            )
            return
        for one, other in itertools.combinations(ends, 2):
            rest = {key: values[0] for key, values in ends.items()}
            yield from (
                rest | {one: a, other: b} for a, b in itertools.product(ends[one], ends[other])
            )


def read_space(path: Path) -> Space:
    """Read a space from a YAML file: ``train.learning_rate: {low: 1e-4, high: 1e-2, log: true}``,
    ``adapter.r: [4, 8]``.

    Raises:
        ConfigError: the file cannot be read, or a key has neither a range nor a list of different
            values.
    """
    dimensions = {
        str(key): _dimension(str(key), given, path) for key, given in load_yaml(path).items()
    }
    if not dimensions:
        raise ConfigError(f"{path} names no key to try")
    return Space(dimensions)


def _dimension(key: str, given: Any, path: Path) -> Range | list[Any]:
    if key in ("run_dir", "config", "train.resume"):
        raise ConfigError(f"{path}: {key} is set for each trial and cannot be tried")
    if isinstance(given, dict) and given.keys() & {"low", "high"}:
        return build(Range, given, f"{path}, {key}")
    if not isinstance(given, list):
        raise ConfigError(
            f"{path}: {key} must be a list of values, or a range such as {{low: 1, high: 8}} (got {given!r})"
        )
    try:
        texts = [json.dumps(value) for value in given]
    except TypeError as problem:
        raise ConfigError(f"{path}: {key}: {problem}") from problem
    if not texts or len(set(texts)) < len(texts):
        raise ConfigError(f"{path}: {key} must list different values (got {given!r})")
    return given


def words(base: Path, values: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Return the arguments of a recipe for the base config with other values."""
    pairs = [(f"--{key}", json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
    return [
        "--config",
        str(base),
        *itertools.chain(*pairs),
        "--run_dir",
        json.dumps(str(run_dir), ensure_ascii=False),
    ]


def spelled(values: Mapping[str, Any]) -> str:
    """Return values for people: ``train.learning_rate=0.001, adapter.r=8``."""
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """Return one value for people."""
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else json.dumps(value)
    )


def name_of(values: Mapping[str, Any]) -> str:
    """Return the name of the run that tries these values: the same for the same values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
