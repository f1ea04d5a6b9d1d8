"""The order of the examples.

It is a pure function of the epoch, so that a resumed run sees what it would have seen.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from peftkit.errors import ConfigError

ExampleOrder = Callable[[int], Sequence[int]]
"""Returns the numbers of the examples in the order in which an epoch, from 0 on, takes them."""

_GROUPING_STEPS = 16  # steps sorted together by length: little padding, and still random


class Order:
    """Which examples each optimizer step takes, by process and micro-batch.

    What a step takes depends on the size of the whole step alone: 1 x 8, 8 x 1 and 2 x 4 (examples
    in a pass x passes), on one process or several, take the same examples. `batch_size` may be set
    to another size at any time.

    Args:
        lengths: The length of every example, in tokens.
        batch_size: Examples in one forward pass on one process.
        accumulate: Forward passes in a step.
        processes: Number of processes.
        seed: Seed of the permutations.
        group_by_length: Put examples of similar length into one step.
        of_epoch: A user's order in place of the random one. An example may come more than once or
            not at all; every epoch has as many as the first one.

    Raises:
        ConfigError: `of_epoch` returns no example, or, when an epoch is reached, an example that
            does not exist or another number of them.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulate: int,
        processes: int,
        seed: int,
        group_by_length: bool,
        of_epoch: ExampleOrder | None = None,
    ) -> None:
        self._lengths = lengths
        self.batch_size = batch_size
        self._processes = processes
        self._step_size = batch_size * accumulate * processes
        self._seed = seed
        self._group_by_length = group_by_length
        self._of_epoch = of_epoch
        self._examples = len(lengths) if of_epoch is None else len(of_epoch(0))
        self.steps_per_epoch = math.ceil(self._examples / self._step_size)
        self._steps_of = lru_cache(maxsize=1)(self._steps)
        if not self._examples:
            raise ConfigError("the order of the examples is empty: it must name one at least")

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the micro-batches of one process in a step, as lists of example numbers.

        The last step of an epoch may be short. A process for which nothing is left then gets an
        empty micro-batch, so that all processes have the same number of them.

        Args:
            step: The step, from 0 on.
            rank: The process.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        batches = _cut(self._steps_of(epoch)[place], self.batch_size)
        rounds = math.ceil(len(batches) / self._processes)
        mine = batches[rank :: self._processes]
        while len(mine) < rounds:
            mine.append([])
        return mine

    def _steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch."""
        if self._of_epoch is not None:
            return _cut(self._checked(self._of_epoch(epoch), epoch), self._step_size)
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        permutation = torch.randperm(len(self._lengths), generator=generator).tolist()
        if not self._group_by_length:
            return _cut(permutation, self._step_size)
        grouped: list[int] = []
        for chunk in _cut(permutation, self._step_size * _GROUPING_STEPS):
            grouped += sorted(chunk, key=self._lengths.__getitem__)
        steps = _cut(grouped, self._step_size)
        shuffled = torch.randperm(len(steps), generator=generator).tolist()
        return [steps[number] for number in shuffled]

    def _checked(self, numbers: Sequence[int], epoch: int) -> list[int]:
        """Return a user's order as plain numbers."""
        found = [int(number) for number in numbers]
        if len(found) != self._examples:
            raise ConfigError(
                f"the order of epoch {epoch} has {len(found)} examples, and that of epoch 0 had "
                f"{self._examples}: every epoch must have as many"
            )
        if min(found) < 0 or max(found) >= len(self._lengths):
            raise ConfigError(
                f"the order of epoch {epoch} names examples from {min(found)} to {max(found)}; "
                f"there are those from 0 to {len(self._lengths) - 1}"
            )
        return found


def _cut(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Return parts of `size`, the last one as short as it comes."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
