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
ARRAYS = [
    np.arange(12, dtype='<i4').reshape(3, 4),
    np.arange(12, dtype='>f8').reshape(2, 3, 2),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(5000, dtype=np.uint16)[::2],
    np.array([True, False]),
    np.array(['a', 'bcd']),
    np.array([b'a', b'bcd']),
    np.array(7.5),
    np.zeros((0, 3), np.uint8),
]


@pytest.mark.parametrize('protocol', range(6))
def test_data_comes_back(protocol: int) -> None:
    found = load_plain(pickle.dumps(DATA, protocol=protocol), 'here')
    assert np.array_equal(found[b'data'], DATA[b'data']) and found['a'] == DATA['a']


@pytest.mark.parametrize('protocol', range(6))
def test_arrays_of_numbers_and_text_come_back(protocol: int) -> None:
    # Each is there twice. Old protocols turn bytes around for the processor that reads them.
    content = pickle.dumps([ARRAYS, ARRAYS[::-1]], protocol=protocol)
    found, plain = load_plain(content, 'here'), pickle.loads(content)[0]
    for array, again, twin in zip(plain, found[0], found[1][::-1], strict=True):
        assert again.dtype == array.dtype and again.shape == array.shape and again is twin
        assert again.flags.f_contiguous == array.flags.f_contiguous
        assert np.array_equal(again, array)


@pytest.mark.parametrize('protocol', range(6))
def test_no_bytes_at_all_come_back(protocol: int) -> None:
    assert load_plain(pickle.dumps([b'', {b'': b'x'}], protocol=protocol), 'here') == [
        b'',
        {b'': b'x'},
    ]


def test_bytes_are_made_of_nothing_else() -> None:
    content = b'\x80\x02c__builtin__\nbytes\nK\x05\x85R.'
    with pytest.raises(DataError, match='here: it is cut short or damaged'):
        load_plain(content, 'here')


# What Python 2 writes has short strings for its text, and whole numbers for true and false.
END = b'J\xff\xff\xff\xff' * 2 + b'K\x00tb'
TYPE_OF_2 = b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN' + END
ARRAY_OF_2 = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'


def test_an_array_of_python_2_comes_back() -> None:
    state = b'(K\x01K\x02K\x03\x86' + TYPE_OF_2 + b'\x89U\x06abcdeftb'
    found = load_plain(b'\x80\x02}U\x04data' + ARRAY_OF_2 + state + b's.', 'here')
    assert found[b'data'].tolist() == [[97, 98, 99], [100, 101, 102]]
    assert found[b'data'].dtype == np.uint8


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


def code(*parts: bytes) -> bytes:
    return b'\x80\x02' + b''.join(parts) + b'.'


NDARRAY = b'cnumpy\nndarray\n'
ADDRESSES = b'C\x10' + b'A' * 16
# The type of objects as Python 3 writes it, its state aside.
OBJECTS = b'cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R'
EIGHT = b'cnumpy\ndtype\nX\x02\x00\x00\x00V8\x89\x88\x87R'
NUMBERS = b'cnumpy\ndtype\nX\x02\x00\x00\x00u8\x89\x88\x87R'
FROM_BUFFER = b'cnumpy.core.numeric\n_frombuffer\n('
HUGE = b'\x8a\x05\0\0\0\0\x01' * 2
NEGATIVE = b'J\xff\xff\xff\xff' * 2
READ = 'only arrays of numbers and of text are read'
CRAFTED = {
    'ndarray is called': (
        code(NDARRAY, b'(K\x02\x85', OBJECTS, ADDRESSES, b'tR'),
        'an array of',
    ),
    'ndarray is called for numbers': (
        code(NDARRAY, b'K\x02\x85\x85R'),
        'cut short or damaged',
    ),
    'ndarray is made anew': (code(NDARRAY, b'K\x02\x85\x85\x81'), 'cut short or damaged'),
    'ndarray is an instance': (code(b'(K\x02\x85inumpy\nndarray\n'), 'cut short or damaged'),
    'ndarray is given a state': (code(NDARRAY, b'}U\x01aK\x01sb'), 'cut short or damaged'),
    'ndarray is given attributes': (
        code(NDARRAY, b'N}X\x01\x00\x00\x00aK\x01s\x86b'),
        'cut short or damaged',
    ),
    'an array of something else': (
        code(b'cnumpy.core.multiarray\n_reconstruct\n', b'NK\x00\x85U\x01b\x87R'),
        r'damaged \(an array that is no numpy.ndarray\)',
    ),
    'objects': (code(OBJECTS), f'it holds an array of .O8., and {READ}'),
    'objects in a record': (code(OBJECTS.replace(b'\x02\0\0\0O8', b'\x04\0\0\0u1,O')), READ),
    'records': (code(EIGHT), f'an array of .V8., and {READ}'),
    'a state of records': (
        code(NUMBERS, b'(K\x03U\x01|NU\x01a\x85}U\x01a', NUMBERS, b'K\x00\x86s', END),
        f'an array of records, and {READ}',
    ),
    'a state of rows': (
        code(NUMBERS, b'(K\x03U\x01|', NUMBERS, b'K\x02\x86NN', END),
        f'an array of records, and {READ}',
    ),
    'another size': (
        code(NUMBERS, b'(K\x03U\x01|NNNK\x04K\x01K\x00tb'),
        r'damaged \(uint64 in 4 bytes\)',
    ),
    'objects in a buffer': (
        code(FROM_BUFFER, ADDRESSES, OBJECTS, b'K\x02\x85U\x01CtR'),
        READ,
    ),
    'too few bytes in a buffer': (
        code(FROM_BUFFER, ADDRESSES, NUMBERS, b'K\x03\x85X\x01\x00\x00\x00CtR'),
        r'damaged \(16 bytes in an array of \(3,\)\)',
    ),
    # 2**32 rows of 2**32 are no bytes at all, as processors count.
    'a shape that overflows': (
        code(ARRAY_OF_2, b'(K\x01', HUGE, b'\x86', TYPE_OF_2, b'\x89U\x00tb'),
        r'damaged \(0 bytes in an array of',
    ),
    'sizes below nothing': (
        code(ARRAY_OF_2, b'(K\x01', NEGATIVE, b'\x86', TYPE_OF_2, b'\x89U\x01atb'),
        r'damaged \(an array without a shape\)',
    ),
    'an array in place of bytes': (
        code(FROM_BUFFER, ARRAY_OF_2, NUMBERS, b'K\x00\x85X\x01\x00\x00\x00CtR'),
        r'damaged \(an array that is not made of bytes\)',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CRAFTED)
def test_bytes_never_become_objects(name: str) -> None:
    content, sentence = CRAFTED[name]
    with pytest.raises(DataError, match=f'^here: .*{sentence}') as caught:
        load_plain(content, 'here')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'name',
    [
        '_codecs encode',
        '__builtin__ bytes',
        'numpy ndarray',
        'numpy dtype',
        'numpy.core.multiarray _reconstruct',
        'numpy.core.numeric _frombuffer',
    ],
)
@pytest.mark.parametrize('attribute', ['__defaults__', '__name__', '__call__', 'a'])
def test_nothing_is_left_for_the_next_pickle(name: str, attribute: str) -> None:
    named = b'c' + name.replace(' ', '\n').encode() + b'\n'
    key = b'X' + len(attribute).to_bytes(4, 'little') + attribute.encode()
    for state in (b'}' + key + b')s', b'N}' + key + b')s\x86'):
        with pytest.raises(DataError, match='here: it is cut short or damaged'):
            load_plain(code(named, state, b'b'), 'here')
    assert load_plain(pickle.dumps(DATA, protocol=2), 'here')['a'] == DATA['a']
