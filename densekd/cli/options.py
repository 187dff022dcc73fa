"""Arguments that several commands share, named as the toolboxes name them."""

from __future__ import annotations

import argparse
import ast
import os
from pathlib import Path
from typing import Any

from densekd.errors import ConfigError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the config and what may be changed in it."""
    parser.add_argument('config', help='a config file, or package::path such as mmdet::…')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides, such as train_cfg.max_epochs=2 or model.teacher.checkpoint=teacher.pth',
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Adds where and how a run goes."""
    parser.add_argument('--work-dir', help='where to write; work_dirs/<config> by default')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='the job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let checkpoints run the code they carry while they are read; for files you trust',
    )


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Returns `KEY=VALUE` arguments as a dict, values read as Python literals where they are.

    Raises:
        ConfigError: If an argument has no `=`.

    Example:
        >>> parse_options(['train_cfg.max_epochs=2', 'a.scale=(128,64)', 'b=text', 'c=1,2'])
        {'train_cfg.max_epochs': 2, 'a.scale': (128, 64), 'b': 'text', 'c': [1, 2]}
    """
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition('=')
        if not equals or not key:
            raise ConfigError(f'--cfg-options: {pair!r} is no KEY=VALUE.')
        options[key] = _literal(text)
    return options


def _literal(text: str) -> Any:
    lowered = {'true': True, 'false': False, 'none': None}.get(text.lower(), text)
    if not isinstance(lowered, str):
        return lowered
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [_literal(part) for part in text.split(',')] if ',' in text else text
    # As in mmengine, bare commas make a list; a tuple is written with its parentheses.
    return list(value) if isinstance(value, tuple) and not text.startswith('(') else value


def set_local_rank(args: argparse.Namespace) -> None:
    """Tells the runner its rank where an older launcher gives it as an argument."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def is_main_process() -> bool:
    """Whether this process is the one that speaks."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) or 0) == 0


def configs_folder(command: str) -> Path:
    """Returns the folder of densekd's configs: beside the package, or in the current directory.

    Args:
        command: Who asks, for the message.

    Raises:
        ConfigError: If it is in neither place.
    """
    import densekd

    for parent in (Path(densekd.__file__).resolve().parents[1], Path.cwd()):
        if (parent / 'configs' / 'digits').is_dir():
            return parent / 'configs'
    raise ConfigError(
        f'{command}: its configs are not here: they are part of the repository, not of the '
        'installed package. Run it in a clone of densekd.'
    )
