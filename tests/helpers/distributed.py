"""What each of two processes does in tests/engine/test_distributed.py; torchrun starts it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel
from torch import distributed, nn
from yapf.yapflib import yapf_api

from densekd.engine.hooks import gathered
from densekd.engine.run import train
from tests.helpers.detectors import batch, distilled, entry, losses_of, prepared
from tests.helpers.runs import digits_config
from tests.helpers.shipped import SHIPPED, shipped, without_chance

LEVELS = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5']
NO_BOXES = dict(type='FilterAnnotations', min_gt_bbox_wh=(1000, 1000), keep_empty=False)


def alike(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all processes hold the same bits."""
    flat = torch.cat([t.detach().double().flatten() for t in tensors.values()])
    others = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
    distributed.all_gather(others, flat)
    return all(torch.equal(other, others[0]) for other in others)


def runs(root: Path) -> dict[str, Any]:
    """Trains three configs as the command would, and says what was left."""
    found: dict[str, Any] = {}
    stopping = [
        entry('neck.p3', 'PKD', schedule=dict(stop=1)),
        entry('backbone.c3', 'FitNet', clip_to_task=True),
        entry(LEVELS, 'FGFI'),
    ]
    for name, model, distillers, boxes in (
        ('stopping', 'retinanet', stopping, True),
        ('empty', 'retinanet', 'all', False),
        ('two-stage', 'faster_rcnn', 'all', True),
    ):
        cfg = digits_config(
            root / 'digits',
            root / name,
            distillers,
            model=model,
            epochs=1,
            launcher='pytorch',
            experiment_name=name,
        )
        if not boxes:
            cfg.train_dataloader.dataset.pipeline.insert(-1, NO_BOXES)
        seen: list[nn.Module] = []
        with watched(seen):
            train(cfg, preflight=False)
        found[name] = left(seen, root / name)
    return found


def left(seen: list[nn.Module], folder: Path) -> dict[str, Any]:
    """Says what a run has left."""
    (wrapper,) = seen
    distributed.barrier()
    return dict(
        wrapped=type(wrapper).__name__,
        unused=wrapper.find_unused_parameters,
        broadcasts=wrapper.broadcast_buffers,
        alike=alike(dict(wrapper.module.named_parameters())),
        finite=all(torch.isfinite(p).all().item() for p in wrapper.parameters()),
        files=sorted(p.name for p in folder.glob('*')),
    )


def configs(root: Path) -> dict[str, Any]:
    """Trains configs of the repository: as they are, and without what chance decides."""
    found: dict[str, Any] = {}
    for name in SHIPPED:
        for kind in ('shipped', 'same'):
            folder = root / f'{name}-{kind}'
            steps = root / f'{name}-{kind}-{distributed.get_rank()}.json'
            cfg = shipped(
                name,
                root / 'digits',
                folder,
                batch=2,
                launcher='pytorch',
                experiment_name=folder.name,
                custom_hooks=[dict(type='mmengine.FirstStepHook', path=str(steps))],
            )
            if kind == 'same':
                cfg = without_chance(cfg)
            seen: list[nn.Module] = []
            with watched(seen):
                train(cfg, preflight=False)
            found[folder.name] = {**left(seen, folder), **json.loads(steps.read_text())}
    return found


class watched:
    """Notes the wrapped model of each runner that trains while a `with` block runs."""

    def __init__(self, seen: list[nn.Module]) -> None:
        self.seen = seen

    def __enter__(self) -> None:
        from densekd.engine.runner import DistillRunner

        self.whole = whole = DistillRunner.train

        def noting(runner: Any) -> Any:
            self.seen.append(runner.model)
            return whole(runner)

        DistillRunner.train = noting  # type: ignore[method-assign]

    def __exit__(self, *unused: object) -> None:
        from densekd.engine.runner import DistillRunner

        DistillRunner.train = self.whole  # type: ignore[method-assign]


def gradients() -> dict[str, Any]:
    """Compares the gradient of two processes with that of one on the whole batch."""
    torch.manual_seed(0)
    model = distilled(distillers=[entry(LEVELS, 'FGFI', 1.0), entry('backbone.c3', 'FitNet', 1.0)])
    model.eval()  # normalise as if alone: the statistics of a half are not those of the whole
    alone = copy.deepcopy(model)
    # Unlike numbers of boxes, so that the halves have unlike numbers of marked cells.
    halves = [batch(seed, images=1, boxes=boxes) for seed, boxes in ((0, 1), (1, 6))]
    wrapped = MMDistributedDataParallel(model, device_ids=None)
    data = prepared(model, halves[distributed.get_rank()])
    losses = wrapped(data['inputs'], data['data_samples'], mode='loss')
    terms = {k: v for k, v in losses.items() if k.startswith('distill.')}
    # DDP waits for every parameter, so that the student's own terms take part, at weight 0.
    others = [v for k, v in losses.items() if 'loss' in k and k not in terms]
    (sum(terms.values()) + 0 * sum(sum(v) if isinstance(v, list) else v for v in others)).backward()
    own = torch.stack(list(terms.values())).detach()
    distributed.all_reduce(own)
    mean = own / distributed.get_world_size()

    group, distributed.is_initialized = distributed.is_initialized, lambda: False
    try:
        whole = {key: halves[0][key] + halves[1][key] for key in halves[0]}
        expected = {k: v for k, v in losses_of(alone, whole).items() if k in terms}
    finally:
        distributed.is_initialized = group
    sum(expected.values()).backward()
    reached = {n for n, p in alone.named_parameters() if p.grad is not None}
    assert 'backbone.conv1.weight' in reached
    far = [
        name
        for (name, a), (_, b) in zip(
            model.named_parameters(), alone.named_parameters(), strict=True
        )
        if name in reached and not torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    ]
    return dict(mean=mean.tolist(), expected=[v.item() for v in expected.values()], far=far)


def kept() -> dict[str, float]:
    """Says what is kept of gradients of which some were reached by both, by one and by none."""
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in ('all', 'one', 'no')})
    rank = distributed.get_rank()
    model['all'].grad = torch.full((2,), 2.0 + 2 * rank)
    if rank == 1:
        model['one'].grad = torch.full((2,), 6.0)
    return {name: gradient.mean().item() for name, gradient in gathered(model).items()}


def main(root: Path) -> None:
    """Writes what was found to `found<rank>.json`."""
    torch.set_num_threads(1)
    # Making configs pretty takes most of the time of a short run.
    yapf_api.FormatCode = lambda text, **_: (text, True)
    found = {**runs(root), **configs(root), 'gradients': gradients(), 'kept': kept()}
    (root / f'found{os.environ["RANK"]}.json').write_text(json.dumps(found))
    distributed.destroy_process_group()
