"""The order of the examples: a pure function of seed and epoch, so that a resumed run sees what it
would have seen.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

_GROUPING_STEPS = (
    16  # as many steps are sorted together by length: most padding goes, most randomness stays
)


class Order:
    """Which examples each optimiser step takes, and how they fall to processes and micro-batches.

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
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulate: int,
        processes: int,
        seed: int,
        group_by_length: bool,
    ) -> None:
        self._lengths = lengths
        self.batch_size = batch_size
        self._processes = processes
        self._step_size = batch_size * accumulate * processes
        self._seed = seed
        self._group = group_by_length
        self.steps_per_epoch = math.ceil(len(lengths) / self._step_size)
        self._epoch = lru_cache(maxsize=1)(self._arranged)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the micro-batches of one process in a step, counted from 0, as lists of example
        numbers.

        The last step of an epoch may be short. A process for which nothing is left then gets an
        empty micro-batch, so that all processes have the same number of them.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        examples = self._epoch(epoch)[place]
        batches = [
            examples[i : i + self.batch_size] for i in range(0, len(examples), self.batch_size)
        ]
        rounds = math.ceil(len(batches) / self._processes)
        mine = batches[rank :: self._processes]
        return mine + [[] for _ in range(rounds - len(mine))]

    def _arranged(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        permutation = torch.randperm(len(self._lengths), generator=generator).tolist()
        if self._group:
            span = self._step_size * _GROUPING_STEPS
            chunks = [permutation[i : i + span] for i in range(0, len(permutation), span)]
            permutation = [
                i for chunk in chunks for i in sorted(chunk, key=lambda i: self._lengths[i])
            ]
        steps = [
            permutation[i : i + self._step_size]
            for i in range(0, len(permutation), self._step_size)
        ]
        if self._group:
            steps = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        return steps
