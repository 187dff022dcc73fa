"""The one reader of checkpoints: nothing in a file is run, and what does not fit is refused.

torch's `weights_only` unpickler admits tensors and plain containers. To these is added what the
runners of the OpenMMLab family write beside the weights: numpy arrays and scalars, and the history
of the log. Anything else is code, and is refused unless the user says that the file is trusted.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import re
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import CheckpointError, did_you_mean

# Where a host's files are served from as well, tried in order. The paths are the same.
MIRRORS: dict[str, tuple[str, ...]] = {
    'https://download.openmmlab.com/': ('https://mmassets.onedl.ai/',),
    'http://download.openmmlab.com/': ('https://mmassets.onedl.ai/',),
}

# Prefixes that wrappers and other toolkits put before a student's keys.
PREFIXES = ('module.', 'student.', 'architecture.', 'model.')


def read_checkpoint(
    source: str | os.PathLike[str], trust: bool = False, map_location: Any = 'cpu'
) -> Any:
    """Reads a checkpoint without running anything that it may carry.

    Args:
        source: A local path, or a URL, which is looked for among the files fetched before and in
            `$DENSEKD_CHECKPOINTS` first.
        trust: Whether the file may run code while it is read. Only for files from people you trust.
        map_location: Device for the tensors, as in `torch.load`.

    Returns:
        What the file holds, usually a dict.

    Raises:
        CheckpointError: If the file is missing, unreachable, truncated, no checkpoint, or carries
            code.
    """
    path = find_checkpoint(source)
    try:
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        with torch.serialization.safe_globals(_admitted()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch spells it in two ways: a class it does not know, and a module it bars (os, sys).
        found = re.search(r'unsupported global:?\s+(?:GLOBAL\s+)?`?([\w.]+)', str(error), re.I)
        if found:
            raise CheckpointError(
                f'{path}: the file carries code ({found.group(1)}), which reading it would run. '
                'If you trust whoever made it, pass --trust-checkpoint.'
            ) from None
        raise CheckpointError(f'{path}: {_broken(path)}') from None
    except Exception as error:  # bytes that are no pickle make the unpickler raise anything
        raise CheckpointError(f'{path}: {_broken(path)} ({_first_line(error)})') from None


def _broken(path: Path) -> str:
    size = path.stat().st_size
    return (
        f"the file can't be read as a checkpoint; it is truncated or of another kind "
        f'({size:,} bytes). Fetch or write it again'
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _admitted() -> list[Any]:
    import numpy as np

    core = np._core if hasattr(np, '_core') else np.core
    names: list[Any] = [
        slice,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
    ]
    names += [type(np.dtype(kind)) for kind in ('u1', 'u4', 'i4', 'i8', 'f4', 'f8', 'b1')]
    # The log's history is read into its own class where mmengine is imported, else into a stand-in.
    module = 'mmengine.logging.history_buffer'
    history = getattr(sys.modules.get(module), 'HistoryBuffer', None)
    if history is None:
        history = type('HistoryBuffer', (), {'__module__': module, **dict.fromkeys(_STATISTICS)})
    names += [history, _statistic_of(history)]
    return names


_STATISTICS = ('min', 'max', 'current', 'mean')


def _statistic_of(history: type) -> Any:
    """Returns what the unpickler takes for `getattr`: it looks up a statistic, and nothing else."""

    def statistic(owner: Any, name: str) -> Any:
        if owner is not history or name not in _STATISTICS:
            raise pickle.UnpicklingError('Unsupported GLOBAL getattr')
        return getattr(owner, name)

    # torch knows a function by its name; which of the two it reads depends on its release.
    statistic.__module__ = 'builtins'
    statistic.__name__ = statistic.__qualname__ = 'getattr'
    return statistic


def find_checkpoint(source: str | os.PathLike[str]) -> Path:
    """Returns the local file that a path or a URL stands for, fetching it if need be.

    Raises:
        CheckpointError: If there is none; with what to do about it.
    """
    text = os.fspath(source)
    if '://' not in text:
        path = Path(text).expanduser()
        if path.is_file():
            return path
        siblings = [p.name for p in path.parent.glob('*.pth')] if path.parent.is_dir() else []
        hint = (
            did_you_mean(path.name, siblings)
            if siblings
            else (
                f'The folder {path.parent} holds no .pth file.'
                if path.parent.is_dir()
                else f'There is no folder {path.parent} either.'
            )
        )
        raise CheckpointError(f'{text}: there is no such checkpoint. {hint}')
    name = text.rstrip('/').rpartition('/')[2]
    here = fetched(text)
    if here is not None:
        return here
    if not text.startswith(('http://', 'https://')):
        scheme = text.partition('://')[0]
        raise CheckpointError(
            f'{text}: weights named by {scheme}:// come from a model zoo. Put the file into a '
            f'folder, name that folder in $DENSEKD_CHECKPOINTS, or give the path itself.'
        )
    return _fetch(text, name)


def fetched(url: str) -> Path | None:
    """Returns the local file of a URL, if it was fetched before or put into a known folder."""
    name = url.rstrip('/').rpartition('/')[2]
    return next((f / name for f in _local_folders() if (f / name).is_file()), None)


def _local_folders() -> list[Path]:
    given = os.environ.get('DENSEKD_CHECKPOINTS', '')
    return [Path(p).expanduser() for p in given.split(os.pathsep) if p] + [_cache()]


def _cache() -> Path:
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('DENSEKD_CACHE') or Path(base) / 'densekd') / 'checkpoints'


def _fetch(url: str, name: str) -> Path:
    addresses = [url]
    for host, mirrors in MIRRORS.items():
        if url.startswith(host):
            addresses += [mirror + url.removeprefix(host) for mirror in mirrors]
    target = _cache() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.{name}.{os.getpid()}')
    reasons = []
    for address in addresses:
        try:
            with urllib.request.urlopen(address, timeout=20) as reply, open(partial, 'wb') as out:
                while block := reply.read(1 << 20):
                    out.write(block)
                announced, size = reply.headers.get('Content-Length'), out.tell()
            # A connection that breaks off ends the reading without an error.
            if announced is not None and size != int(announced):
                raise OSError(f'{size:,} of {int(announced):,} bytes came')
            os.replace(partial, target)
            return target
        except (OSError, http.client.HTTPException) as error:
            partial.unlink(missing_ok=True)
            host = address.split('/')[2]
            reasons.append(f'{host}: {_first_line(error)}')
    raise CheckpointError(
        f'{name}: it could not be fetched ({"; ".join(reasons)}). Get the file another way and '
        f'give its path, or put it into a folder named in $DENSEKD_CHECKPOINTS.'
    )


def weights_in(checkpoint: Any, source: str | os.PathLike[str] = 'checkpoint') -> dict[str, Tensor]:
    """Returns the weights of a checkpoint, whether they are all of it or under `state_dict`.

    Raises:
        CheckpointError: If there are none.
    """
    if isinstance(checkpoint, Mapping):
        for key in ('state_dict', 'model', 'state_dict_ema'):
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
        weights = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
        if weights:
            return weights
    raise CheckpointError(f'{os.fspath(source)}: the file holds no weights (no state_dict).')


def load_weights(
    model: nn.Module, checkpoint: Any, source: str | os.PathLike[str], who: str
) -> None:
    """Loads weights into a network, all of them or none.

    Args:
        model: The network.
        checkpoint: What `read_checkpoint` returned.
        source: Where it came from, for messages.
        who: Whose weights they are, for messages: `'teacher'`, `'student'`.

    Raises:
        CheckpointError: If a weight of the network is missing or of another shape, or the file
            holds weights of a larger network.
    """
    own = model.state_dict()
    weights = _renamed(model, unprefixed(weights_in(checkpoint, source), own))
    # A counter of batches seen is no weight, and older files lack it.
    missing = [k for k in own if k not in weights and not k.endswith('num_batches_tracked')]
    unlike = [
        f'{k} is {tuple(weights[k].shape)} in the file and {tuple(own[k].shape)} in the model'
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    kind = type(model).__name__
    if missing:
        extra = [k for k in weights if k not in own]
        other = f', and it has {len(extra)} others, such as {extra[0]}' if extra else ''
        raise CheckpointError(
            f'{os.fspath(source)}: the {who} {kind} needs {len(own)} weights, but the file lacks '
            f'{len(missing)} of them, such as {missing[0]}{other}. It is of another model: check '
            f"the {who}'s config against its checkpoint."
        )
    if unlike:
        more = f' (and {len(unlike) - 1} more)' if len(unlike) > 1 else ''
        raise CheckpointError(
            f'{os.fspath(source)}: {unlike[0]}{more}. The {who} config and its checkpoint differ, '
            'perhaps in the number of classes or in the width.'
        )
    # A deeper network holds all that a shallower one of its kind needs. What belongs to a part
    # that the model has not (an auxiliary head that was left out) does no harm.
    parts = {k.split('.', 1)[0] for k in own}
    beyond = [k for k in weights if k not in own and '.' in k and k.split('.', 1)[0] in parts]
    beyond = [k for k in beyond if k.endswith(('.weight', '.bias'))]
    if beyond:
        raise CheckpointError(
            f'{os.fspath(source)}: the file holds {len(beyond)} weights that the {who} {kind} has '
            f'no place for, such as {beyond[0]}. It is of another model, perhaps a deeper one: '
            f"check the {who}'s config against its checkpoint."
        )
    model.load_state_dict({k: weights.get(k, own[k]) for k in own})


def _renamed(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights under today's names where the network's modules translate older ones.

    Toolboxes rename keys inside the modules that load them, so that only loading tells; what it
    has changed is put back.
    """
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if all(k in weights for k in before):
        return weights
    taken = dict(weights)
    try:
        found = model.load_state_dict(taken, strict=False)
    except RuntimeError:  # shapes differ: the caller says which
        return weights
    finally:
        after = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(before)
    lacking = {*found.missing_keys}
    extra = {*found.unexpected_keys}
    kept = {k: v for k, v in weights.items() if k in before or k in extra}
    moved = {k: after[k] for k in before if k not in weights and k not in lacking}
    # Counters are filled in by the norms themselves and are no translation.
    return {**kept, **{k: v for k, v in moved.items() if not k.endswith('num_batches_tracked')}}


def unprefixed(weights: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Strips wrappers' prefixes from keys, as long as that makes more of them fit."""
    own = set(own)
    candidates = [dict(weights)]
    # Found while the list grows: in module.student.backbone… the first step alone fits nothing.
    for found in candidates:
        for prefix in PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            if inner:
                candidates.append(inner)
    return max(candidates, key=lambda candidate: len(own & candidate.keys()))


def file_hash(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Returns the sha256 of all parameters and buffers of a network, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
