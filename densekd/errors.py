"""The exceptions of densekd, and the hint that most of them end with.

    DenseKDError (a ValueError)
    +-- ConfigError      a config says what can't be built: a key, a name, a type, a combination
    +-- TapError         a place in a network does not exist, never runs, or can teach nothing
    +-- ShapeError       two tensors can't be compared: channels, height, width, number of levels
    +-- CheckpointError  a checkpoint is missing, broken, of another model, or carries code
    +-- DataError        images, annotations or a work directory are not what they should be

Every message is one sentence that says where, what is wrong, and what was meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DenseKDError(ValueError):
    """Root of all errors that densekd raises on purpose."""


class ConfigError(DenseKDError):
    """A config says what can't be built."""


class TapError(DenseKDError):
    """A tap names a place that does not exist, never runs, or can teach nothing."""


class ShapeError(DenseKDError):
    """Two tensors can't be compared."""


class CheckpointError(DenseKDError):
    """A checkpoint can't be used."""


class DataError(DenseKDError):
    """Data or a directory is not what it should be."""


def did_you_mean(name: str, options: Iterable[str], limit: int = 12) -> str:
    """Returns the end of an error message: the nearest names, then what there is.

    Args:
        name: What the user wrote.
        options: What could have been written.
        limit: How many options to list before cutting short.

    Example:
        >>> did_you_mean('backbon.c4', ['neck.p3', 'backbone.c4'])
        "Did you mean 'backbone.c4'? It has: backbone.c4, neck.p3."
        >>> did_you_mean('pdk', ['pkd', 'pkt'])  # letters in another order are the likeliest slip
        "Did you mean 'pkd'? It has: pkd, pkt."
    """
    names = sorted({str(option) for option in options})
    if not names:
        return 'It has none.'
    letters = sorted(str(name))
    near = [option for option in names if sorted(option) == letters]
    near = near or get_close_matches(str(name), names, n=3, cutoff=0.6)
    hint = ''
    if near:
        hint = 'Did you mean ' + ' or '.join(repr(option) for option in near) + '? '
    # The nearest names say where to look, so a long list starts with their neighbours.
    if len(names) > limit:
        ranked = get_close_matches(str(name), names, n=limit, cutoff=0.0)
        return f'{hint}It has {len(names)}, among them: {", ".join(sorted(ranked))}.'
    return f'{hint}It has: {", ".join(names)}.'
