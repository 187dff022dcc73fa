"""Relations between images and between maps once more, over single numbers, as reference.py does.

Everything takes nested lists (`tensor.tolist()`) and returns a float or nested lists.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

Row = list[float]


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: Row, b: Row) -> Row:
    return [x - y for x, y in zip(a, b, strict=True)]


def length(a: Row) -> float:
    return math.sqrt(dot(a, a))


def unit(a: Row) -> Row:
    size = length(a)
    return [x / size for x in a] if size else [0.0] * len(a)


def flat(x: Any) -> Row:
    return [x] if isinstance(x, float) else [number for part in x for number in flat(part)]


def rkd_distance(student: list[Row], teacher: list[Row]) -> float:
    count = len(student)
    tables = []
    for side in (student, teacher):
        table = [[length(minus(a, b)) for a in side] for b in side]
        positive = [d for row in table for d in row if d > 0]
        mean = sum(positive) / len(positive) if positive else 1.0
        tables.append([[d / mean for d in row] for row in table])
    s, t = tables
    pairs = [(i, j) for i in range(count) for j in range(count)]
    return sum(huber(s[i][j] - t[i][j]) for i, j in pairs) / count**2


def rkd_angle(student: list[Row], teacher: list[Row]) -> float:
    count, total = len(student), 0.0
    for i in range(count):
        for j in range(count):
            for k in range(count):
                s, t = (
                    dot(unit(minus(side[i], side[j])), unit(minus(side[k], side[j])))
                    for side in (student, teacher)
                )
                total += huber(s - t)
    return total / count**3


def pkt(
    student: list[Row], teacher: list[Row], exclude_self: bool = False, reduction: str = 'mean'
) -> float:
    count, rows = len(student), []
    for side in (student, teacher):
        kernel = [[(dot(unit(a), unit(b)) + 1) / 2 for b in side] for a in side]
        if exclude_self:
            for i, row in enumerate(kernel):
                row[i] = 0.0
        rows.append([[value / sum(row) + 1e-7 for value in row] for row in kernel])
    total = 0.0
    for s, t in zip(*rows, strict=True):
        total += sum(p * math.log(p / q) for q, p in zip(s, t, strict=True))
    return total / count if reduction == 'rows' else total / count**2


def sp(student: list[Any], teacher: list[Any]) -> float:
    count, tables = len(student), []
    for side in (student, teacher):
        images = [flat(image) for image in side]
        tables.append([unit([dot(a, b) for b in images]) for a in images])
    s, t = (flat(table) for table in tables)
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / count**2


def cc(student: list[Row], teacher: list[Row], gamma: float) -> float:
    def kernel(a: Row, b: Row) -> float:
        cosine = dot(unit(a), unit(b))
        terms = [(2 * gamma * cosine) ** p / math.factorial(p) for p in range(3)]
        return math.exp(-2 * gamma) * sum(terms)

    count = len(student)
    total = 0.0
    for i in range(count):
        for j in range(count):
            total += (kernel(student[i], student[j]) - kernel(teacher[i], teacher[j])) ** 2
    return total / count**2


def locality(student: list[Row], teacher: list[Row], k: int) -> float:
    count = len(student)
    k = min(k, count - 1)
    pairs = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        others.sort(key=lambda j, i=i: length(minus(teacher[i], teacher[j])))
        pairs += [(i, j) for j in others[:k]]
    apart = [length(minus(teacher[i], teacher[j])) ** 2 for i, j in pairs]
    scale = sum(apart) / len(apart)
    total = 0.0
    for (i, j), square in zip(pairs, apart, strict=True):
        total += math.exp(-square / scale) * length(minus(student[i], student[j])) ** 2
    return total / (count * k)


def channels(image: list[Any]) -> list[Row]:
    """Returns each channel of one image as a row of its cells."""
    return [flat(channel) for channel in image]


def nst(student: list[Any], teacher: list[Any], kernel: str, sigma2: float | None) -> float:
    total = 0.0
    for one, other in zip(student, teacher, strict=True):
        s, t = ([unit(row) for row in channels(image)] for image in (one, other))
        width = sigma2
        if kernel == 'gaussian' and width is None:
            width = sum(length(minus(a, b)) ** 2 for a in s for b in t) / (len(s) * len(t)) or 1.0

        def mean(x: list[Row], y: list[Row], width: float | None = width) -> float:
            values = []
            for a in x:
                for b in y:
                    if kernel == 'gaussian':
                        values.append(math.exp(-(length(minus(a, b)) ** 2) / (2 * width)))
                    else:
                        values.append(dot(a, b) ** (1 if kernel == 'linear' else 2))
            return sum(values) / len(values)

        total += mean(s, s) + mean(t, t) - 2 * mean(s, t)
    return total / len(student)


def bins(size: int, count: int) -> list[range]:
    """Returns which of `size` cells each of `count` pooled ones covers."""
    return [range(i * size // count, -((-(i + 1) * size) // count)) for i in range(count)]


def max_pooled(image: list[Any], height: int, width: int) -> list[Any]:
    return [
        [
            [
                max(channel[y][x] for y in rows for x in columns)
                for columns in bins(len(channel[0]), width)
            ]
            for rows in bins(len(channel), height)
        ]
        for channel in image
    ]


def fsp_matrix(first: list[Any], second: list[Any]) -> list[Any]:
    result = []
    for one, other in zip(first, second, strict=True):
        height = min(len(one[0]), len(other[0]))
        width = min(len(one[0][0]), len(other[0][0]))
        a, b = (channels(max_pooled(image, height, width)) for image in (one, other))
        result.append([[dot(x, y) / (height * width) for y in b] for x in a])
    return result


def fsp(student: list[Any], teacher: list[Any]) -> float:
    s, t = flat(fsp_matrix(*student)), flat(fsp_matrix(*teacher))
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)


def svd(image: list[Any]) -> tuple[list[Row], list[float], list[Row]]:
    """Returns left vectors, values and right vectors of one image's cells by channels."""
    rows = torch.tensor(channels(image), dtype=torch.float64).mT
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    return left.mT.tolist(), values.tolist(), right.tolist()


def kdsvd(students: list[Any], teachers: list[Any], basis: str, k: int) -> float:
    images = len(students[0])
    ranks = [min(len(x[0]), len(flat(x[0][0]))) for x in (*students, *teachers)]
    k = min(k, *ranks)
    total = 0.0
    for n in range(images):
        layers = []
        for student, teacher in zip(students, teachers, strict=True):
            left, values, right = svd(teacher[n])
            weights = unit(values[:k])
            pair = []
            for i in range(k):
                largest = max(right[i], key=abs)
                v = [x if largest > 0 else -x for x in right[i]]
                u = [x if largest > 0 else -x for x in left[i]]
                if basis == 'teacher':
                    own = unit([dot(channel, u) for channel in channels(student[n])])
                else:
                    partners = svd(student[n])[2][: k + 3]
                    own = max(partners, key=lambda partner, v=v: abs(dot(partner, v)))
                    own = own if dot(own, v) > 0 else [-x for x in own]
                pair.append(([x * weights[i] for x in own], [x * weights[i] for x in v]))
            layers.append(pair)
        for earlier, later in itertools.pairwise(layers):
            for i in range(k):
                s, t = (
                    [
                        math.exp(-((a - b) ** 2) / 8)
                        for a in later[i][side]
                        for b in earlier[i][side]
                    ]
                    for side in (0, 1)
                )
                total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
    return total / images


def vid(mean: list[Any], teacher: list[Any], raw: Row, eps: float) -> float:
    values = []
    for one, other in zip(mean, teacher, strict=True):
        for c, (a, b) in enumerate(zip(channels(one), channels(other), strict=True)):
            variance = math.log(1 + math.exp(raw[c])) + eps
            for x, y in zip(a, b, strict=True):
                values.append(0.5 * ((x - y) ** 2 / variance + math.log(variance)))
    return sum(values) / len(values)


def ft(student: list[Any], teacher: list[Any], p: int) -> float:
    values = []
    for one, other in zip(student, teacher, strict=True):
        values += [abs(x) ** p for x in minus(unit(flat(one)), unit(flat(other)))]
    return sum(values) / len(values)
