"""The benchmark of losses: it knows each of them, and measures two things that are equal."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from dataclasses import replace

import benchmark_losses as bench
import loss_cases
import pytest
import torch
from torch import Tensor

from densekd.core.taps import tensors
from densekd.methods import imitation_mask
from densekd.methods.feature import fgfi
from densekd.registry import LOSSES

SMALL = replace(loss_cases.SMALL, dtype=torch.float64)
IDS = [f'{case.loss}-{case.reads}' for case in loss_cases.CASES]


def test_every_loss_has_a_case() -> None:
    assert bench.without_case() == []
    assert {case.loss for case in loss_cases.CASES} == set(LOSSES)


@pytest.mark.parametrize('case', loss_cases.CASES, ids=IDS)
def test_a_formula_is_the_loss_that_it_is_measured_beside(case: loss_cases.Case) -> None:
    problem = case.make(SMALL)
    ours = problem.ours()
    gradients = [s.grad for s in tensors(problem.student)]
    parameters = [p.grad for p in problem.loss.parameters()]
    naive = problem.naive()
    assert ours.item() != 0 and any(bool(g.any()) for g in gradients)
    torch.testing.assert_close(ours, naive)
    for gradient, student in zip(gradients, tensors(problem.student), strict=True):
        torch.testing.assert_close(gradient, student.grad)
    for gradient, parameter in zip(parameters, problem.loss.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def scattered(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Returns anchors that lie on no grid, boxes of all sizes, and which anchors are valid."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        corner = 200 * torch.rand(*shape, 2, generator=generator)
        side = 2 ** (8 * torch.rand(*shape, 2, generator=generator))
        return torch.cat([corner, corner + side], -1).to(dtype)

    anchors = [boxes(9, 7, 3), boxes(4, 5, 2), boxes(1, 2, 1)]
    valid = [torch.rand(a.shape[:3], generator=generator) > 0.2 for a in anchors]
    return anchors, boxes(25), valid


@pytest.mark.parametrize('policy', fgfi.POLICIES)
@pytest.mark.parametrize('psi', [0.0, 0.4, 0.5, 1.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_masks_are_those_of_every_anchor_with_every_box(
    policy: str, psi: float, dtype: torch.dtype
) -> None:
    for seed in range(8):
        anchors, boxes, valid = scattered(seed, dtype)
        for flags in (None, valid):
            for chosen in (boxes, boxes[:1]):
                slow = loss_cases.naive_mask(anchors, chosen, psi, policy, flags)
                fast = imitation_mask(anchors, chosen, psi, policy, flags)
                assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize('detector', bench.DETECTORS)
def test_masks_on_the_anchors_of_detectors(detector: str) -> None:
    sizes = replace(loss_cases.SMALL, image=(160, 224))
    anchors = list(loss_cases.anchors_of(sizes, detector).values())
    assert anchors[0].shape[2] == (9 if detector == 'retinanet' else 3)
    boxes = loss_cases.boxes_of(sizes, 30, 4, 200)
    for policy in fgfi.POLICIES:
        slow = loss_cases.naive_mask(anchors, boxes, 0.5, policy)
        fast = imitation_mask(anchors, boxes, 0.5, policy)
        assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
        assert any(mask.any() for mask in fast)


def test_levels_and_boxes_that_hold_nothing() -> None:
    anchors = [torch.zeros(0, 4, 3, 4), torch.zeros(2, 3, 0, 4), torch.rand(2, 2, 1, 4).sort(-1)[0]]
    for policy in fgfi.POLICIES:
        masks = imitation_mask(anchors, torch.rand(3, 4).sort(-1)[0], policy=policy)
        assert [mask.shape for mask in masks] == [(0, 4), (2, 3), (2, 2)]
        assert not masks[1].any()


def test_a_mask_holds_little_whatever_the_boxes() -> None:
    sizes = replace(loss_cases.SMALL, image=(400, 640))
    anchors = list(loss_cases.anchors_of(sizes, 'faster-rcnn').values())
    pairs = 100 * sum(level[..., 0, 0].numel() for level in anchors)
    assert pairs > 8 * fgfi.BUDGET
    boxes = torch.tensor([[0.0, 0.0, 640.0, 400.0]]).repeat(100, 1)
    for policy in fgfi.POLICIES:
        peak = bench.peak_bytes(lambda p=policy: imitation_mask(anchors, boxes, 0.0, p))
        assert peak < 1e6 * bench.MASK_MEGABYTES


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    status = bench.main(['--small', '--rounds', '2', '--threads', str(threads)])
    out = capsys.readouterr().out
    assert status == 0
    assert all(case.loss in out for case in loss_cases.CASES)
    assert 'retinanet' in out and 'faster-rcnn' in out and 'at most 64 MB' in out


def test_some_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ['--small', '--rounds', '1', '--threads', '1', '--only', 'pkd', 'kd_qfl']
    assert bench.main(arguments) == 0
    out = capsys.readouterr().out
    assert 'PKDLoss' in out and 'KDQFLLoss' in out
    assert 'FitNetLoss' not in out and 'retinanet' not in out
    with pytest.raises(SystemExit):
        bench.main(['--only', 'pkdd'])
    assert "Did you mean 'pkd'" in capsys.readouterr().err


def test_a_loss_without_a_case_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOSSES._table, 'NewLoss', object)
    assert bench.main(['--small', '--rounds', '1', '--threads', '1', '--only', 'fitnet']) == 1
    assert 'NewLoss is in the registry and has no case' in capsys.readouterr().out


def test_peaks_count_what_is_held_at_once() -> None:
    x = torch.zeros(100_000)

    def held(function: Callable[[], object]) -> float:
        return round(bench.peak_bytes(function) / 4e5, 2)  # in maps of x; scalars are held, too

    assert held(lambda: x + 1) == 1
    assert held(lambda: (x + 1) + 1) == 2
    assert held(lambda: ((x + 1) + 1) + 1) == 2
    assert held(lambda: [x + 1 for _ in range(5)]) == 5
    assert held(lambda: x.add_(1)) == 0
    y = torch.zeros(100_000, requires_grad=True)
    # The gradient, and what the exponential keeps for it.
    assert held(lambda: y.exp().sum().backward()) == 2


@pytest.mark.parametrize('module', [bench, loss_cases])
def test_examples(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
