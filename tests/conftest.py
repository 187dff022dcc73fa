"""Settings of the whole suite: which tests run, threads, and a place to write to."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: one thread a process is fastest for small tensors, and makes sums
# reproducible. `make test` runs several processes.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--run-all', action='store_true', help='run the tests marked slow as well')


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('--run-all'):
        from tests.helpers.resumable import register

        register(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason='slow: runs with --run-all')
    skip_gpu = pytest.mark.skip(reason='gpu: there is no CUDA device')
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--run-all'):
            item.add_marker(skip_slow)
        if 'gpu' in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(scope='module', autouse=True)
def seeded() -> None:
    """What a module's own fixtures draw is the same in every run and every order of modules."""
    torch.manual_seed(0)


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, for code that writes to the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
