"""Name tables: from the `type` of a config to the class that it names.

A table is flat: no scopes, no parents, no imports. A wrong name lists the near ones, a wrong
argument says which config it stands in. torch is not needed here, mmengine neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from densekd.errors import ConfigError, did_you_mean


class Registry:
    """A table of classes or functions by name.

    Args:
        kind: What the table holds, in the singular, as it reads in a message.

    Example:
        >>> SHAPES = Registry('shape')
        >>> @SHAPES.register
        ... class Square:
        ...     def __init__(self, side=1):
        ...         self.side = side
        >>> SHAPES.build(dict(type='Square', side=3), where='here').side
        3
        >>> SHAPES.build(dict(type='Sqare'), where='here')
        Traceback (most recent call last):
        densekd.errors.ConfigError: here: there is no shape 'Sqare'. Did you mean 'Square'? ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._table: dict[str, Callable[..., Any]] = {}

    def register(self, entry: Any = None, *, name: str | None = None) -> Any:
        """Adds a class or a function under its own name, or under `name`; a decorator.

        Raises:
            ConfigError: If the name is taken by something else.
        """
        if entry is None:
            return lambda actual: self.register(actual, name=name)
        key = name or entry.__name__
        if self._table.get(key, entry) is not entry:
            raise ConfigError(f'{self.kind} {key!r} is registered already')
        self._table[key] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def get(self, name: str, where: str) -> Callable[..., Any]:
        """Returns what `name` stands for; `where` opens the message when there is no such name.

        Raises:
            ConfigError: If there is no such name.
        """
        if name not in self._table:
            hint = did_you_mean(name, self._table)
            raise ConfigError(f'{where}: there is no {self.kind} {name!r}. {hint}')
        return self._table[name]

    def build(self, cfg: Any, where: str, defaults: Mapping[str, Any] | None = None) -> Any:
        """Builds the object that a config dict describes.

        Args:
            cfg: A dict with `type` and the arguments of that class, a bare name, or an object that
                is built already (returned as it is).
            where: The place of `cfg` in the whole config, for messages.
            defaults: Arguments used where `cfg` says nothing.

        Raises:
            ConfigError: If the type is unknown, or takes no such argument.
        """
        if isinstance(cfg, str):
            cfg = {'type': cfg}
        if not isinstance(cfg, Mapping):
            return cfg
        arguments = {**(defaults or {}), **cfg}
        name = arguments.pop('type', None)
        if name is None:
            raise ConfigError(
                f'{where}: a {self.kind} needs a type. It has: {", ".join(sorted(self._table))}.'
            )
        target = name if callable(name) else self.get(str(name).removeprefix('densekd.'), where)
        check_arguments(target, arguments, where)
        return target(**arguments)


def check_arguments(target: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Refuses arguments that `target` does not take, and misses those it must have.

    Raises:
        ConfigError: In either case, with the names that there are.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    label = getattr(target, '__name__', str(target))
    for name in arguments:
        if name not in parameters:
            hint = did_you_mean(name, parameters)
            raise ConfigError(f'{where}: {label} takes no {name!r}. {hint}')
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise ConfigError(f'{where}: {label} needs {", ".join(map(repr, missing))}.')


HEADS = Registry('distillation head')
LOSSES = Registry('loss')
CONNECTORS = Registry('connector')
PRESETS = Registry('preset')


def __getattr__(name: str) -> Any:
    # mmengine resolves 'densekd.X' by importing densekd.registry and looking for a child of its
    # root registries with that scope. Its own registries live in engine/, which needs mmengine,
    # so they are reached only when something asks.
    if name in ('MODELS', 'HOOKS'):
        from densekd.engine import registry

        return getattr(registry, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
