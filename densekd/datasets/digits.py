"""Embedded data: real handwritten digits, pasted into textured scenes.

The digits are the 1797 samples of scikit-learn's `load_digits` (the test part of the UCI data set
"Optical Recognition of Handwritten Digits"). No sample is used by two splits. One folder serves
detection, segmentation and classification:

    annotations/instances_{train,val,test}.json   COCO instances, categories 1 to 10
    {train,val,test}/000000.png                   scenes, RGB
    masks/{train,val,test}/000000.png             0 is background, 1 to 10 the hulls of 0 to 9
    crops/{train,val,test}/<class>/000001.png     a digit and its surroundings, by annotation id
    digits.json                                   the spec, the samples of each split, checksums

The number in a scene's file name is its COCO image id. The folder appears in one step, complete,
and is used again by whoever asks for the same spec.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from densekd.datasets.folder import FolderWriter, check_folder, publish
from densekd.datasets.scenes import Digit, Scene, draw_scene, make_glyph, resize
from densekd.errors import ConfigError

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PALETTE = (
    (230, 57, 70),
    (244, 140, 6),
    (255, 214, 10),
    (112, 193, 60),
    (0, 150, 110),
    (60, 200, 230),
    (40, 90, 220),
    (130, 70, 220),
    (230, 90, 200),
    (150, 100, 60),
)
# What the values of the semantic masks mean; segmentors count the background as a class.
MASK_CLASSES = ('background', *CLASSES)
MASK_PALETTE = ((0, 0, 0), *PALETTE)

SPLITS = ('train', 'val', 'test')
SHARES = (0.6, 0.8)  # of each class's samples: where train ends, where val ends
CROP_MARGIN = 1.25  # side of a crop's square, in longer sides of the digit's box


@dataclass(frozen=True)
class DigitsSpec:
    """All that decides what is in the folder.

    A scene depends on the seed, its split and its number, but not on how many others there are: the
    first 100 training scenes of a spec with 1200 are those of the same spec with 100.

    Args:
        seed: Of the scenes and of which samples go to which split.
        train: Number of training scenes.
        val: Number of validation scenes.
        test: Number of test scenes.
        size: Height and width of a scene.
        min_digits: Least number of digits in a scene.
        max_digits: Greatest number of digits in a scene, if there is room.
        min_side: Least longer side of a digit in pixels.
        max_side: Greatest longer side of a digit; sides are log-uniform between the two.
        crop: Height and width of a crop.
    """

    seed: int = 0
    train: int = 1200
    val: int = 300
    test: int = 300
    size: int = 128
    min_digits: int = 1
    max_digits: int = 6
    min_side: int = 16
    max_side: int = 56
    crop: int = 32

    def __post_init__(self) -> None:
        least = {'seed': 0, 'train': 0, 'val': 0, 'test': 0, 'min_side': 8, 'size': 16, 'crop': 8}
        for field in fields(self):
            value = getattr(self, field.name)
            bound = least.get(field.name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise ConfigError(
                    f'digits: {field.name} is {value!r}, '
                    f'it must be a whole number of at least {bound}.'
                )
        for low, high in (
            ('min_digits', 'max_digits'),
            ('min_side', 'max_side'),
            ('max_side', 'size'),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f'digits: {low} is {getattr(self, low)}, more than {high}, '
                    f'which is {getattr(self, high)}.'
                )


def make_digits(
    root: str | Path,
    seed: int = 0,
    train: int = 1200,
    val: int = 300,
    test: int = 300,
    size: int = 128,
    min_digits: int = 1,
    max_digits: int = 6,
    min_side: int = 16,
    max_side: int = 56,
    crop: int = 32,
    progress: bool = True,
) -> Path:
    """Makes the data in a folder, or finds it there, and returns the folder.

    A folder that holds the same spec is used as it is. One that holds another spec, was changed,
    or holds anything else, is refused with a DataError and left alone.

    Args:
        root: A folder that is missing, empty, or was made by this function.
        seed: See `DigitsSpec`, as for all that follow up to `crop`.
        train: Number of training scenes.
        val: Number of validation scenes.
        test: Number of test scenes.
        size: Height and width of a scene.
        min_digits: Least number of digits in a scene.
        max_digits: Greatest number of digits in a scene.
        min_side: Least longer side of a digit.
        max_side: Greatest longer side of a digit.
        crop: Height and width of a crop.
        progress: Shows a progress bar, if the error output is a terminal.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     root = make_digits(Path(folder) / 'digits', train=2, val=1, test=1)
        ...     sorted(path.name for path in root.iterdir())
        ['annotations', 'crops', 'digits.json', 'masks', 'test', 'train', 'val']
    """
    spec = DigitsSpec(
        seed, train, val, test, size, min_digits, max_digits, min_side, max_side, crop
    )
    if not check_folder(Path(root), asdict(spec)):
        publish(Path(root), asdict(spec), lambda writer: write_digits(writer, spec, progress))
    return Path(root)


def split_samples(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the samples of each split: 60, 20 and 20 percent of every class, in ascending order.

    Example:
        >>> parts = split_samples(np.array([0] * 10 + [1] * 5), seed=0)
        >>> {name: len(numbers) for name, numbers in parts.items()}
        {'train': 9, 'val': 3, 'test': 3}
    """
    # Scenes draw from (seed, 0 to 2, number): the 3 keeps this generator apart from all of them.
    rng = np.random.default_rng((seed, len(SPLITS)))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label in np.unique(labels):
        mixed = rng.permutation(np.flatnonzero(labels == label))
        cuts = [round(share * len(mixed)) for share in SHARES]
        for name, part in zip(SPLITS, np.split(mixed, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def write_digits(writer: FolderWriter, spec: DigitsSpec, progress: bool) -> dict[str, object]:
    """Writes all files but the marker, and returns what the marker is to say of them."""
    from rich.console import Console
    from rich.progress import track
    from sklearn.datasets import load_digits

    data = load_digits()
    samples = split_samples(data.target, spec.seed)
    # Cut up once: picking a split's glyphs anew for each scene takes longer than drawing it.
    glyphs = {
        name: np.stack([make_glyph(image) for image in data.images[part]])
        for name, part in samples.items()
    }
    tables = {name: coco_table(name) for name in SPLITS}
    for name in SPLITS:
        for folder in (name, f'masks/{name}', *(f'crops/{name}/{label}' for label in CLASSES)):
            writer.make_folder(folder)
    console = Console(stderr=True)
    jobs = [(name, number) for name in SPLITS for number in range(getattr(spec, name))]
    hidden = not (progress and console.is_terminal)
    for name, number in track(jobs, 'digits', console=console, disable=hidden):
        scene = draw_scene(
            np.random.default_rng((spec.seed, SPLITS.index(name), number)),
            glyphs[name],
            data.target[samples[name]],
            samples[name],
            spec.size,
            (spec.min_digits, spec.max_digits),
            (spec.min_side, spec.max_side),
        )
        write_scene(writer, tables[name], name, number, scene, spec.crop)
    for name in SPLITS:
        writer.write('annotations', f'instances_{name}.json', dump(tables[name]).encode())
    return {
        'classes': list(CLASSES),
        'samples': {name: part.tolist() for name, part in samples.items()},
    }


def write_scene(
    writer: FolderWriter,
    table: dict[str, Any],
    split: str,
    number: int,
    scene: Scene,
    crop: int,
) -> None:
    """Writes a scene's image, mask and crops, and adds it to its split's COCO table."""
    height, width = scene.image.shape[:2]
    file_name = f'{number:06d}.png'
    writer.write(split, file_name, encode_png(scene.image))
    table['images'].append(
        {'id': number, 'file_name': file_name, 'width': width, 'height': height, 'license': 1}
    )
    for digit in scene.digits:
        # From 1: pycocotools' evaluation takes annotation 0 for "no match".
        number_of_digit = len(table['annotations']) + 1
        table['annotations'].append(
            {
                'id': number_of_digit,
                'image_id': number,
                'category_id': digit.label + 1,
                'bbox': [float(value) for value in digit.box],
                'area': float(digit.mask.sum()),
                'iscrowd': 0,
                # Counts, since polygons lose the holes in 0, 6, 8 and 9.
                'segmentation': {'size': [height, width], 'counts': encode_rle(digit.mask)},
                'sample': digit.sample,
            }
        )
        writer.write(
            f'crops/{split}/{CLASSES[digit.label]}',
            f'{number_of_digit:06d}.png',
            encode_png(cut_crop(scene.image, digit, crop)),
        )
    writer.write(f'masks/{split}', file_name, encode_png(semantic_mask(scene)))


def semantic_mask(scene: Scene) -> np.ndarray:
    """Returns the map of classes of a scene, (H, W): 0 is background, k + 1 the digit k.

    A digit's region is the convex hull of its ink: a pixel of a thin stroke does not show which
    digit it is a part of, which is much to ask of a small network trained for minutes.
    """
    import cv2

    found = np.zeros(scene.image.shape[:2], np.uint8)
    # The smaller hull lies on the larger one, and ink on every hull.
    for digit in sorted(scene.digits, key=lambda digit: -int(digit.mask.sum())):
        points = np.argwhere(digit.mask)[:, ::-1].astype(np.int32)
        cv2.fillConvexPoly(found, cv2.convexHull(np.ascontiguousarray(points)), digit.label + 1)
    for digit in scene.digits:
        found[digit.mask] = digit.label + 1
    return found


def cut_crop(image: np.ndarray, digit: Digit, side: int) -> np.ndarray:
    """Returns the square around a digit as (side, side, 3), the scene's edges repeated."""
    x, y, width, height = digit.box
    square = round(CROP_MARGIN * max(width, height))
    left, top = x + (width - square) // 2, y + (height - square) // 2
    rows = np.clip(np.arange(top, top + square), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + square), 0, image.shape[1] - 1)
    planes = np.moveaxis(image[rows[:, None], columns], 2, 0).astype(float)
    scaled = np.clip(np.rint(resize(planes, side, side)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(scaled, 0, 2))


def encode_rle(mask: np.ndarray) -> list[int]:
    """Returns COCO's run lengths of a mask: columns one after another, zeros first.

    Example:
        >>> encode_rle(np.array([[False, True], [True, True]]))
        [1, 3]
        >>> encode_rle(np.array([[True, False], [True, False]]))
        [0, 2, 2]
    """
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def encode_png(image: np.ndarray) -> bytes:
    """Returns an RGB image or a map of labels as a PNG file."""
    import cv2

    if image.ndim == 2:
        return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()
    # Grain has nothing that repeats: without the search for it files are smaller, in half the time.
    strategy = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    options = [cv2.IMWRITE_PNG_COMPRESSION, 4, *strategy]
    return cv2.imencode('.png', image[..., ::-1], options)[1].tobytes()


def coco_table(split: str) -> dict[str, Any]:
    """Returns a COCO instances table that has no images yet."""
    return {
        # A fixed date: the same spec gives the same bytes.
        'info': {
            'description': f'Handwritten digits in textured scenes ({split})',
            'url': 'https://archive.ics.uci.edu/dataset/80',
            'version': '1.0',
            'year': 2026,
            'contributor': 'densekd; digits by E. Alpaydin and C. Kaynak (UCI)',
            'date_created': '2026-01-01',
        },
        'licenses': [
            {'id': 1, 'name': 'CC BY 4.0', 'url': 'https://creativecommons.org/licenses/by/4.0/'}
        ],
        'categories': [
            {'id': index + 1, 'name': name, 'supercategory': 'digit'}
            for index, name in enumerate(CLASSES)
        ],
        'images': [],
        'annotations': [],
    }


def dump(table: object) -> str:
    """Returns JSON without spaces; the tables are read by programs."""
    return json.dumps(table, separators=(',', ':'))
