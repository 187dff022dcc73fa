"""What the demo's figures mean: the share of the gap that a student recovers, and a sentence."""

from __future__ import annotations

import math


def gap_recovered(teacher: float, plain: float, distilled: float) -> float:
    """Returns which share of the teacher's lead over the plain student the distilled one gains.

    It is NaN where the teacher has no lead: then there is no gap.

    Example:
        >>> gap_recovered(teacher=0.5, plain=0.25, distilled=0.375)
        0.5
        >>> gap_recovered(teacher=0.25, plain=0.25, distilled=0.375)
        nan
    """
    gap = teacher - plain
    return (distilled - plain) / gap if gap > 0 else math.nan


def percent(share: float) -> str:
    """Returns a share as a table shows it.

    Example:
        >>> percent(0.514), percent(float('nan'))
        ('51%', '-')
    """
    return '-' if math.isnan(share) else f'{share:.0%}'


def verdict(teacher: float, plain: float, distilled: float) -> str:
    """Returns the outcome in a sentence, whichever it is.

    Example:
        >>> verdict(teacher=0.5, plain=0.25, distilled=0.375)
        'The distilled student is 0.125 mAP above the plain one: 50% of the gap to its teacher.'
    """
    if distilled <= plain:
        return (
            f'The distilled student ({distilled:.3f} mAP) is not above the plain one '
            f'({plain:.3f} mAP): here distillation did not help.'
        )
    sentence = f'The distilled student is {distilled - plain:.3f} mAP above the plain one'
    share = gap_recovered(teacher, plain, distilled)
    if math.isnan(share):
        return f'{sentence}; the teacher ({teacher:.3f} mAP) is not, so that there is no gap.'
    return f'{sentence}: {share:.0%} of the gap to its teacher.'
