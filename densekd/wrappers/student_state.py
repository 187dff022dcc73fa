"""A wrapper's state dict is its student's: what goes out has the plain keys, what comes in may."""

from __future__ import annotations

from typing import Any

from torch import nn

from densekd.core.checkpoint import unprefixed
from densekd.errors import CheckpointError


def show_only_student(model: nn.Module) -> None:
    """Makes `state_dict` of a wrapper with `student`, `distillers` and `peers` that of the student.

    Hooks, and not overridden methods: mmengine's loader and savers walk the module tree themselves
    and call the hooks on the way, also where the wrapper is inside another module.
    """
    model._register_state_dict_hook(_keep_student)
    model._register_load_state_dict_pre_hook(_to_student, with_module=True)


def _keep_student(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leaves the student in a state dict, under the keys that it has without this wrapper."""
    for key in [k for k in state if k.startswith(prefix)]:
        rest, value = key[len(prefix) :], state.pop(key)
        if rest.startswith('student.'):
            state[prefix + rest.removeprefix('student.')] = value
    versions = getattr(state, '_metadata', None)
    if versions is None:
        return
    for key in [k for k in versions if k.startswith(prefix)]:
        rest, value = key[len(prefix) :], versions.pop(key)
        if rest == 'student':
            versions[prefix.removesuffix('.')] = value
        elif rest.startswith('student.'):
            versions[prefix + rest.removeprefix('student.')] = value


def _to_student(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Hands the weights of a plain student's state dict to the student."""
    found = {k[len(prefix) :]: state.pop(k) for k in list(state) if k.startswith(prefix)}
    own = module.student.state_dict()
    found = unprefixed(found, own)
    if not own.keys() & found.keys():
        example = next(iter(found), 'nothing')
        raise CheckpointError(
            f'no weight of the checkpoint fits the student {type(module.student).__name__}: it '
            f'holds {example}, the student {next(iter(own))}.'
        )
    for key, value in found.items():
        state[f'{prefix}student.{key}'] = value
    # Connectors and peers are not in a student's checkpoint; they keep what they have.
    for part in ('distillers', 'peers'):
        for key, value in module.get_submodule(part).state_dict().items():
            state[f'{prefix}{part}.{key}'] = value
