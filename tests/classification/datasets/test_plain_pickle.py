"""Pickles of data alone."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from densekd.classification.datasets.plain_pickle import load_plain
from densekd.errors import DataError

DATA = {b'data': np.arange(12, dtype=np.uint8).reshape(3, 4), 'a': [1, (2.5, b'x', 'y'), None]}


@pytest.mark.parametrize('protocol', range(6))
def test_data_comes_back(protocol: int) -> None:
    found = load_plain(pickle.dumps(DATA, protocol=protocol), 'here')
    assert np.array_equal(found[b'data'], DATA[b'data']) and found['a'] == DATA['a']


class Command:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ('value', 'name'),
    [
        (Command(eval, '1'), 'builtins.eval'),
        (Command(getattr, 'a', 'upper'), 'builtins.getattr'),
        (Command(np.load, 'x'), 'numpy.load'),
        (OrderedDict(a=1), 'collections.OrderedDict'),
        (torch.nn.ReLU(), 'torch.nn.modules.activation.ReLU'),
    ],
)
def test_what_is_no_data_is_not_run(value: Any, name: str) -> None:
    content = pickle.dumps({'a': value}, protocol=2).replace(b'__builtin__', b'builtins')
    with pytest.raises(DataError, match=f'here: it holds {name}, which is no data'):
        load_plain(content, 'here')


def test_bytes_are_spelt_in_one_way_only() -> None:
    content = pickle.dumps(b'\xff', protocol=2)
    assert load_plain(content, 'here') == b'\xff'
    with pytest.raises(DataError, match='cut short or damaged'):
        load_plain(content.replace(b'latin1', b'utf-16'), 'here')


@pytest.mark.parametrize('kept', [0, 1, 20, -1])
def test_what_is_damaged_is_a_sentence(kept: int) -> None:
    with pytest.raises(DataError, match='here: it is cut short or damaged'):
        load_plain(pickle.dumps(DATA, protocol=2)[:kept], 'here')
