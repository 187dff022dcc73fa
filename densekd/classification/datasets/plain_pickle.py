"""Pickles that hold data alone: arrays, text, bytes, numbers and containers of these."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from densekd.errors import DataError

# Numbers and text, whose bytes are all of them. Objects would be addresses in the memory.
_KINDS = 'biufcSU'
_READ = 'only arrays of numbers and of text are read'


class _RefusedError(Exception):
    """A pickle holds something that is no data."""


class _Bare:
    # What a pickle may name has no attributes: nothing can be left in it for the next pickle.
    __slots__ = ()


class _ArrayType(_Bare):
    """Stands for `numpy.ndarray`, which pickles name and don't call."""

    __slots__ = ()


class _EmptyBytes(_Bare):
    """How a pickle of an old protocol spells no bytes at all."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b''


class _Bytes(_Bare):
    """How a pickle of an old protocol spells bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ('latin1', 'latin-1'):
            raise pickle.UnpicklingError(f'bytes in {encoding}')
        return text.encode('latin-1')


class _Dtype:
    """Stands for a `numpy.dtype`, whose own state could say that bytes are objects."""

    __slots__ = ('value',)

    def __init__(self, name: str) -> None:
        self.value = np.dtype(name)
        if self.value.kind not in _KINDS:
            raise _RefusedError(f'it holds an array of {name!r}, and {_READ}')

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, base, names, fields, size, *_ = state
        if any(part is not None for part in (base, names, fields)):
            raise _RefusedError(f'it holds an array of records, and {_READ}')
        if size not in (-1, self.value.itemsize):
            raise pickle.UnpicklingError(f'{self.value} in {size} bytes')
        self.value = self.value.newbyteorder(_text(order))  # type: ignore[arg-type]


class _MakeDtype(_Bare):
    __slots__ = ()

    def __call__(self, name: Any, *_: Any) -> _Dtype:
        return _Dtype(_text(name))


class _Array(np.ndarray):
    """An array that takes its state from a pickle only once that has been looked at."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, fortran, content = state
        kind = _checked(content, dtype, shape)
        whole: Any = (version, shape, kind, bool(fortran), content)
        super().__setstate__(whole)


class _Reconstruct(_Bare):
    __slots__ = ()

    def __call__(self, kind: Any, *_: Any) -> _Array:
        if not isinstance(kind, _ArrayType):
            raise pickle.UnpicklingError('an array that is no numpy.ndarray')
        # As numpy does, it is empty until it gets its state.
        return _Array((0,), np.uint8)


class _FromBuffer(_Bare):
    __slots__ = ()

    def __call__(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        kind = _checked(content, dtype, shape)
        return np.frombuffer(content, kind).reshape(shape, order=order)


def _text(value: Any) -> str:
    # Text of Python 2 comes as bytes.
    found = value.decode('ascii') if isinstance(value, bytes) else value
    if not isinstance(found, str):
        raise pickle.UnpicklingError(f'{type(value).__name__} in place of text')
    return found


def _checked(content: Any, dtype: Any, shape: Any) -> np.dtype:
    """Returns the kind of an array's items, if its bytes are as many as its shape says."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError('an array that is not made of bytes')
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError('an array without a shape')
    # numpy's own product can overflow, and items of no bytes could be any number.
    size = dtype.value.itemsize
    if not size or math.prod(shape) * size != len(content):
        raise pickle.UnpicklingError(f'{len(content)} bytes in an array of {shape}')
    return dtype.value


# numpy's modules have other names in other versions, and so have Python's.
_ADMITTED = {
    ('_codecs', 'encode'): _Bytes(),
    ('__builtin__', 'bytes'): _EmptyBytes(),
    ('builtins', 'bytes'): _EmptyBytes(),
    ('numpy', 'ndarray'): _ArrayType(),
    ('numpy', 'dtype'): _MakeDtype(),
    ('numpy.core.multiarray', '_reconstruct'): _Reconstruct(),
    ('numpy._core.multiarray', '_reconstruct'): _Reconstruct(),
    ('numpy.core.numeric', '_frombuffer'): _FromBuffer(),
    ('numpy._core.numeric', '_frombuffer'): _FromBuffer(),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        if found is None:
            raise _RefusedError(f'it holds {module}.{name}, which is no data and was not run')
        return found


def load_plain(content: bytes, where: str) -> Any:
    """Returns what a pickle holds; text of Python 2 comes as bytes.

    Arrays are of numbers or of text; those of objects or records are refused.

    Args:
        content: The pickle.
        where: What it was read from, for messages.

    Raises:
        DataError: If it is damaged, or holds anything that is no data and might run.

    Example:
        >>> load_plain(pickle.dumps({'a': [1, b'x']}), 'here')
        {'a': [1, b'x']}
        >>> load_plain(pickle.dumps(print), 'here')
        Traceback (most recent call last):
        densekd.errors.DataError: here: it holds builtins.print, which is no data and was not run.
    """
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding='bytes').load()
    except _RefusedError as error:
        raise DataError(f'{where}: {error}.') from None
    except Exception as error:  # a damaged pickle fails in whatever it happens to spell
        reason = str(error) or type(error).__name__
        raise DataError(f'{where}: it is cut short or damaged ({reason}).') from None
