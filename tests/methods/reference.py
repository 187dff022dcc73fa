"""The formulas once more, over single numbers, from the papers' side and not from the fast code.

Everything takes nested lists (`tensor.tolist()`) and returns a float or nested lists.
"""

from __future__ import annotations

import itertools
import math
from typing import Any


def cells(x: list[Any]) -> itertools.product:
    """Returns the index (n, c, h, w) of every number of a map."""
    return itertools.product(*map(range, (len(x), len(x[0]), len(x[0][0]), len(x[0][0][0]))))


def hint(student: list[Any], teacher: list[Any]) -> float:
    squares = [(student[n][c][h][w] - teacher[n][c][h][w]) ** 2 for n, c, h, w in cells(student)]
    return sum(squares) / len(squares)


def margin(gamma: float, beta: float) -> float:
    """The mean of the negative part of a normal distribution, by summing over a fine grid."""
    s = abs(gamma)
    if s == 0:
        return min(beta, 0.0)
    if 0.5 * math.erfc(beta / s / math.sqrt(2)) <= 1e-3:
        return -3 * s
    steps, low = 200_000, beta - 12 * s
    width = -low / steps
    mass = moment = 0.0
    for i in range(steps):
        x = low + (i + 0.5) * width
        density = math.exp(-0.5 * ((x - beta) / s) ** 2)
        mass += density
        moment += x * density
    return moment / mass


def ofd(student: list[Any], teacher: list[Any], margins: list[float]) -> float:
    total = 0.0
    for n, c, h, w in cells(student):
        s, t = student[n][c][h][w], max(teacher[n][c][h][w], margins[c])
        if s <= t <= 0:
            continue
        total += (s - t) ** 2
    return total / len(student)


def pkd(student: list[Any], teacher: list[Any]) -> float:
    total, count = 0.0, 0
    for c in range(len(student[0])):
        columns = []
        for x in (student, teacher):
            values = [x[n][k][h][w] for n, k, h, w in cells(x) if k == c]
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            columns.append([(v - mean) / (std + 1e-6) for v in values])
        total += sum((s - t) ** 2 for s, t in zip(*columns, strict=True))
        count += len(columns[0])
    return 0.5 * total / count


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    if shared == 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (both - shared)


def home_level(box: list[float], levels: int) -> int:
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(math.log2(side / 56)), 0), levels - 1)


def masks(
    anchors: list[Any],  # L of H of W of A boxes
    boxes: list[list[float]],
    psi: float,
    policy: str,
    valid: list[Any] | None = None,
) -> list[Any]:
    result = [[[False] * len(row) for row in level] for level in anchors]
    for box in boxes:
        table = {}  # level, row, column -> overlaps of its anchors
        for i, level in enumerate(anchors):
            if policy == 'assigned' and home_level(box, len(anchors)) != i:
                continue
            for y, row in enumerate(level):
                for x, shapes in enumerate(row):
                    table[i, y, x] = [
                        iou(shape, box)
                        for k, shape in enumerate(shapes)
                        if valid is None or valid[i][y][x][k]
                    ]
        for (i, y, x), overlaps in table.items():
            rivals = [
                other
                for (j, _, _), many in table.items()
                if policy != 'per_level' or j == i
                for other in many
            ]
            best = max(rivals, default=0.0)
            if best > 0 and any(overlap > psi * best for overlap in overlaps):
                result[i][y][x] = True
    return result


def imitation(students: list[Any], teachers: list[Any], marks: list[Any]) -> float:
    total, count = 0.0, 0
    for student, teacher, mask in zip(students, teachers, marks, strict=True):
        for n, c, h, w in cells(student):
            if mask[n][h][w]:
                total += (student[n][c][h][w] - teacher[n][c][h][w]) ** 2
                count += c == 0
    return total / (2 * count) if count else 0.0


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def kd_qfl(
    student: list[Any],
    teacher: list[Any],
    beta: float,
    weight: list[float] | None,
    avg_factor: float | None,
) -> float:
    total = 0.0
    for r, (row_s, row_t) in enumerate(zip(student, teacher, strict=True)):
        for z_s, z_t in zip(row_s, row_t, strict=True):
            q, p = sigmoid(z_s), sigmoid(z_t)
            entropy = -p * math.log(q) - (1 - p) * math.log(1 - q)
            total += abs(q - p) ** beta * entropy * (1 if weight is None else weight[r])
    return total / (len(student) if avg_factor is None else avg_factor)


def binary_kl(
    student: list[Any],
    teacher: list[Any],
    tau: float,
    weight: list[float] | None,
    avg_factor: float | None,
) -> float:
    total = 0.0
    for r, (row_s, row_t) in enumerate(zip(student, teacher, strict=True)):
        for z_s, z_t in zip(row_s, row_t, strict=True):
            q, p = sigmoid(z_s / tau), sigmoid(z_t / tau)
            divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            total += tau**2 * divergence * (1 if weight is None else weight[r])
    return total / (len(student) if avg_factor is None else avg_factor)
