"""Samples depend on the seed, the epoch and their position, not on who made them."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from densekd.engine.data_order import (
    SeededDataset,
    SeededIndex,
    SeededSampler,
    SkippingBatches,
    mixed,
    seed_everything,
    seeded_loader,
    skip_batches,
)


class Augmented(Dataset):
    """Samples with a draw from each generator, as a pipeline's augmentation makes them."""

    metainfo = {'classes': ('one',)}

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        assert type(index) is int
        return index, random.random(), float(np.random.rand()), torch.rand(1).item()

    def get_data_info(self, index: int) -> dict[str, int]:
        # Wide and narrow ones alternate.
        return {'width': 2 if index % 2 else 1, 'height': 1 if index % 2 else 2}


class Order(Sampler):
    """A shuffled order that depends on the epoch, as mmengine's sampler gives it."""

    def __init__(self, length: int = 12, rank: int = 0) -> None:
        self.length, self.epoch, self.rank = length, 0, rank

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def collate(batch: list[Any]) -> list[Any]:
    return batch


def loader(workers: int = 0, seed: int = 0, drop_last: bool = False, **more: Any) -> DataLoader:
    more = more or dict(batch_size=4, sampler=Order(), drop_last=drop_last)
    plain = DataLoader(Augmented(), num_workers=workers, collate_fn=collate, **more)
    return seeded_loader(plain, seed)


def by_aspect() -> DataLoader:
    samplers = pytest.importorskip('mmdet.datasets.samplers')
    batches = samplers.AspectRatioBatchSampler(SamplerOf(Augmented()), batch_size=4)
    return seeded_loader(DataLoader(Augmented(), batch_sampler=batches, collate_fn=collate), 0)


class SamplerOf(Order):
    """mmdet's batch sampler reads the dataset from its sampler."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.dataset = dataset


def disturb() -> None:
    random.seed(), np.random.seed(), torch.seed()


# Indices and seeds ------------------------------------------------------------------------------


def test_an_index_is_a_number_with_a_seed_that_survives_the_way_to_a_worker() -> None:
    index = SeededIndex(3, 17)
    assert index == 3 and [10, 11, 12, 13][index] == 13 and {3: 'x'}[index] == 'x'
    for twin in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index), copy.copy(index)):
        assert type(twin) is SeededIndex and (int(twin), twin.seed) == (3, 17)
    lists = pickle.loads(pickle.dumps([SeededIndex(1, 5), SeededIndex(1, 6)]))
    assert [i.seed for i in lists] == [5, 6]


def test_a_seed_depends_on_every_part() -> None:
    assert mixed(1, 2, 3) == mixed(1, 2, 3)
    seeds = {mixed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64 and all(0 <= s < 2**32 for s in seeds)
    assert mixed(0, 1) != mixed(1, 0) and mixed(np.int64(3)) == mixed(3)


# The same samples from anyone -------------------------------------------------------------------


def test_samples_are_the_same_from_any_number_of_workers() -> None:
    disturb()
    alone = list(loader(0))
    disturb()
    assert list(loader(2)) == alone
    assert [len(b) for b in alone] == [4, 4, 4]


def test_the_order_is_the_samplers() -> None:
    assert [s[0] for batch in loader() for s in batch] == list(Order())


def test_another_seed_epoch_or_process_augments_otherwise() -> None:
    first = list(loader())
    assert list(loader(seed=1)) != first
    later = loader()
    later.sampler.set_epoch(1)
    assert later.sampler.sampler.epoch == 1
    assert sorted(s[0] for b in later for s in b) == list(range(12))

    def draws(rank: int) -> set[float]:
        found = loader(batch_size=4, sampler=Order(rank=rank))
        return {sample[1] for batch in found for sample in batch}

    assert not draws(0) & draws(1)
    assert not {s[1] for b in later for s in b} & draws(0)


def test_a_repeated_sample_is_augmented_anew() -> None:
    again = loader(batch_size=2, sampler=[5, 5, 5, 5])
    assert len({sample[1:] for batch in again for sample in batch}) == 4


def test_drop_last_stays() -> None:
    for drop, count in ((True, 2), (False, 3)):
        plain = DataLoader(
            Augmented(10), batch_size=4, sampler=Order(10), drop_last=drop, collate_fn=collate
        )
        made = seeded_loader(plain, 0)
        assert len(made) == len(list(made)) == count


# Skipping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('count', [0, 1, 2, 3])
def test_a_resumed_epoch_goes_on_with_the_same_samples(workers: int, count: int) -> None:
    whole = list(loader())
    resumed = loader(workers)
    skip_batches(resumed, count)
    assert list(resumed) == whole[count:]
    # Once: the next epoch is whole.
    assert list(resumed) == whole


def test_skipped_samples_are_not_made() -> None:
    made: list[int] = []

    class Watched(Augmented):
        def __getitem__(self, index: int) -> Any:
            made.append(index)
            return index

    resumed = seeded_loader(DataLoader(Watched(), batch_size=4, sampler=Order()), 0)
    skip_batches(resumed, 2)
    list(resumed)
    assert made == list(Order())[8:]


def test_a_plain_loader_is_not_skipped_into() -> None:
    plain = DataLoader(Augmented(), batch_size=4, collate_fn=collate)
    skip_batches(plain, 1)
    assert len(list(plain)) == 3


# Batch samplers ---------------------------------------------------------------------------------


def test_a_batch_sampler_over_a_sampler() -> None:
    def made() -> DataLoader:
        return loader(batch_sampler=BatchSampler(Order(), 5, drop_last=False))

    whole = list(made())
    assert [len(b) for b in whole] == [5, 5, 2]
    assert [s[0] for b in whole for s in b] == list(Order())
    disturb()
    assert list(made()) == whole
    resumed = made()
    skip_batches(resumed, 1)
    assert list(resumed) == whole[1:] and list(resumed) == whole


def test_batches_by_aspect_ratio() -> None:
    whole = list(by_aspect())
    assert sorted(s[0] for b in whole for s in b) == list(range(12))
    assert all(len({s[0] % 2 for s in b}) == 1 for b in whole[:2])
    disturb()
    assert list(by_aspect()) == whole
    resumed = by_aspect()
    assert isinstance(resumed.batch_sampler, SkippingBatches)
    skip_batches(resumed, 2)
    assert list(resumed) == whole[2:]
    assert resumed.batch_sampler.sampler.sampler.epoch == 0


def test_a_runners_way_to_the_epoch_is_open() -> None:
    # mmengine: loader.sampler.set_epoch, else loader.batch_sampler.sampler.set_epoch.
    for made in (loader(), by_aspect()):
        holder = made if made.batch_size is not None else made.batch_sampler
        assert isinstance(holder.sampler, SeededSampler)
        holder.sampler.set_epoch(4)
        assert holder.sampler.epoch == 4


# What is left alone -----------------------------------------------------------------------------


def test_the_dataset_is_reached_through() -> None:
    dataset = SeededDataset(Augmented())
    assert len(dataset) == 12 and dataset.metainfo == {'classes': ('one',)}
    assert dataset.get_data_info(1)['width'] == 2
    with pytest.raises(AttributeError):
        _ = dataset.missing
    assert pickle.loads(pickle.dumps(dataset)).length == 12


def test_a_plain_index_is_not_seeded() -> None:
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    assert SeededDataset(Augmented())[0][1] == wanted


def test_seeding_is_torchs_own_and_files_nothing_for_accelerators_never_used(monkeypatch) -> None:
    """Where none is in use, torch notes each seed with a stack trace: slow, and never freed."""
    torch.manual_seed(12)
    expected = torch.rand(3)
    noted = []
    monkeypatch.setattr('traceback.format_stack', lambda *a, **k: noted.append(1) or [])
    seed_everything(12)
    assert torch.equal(torch.rand(3), expected)
    assert not noted


def test_an_accelerator_in_use_is_seeded(monkeypatch) -> None:
    seeds = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    seed_everything(12)
    assert seeds == [12]


def test_a_seeded_loader_and_an_iterable_dataset_stay_as_they_are() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    stream = DataLoader(Stream())
    assert seeded_loader(stream, 0) is stream
    made = loader()
    assert seeded_loader(made, 1) is made


def test_settings_of_the_loader_are_kept() -> None:
    def init(worker: int) -> None: ...

    plain = DataLoader(
        Augmented(),
        batch_size=4,
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=3,
        worker_init_fn=init,
        collate_fn=collate,
        timeout=5,
        drop_last=True,
    )
    made = seeded_loader(plain, 0)
    kept = 'batch_size num_workers persistent_workers prefetch_factor worker_init_fn collate_fn'
    for name in [*kept.split(), 'timeout', 'drop_last', 'pin_memory']:
        assert getattr(made, name) == getattr(plain, name), name
