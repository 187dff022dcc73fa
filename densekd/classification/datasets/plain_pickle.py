"""Pickles that hold data alone: arrays, text, bytes, numbers and containers of these."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from densekd.errors import DataError


def _bytes(text: str, encoding: str) -> bytes:
    # How a pickle of an old protocol spells bytes.
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'bytes in {encoding}')
    return text.encode('latin-1')


# numpy's own, whose modules have other names in other versions.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def _admitted(module: str, name: str) -> Any:
    """Returns what a name in a pickle stands for, if it can only make data."""
    if (module, name) == ('_codecs', 'encode'):
        return _bytes
    if module == 'numpy' and name in ('ndarray', 'dtype'):
        return getattr(np, name)
    if module in ('numpy.core.multiarray', 'numpy._core.multiarray') and name == '_reconstruct':
        return _RECONSTRUCT
    if module in ('numpy.core.numeric', 'numpy._core.numeric') and name == '_frombuffer':
        return _FROM_BUFFER
    return None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _admitted(module, name)
        if found is None:
            raise _ForeignError(f'{module}.{name}')
        return found


class _ForeignError(Exception):
    """A pickle names something that is no data."""


def load_plain(content: bytes, where: str) -> Any:
    """Returns what a pickle holds; text of Python 2 comes as bytes.

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
    except _ForeignError as error:
        raise DataError(f'{where}: it holds {error}, which is no data and was not run.') from None
    except Exception as error:  # a damaged pickle fails in whatever it happens to spell
        reason = str(error) or type(error).__name__
        raise DataError(f'{where}: it is cut short or damaged ({reason}).') from None
