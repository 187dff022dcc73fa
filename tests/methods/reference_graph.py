"""MHGD and LSL once more, over single numbers of nested lists, as reference.py does."""

from __future__ import annotations

import itertools
import math
from typing import Any

from tests.methods.reference_relation import Row, channels, dot, minus, svd, unit


def softmax(row: Row) -> Row:
    parts = [math.exp(x - max(row)) for x in row]
    return [part / sum(parts) for part in parts]


def mhgd(student: list[list[Row]], teacher: list[list[Row]]) -> float:
    terms = []
    for one, other in zip(student, teacher, strict=True):
        for own, theirs in zip(one, other, strict=True):
            p, q = (softmax([math.tanh(x) for x in row]) for row in (own, theirs))
            terms.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms)


def estimator(estimate: list[Row], teacher: list[Row]) -> float:
    pairs = zip(estimate, teacher, strict=True)
    return sum(1 - dot(unit(a), unit(b)) for a, b in pairs) / len(teacher)


def main_vectors(student: list[Any], teacher: list[Any]) -> tuple[list[Row], list[Row]]:
    """Returns a vector of the channels for each image: the student's, and the teacher's."""
    own, theirs = [], []
    for one, other in zip(student, teacher, strict=True):
        left, _, right = svd(other)
        sign = 1 if max(right[0], key=abs) > 0 else -1
        theirs.append([sign * x for x in right[0]])
        own.append(unit([sign * dot(channel, left[0]) for channel in channels(one)]))
    return own, theirs


def graphs(
    later: list[Row], earlier: list[Row], send: list[Row], receive: list[Row], heads: int
) -> list[list[Row]]:
    """Returns an attention without normalisations, from matrices of a row for each output."""
    width = len(send) // heads
    found = []
    for h in range(heads):
        rows = range(h * width, (h + 1) * width)
        a = [[dot(send[r], v) for r in rows] for v in later]
        b = [[dot(receive[r], v) for r in rows] for v in earlier]
        found.append([[dot(x, y) for y in b] for x in a])
    return found


def estimates(
    earlier: list[Row], graph: list[list[Row]], value: list[Row], out: list[Row], shift: Row
) -> list[Row]:
    """Returns what an estimator without normalisations makes of the images that it attends to."""
    values = [[max(dot(row, v), 0.0) for row in value] for v in earlier]
    found = []
    for i in range(len(earlier)):
        seen: Row = []
        for head in graph:
            weights = softmax(head[i])
            for k in range(len(value)):
                seen.append(sum(w * v[k] for w, v in zip(weights, values, strict=True)))
        found.append([dot(row, seen) + b for row, b in zip(out, shift, strict=True)])
    return found


# LSL


def lsl(student: list[Row], teacher: list[Row], eps: float) -> float:
    total, count = 0.0, len(student)
    for d in range(len(student[0])):
        sides = []
        for side in (student, teacher):
            column = [row[d] for row in side]
            mean = sum(column) / count
            variance = sum((x - mean) ** 2 for x in column) / count
            sides.append([(x - mean) / math.sqrt(variance + eps) for x in column])
        total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True))
    return total / (count * len(student[0]))


def class_likeness(means: list[Row]) -> float:
    pairs = list(itertools.permutations(means, 2))
    return sum(dot(unit(a), unit(b)) for a, b in pairs) / len(pairs)


def layer_likeness(first: list[Row], second: list[Row]) -> float:
    grams = []
    for means in (first, second):
        mean = [sum(column) / len(means) for column in zip(*means, strict=True)]
        apart = [minus(row, mean) for row in means]
        grams.append([dot(a, b) for a in apart for b in apart])
    return dot(unit(grams[0]), unit(grams[1]))
