"""The one reader of configs, exported as `densekd.engine.load_config`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densekd.errors import ConfigError, did_you_mean


def load_config(source: Any) -> Any:
    """Reads a config: a file, a `package::path` of mmdet or mmseg, a dict, or a `Config`.

    `mmengine.hub` is never asked: for a package that it does not find it runs pip by itself and
    installs the other family over the one that is there.

    Args:
        source: A path, `'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'`, a dict, or a `Config`.

    Returns:
        An `mmengine.Config`.

    Raises:
        ConfigError: If there is no such file, or it can't be read.
    """
    try:
        from mmengine.config import Config
    except ImportError:
        raise ConfigError(
            'configs are read by mmengine, which is not installed. Run: make env, or '
            'pip install "densekd[onedl]".'
        ) from None
    _name_installed_packages()
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return Config(dict(source))
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f'a config is a path, package::path, a dict or a Config, not {source!r}.')
    path = _config_path(os.fspath(source))
    try:
        return Config.fromfile(str(path), import_custom_modules=True)
    except (ConfigError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise ConfigError(f'{path}: a base config is missing: {error}') from None
    except Exception as error:  # whatever a config file of the user's raises while it runs
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{path}: the config can't be read: {type(error).__name__}: "
            f'{reason[-1] if reason else "no reason given"}'
        ) from error


def _name_installed_packages() -> None:
    # mmengine looks a package up by the name of its distribution, and the maintained family's
    # mmseg is distributed under another one than the table says.
    from mmengine.config import utils

    try:
        importlib.metadata.version('mmsegmentation')
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec('mmseg') is not None:
            utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def _config_path(source: str) -> Path:
    if '::' not in source:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        folder = path.parent
        names = [p.name for p in folder.glob('*.py')] if folder.is_dir() else []
        hint = did_you_mean(path.name, names) if names else f'There is no config in {folder}.'
        raise ConfigError(f'{source}: there is no such config. {hint}')
    package, _, inside = source.partition('::')
    root = package_configs(package, source)
    path = root / (inside if inside.endswith('.py') else f'{inside}.py')
    if path.is_file():
        return path
    while not path.parent.is_dir():
        path = path.parent  # the first part that is wrong is the one to correct
    near = path.parent
    names = [p.name for p in near.iterdir() if not p.name.startswith('_')]
    raise ConfigError(f'{source}: {package} ships no such config. {did_you_mean(path.name, names)}')


def package_configs(package: str, source: str) -> Path:
    """Returns the folder of configs that an installed package ships.

    Raises:
        ConfigError: If the package is not installed, or ships none.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f'{source}: the package {package} is not installed. Run: make env, or '
            'pip install "densekd[onedl,det,seg]".'
        )
    root = Path(spec.origin).parent / '.mim' / 'configs'
    if not root.is_dir():
        raise ConfigError(f'{source}: the installed {package} ships no configs ({root}).')
    return root


def plain(value: Any) -> Any:
    """Returns a config value as plain dicts, lists and tuples, copied."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value
