"""What a training step costs with a teacher beside it, as ratios measured side by side.

    python tools/benchmark_step.py           # RetinaNet and Faster R-CNN, R-50 from R-101
    python tools/benchmark_step.py --detector retinanet --rounds 12 --size 320

Arms run in turn, round by round, in one process, so that a machine that slows down slows all of
them. The plain step is 1; the floor is what a hand-written loop pays that calls the teacher's
`extract_feat` under no_grad and compares nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

CONFIGS = {
    'retinanet': 'mmdet::retinanet/retinanet_{}_fpn_1x_coco.py',
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_{}_fpn_1x_coco.py',
}


def main() -> None:
    """Measures and prints a table for each detector."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--detector', choices=sorted(CONFIGS), action='append')
    parser.add_argument('--preset', default='pkd')
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for detector in args.detector or sorted(CONFIGS):
        measure(detector, args)


def measure(detector: str, args: argparse.Namespace) -> None:
    """Measures one detector's arms and prints their table."""
    from densekd.cli.show import table

    arms = build_arms(detector, args)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for step in arms.values():
        step()  # first runs allocate, and count how often each tap is reached
    for _ in range(args.rounds):
        for name, step in arms.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    plain = times['plain student']
    rows = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, plain, strict=True)]
        rows.append(
            (
                name,
                f'{statistics.median(taken):.3f}',
                f'{statistics.median(taken) / statistics.median(plain):.3f}',
                f'{min(ratios):.2f} to {max(ratios):.2f}',
            )
        )
    table(
        f'{detector} R-50 from R-101, {args.preset}, batch {args.batch}x3x{args.size}x{args.size}, '
        f'{args.threads} CPU threads, median of {args.rounds}',
        ('step', 'seconds', 'ratio to plain', 'ratio by rounds'),
        rows,
        right=(1, 2, 3),
    )


def build_arms(detector: str, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Returns a function for each arm that runs one training step."""
    from mmdet.testing import demo_mm_inputs

    from densekd import DistillDetector
    from densekd.wrappers.build import build_network, model_config, without_pretrained

    student = without_pretrained(model_config(CONFIGS[detector].format('r50'), 'student'))
    teacher = without_pretrained(model_config(CONFIGS[detector].format('r101'), 'teacher'))
    shape = [3, args.size, args.size]
    data = demo_mm_inputs(
        args.batch, [shape] * args.batch, num_classes=80, num_items=[5] * args.batch
    )

    plain: Any = build_network(student, 'mmdet', 'student')
    guest: Any = build_network(teacher, 'mmdet', 'teacher').eval().requires_grad_(False)

    def distilling(**more: object) -> Callable[[], None]:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            entry = dict(model=teacher, untrained=True, **more)
            model = DistillDetector(student, entry, preset=args.preset)
        # The same student in every arm: what an RPN proposes decides what a step costs.
        model.student.load_state_dict(plain.state_dict())
        return stepping(model)

    def floor() -> None:
        with torch.no_grad():
            guest.extract_feat(prepared['inputs'])
        plain_step()

    prepared = plain.data_preprocessor(data, True)
    plain_step = stepping_on(plain, prepared)

    def stepping(model: Any) -> Callable[[], None]:
        return stepping_on(model, prepared)

    return {
        'plain student': plain_step,
        'floor: plain + teacher.extract_feat': floor,
        'densekd': distilling(),
        'densekd, teacher as loaded (fuse=False)': distilling(fuse=False),
        "densekd, precision='bf16'": distilling(precision='bf16'),
    }


def stepping_on(model: Any, prepared: dict[str, Any]) -> Callable[[], None]:
    """Returns a function that runs forward, backward and SGD's step."""
    import copy

    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)

    def step() -> None:
        torch.manual_seed(0)  # samplers draw the same regions in every arm
        samples = copy.deepcopy(prepared['data_samples'])
        losses = model(prepared['inputs'], samples, mode='loss')
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


if __name__ == '__main__':
    main()
