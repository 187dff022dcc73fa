"""Taps: named places in a network, and the hooks that read them while a `with` block runs.

Four things go wrong when a tensor is taken out of a network by a hook that stays:

- what the hook saw is overwritten by an in-place operation after it (the `+=` and the in-place
  ReLU at the end of a residual block): a tap copies, or else checks the version counter;
- a module that runs several times hands out several tensors (one ReLU of a bottleneck runs three
  times, a shared head once a level): a tap says which call it means;
- the module is replaced after the hook was set (SyncBN is reverted on one process): paths are
  resolved when the block is entered, never before;
- the hook outlives its step, and fires in validation, in checkpoint recomputation and in deep
  copies: it is removed when the block is left, however it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.columns import Columns
from densekd.core.tokens import tokens_to_map
from densekd.errors import TapError, did_you_mean
from densekd.registry import check_arguments

Value = Any  # a Tensor, or a list of them: one a call, or one a pyramid level
# How box deltas are encoded: the coder's type, the means and the deviations of the four.
Coding = tuple[str, tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Tap:
    """A place in a network where a tensor is read.

    Args:
        path: The module, as `named_modules` spells it; the empty path is the whole network.
        side: `'out'` for what the module returns, `'in'` for its first argument.
        call: Which call of the module within one forward pass: an index (-1 is the last), or
            `'all'` for a list with one tensor a call.
        copy: Whether to copy. Without, a tensor that is written to afterwards is an error.
        index: Which element, where the module returns a tuple or list; None keeps all of them.
        name: The name to use in messages and logs.
        level: `'backbone'`, `'neck'`, `'head'` or another part that the place belongs to.
        norm: Path of the normalisation layer that feeds the place, where there is one.
        rectified: Whether the values come out of a ReLU, so that none is negative.
        coding: How they encode boxes, where they do.
        columns: Which columns are read, where they are those of classes; None reads all.
        tokens: Whether it hands out a transformer's tokens, (N, L, C), that are to be read as the
            map whose cells they are.
    """

    path: str
    side: str = 'out'
    call: int | str = -1
    copy: bool = True
    index: int | None = None
    name: str = ''
    level: str = ''
    norm: str | None = None
    rectified: bool = False
    coding: Coding | None = None
    columns: Columns | None = None
    tokens: bool = False

    def __post_init__(self) -> None:
        if self.side not in ('out', 'in'):
            raise TapError(f"tap {self.label!r}: 'side' is 'out' or 'in', not {self.side!r}.")
        if not (self.call == 'all' or isinstance(self.call, int)):
            raise TapError(f"tap {self.label!r}: 'call' is a number or 'all', not {self.call!r}.")

    @property
    def label(self) -> str:
        """What the place is called in messages."""
        return self.name or self.path

    @property
    def part(self) -> str:
        """The part of the network that the place belongs to: its level, else the path's root."""
        return self.level or self.path.split('.', 1)[0] or 'model'


@dataclass(frozen=True)
class Place:
    """What is known of a tapped place before training: what a connector is built from.

    Attributes:
        tap: The tap.
        shapes: Shape of each tensor that it gives on the small image it was traced with.
        strides: Pixels of the input a cell, (vertical, horizontal), for each tensor; None for
            tensors that are no map.
        norm: The normalisation layer that feeds the place, or None.
        model: The network, held for connectors that run a part of it.
    """

    tap: Tap
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[float, float] | None, ...]
    norm: nn.Module | None = None
    model: nn.Module | None = None

    def as_tokens(self, index: int = 0) -> str:
        """Returns what to do about a tensor of three dimensions, as a sentence."""
        shape = 'x'.join(map(str, self.shapes[index][1:]))
        return (
            f'it gives {shape} an image, tokens by channels, where a map is needed. Write '
            f'dict(path={self.tap.label!r}, tokens=True) to read them as the map of which they are '
            'the cells.'
        )

    @property
    def channels(self) -> int:
        """Channels of the (first) tensor: its second dimension.

        Raises:
            TapError: If the tensor has fewer than two dimensions, or is one of tokens.
        """
        if len(self.shapes[0]) < 2:
            raise TapError(f'tap {self.tap.label!r}: a scalar or a vector has no channels.')
        if len(self.shapes[0]) == 3:
            raise TapError(f'tap {self.tap.label!r}: {self.as_tokens()}')
        return self.shapes[0][1]


def parse_tap(cfg: Any, named: Mapping[str, Tap], where: str) -> Tap:
    """Returns the tap that a config names: a named tap, a module path, or the long form.

    Args:
        cfg: A string, or a dict of `Tap`'s arguments.
        named: The named taps of the network.
        where: The place in the config, for messages.

    Raises:
        TapError: If `cfg` is neither.
    """
    if isinstance(cfg, Tap):
        return cfg
    if isinstance(cfg, str):
        return named.get(cfg) or Tap(cfg, name=cfg)
    if isinstance(cfg, Mapping) and 'path' in cfg:
        check_arguments(Tap, cfg, where)
        base = named.get(cfg['path'])
        given = dict(cfg)
        if base is not None:
            given.pop('path')
            return replace(base, **given)
        return Tap(**given)
    raise TapError(
        f'{where}: a tap is a name such as "backbone.c4", a module path, or '
        f'dict(path=…, side=…, call=…), not {cfg!r}.'
    )


def resolve(model: nn.Module, tap: Tap, where: str = '', named: Sequence[str] = ()) -> nn.Module:
    """Returns the module that a tap names.

    Raises:
        TapError: If there is none, with the nearest names that there are.
    """
    try:
        return model.get_submodule(tap.path)
    except AttributeError:
        options = [name for name, _ in model.named_modules() if name]
        near = _nearest(tap.label, [*named, *options])
        opening = f'{where}: ' if where else ''
        raise TapError(
            f'{opening}{type(model).__name__} has no place {tap.label!r}. {near}'
        ) from None


def _nearest(name: str, options: Sequence[str]) -> str:
    # The first part of the path that fails is the one to correct: offer its siblings.
    parts = name.split('.')
    for depth in range(len(parts) - 1, 0, -1):
        prefix = '.'.join(parts[:depth])
        if prefix in options:
            siblings = {o for o in options if o.rpartition('.')[0] == prefix}
            if siblings:
                return did_you_mean(name, siblings)
    return did_you_mean(name, options)


class _DeepEnough(Exception):
    """Ends a forward pass once every tap has what it came for."""


class Taps:
    """Reads the taps of one network while a `with` block runs.

    Args:
        model: The network.
        taps: The taps, by any key.
        calls: How often each tap's module runs in one pass, where it is known from an earlier one.
            When every tap has been reached that often, the pass is ended by an exception that the
            block swallows: nothing beyond the deepest tap runs.
        student: Whether a tensor without a gradient is an error.
        size: Height and width of the images of the pass, for taps of tokens.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
        >>> with Taps(net, {'a': Tap('0')}) as taps:
        ...     _ = net(torch.tensor([[1.0, -1.0]]))
        >>> taps['a'].shape, taps.calls['a']
        (torch.Size([1, 3]), 1)
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[Any, Tap],
        calls: Mapping[Any, int] | None = None,
        student: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self.size = size
        self.taps = dict(taps)
        self.known_calls = calls
        self.student = student
        self.calls: dict[Any, int] = {}
        self._seen: dict[Any, list[Any]] = {}
        self._versions: dict[Any, list[list[int]]] = {}
        self._recomputed: set[Any] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        self._seen = {key: [] for key in self.taps}
        self._versions = {key: [] for key in self.taps}
        self._recomputed = set()
        self.calls = dict.fromkeys(self.taps, 0)
        self._grad = torch.is_grad_enabled()
        try:
            for key, tap in self.taps.items():
                module = resolve(self.model, tap)
                if tap.side == 'in':
                    hook = module.register_forward_pre_hook(self._on_input(key, tap))
                else:
                    hook = module.register_forward_hook(self._on_output(key, tap))
                self._handles.append(hook)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self._remove()
        if kind is None:
            return False
        if issubclass(kind, _DeepEnough):
            return True
        self._seen = {}
        return False

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _on_input(self, key: Any, tap: Tap) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not args:
                raise TapError(
                    f'tap {tap.label!r}: {type(module).__name__} got no input by position.'
                )
            self._record(key, tap, args[0])

        return hook

    def _on_output(self, key: Any, tap: Tap) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._record(key, tap, output)

        return hook

    def _record(self, key: Any, tap: Tap, value: Any) -> None:
        self.calls[key] += 1
        if self._grad and not torch.is_grad_enabled():
            self._recomputed.add(key)
        value = _select(value, tap)
        wanted = self._wants(key, tap)
        if wanted:
            value = _map(value, torch.clone) if tap.copy else value
            self._versions[key].append([t._version for t in _flat(value)])
        else:
            value = None
        if tap.call == -1 and self._seen[key]:
            # Only the last call is wanted: holding the others would hold their memory.
            self._seen[key][-1] = None
        self._seen[key].append(value)
        if self.known_calls is not None and all(
            self.calls[k] >= self.known_calls.get(k, 1) for k in self.taps
        ):
            raise _DeepEnough

    def _wants(self, key: Any, tap: Tap) -> bool:
        """Whether this call can be the one that is read: it is copied only then."""
        count = self.calls[key]
        if not isinstance(tap.call, int):
            return True
        if tap.call >= 0:
            return count == tap.call + 1
        total = (self.known_calls or {}).get(key)
        return total is None or count == total + 1 + tap.call

    def __getitem__(self, key: Any) -> Value:
        """Returns what a tap has read.

        Raises:
            TapError: If the place never ran, or not that often, was written to without having
                been copied, or (for a student) carries no gradient.
        """
        tap, seen = self.taps[key], self._seen[key]
        if not seen:
            raise TapError(
                f'tap {tap.label!r}: the place exists in {type(self.model).__name__}, but it never '
                'ran in this pass. Tap a module whose forward is called (a list of modules is not).'
            )
        if tap.call == 'all':
            value: Value = [t for one in seen for t in (one if isinstance(one, list) else [one])]
        else:
            try:
                value = seen[tap.call]
            except IndexError:
                raise TapError(
                    f'tap {tap.label!r}: call {tap.call} was asked for, but the module ran '
                    f'{len(seen)} times in this pass.'
                ) from None
        if value is None:
            raise TapError(
                f'tap {tap.label!r}: the module ran {len(seen)} times in this pass, but '
                f'{(self.known_calls or {}).get(key)} times in an earlier one, by which its last '
                'call was to be known. Say which call is meant, as in dict(path=…, call=0).'
            )
        if not tap.copy:
            self._check_unwritten(key, tap)
        if self.student and self._grad:
            self._check_gradient(key, tap, value)
        if tap.tokens:
            value = _map(value, lambda t: tokens_to_map(t, self.size, tap.label))
        return value if tap.columns is None else _map(value, tap.columns)

    def _check_unwritten(self, key: Any, tap: Tap) -> None:
        kept = [value for value in self._seen[key] if value is not None]
        for value, versions in zip(kept, self._versions[key][-len(kept) :], strict=True):
            if [t._version for t in _flat(value)] != versions:
                raise TapError(
                    f'tap {tap.label!r}: an in-place operation wrote to the tensor after it was '
                    'read. Leave out copy=False.'
                )

    def _check_gradient(self, key: Any, tap: Tap, value: Value) -> None:
        if any(t.requires_grad for t in _flat(value)):
            return
        if key in self._recomputed:
            raise TapError(
                f'tap {tap.label!r}: the place is inside activation checkpointing (with_cp), where '
                'the forward pass records no gradient. Tap the end of the block, as '
                '"backbone.cN.pre_relu" does, or switch checkpointing off there.'
            )
        raise TapError(
            f'tap {tap.label!r}: no gradient reaches the student here, since everything before '
            'the place is frozen (frozen_stages, requires_grad=False), so that distilling it '
            'teaches nothing. Tap a deeper place, or unfreeze the stages before it.'
        )


def _select(value: Any, tap: Tap) -> Any:
    if isinstance(value, (tuple, list)) and tap.index is not None:
        try:
            value = value[tap.index]
        except IndexError:
            raise TapError(
                f'tap {tap.label!r}: element {tap.index} was asked for, but there are {len(value)}.'
            ) from None
        alone = False
    else:
        alone = isinstance(value, (tuple, list))
    if isinstance(value, Tensor):
        return value
    found = _flat(value)
    if not found:
        raise TapError(
            f'tap {tap.label!r}: the module hands out {type(value).__name__}, not a tensor.'
        )
    return found[0] if alone and len(found) == 1 else found


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _flat(item)]
    return []


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return [function(t) for t in value] if isinstance(value, list) else function(value)


def tensors(value: Value) -> list[Tensor]:
    """Returns the tensors of a tap's value as a list, one or many."""
    return _flat(value)
