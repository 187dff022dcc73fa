"""One scene of handwritten digits: the pixels, and each digit's visible ink.

A scene is a textured background (gradient, smooth noise at several scales, long strokes, filled
shapes, gratings), then digits painted one over another. Everything is drawn by a generator that the
caller seeds, with elementary arithmetic only, so that a scene does not depend on a library's
interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np

GLYPH = 64  # the grid that an 8 x 8 digit is enlarged to before it is turned, scaled and pasted
LUMA = np.array([0.299, 0.587, 0.114])

# A digit must stand out: its luminance differs from its surroundings by at least this, and by more
# where these are restless.
MIN_CONTRAST = 48.0
# A digit may be covered a little. Boxes that overlap more than this confuse the ground truth rather
# than the detector.
MAX_BOX_OVERLAP = 0.2
MAX_HIDDEN = 0.1


@dataclass(frozen=True)
class Digit:
    """A digit of a scene: its class, the sample that it came from, and its visible ink."""

    label: int
    sample: int
    mask: np.ndarray  # (H, W) bool
    box: tuple[int, int, int, int]  # x, y, width, height, tight around the mask


@dataclass(frozen=True)
class Scene:
    """An RGB image and its digits; no two masks share a pixel."""

    image: np.ndarray  # (H, W, 3) uint8
    digits: tuple[Digit, ...]


@lru_cache(maxsize=512)
def resize_matrix(source: int, target: int) -> np.ndarray:
    """Returns the matrix (target, source) of a cubic resize; it averages where it shrinks.

    Example:
        >>> resize_matrix(8, 64).shape
        (64, 8)
        >>> bool(np.allclose(resize_matrix(70, 32).sum(axis=1), 1))
        True
    """
    stretch = max(source / target, 1.0)
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    reach = int(2 * stretch) + 1
    taps = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)
    t = np.abs(taps - centre[:, None]) / stretch
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    weight /= weight.sum(axis=1, keepdims=True)
    matrix = np.zeros((target, source))
    rows = np.broadcast_to(np.arange(target)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, source - 1).astype(int)), weight)
    matrix.flags.writeable = False
    return matrix


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a map (H, W), or planes (3, H, W), in another size, as floats."""
    rows, columns = resize_matrix(image.shape[-2], height), resize_matrix(image.shape[-1], width)
    return rows @ image @ columns.T


def make_glyph(digit: np.ndarray) -> np.ndarray:
    """Returns an 8 x 8 digit with values 0 to 16 as a smooth map of (GLYPH, GLYPH), 0 to 1."""
    # The border of zeros lets strokes that touch the edge end round instead of being cut.
    return np.clip(resize(np.pad(digit / 16.0, 1), GLYPH, GLYPH), 0, 1)


def draw_scene(
    rng: np.random.Generator,
    glyphs: np.ndarray,  # (samples, GLYPH, GLYPH)
    labels: np.ndarray,  # (samples,)
    samples: np.ndarray,  # (samples,), the numbers by which digits are known outside
    size: int = 128,
    digits: tuple[int, int] = (1, 6),
    sides: tuple[int, int] = (16, 56),
) -> Scene:
    """Draws one scene.

    Args:
        rng: Decides everything.
        glyphs: What `make_glyph` returned, of the samples that this split may use.
        labels: Their classes.
        samples: Their numbers.
        size: Height and width.
        digits: The least and the greatest number of digits. A digit that finds no free place is
            left out, the first one always finds one.
        sides: The least and the greatest longer side of a digit; sizes are log-uniform.
    """
    image = draw_background(rng, size)
    masks: list[np.ndarray] = []
    chosen: list[int] = []
    areas: list[int] = []
    count = int(rng.integers(digits[0], digits[1] + 1))
    for pick in rng.choice(len(labels), size=min(count, len(labels)), replace=False):
        side = sides[0] * (sides[1] / sides[0]) ** rng.random()
        alpha = render_digit(rng, glyphs[pick], side)
        place = find_place(rng, alpha, masks, areas, size)
        if place is None:
            continue
        cover = paste_map(alpha, place, size)
        mask = cover >= 0.5
        paint_digit(rng, image, cover)
        masks = [other & ~mask for other in masks]
        masks.append(mask)
        areas.append(int(mask.sum()))
        chosen.append(int(pick))
    # Grain last, over ink and background alike: digits must not be the only clean things there are.
    grain = 2 + 5 * rng.random()
    image += grain * (2 * rng.random(image.shape) - 1)
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Scene(
        np.ascontiguousarray(np.moveaxis(pixels, 0, 2)),
        tuple(
            Digit(int(labels[pick]), int(samples[pick]), mask, tight_box(mask))
            for pick, mask in zip(chosen, masks, strict=True)
        ),
    )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns x, y, width and height of the smallest box around a mask that is not empty.

    Example:
        >>> mask = np.zeros((5, 5), bool)
        >>> mask[1:3, 2:5] = True
        >>> tight_box(mask)
        (2, 1, 3, 2)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a textured image as floats (3, size, size), 0 to 255."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.random() * 2 * pi
    ramp = x * cos(angle) + y * sin(angle) + 0.5
    first = 35 + 185 * rng.random((3, 1, 1))
    image = first + 90 * (rng.random((3, 1, 1)) - 0.5) * ramp
    strength = 15 + 45 * rng.random()
    texture: np.ndarray = np.zeros((3, 2, 2))
    for cells in (3, 6, 12, 24, 48):
        noise = rng.random((3, cells, cells)) - 0.5
        # Noise that is half grey: coloured speckle alone would be told from ink by its hue.
        noise = 0.5 * noise + 0.5 * noise[:1]
        texture = resize(texture, cells, cells) + strength * rng.random() * noise
    image += resize(texture, size, size)
    for _ in range(int(rng.integers(2, 8))):
        cover = draw_clutter(rng, x, y, size) * (0.25 + 0.5 * rng.random())
        image += cover * (255 * rng.random((3, 1, 1)) - image)
    return np.clip(image, 0, 255, out=image)


def draw_clutter(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Returns the cover (H, W), 0 to 1, of a shape that nobody would read as a digit.

    Strokes cross the whole image, since a short straight one is a 'one' and a small ring a 'zero';
    what is small is filled, or many parallel lines.
    """
    centre = 1.1 * (rng.random(2) - 0.5)
    angle = rng.random() * 2 * pi
    u = (x - centre[0]) * cos(angle) + (y - centre[1]) * sin(angle)
    v = (y - centre[1]) * cos(angle) - (x - centre[0]) * sin(angle)
    width = (1 + 2.5 * rng.random()) / size
    extent = 0.03 + 0.14 * rng.random()
    ratio = 0.4 + 0.6 * rng.random()
    kind = int(rng.integers(5))
    if kind == 0:  # an arc with a large radius, so that it leaves the image
        radius = 0.9 + 1.5 * rng.random()
        distance = np.abs(np.sqrt((u - radius) ** 2 + v * v) - radius) - width / 2
    elif kind == 1:  # a straight line
        distance = np.abs(u) - width / 2
    elif kind == 2:  # a filled disc, squeezed
        distance = (np.sqrt(u * u + (v / ratio) ** 2) - extent) * ratio
    elif kind == 3:  # a filled rectangle
        distance = np.maximum(np.abs(u) - extent, np.abs(v) - extent * ratio)
    else:  # a square field of parallel strokes
        step = 2.5 * width + 2 / size
        stripes = np.abs(u / step - np.rint(u / step)) * step - width / 2
        distance = np.maximum(stripes, np.maximum(np.abs(u), np.abs(v)) - 1.5 * extent)
    return np.clip(0.5 - distance * size, 0, 1)


def render_digit(rng: np.random.Generator, glyph: np.ndarray, side: float) -> np.ndarray:
    """Returns a digit's cover (h, w), 0 to 1, turned and sheared, its longer side `side` pixels."""
    turn = (rng.random() - 0.5) * 2 * pi / 12
    shear = 0.5 * (rng.random() - 0.5)
    aspect = 0.85 + 0.3 * rng.random()
    turned = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    matrix = turned @ np.array([[aspect, shear], [0.0, 1.0]])
    # The ink is measured after turning and shearing: the side asked for is the side of the box.
    rows, columns = np.nonzero(sharpen(glyph) >= 0.5)
    ink = matrix @ np.stack([columns, rows]).astype(float)
    low, high = ink.min(axis=1), ink.max(axis=1)
    scale = (side - 1) / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int) + 5
    grid_y, grid_x = np.mgrid[0:height, 0:width]
    middle = (low + high) / 2
    target = np.stack(
        [
            (grid_x.ravel() - (width - 1) / 2) / scale + middle[0],
            (grid_y.ravel() - (height - 1) / 2) / scale + middle[1],
        ]
    )
    source_x, source_y = np.linalg.inv(matrix) @ target
    return sharpen(sample_bilinear(glyph, source_x, source_y)).reshape(height, width)


def sharpen(ink: np.ndarray) -> np.ndarray:
    """Turns smooth grey ink into cover with an edge: 0.5 where the ink is 0.48 dark."""
    # A steeper ramp fills the holes of small loops, which the 8 x 8 samples only hint at in grey.
    t = np.clip((ink - 0.23) / 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def sample_bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the values of a map (H, W) at points, 0 outside."""
    height, width = image.shape
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    padded = np.pad(image, 1)
    x, y = np.clip(x, -1, width - 1e-9) + 1, np.clip(y, -1, height - 1e-9) + 1
    left, top = x.astype(int), y.astype(int)
    dx, dy = x - left, y - top
    upper = padded[top, left] * (1 - dx) + padded[top, left + 1] * dx
    lower = padded[top + 1, left] * (1 - dx) + padded[top + 1, left + 1] * dx
    return inside * (upper * (1 - dy) + lower * dy)


def find_place(
    rng: np.random.Generator,
    alpha: np.ndarray,
    masks: list[np.ndarray],
    areas: list[int],
    size: int,
    tries: int = 30,
) -> tuple[int, int] | None:
    """Returns where to put a digit so that its ink is inside and hides little, or None.

    Args:
        rng: Draws the places to try.
        alpha: The digit's cover.
        masks: Visible ink of the digits that are there.
        areas: Ink of each when it was painted, so that many small losses add up.
        size: Height and width of the scene.
        tries: How many places to try.
    """
    x, y, width, height = tight_box(alpha >= 0.5)
    boxes = [tight_box(mask) for mask in masks]
    for _ in range(tries):
        left = int(rng.integers(0, size - width + 1))
        top = int(rng.integers(0, size - height + 1))
        place = (left - x, top - y)
        if any(box_overlap((left, top, width, height), box) > MAX_BOX_OVERLAP for box in boxes):
            continue
        if masks:
            mask = paste_map(alpha, place, size) >= 0.5
            kept = [int((other & ~mask).sum()) for other in masks]
            if any(k < (1 - MAX_HIDDEN) * area for k, area in zip(kept, areas, strict=True)):
                continue
        return place
    return None


def box_overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Returns the shared area as a part of the smaller box.

    Example:
        >>> box_overlap((0, 0, 4, 4), (2, 0, 2, 2))
        1.0
    """
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    return max(width, 0) * max(height, 0) / min(one[2] * one[3], two[2] * two[3])


def paste_map(alpha: np.ndarray, place: tuple[int, int], size: int) -> np.ndarray:
    """Returns a (size, size) map with `alpha` at a place (x, y), cut where it leaves the scene."""
    x, y = place
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + alpha.shape[1], size), min(y + alpha.shape[0], size)
    out = np.zeros((size, size))
    out[top:bottom, left:right] = alpha[top - y : bottom - y, left - x : right - x]
    return out


def paint_digit(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray) -> None:
    """Paints a digit into planes (3, H, W), in a colour that stands out from what is around it."""
    x, y, width, height = tight_box(cover > 0)
    window = image[:, y : y + height, x : x + width]
    colour = choose_colour(rng, (LUMA[:, None, None] * window).sum(axis=0))
    # The ink is shaded from one end to the other, as if it were lit.
    shade = 1 + 0.2 * (rng.random() - 0.5) * (np.arange(width) / width - 0.5)
    ink = np.clip(colour[:, None, None] * shade, 0, 255)
    window += cover[y : y + height, x : x + width] * (ink - window)


def choose_colour(rng: np.random.Generator, luma: np.ndarray) -> np.ndarray:
    """Returns an RGB colour whose luminance is far enough from that of the surroundings."""
    mean, spread = float(luma.mean()), float(luma.std())
    least = min(MIN_CONTRAST + spread, 100.0)
    for _ in range(20):
        colour = 255 * rng.random(3)
        difference = float(colour @ LUMA) - mean
        # The colour is random, its contrast drawn: many near the least one, some twice as strong.
        wanted = least * (1 + 1.3 * rng.random() ** 2) * (1 if difference > 0 else -1)
        colour = np.clip(colour + wanted - difference, 0, 255)
        if abs(float(colour @ LUMA) - mean) >= least:
            return colour
    return np.full(3, 250.0 if mean < 128 else 5.0)


__all__ = ['GLYPH', 'Digit', 'Scene', 'draw_scene', 'make_glyph', 'resize', 'tight_box']
