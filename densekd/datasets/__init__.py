"""Data that comes with densekd. Needs numpy; what makes the data is imported when it is made."""

from densekd.datasets.digits import (
    CLASSES,
    MASK_CLASSES,
    MASK_PALETTE,
    PALETTE,
    DigitsSpec,
    make_digits,
)

__all__ = ['CLASSES', 'MASK_CLASSES', 'MASK_PALETTE', 'PALETTE', 'DigitsSpec', 'make_digits']
