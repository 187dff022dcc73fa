"""Training data whose order and augmentation depend on the seed and the position alone.

A runner's workers keep random states that no checkpoint holds, so that a resumed run augments
other than the uninterrupted one. Here each sample carries its own seed, made from the run's seed,
the epoch and the sample's position: it comes out the same from any worker, in any run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler


class SeededIndex(int):
    """An index that carries the seed its sample is to be made with."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """Returns the index, with the seed as an attribute."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SeededIndex, (int(self), self.seed)


def mixed(*parts: int) -> int:
    """Returns a 32-bit seed that depends on every part."""
    return int(np.random.SeedSequence([abs(int(p)) for p in parts]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # `torch.manual_seed` does this too. Where no accelerator has been used it also files a seed
    # and a stack trace for each kind at every call, and keeps them all: slow, and it grows.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededDataset(Dataset):
    """A dataset that seeds the generators before it makes a sample; all else is the dataset's."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, SeededIndex):
            seed_everything(index.seed)
        return self.dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks that change the pipeline in mid-training mean the dataset inside.
        if name == 'dataset':
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


class SeededSampler(Sampler):
    """A sampler's order, each index with a seed of its own."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self._left_out = 0

    def leave_out(self, count: int) -> None:
        """Makes the next pass, and only that, begin `count` indices in."""
        self._left_out = count

    def __iter__(self) -> Iterator[SeededIndex]:
        epoch = getattr(self.sampler, 'epoch', 0)
        left_out, self._left_out = self._left_out, 0
        numbered = enumerate(self.sampler)
        for position, index in islice(numbered, left_out, None):
            # Processes that share an epoch have equal positions, and must not augment alike.
            rank = getattr(self.sampler, 'rank', 0)
            yield SeededIndex(index, mixed(self.seed, epoch, position, rank))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tells the sampler the epoch."""
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'sampler':
            raise AttributeError(name)
        found = getattr(self.sampler, name)
        # A loop without epochs resumes endless samplers so. Theirs would count positions anew.
        return self.leave_out if name == 'skip' else found


class SkippingBatches(Sampler):
    """A batch sampler that can leave out its first batches once."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self._left_out = 0

    def leave_out(self, count: int) -> None:
        """Makes the next pass, and only that, begin `count` batches in."""
        self._left_out = count

    def __iter__(self) -> Iterator[list[int]]:
        left_out, self._left_out = self._left_out, 0
        yield from islice(iter(self.batches), left_out, None)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)


def seeded_loader(loader: DataLoader, seed: int) -> DataLoader:
    """Returns a loader of the same batches in which every sample has its own seed."""
    if isinstance(loader.dataset, (IterableDataset, SeededDataset)):
        return loader
    common: dict[str, Any] = {
        'num_workers': loader.num_workers,
        'collate_fn': loader.collate_fn,
        'pin_memory': loader.pin_memory,
        'timeout': loader.timeout,
        'worker_init_fn': loader.worker_init_fn,
        'persistent_workers': loader.persistent_workers,
    }
    if loader.num_workers:
        common['prefetch_factor'] = loader.prefetch_factor
    dataset = SeededDataset(loader.dataset)
    if loader.batch_size is not None:
        return DataLoader(
            dataset,
            batch_size=loader.batch_size,
            sampler=SeededSampler(loader.sampler, seed),
            drop_last=loader.drop_last,
            **common,
        )
    batches = loader.batch_sampler
    if hasattr(batches, 'sampler'):
        batches.sampler = SeededSampler(batches.sampler, seed)
    return DataLoader(dataset, batch_sampler=SkippingBatches(batches), **common)


def skip_batches(loader: DataLoader, count: int) -> None:
    """Makes the next pass over a seeded loader begin `count` batches in."""
    if loader.batch_size is not None:
        if isinstance(loader.sampler, SeededSampler):
            loader.sampler.leave_out(count * loader.batch_size)
    elif isinstance(loader.batch_sampler, SkippingBatches):
        loader.batch_sampler.leave_out(count)
