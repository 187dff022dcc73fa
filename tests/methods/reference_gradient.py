"""Losses of gradients once more, over single numbers of nested lists, as reference.py does."""

from __future__ import annotations

from typing import Any

from tests.methods.reference_relation import flat, length, minus, unit


def jacobian(student: list[Any], teacher: list[Any]) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += length(minus(unit(flat(s)), unit(flat(t)))) ** 2
    return total / len(student)


def gradient_attention(student: list[Any], teacher: list[Any], normalise: bool) -> float:
    if normalise:
        return jacobian(student, teacher) / 2
    apart = [length(minus(flat(s), flat(t))) for s, t in zip(student, teacher, strict=True)]
    return sum(apart) / len(apart) / 2
