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


def softmax(z: list[float], tau: float = 1.0) -> list[float]:
    powers = [math.exp(v / tau) for v in z]
    return [v / sum(powers) for v in powers]


def pixels(x: list[Any]) -> list[list[float]]:
    """Returns the logits of each row of (N, K), or of each pixel of (N, K, H, W), row by row."""
    if not isinstance(x[0][0], list):
        return x
    size = range(len(x[0][0])), range(len(x[0][0][0]))
    return [[channel[h][w] for channel in image] for image in x for h in size[0] for w in size[1]]


def kd(
    student: list[Any],
    teachers: list[Any],
    tau: float,
    mode: str = 'mean_prob',
    valid: list[bool] | None = None,
) -> float:
    total, count = 0.0, 0
    given = [pixels(t) for t in teachers]
    for i, z_s in enumerate(pixels(student)):
        if valid is not None and not valid[i]:
            continue
        rows = [teacher[i] for teacher in given]
        if mode == 'mean_logit':
            p = softmax([sum(column) / len(rows) for column in zip(*rows, strict=True)], tau)
        else:
            each = [softmax(row, tau) for row in rows]
            p = [sum(column) / len(rows) for column in zip(*each, strict=True)]
        q = softmax(z_s, tau)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        count += 1
    return tau**2 * total / count


def dkd(
    student: list[Any],
    teacher: list[Any],
    labels: list[int],
    alpha: float,
    beta: float,
    tau: float,
) -> float:
    total, count = 0.0, 0
    for z_s, z_t, y in zip(pixels(student), pixels(teacher), labels, strict=True):
        if not 0 <= y < len(z_s):
            continue
        p, q = softmax(z_t, tau), softmax(z_s, tau)
        total += alpha * p[y] * math.log(p[y] / q[y])
        total += alpha * (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        others = [softmax([v for k, v in enumerate(z) if k != y], tau) for z in (z_t, z_s)]
        total += beta * sum(a * math.log(a / b) for a, b in zip(*others, strict=True))
        count += 1
    return tau**2 * total / count


def correlation(a: list[float], b: list[float]) -> float | None:
    """Pearson's; None where the second is constant."""
    centred = [[v - sum(x) / len(x) for v in x] for x in (a, b)]
    lengths = [math.sqrt(sum(v * v for v in x)) for x in centred]
    if lengths[1] / math.sqrt(len(b)) < 1e-6:
        return None
    return sum(x * y for x, y in zip(*centred, strict=True)) / (lengths[0] * lengths[1])


def dist(
    student: list[Any],
    teacher: list[Any],
    beta: float,
    gamma: float,
    tau: float,
    valid: list[bool] | None = None,
) -> float:
    rows = []
    for i, both in enumerate(zip(pixels(student), pixels(teacher), strict=True)):
        if valid is None or valid[i]:
            rows.append([softmax(z, tau) for z in both])
    columns = [[[row[side][k] for row in rows] for side in (0, 1)] for k in range(len(rows[0][0]))]
    total = 0.0
    for factor, pairs in ((beta, rows), (gamma, columns)):
        found = [c for c in (correlation(*pair) for pair in pairs) if c is not None]
        total += factor * sum(1 - c for c in found) / max(len(found), 1)
    return tau**2 * total


def weighted_soft_label(
    student: list[Any], teacher: list[Any], bg_weight: float, tau: float
) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p, q = softmax(z_t, tau), softmax(z_s, tau)
        for k in range(len(p)):
            weight = bg_weight if k == len(p) - 1 else 1.0
            total -= weight * p[k] * math.log(q[k])
    return tau**2 * total / len(student)


def weighted_soft_objectness(student: list[float], teacher: list[float], bg_weight: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p, q = sigmoid(z_t), sigmoid(z_s)
        total -= p * math.log(q) + bg_weight * (1 - p) * math.log(1 - q)
    return total / len(student)


def bounded_regression(
    student: list[Any],
    teacher: list[Any],
    target: list[Any],
    margin: float,
    avg_factor: float | None,
) -> float:
    total = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        mine = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
        bar = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
        if mine + margin > bar:
            total += mine
    return total / (len(student) if avg_factor is None else avg_factor)


def attention(x: list[Any], p: float, kind: str) -> list[Any]:
    pick = sum if kind == 'sum' else max
    return [
        [
            [pick(abs(image[c][h][w]) ** p for c in range(len(image))) for w in range(len(row))]
            for h, row in enumerate(image[0])
        ]
        for image in x
    ]


def at(student: list[Any], teacher: list[Any], p: float, kind: str, norm: str) -> float:
    total, count = 0.0, 0
    for s, t in zip(attention(student, p, kind), attention(teacher, p, kind), strict=True):
        vectors = []
        for one in (s, t):
            flat = [value for row in one for value in row]
            length = math.sqrt(sum(value**2 for value in flat))
            vectors.append([value / length for value in flat])
        square = sum((a - b) ** 2 for a, b in zip(*vectors, strict=True))
        total += square if norm == 'code' else math.sqrt(square) / 2
        count += len(vectors[0]) if norm == 'code' else 1
    return total / count


def ab(student: list[Any], teacher: list[Any], margin: float) -> float:
    total = 0.0
    for n, c, h, w in cells(student):
        s, t = student[n][c][h][w], teacher[n][c][h][w]
        if t > 0 and s < margin:
            total += (margin - s) ** 2
        if t <= 0 and s > -margin:
            total += (margin + s) ** 2
    return total / len(student)


def cwd(student: list[Any], teacher: list[Any], tau: float, valid: list[Any] | None) -> float:
    total = 0.0
    for n, image in enumerate(student):
        for c in range(len(image)):
            at = [
                (h, w)
                for h, row in enumerate(image[c])
                for w in range(len(row))
                if valid is None or valid[n][h][w]
            ]
            shares = []
            for x in (student, teacher):
                powers = [math.exp(x[n][c][h][w] / tau) for h, w in at]
                shares.append([power / sum(powers) for power in powers])
            total += sum(p * math.log(p / q) for q, p in zip(*shares, strict=True))
    return tau**2 * total / (len(student) * len(student[0]))


def conv3x3(x: list[Any], weight: list[Any], bias: list[float]) -> list[Any]:
    """A convolution of one image (C, H, W) with a border of zeros."""
    height, width = len(x[0]), len(x[0][0])

    def one(o: int, h: int, w: int) -> float:
        value = bias[o]
        for i, j, k in itertools.product(range(len(x)), range(3), range(3)):
            y, z = h + j - 1, w + k - 1
            if 0 <= y < height and 0 <= z < width:
                value += weight[o][i][j][k] * x[i][y][z]
        return value

    return [[[one(o, h, w) for w in range(width)] for h in range(height)] for o in range(len(bias))]


def mgd(
    student: list[Any],
    teacher: list[Any],
    mask: list[Any],
    first: tuple[list[Any], list[float]],
    second: tuple[list[Any], list[float]],
) -> float:
    def kept(n: int, c: int, h: int, w: int) -> float:
        own = mask[n]  # of one channel, or of one row and column
        own = own[c if len(own) > 1 else 0]
        own = own[h if len(own) > 1 else 0]
        return student[n][c][h][w] * own[w if len(own) > 1 else 0]

    total = 0.0
    for n, image in enumerate(student):
        masked = [
            [[kept(n, c, h, w) for w in range(len(row))] for h, row in enumerate(channel)]
            for c, channel in enumerate(image)
        ]
        middle = [[[max(v, 0.0) for v in row] for row in ch] for ch in conv3x3(masked, *first)]
        made = conv3x3(middle, *second)
        for _, c, h, w in cells([made]):
            total += (made[c][h][w] - teacher[n][c][h][w]) ** 2
    return total / len(student)


def regions(image: list[Any], scale: float, valid: list[Any] | None) -> list[list[float]]:
    """The largest value of each channel in each part of an image, of its valid cells alone."""
    height, width = len(image[0]), len(image[0][0])
    tall, wide = max(int(scale * height), 1), max(int(scale * width), 1)
    found = []
    for top, left in itertools.product(range(0, height, tall), range(0, width, wide)):
        at = [
            (h, w)
            for h in range(top, min(top + tall, height))
            for w in range(left, min(left + wide, width))
            if valid is None or valid[h][w]
        ]
        found.append([max((channel[h][w] for h, w in at), default=0.0) for channel in image])
    return found


def skd_pairwise(
    student: list[Any],
    teacher: list[Any],
    scale: float,
    valid: list[Any] | None,
    held: list[Any] | None = None,
) -> float:
    """The lengths of the student's features are those of `held`, where that is given."""

    def cosine(a: list[float], b: list[float], lengths: float) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0

    total = 0.0
    for n in range(len(student)):
        seen = None if valid is None else valid[n]
        s, t = regions(student[n], scale, seen), regions(teacher[n], scale, seen)
        own = [math.hypot(*f) for f in (s if held is None else regions(held[n], scale, seen))]
        theirs = [math.hypot(*f) for f in t]
        squares = 0.0
        for i, j in itertools.product(range(len(s)), repeat=2):
            ours = cosine(s[i], s[j], own[i] * own[j])
            squares += (ours - cosine(t[i], t[j], theirs[i] * theirs[j])) ** 2
        total += squares / len(s) ** 2
    return total / len(student)


def skd_pixelwise(student: list[Any], teacher: list[Any], valid: list[Any] | None) -> float:
    total = 0.0
    height, width = len(student[0][0]), len(student[0][0][0])
    for n, h, w in itertools.product(range(len(student)), range(height), range(width)):
        if valid is not None and not valid[n][h][w]:
            continue
        powers = [[math.exp(channel[h][w]) for channel in x[n]] for x in (student, teacher)]
        q, p = ([power / sum(one) for power in one] for one in powers)
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total / (height * width)


def ifvd(student: list[Any], teacher: list[Any], labels: list[Any], ignored: int) -> float:
    height, width = len(student[0][0]), len(student[0][0][0])
    total = 0.0
    for n in range(len(student)):
        down, across = len(labels[n]) / height, len(labels[n][0]) / width
        classes: dict[int, list[tuple[int, int]]] = {}
        for h, w in itertools.product(range(height), range(width)):
            classes.setdefault(labels[n][int(h * down)][int(w * across)], []).append((h, w))
        classes.pop(ignored, None)
        for at in classes.values():
            cosines = []
            for x in (student, teacher):
                features = [[channel[h][w] for channel in x[n]] for h, w in at]
                mean = [sum(f[c] for f in features) / len(at) for c in range(len(x[n]))]
                cosines.append(
                    [
                        sum(a * b for a, b in zip(f, mean, strict=True))
                        / (math.hypot(*f) * math.hypot(*mean))
                        for f in features
                    ]
                )
            total += sum((s - t) ** 2 for s, t in zip(*cosines, strict=True))
    return total / (len(student) * height * width)
