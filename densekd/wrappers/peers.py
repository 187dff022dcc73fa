"""Models beside the student that change while it trains: peers that learn, and its own average.

peers=[dict(name='b', model='…/resnet20.py')]    learns its task and from the others
peers=[dict(name='mean', ema=0.999)]             follows the student, and only teaches
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from densekd.core.checkpoint import find_checkpoint, load_weights, read_checkpoint
from densekd.core.moving import MovingTeacher
from densekd.core.ops import private_rng
from densekd.errors import CheckpointError, ConfigError, did_you_mean
from densekd.wrappers.build import build_network, model_config, without_pretrained

PEER_KEYS = ('name', 'model', 'checkpoint', 'ema')
STUDENT = 'student'  # what distillers call the student where it teaches


@dataclass(frozen=True)
class Partner:
    """A network that trains, as distillers are given it where it teaches."""

    model: nn.Module
    name: str
    manifest: Mapping[str, Any] = field(default_factory=dict)


def build_peers(
    cfg: Any, student: nn.Module, scope: str, taken: Iterable[str], seed: int, trust: bool
) -> tuple[dict[str, nn.Module], dict[str, MovingTeacher]]:
    """Builds what is beside the student, without drawing from the caller's generators.

    Args:
        cfg: A dict, or a list of them; None for nothing.
        student: The student.
        scope: The toolbox that networks are built by.
        taken: The names of the teachers.
        seed: Of the first weights, which are others for each peer.
        trust: Whether checkpoints may run code while they are read.

    Returns:
        The peers that train, and the teachers that follow the student, each by name.

    Raises:
        ConfigError: If an entry is none of the two, or a name is missing or used twice.
        CheckpointError: If the weights that a peer starts from can't be had.
    """
    training: dict[str, nn.Module] = {}
    moving: dict[str, MovingTeacher] = {}
    names = {STUDENT, *taken}
    for i, entry in enumerate(_entries(cfg)):
        where = f'peers[{i}]'
        name = _name(entry, where, names)
        names.add(name)
        if 'ema' in entry:
            if len(entry) > 2:
                raise ConfigError(
                    f'{where}: ema is an average of the student, which has neither a model nor a '
                    'checkpoint of its own. Give name and ema alone.'
                )
            moving[name] = MovingTeacher(student, name, entry['ema'])
        elif 'model' in entry:
            # Networks that start alike have nothing to tell each other.
            with private_rng(seed + 500 + i):
                training[name] = _peer(entry, scope, where, trust)
        else:
            raise ConfigError(
                f'{where}: give model=… for a network that learns beside the student, or ema=0.999 '
                "for an average of the student's weights."
            )
    return training, moving


def _entries(cfg: Any) -> list[Mapping[str, Any]]:
    if cfg is None:
        return []
    entries = [cfg] if isinstance(cfg, Mapping) else cfg
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ConfigError(
            f"peers: a list such as [dict(name='b', model=…)] is needed, not {cfg!r}."
        )
    return list(entries)


def _name(entry: Any, where: str, taken: Iterable[str]) -> str:
    if not isinstance(entry, Mapping):
        raise ConfigError(f'{where}: a dict is needed, not {entry!r}.')
    for key in entry:
        if key not in PEER_KEYS:
            raise ConfigError(f'{where}: there is no key {key!r}. {did_you_mean(key, PEER_KEYS)}')
    name = entry.get('name')
    if not isinstance(name, str) or not name.isidentifier() or 'loss' in name:
        raise ConfigError(
            f"{where}: a 'name' of letters and digits is needed, without the word 'loss', by which "
            f"the log and distillers call it, such as 'b', not {name!r}."
        )
    if name in taken or hasattr(nn.ModuleDict, name):
        raise ConfigError(f'{where}: the name {name!r} is used already. Give it another.')
    return name


def _peer(entry: Mapping[str, Any], scope: str, where: str, trust: bool) -> nn.Module:
    config = model_config(entry['model'], f'{where}.model')
    if isinstance(config, nn.Module):
        return config
    source = entry.get('checkpoint')
    bare = without_pretrained(config)
    if bare != config and not source:
        raise ConfigError(
            f'{where}.model: the weights that its init_cfg names are not fetched for a peer. Give '
            f'{where}.checkpoint=…, or init_cfg=None to start from random weights.'
        )
    network = build_network(bare, scope, f'{where}.model')
    if hasattr(network, 'init_weights'):
        with _unlogged():
            network.init_weights()
    if source:
        path = find_checkpoint(source)
        load_weights(network, read_checkpoint(path, trust), path, f'peer {entry["name"]!r}')
    return network


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps mmengine from a line for each parameter, of which the student's are enough."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def peers_state(peers: Iterable[tuple[str, nn.Module]]) -> dict[str, dict[str, Any]]:
    """Returns the weights of each peer, by name."""
    return {
        name: {k: v.detach().cpu().clone() for k, v in peer.state_dict().items()}
        for name, peer in peers
    }


def load_peers(
    peers: Mapping[str, nn.Module],
    moving: Mapping[str, MovingTeacher],
    state: Mapping[str, Any],
) -> None:
    """Takes back what a checkpoint holds of the peers.

    Raises:
        CheckpointError: If it was written with other peers.
    """
    saved, followed = dict(state.get('peers', {})), dict(state.get('moving', {}))
    before, now = [*saved, *followed], [*peers, *moving]
    if before != now:
        raise CheckpointError(
            f'resume: the checkpoint was written with {_listed(before)}, and the config has '
            f'{_listed(now)}. Resume with the config that wrote it.'
        )
    for name, peer in peers.items():
        own, weights = peer.state_dict(), saved[name]
        unlike = sorted(set(own) ^ set(weights)) or [
            k for k in own if own[k].shape != weights[k].shape
        ]
        if unlike:
            raise CheckpointError(
                f'resume: the checkpoint was written with another peer {name!r}: {unlike[0]} does '
                'not fit. Resume with the config that wrote it.'
            )
        peer.load_state_dict(weights)
    for name, teacher in moving.items():
        teacher.load_state(followed[name])


def _listed(names: Sequence[str]) -> str:
    return f'peers {", ".join(names)}' if names else 'no peers'


def refuse_unread(
    peers: Iterable[str], moving: Iterable[str], read: Iterable[str], learning: Iterable[str]
) -> None:
    """Refuses what has no part in any distiller: it would cost for naught.

    Args:
        peers: Names of the peers that train.
        moving: Names of the teachers that follow the student.
        read: Names of the networks that distillers are taught by.
        learning: Names of those that they teach.

    Raises:
        ConfigError: Naming it.
    """
    read, learning = set(read), set(learning)
    for name in (*peers, *moving):
        if name not in read and name not in learning:
            raise ConfigError(
                f'peers: no distiller reads {name!r}. Name it in one, as teacher={name!r}, take '
                "preset='dml', or leave it out."
            )
