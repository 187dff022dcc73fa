"""What presets have in common: the choice of a level, and the error where no tap fits."""

from __future__ import annotations

from collections.abc import Sequence

from densekd.core.anatomy import Anatomy
from densekd.errors import ConfigError, did_you_mean


def choose_at(preset: str, at: str | None, offered: Sequence[str]) -> str:
    """Returns the level that a preset stands at: `at`, or the first that it offers.

    Raises:
        ConfigError: If the preset does not offer `at`.

    Example:
        >>> choose_at('fitnet', None, ('neck', 'backbone'))
        'neck'
    """
    if at is None:
        return offered[0]
    if at not in offered:
        raise ConfigError(f'preset {preset!r}: there is no at={at!r}. {did_you_mean(at, offered)}')
    return at


def fitting_taps(preset: str, anatomy: Anatomy, patterns: str | Sequence[str]) -> list[str]:
    """Returns the taps of both models that match a pattern, shallowest first.

    Args:
        preset: The preset's name, for the message.
        anatomy: The two models.
        patterns: Globs that a tap may match.

    Raises:
        ConfigError: If none matches, with the taps that both models have.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for pattern in patterns for name in anatomy.both(pattern)]
    if not names:
        shared = anatomy.both('*')
        raise ConfigError(
            f'preset {preset!r}: it needs a tap {" or ".join(patterns)} that both models have and '
            f'that is not frozen in the student. They have: {", ".join(shared) or "none"}.'
        )
    return names


def short(name: str) -> str:
    """Returns the part of a tap's name that tells it from its neighbours, for the log.

    Example:
        >>> short('backbone.c3.pre_relu'), short('neck.p3'), short('decode.aspp')
        ('c3', 'p3', 'aspp')
    """
    return name.split('.')[1] if '.' in name else name


def only_classifiers(preset: str, anatomy: Anatomy, why: str) -> None:
    """Refuses a model for a dense task, for a preset that fits none.

    Args:
        preset: The preset's name, for the message.
        anatomy: The two models.
        why: What keeps it from dense tasks.

    Raises:
        ConfigError: If the models are no classifiers.
    """
    if anatomy.kind != 'classifier':
        raise ConfigError(
            f'preset {preset!r}: it needs a classifier, and this is a {anatomy.kind} model: {why}. '
            'A list of distillers can tap what you like.'
        )
