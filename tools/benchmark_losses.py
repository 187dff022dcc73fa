"""What each loss costs, forward and backward, beside its formula in plain torch.

    python tools/benchmark_losses.py --threads 1          # every loss in the registry
    python tools/benchmark_losses.py --only pkd fgfi --rounds 20
    python tools/benchmark_losses.py --only fgfi --step   # FGFI's mask beside a training step

Arms run in turn, round by round, in one process. Memory is what an arm holds at its peak beside its
inputs; in maps of what the student gives, it can be compared with what the formula needs at least.
The exit status is 1 if a loss in the registry has no case in `loss_cases.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# The profiler's library tells of every start and stop.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import torch

# This checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loss_cases import CASES, SMALL, Case, Sizes, anchors_of, boxes_of, short

from densekd.cli.show import table
from densekd.errors import did_you_mean
from densekd.methods import imitation_mask
from densekd.registry import LOSSES

MASK_MEGABYTES = 64
MASK_SHARE = 0.03
MASK_BOXES = 100
# Sides of the true boxes, in pixels: of all sizes, and larger than any would be in all.
MASK_SIDES = {'16 to 512': (16.0, 512.0), '400 to 800': (400.0, 800.0)}
DETECTORS = ('retinanet', 'faster-rcnn')
MEGABYTE = 1e6


def main(argv: list[str] | None = None) -> int:
    """Measures, prints tables, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--only', nargs='+', metavar='LOSS', help='such as pkd fgfi kd_qfl')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--step', action='store_true', help="FGFI's mask as a share of a training step: minutes"
    )
    parser.add_argument('--small', action='store_true', help=argparse.SUPPRESS)  # for tests
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    known = sorted({short(name) for name in LOSSES} | {case.short for case in CASES})
    chosen = {short(name) for name in args.only} if args.only else set(known)
    for name in sorted(chosen - set(known)):
        parser.error(f'--only: there is no loss {name!r}. {did_you_mean(name, known)}')
    sizes = replace(SMALL if args.small else Sizes(), device=args.device)
    measure_losses([case for case in CASES if case.short in chosen], sizes, args)
    if 'fgfi' in chosen:
        measure_masks(sizes, args)
    missing = without_case()
    for name in missing:
        print(f'{name} is in the registry and has no case in tools/loss_cases.py.')
    return 1 if missing else 0


def without_case() -> list[str]:
    """Returns the losses in the registry that nothing here measures."""
    return sorted(set(LOSSES) - {case.loss for case in CASES})


def measure_losses(cases: list[Case], sizes: Sizes, args: argparse.Namespace) -> None:
    """Prints a row for each case."""
    rows = []
    for case in cases:
        problem = case.make(sizes)
        arms: dict[str, Callable[[], object]] = {'ours': problem.ours}
        if problem.formula is not None:
            arms['formula'] = problem.naive
        peaks = {}
        for name, arm in arms.items():
            arm()  # the first run may allocate what stays
            problem.clear()
            peaks[name] = peak_bytes(arm, args.device)
        times = interleaved(arms, args.rounds, args.device)
        rows.append((case.loss, case.reads, *cells(times, peaks, problem.map_bytes), case.needed))
        rows[-1] = (*rows[-1], case.held)
    table(
        f'forward and backward, {where(args)}, median of {args.rounds}; memory beside the inputs '
        "at the peak, in maps of the student's size",
        (
            'loss', 'reads', 'ms', 'formula ms', 'ratio', 'MB', 'maps', 'formula maps',
            'needed', 'of which',
        ),
        rows,
        right=(2, 3, 4, 5, 6, 7, 8),
    )  # fmt: skip


def cells(times: Mapping[str, float], peaks: Mapping[str, int], map_bytes: int) -> list[str]:
    """Returns the measured part of a row."""
    ours, formula = times['ours'], times.get('formula')
    return [
        f'{1e3 * ours:.2f}',
        '' if formula is None else f'{1e3 * formula:.2f}',
        '' if formula is None else f'{ours / formula:.2f}',
        f'{peaks["ours"] / MEGABYTE:.1f}',
        f'{peaks["ours"] / map_bytes:.1f}',
        '' if formula is None else f'{peaks["formula"] / map_bytes:.1f}',
    ]


def measure_masks(sizes: Sizes, args: argparse.Namespace) -> None:
    """Prints what FGFI's mask of one image costs, with `--step` beside a training step."""
    rows = []
    for detector in DETECTORS:
        anchors = list(anchors_of(sizes, detector).values())
        arms: dict[str, Callable[[], object]] = {}
        for name, sides in MASK_SIDES.items():
            boxes = boxes_of(sizes, MASK_BOXES, *sides)
            arms[name] = partial(imitation_mask, anchors, boxes)
        peaks = {name: peak_bytes(arm, args.device) for name, arm in arms.items()}
        if args.step:
            arms['step'] = training_step(detector, sizes)
            arms['step']()
        times = interleaved(arms, args.rounds, args.device)
        for name in MASK_SIDES:
            peak = peaks[name] / MEGABYTE
            row = [detector, name, f'{1e3 * times[name]:.1f}', f'{peak:.1f}']
            row.append(verdict(peak, MASK_MEGABYTES))
            if args.step:
                share = times[name] / times['step']
                row += [f'{times["step"]:.2f}', f'{share:.2%}', verdict(share, MASK_SHARE)]
            rows.append(row)
    columns = ['anchors', 'sides of boxes', 'ms', 'MB', f'at most {MASK_MEGABYTES} MB']
    if args.step:
        columns += ['R-50 step, s', 'share', f'at most {MASK_SHARE:.0%}']
    size = 'x'.join(map(str, sizes.image))
    table(
        f"FGFI's mask of one image of {size}, {MASK_BOXES} boxes, five levels, {where(args)}, "
        f'median of {args.rounds}',
        columns,
        rows,
        right=(2, 3, 5, 6),
    )


def verdict(value: float, bound: float) -> str:
    """Returns whether a value keeps within its bound, in a word."""
    return 'yes' if value <= bound else 'NO'


def where(args: argparse.Namespace) -> str:
    """Returns what the figures were measured on."""
    if args.device == 'cpu':
        return f'{args.threads} CPU thread{"s" if args.threads > 1 else ""}'
    return torch.cuda.get_device_name(args.device)


def training_step(detector: str, sizes: Sizes) -> Callable[[], None]:
    """Returns a training step of the plain R-50 student, on one image."""
    from benchmark_step import CONFIGS, stepping_on
    from mmdet.testing import demo_mm_inputs

    from densekd.wrappers.build import build_network, model_config, without_pretrained

    config = without_pretrained(model_config(CONFIGS[detector].format('r50'), 'student'))
    student: Any = build_network(config, 'mmdet', 'student').to(sizes.device)
    data = demo_mm_inputs(1, [[3, *sizes.image]], num_classes=80, num_items=[10])
    return stepping_on(student, student.data_preprocessor(data, True))


def interleaved(
    arms: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, float]:
    """Returns the median seconds of each arm, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            synchronise(device)
            begun = time.perf_counter()
            arm()
            synchronise(device)
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(taken) for name, taken in times.items()}


def synchronise(device: str) -> None:
    """Waits for what a GPU still computes."""
    if device != 'cpu':
        torch.cuda.synchronize(device)


def peak_bytes(function: Callable[[], object], device: str = 'cpu') -> int:
    """Returns how many bytes a function holds at its peak beside what was there before.

    On the CPU these are the allocations and releases that torch's own allocator reports to the
    profiler, temporary ones within an operation included.

    Example:
        >>> peak_bytes(lambda: torch.zeros(250_000).add_(1).add(1).sum()) // 10**6  # two at a time
        2
    """
    if device != 'cpu':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    results = profile.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == '[memory]']
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


if __name__ == '__main__':
    sys.exit(main())
