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
_ROUNDING = 1e-9  # (high - low) / step may be a whole number less a rounding error
_SET_FOR_EACH_TRIAL = ("run_dir", "config", "train.resume")


@section
class Range:
    """Numbers from `low` to `high`, both included.

    They are whole numbers if both bounds and the step are.
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
        if self.step is None:
            return self.high
        steps = math.floor((self.high - self.low) / self.step + _ROUNDING)
        return self.low + self.step * steps

    def distribution(self) -> "BaseDistribution":
        """Return the range as Optuna takes it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        low, high, step = self.low, self.high, self.step
        if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
            return IntDistribution(low, int(self.last), log=self.log, step=step or 1)
        return FloatDistribution(low, self.last, log=self.log, step=step)


Dimension = Range | list[Any]
"""What is tried of one key."""


@dataclass(frozen=True)
class Space:
    """The dotted keys that are tried, each with a range or a list of values.

    Optuna takes only plain values, so a list's values are handed to it as JSON.
    """

    dimensions: Mapping[str, Dimension]

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """Return the space as Optuna takes it."""
        from optuna.distributions import CategoricalDistribution

        found: dict[str, BaseDistribution] = {}
        for key, dimension in self.dimensions.items():
            if isinstance(dimension, Range):
                found[key] = dimension.distribution()
            else:
                found[key] = CategoricalDistribution(list(map(json.dumps, dimension)))
        return found

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config's values for what Optuna has drawn."""
        found = {}
        for key, dimension in self.dimensions.items():
            is_range = isinstance(dimension, Range)
            found[key] = drawn[key] if is_range else json.loads(drawn[key])
        return found

    def first_values(self) -> dict[str, Any]:
        """Return one point of the space: the lowest value or the first of each key."""
        return {key: _ends(dimension)[0] for key, dimension in self.dimensions.items()}

    def grid(self) -> list[dict[str, str]]:
        """Return every point of the space as Optuna would draw it.

        Raises:
            ConfigError: a key has a range instead of a list.
        """
        texts = []
        ranges = []
        for key, dimension in self.dimensions.items():
            if isinstance(dimension, Range):
                ranges.append(key)
            else:
                texts.append(list(map(json.dumps, dimension)))
        if ranges:
            raise ConfigError(
                f"a grid is made of lists of values; {', '.join(ranges)} has a range: write the "
                "values out"
            )
        points = itertools.product(*texts)
        return [dict(zip(self.dimensions, point, strict=True)) for point in points]

    def check(self, kind: type, base: Path, output: Path) -> None:
        """Build the config at every corner of the space.

        Where there are too many corners, every two keys take all their ends, and the other keys
        stay at their first.

        Raises:
            ConfigError: names every key that is unknown and every value that is refused, with the
                values at that corner.
        """
        problems: dict[str, str] = {}
        for values in self.corners():
            try:
                read(kind, arguments(base, values, output))
            except ConfigError as problem:
                lines = str(problem).splitlines()
                for line in lines[1:] or lines:
                    problems.setdefault(line.strip(), spelled(values))
        if problems:
            lines = ["the recipe does not take every point of the space:"]
            lines += [f"  {line} (with {values})" for line, values in problems.items()]
            raise ConfigError("\n".join(lines))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield the corners that `check` looks at."""
        ends = {key: _ends(dimension) for key, dimension in self.dimensions.items()}
        if math.prod(map(len, ends.values())) <= _MOST_CORNERS:
            for corner in itertools.product(*ends.values()):
                yield dict(zip(ends, corner, strict=True))
            return
        first = self.first_values()
        for one, other in itertools.combinations(ends, 2):
            for one_value, other_value in itertools.product(ends[one], ends[other]):
                yield first | {one: one_value, other: other_value}


def _ends(dimension: Dimension) -> list[Any]:
    """Return the bounds of a range, or all values of a list."""
    return [dimension.low, dimension.last] if isinstance(dimension, Range) else dimension


def read_space(path: Path) -> Space:
    """Read a space from a YAML file.

    A line is ``train.learning_rate: {low: 1e-4, high: 1e-2, log: true}``, or ``adapter.r: [4, 8]``.

    Raises:
        ConfigError: the file cannot be read, or a key has neither a range nor a list of different
            values.
    """
    dimensions = {}
    for key, given in load_yaml(path).items():
        dimensions[str(key)] = _read_dimension(str(key), given, path)
    if not dimensions:
        raise ConfigError(f"{path} names no key to try")
    return Space(dimensions)


def _read_dimension(key: str, given: Any, path: Path) -> Dimension:
    if key in _SET_FOR_EACH_TRIAL:
        raise ConfigError(f"{path}: {key} is set for each trial and cannot be tried")
    if isinstance(given, dict) and given.keys() & {"low", "high"}:
        return build(Range, given, f"{path}, {key}")
    if not isinstance(given, list):
        raise ConfigError(
            f"{path}: {key} must be a list of values, or a range such as "
            f"{{low: 1, high: 8}} (got {given!r})"
        )
    try:
        different = set(map(json.dumps, given))
    except TypeError as problem:
        raise ConfigError(f"{path}: {key}: {problem}") from problem
    if not given or len(different) < len(given):
        raise ConfigError(f"{path}: {key} must list different values (got {given!r})")
    return given


def arguments(base: Path, values: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Return a recipe's command line for the base config with other values."""
    words = ["--config", str(base)]
    for key, value in {**values, "run_dir": str(run_dir)}.items():
        words += [f"--{key}", json.dumps(value, ensure_ascii=False)]
    return words


def spelled(values: Mapping[str, Any]) -> str:
    """Return values as a person reads them: ``train.learning_rate=0.001, adapter.r=8``."""
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """Return one value as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def name_of(values: Mapping[str, Any]) -> str:
    """Return the name of the run that tries these values: the same for the same values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
