"""The order of the examples.

It is a pure function of the epoch, so that a resumed run sees what it would have seen.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
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
        lengths: The length of every example, in tokens; an array or a list.
        batch_size: Examples in one forward pass on one process.
        accumulate: Forward passes in a step.
        processes: Number of processes.
        seed: Seed of the permutations.
        group_by_length: Put examples of similar length into one step.
        of_epoch: A user's order in place of the random one. An example may come more than once or
            not at all; every epoch has as many as the first one.
        shortest_first: Take the examples of the first epoch from short to long; of equally long
            ones, the order is random.

    Raises:
        ConfigError: `of_epoch` returns no example, or, when an epoch is reached, an example that
            does not exist or another number of them.
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        accumulate: int,
        processes: int,
        seed: int,
        group_by_length: bool,
        of_epoch: ExampleOrder | None = None,
        *,
        shortest_first: bool = False,
    ) -> None:
        self._lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self._processes = processes
        self._step_size = batch_size * accumulate * processes
        self._seed = seed
        self._group_by_length = group_by_length
        self._shortest_first = shortest_first
        self._of_epoch = of_epoch
        self._examples = len(lengths) if of_epoch is None else len(of_epoch(0))
        self.steps_per_epoch = math.ceil(self._examples / self._step_size)
        self._epoch = lru_cache(maxsize=1)(self._draw_epoch)
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
        numbers, places = self._epoch(epoch)
        start = places[place] * self._step_size
        taken = numbers[start : start + self._step_size].tolist()
        batches = [taken[i : i + self.batch_size] for i in range(0, len(taken), self.batch_size)]
        rounds = math.ceil(len(batches) / self._processes)
        mine = batches[rank :: self._processes]
        while len(mine) < rounds:
            mine.append([])
        return mine

    def _draw_epoch(self, epoch: int) -> tuple[Any, Sequence[int]]:
        """Return the examples of an epoch, an array, and in which order its steps are taken."""
        in_order = range(self.steps_per_epoch)
        if self._of_epoch is not None:
            return np.array(self._checked(self._of_epoch(epoch), epoch)), in_order
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        numbers = torch.randperm(len(self._lengths), generator=generator).int().numpy()
        if epoch == 0 and self._shortest_first:
            return numbers[np.argsort(self._lengths[numbers], kind="stable")], in_order
        if not self._group_by_length:
            return numbers, in_order
        size = self._step_size * _GROUPING_STEPS
        for start in range(0, len(numbers), size):
            group = numbers[start : start + size]
            group[:] = group[np.argsort(self._lengths[group], kind="stable")]
        return numbers, torch.randperm(self.steps_per_epoch, generator=generator).tolist()

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
