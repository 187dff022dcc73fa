"""The reader of checkpoints: nothing runs, nothing loads by halves, and messages say what to do."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densekd.core.checkpoint import (
    file_hash,
    find_checkpoint,
    load_weights,
    read_checkpoint,
    unprefixed,
    weights_hash,
    weights_in,
)
from densekd.errors import CheckpointError

# The reader warns of pickles of unusual protocols before it refuses them.
pytestmark = pytest.mark.filterwarnings('ignore:Detected pickle protocol')


class Code:
    """When unpickled, calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def network(width: int = 3) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, width, 1), norm=nn.BatchNorm2d(width), head=nn.Linear(width, 2)
        )
    )


def other() -> nn.Sequential:
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)))


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv('DENSEKD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('DENSEKD_CHECKPOINTS', raising=False)

    def unreachable(address: str, **unused: Any) -> Any:
        raise urllib.error.URLError(f'no route to {address}')

    monkeypatch.setattr('urllib.request.urlopen', unreachable)
    return tmp_path / 'cache' / 'checkpoints'


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def refusal(source: Any, **how: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(source, **how)
    return str(caught.value)


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('zipped', [True, False])
def test_weights_come_back_as_they_were(tmp_path: Path, zipped: bool) -> None:
    state = network().state_dict()
    path = saved(tmp_path / 'a.pth', state, _use_new_zipfile_serialization=zipped)
    for source in (path, str(path)):
        read = read_checkpoint(source)
        assert list(read) == list(state)
        assert all(torch.equal(read[key], state[key]) for key in state)


def test_a_home_folder_sign_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    saved(tmp_path / 'a.pth', {'w': torch.ones(1)})
    assert read_checkpoint('~/a.pth')['w'].item() == 1.0


def test_a_runners_checkpoint_is_read_without_trust(tmp_path: Path) -> None:
    logging = pytest.importorskip('mmengine.logging')
    hub = logging.MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', torch.tensor(0.25))
    hub.update_scalar('val/coco/bbox_mAP', np.float64(0.125))
    hub.update_info('iter', 7)
    net = network()
    optimiser = torch.optim.AdamW(net.parameters())
    net.conv(torch.ones(1, 3, 2, 2)).sum().backward()
    optimiser.step()
    content = {
        'meta': {
            'epoch': 1,
            'iter': 7,
            'cfg': 'model = dict()',
            'seed': np.int64(3),
            'best': np.float32(0.5),
            'done': np.bool_(True),
            'dataset_meta': {'classes': ('one', 'two'), 'palette': np.zeros((2, 3), np.uint8)},
        },
        'state_dict': OrderedDict(net.state_dict()),
        'message_hub': hub.state_dict(),
        'optimizer': optimiser.state_dict(),
        'param_schedulers': [{'last_step': 7, '_global_step': 8, 'verbose': False}],
        'random': [np.random.get_state()[1], torch.random.get_rng_state()],
    }
    read = read_checkpoint(saved(tmp_path / 'epoch_1.pth', content))
    history = read['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, logging.HistoryBuffer)
    assert history.data[0].tolist() == [0.5, 0.25]
    assert read['meta']['seed'] == 3 and read['meta']['dataset_meta']['palette'].shape == (2, 3)
    assert read['optimizer']['param_groups'] == optimiser.state_dict()['param_groups']
    load_weights(network(), read, 'epoch_1.pth', 'teacher')


@pytest.mark.parametrize('kept', [0, 1, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('trust', [False, True])
def test_a_truncated_file(tmp_path: Path, kept: float, trust: bool) -> None:
    whole = saved(tmp_path / 'whole.pth', network(64).state_dict()).read_bytes()
    path = tmp_path / 'half.pth'
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    message = refusal(path, trust=trust)
    assert message.startswith(
        f"{path}: the file can't be read as a checkpoint; it is truncated or of another kind "
        f'({path.stat().st_size:,} bytes). Fetch or write it again'
    )
    assert '\n' not in message


@pytest.mark.parametrize(
    'content',
    [
        b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n',
        b'<!DOCTYPE html><html>404</html>',
        b'{"state_dict": {}}',
        b'hello',
        b'0.5\n0.25\n',
        b'\x00' * 64,
        b'PK\x03\x04 and no more',
    ],
)
@pytest.mark.parametrize('trust', [False, True])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes, trust: bool) -> None:
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    assert "the file can't be read as a checkpoint" in refusal(path, trust=trust)


def test_no_first_byte_makes_the_reader_raise_something_else(tmp_path: Path) -> None:
    # Each is an instruction of pickle's machine, and each fails in a way of its own.
    path = tmp_path / 'a.pth'
    for first in range(0, 256, 3):
        for rest in (b'', b'ello\n', b'\x00' * 9, b'1234\n.'):
            path.write_bytes(bytes([first]) + rest)
            refusal(path)


# Code -------------------------------------------------------------------------------------------


def _mark(path: str) -> int:
    Path(path).write_text('ran')
    return 0


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_carries_code_is_refused_before_it_runs(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / 'marker'
    content = {'state_dict': network().state_dict(), 'meta': Code(_mark, str(marker))}
    path = saved(tmp_path / 'a.pth', content, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert not marker.exists()
    assert message == (
        f'{path}: the file carries code ({__name__}._mark), which reading it would run. If you '
        'trust whoever made it, pass --trust-checkpoint.'
    )
    # The test can fail: with trust the code runs, and the weights are there.
    read = read_checkpoint(path, trust=True)
    assert marker.read_text() == 'ran'
    load_weights(network(), read, path, 'teacher')


@pytest.mark.parametrize(
    ('function', 'args', 'named'),
    [
        (os.system, ('touch {marker}',), 'system'),
        (open, ('{marker}', 'w'), 'open'),
        (exec, ('open("{marker}", "w")',), 'exec'),
        (eval, ('open("{marker}", "w")',), 'eval'),
        (getattr, ('a', 'upper'), 'getattr'),
    ],
)
def test_the_code_is_named(
    tmp_path: Path, function: Any, args: tuple[str, ...], named: str
) -> None:
    marker = tmp_path / 'marker'
    code = Code(function, *(arg.format(marker=marker) for arg in args))
    message = refusal(saved(tmp_path / 'a.pth', {'state_dict': {}, 'x': code}))
    assert not marker.exists()
    assert 'the file carries code (' in message and f'{named})' in message


def test_a_whole_pickled_network_is_code() -> None:
    buffer = io.BytesIO()
    torch.save(network(), buffer)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / 'a.pth', network())
    assert 'carries code (torch.nn.modules.container.Sequential)' in refusal(path)


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / 'marker'
    for protocol in (2, 4, 5):
        path = tmp_path / 'a.pth'
        path.write_bytes(pickle.dumps(Code(_mark, str(marker)), protocol))
        refusal(path)
        assert not marker.exists()


def test_what_is_admitted_for_one_file_is_not_admitted_for_good(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(saved(tmp_path / 'a.pth', {'seed': np.int64(3), 'w': torch.ones(1)}))
    assert set(torch.serialization.get_safe_globals()) == before


# Finding ----------------------------------------------------------------------------------------


def test_a_missing_file_names_a_near_one(tmp_path: Path) -> None:
    saved(tmp_path / 'retinanet_r101.pth', {})
    message = refusal(tmp_path / 'retinanet_r11.pth')
    assert message == (
        f'{tmp_path / "retinanet_r11.pth"}: there is no such checkpoint. Did you mean '
        "'retinanet_r101.pth'? It has: retinanet_r101.pth."
    )


def test_a_missing_file_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / 'a.pth').endswith(f'The folder {tmp_path} holds no .pth file.')
    missing = tmp_path / 'runs' / 'a.pth'
    assert refusal(missing).endswith(f'There is no folder {tmp_path / "runs"} either.')


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert 'there is no such checkpoint' in refusal(tmp_path)


URL = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101.pth'


class Reply(io.BytesIO):
    def __init__(self, content: bytes, announced: int | None = None) -> None:
        super().__init__(content)
        size = len(content) if announced is None else announced
        self.headers = {} if announced == -1 else {'Content-Length': str(size)}


def bytes_of(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_an_unreachable_url_is_a_sentence(no_cache: Path) -> None:
    message = refusal(URL)
    assert message.startswith(
        'retinanet_r101.pth: it could not be fetched (download.openmmlab.com: '
    )
    assert 'mmassets.onedl.ai: ' in message and 'no route to' in message
    assert message.endswith(
        'Get the file another way and give its path, or put it into a folder named in '
        '$DENSEKD_CHECKPOINTS.'
    )
    assert list(no_cache.iterdir()) == []


def test_a_mirror_is_tried_and_the_file_kept(
    no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def urlopen(address: str, **unused: Any) -> Reply:
        asked.append(address)
        if 'openmmlab' in address:
            raise urllib.error.URLError('gone')
        return Reply(bytes_of({'w': torch.ones(1)}))

    monkeypatch.setattr('urllib.request.urlopen', urlopen)
    assert read_checkpoint(URL)['w'].item() == 1.0
    assert asked == [URL, URL.replace('download.openmmlab.com', 'mmassets.onedl.ai')]
    assert [p.name for p in no_cache.iterdir()] == ['retinanet_r101.pth']
    read_checkpoint(URL)
    assert len(asked) == 2


def test_a_host_without_a_mirror_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal('https://example.org/a.pth')
    assert message.count('no route') == 1


@pytest.mark.parametrize('announced', [None, -1])
def test_a_download_with_or_without_an_announced_length(
    monkeypatch: pytest.MonkeyPatch, announced: int | None
) -> None:
    content = bytes_of({'w': torch.ones(1)})
    monkeypatch.setattr('urllib.request.urlopen', lambda *_, **__: Reply(content, announced))
    assert read_checkpoint('https://example.org/a.pth')['w'].item() == 1.0


def test_a_download_that_breaks_off_is_not_kept(
    no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('urllib.request.urlopen', lambda *_, **__: Reply(b'half', 1000))
    message = refusal('https://example.org/a.pth')
    assert 'example.org: 4 of 1,000 bytes came' in message
    assert list(no_cache.iterdir()) == []


def test_a_folder_of_ones_own_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(('first', 'second')):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / 'retinanet_r101.pth', {'w': torch.full((1,), float(i))})
    saved(tmp_path / 'second' / 'only.pth', {'w': torch.full((1,), 9.0)})
    folders = [str(tmp_path / name) for name in ('missing', 'first', 'second')]
    monkeypatch.setenv('DENSEKD_CHECKPOINTS', os.pathsep.join(folders))
    assert find_checkpoint(URL) == tmp_path / 'first' / 'retinanet_r101.pth'
    assert read_checkpoint('https://example.org/x/only.pth')['w'].item() == 9.0
    # The zoo's own way of naming weights is found there as well.
    assert read_checkpoint('torchvision://only.pth')['w'].item() == 9.0


def test_a_name_from_a_model_zoo_says_what_to_do() -> None:
    message = refusal('torchvision://resnet50')
    assert message == (
        'torchvision://resnet50: weights named by torchvision:// come from a model zoo. Put the '
        'file into a folder, name that folder in $DENSEKD_CHECKPOINTS, or give the path itself.'
    )


# Loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
def test_weights_are_the_file_or_a_part_of_it(key: str | None) -> None:
    state = network().state_dict()
    weights = weights_in(state if key is None else {key: state, 'meta': {}})
    assert list(weights) == list(state)


@pytest.mark.parametrize('content', [{}, {'state_dict': {}}, {'meta': 3}, [1], torch.ones(1), None])
def test_a_file_without_weights(content: Any) -> None:
    with pytest.raises(CheckpointError, match=r'^a.pth: the file holds no weights \(no state_dict'):
        weights_in(content, 'a.pth')


def loaded(weights: dict[str, Tensor]) -> bool:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, {'state_dict': weights}, 'a.pth', 'teacher')
    return weights_hash(model) == weights_hash(network())


@pytest.mark.parametrize(
    'prefix', ['', 'module.', 'student.', 'architecture.', 'model.', 'module.student.']
)
def test_prefixes_of_wrappers_are_stripped(prefix: str) -> None:
    assert loaded({prefix + k: v for k, v in network().state_dict().items()})


def test_what_a_wrapper_holds_beside_the_student_is_left_out() -> None:
    weights = {f'architecture.{k}': v for k, v in network().state_dict().items()}
    weights.update({f'teacher.{k}': torch.zeros_like(v) for k, v in network().state_dict().items()})
    assert loaded(weights)


def test_a_prefix_that_belongs_to_the_network_stays() -> None:
    own = {'model.weight': torch.ones(1), 'model.bias': torch.ones(1)}
    assert unprefixed(own, own) == own
    assert unprefixed({'other.weight': torch.ones(1)}, own).keys() == {'other.weight'}


def test_a_missing_counter_is_no_missing_weight() -> None:
    weights = dict(network().state_dict())
    del weights['norm.num_batches_tracked']
    assert loaded(weights)


def complaint(weights: dict[str, Tensor], who: str = 'teacher') -> str:
    model = network()
    before = weights_hash(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, {'state_dict': weights}, 'a.pth', who)
    assert weights_hash(model) == before  # all or none
    return str(caught.value)


def test_another_models_weights_are_refused() -> None:
    assert complaint(dict(other().state_dict())) == (
        'a.pth: the teacher Sequential needs 9 weights, but the file lacks 4 of them, such as '
        'conv.weight, and it has 2 others, such as stem.weight. It is of another model: check the '
        "teacher's config against its checkpoint."
    )


def test_one_missing_weight_is_refused() -> None:
    weights = dict(network().state_dict())
    del weights['head.bias']
    message = complaint(weights, 'student')
    assert message.startswith(
        'a.pth: the student Sequential needs 9 weights, but the file lacks 1 of them, such as '
        'head.bias. It is of another model'
    )


def test_another_width_is_refused() -> None:
    assert complaint(dict(network(5).state_dict())) == (
        'a.pth: conv.weight is (5, 3, 1, 1) in the file and (3, 3, 1, 1) in the model (and 6 '
        'more). The teacher config and its checkpoint differ, perhaps in the number of classes '
        'or in the width.'
    )


def test_another_number_of_classes_is_refused() -> None:
    weights = {**network().state_dict(), 'head.weight': torch.zeros(7, 3)}
    assert 'head.weight is (7, 3) in the file and (2, 3) in the model. The' in complaint(weights)


# Hashes -----------------------------------------------------------------------------------------


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / 'a'
    path.write_bytes(b'abc' * 1_000_000)
    assert file_hash(path) == hashlib.sha256(b'abc' * 1_000_000).hexdigest()


def test_the_hash_of_a_network_sees_every_weight_and_buffer() -> None:
    base = weights_hash(network())
    assert base == weights_hash(network())
    assert base == weights_hash(network().to(memory_format=torch.channels_last))
    seen = {base}
    for key in network().state_dict():
        model = network()
        tensor = model.state_dict()[key]
        tensor.add_(1)
        seen.add(weights_hash(model))
    assert len(seen) == 10
    half = network().half()
    assert weights_hash(half) not in seen


def test_weights_of_a_deeper_network_of_the_same_kind_are_refused() -> None:
    def network(blocks: int) -> nn.Module:
        net = nn.Module()
        net.backbone = nn.Sequential(*[nn.Linear(2, 2) for _ in range(blocks)])
        return net

    deep, shallow = network(3), network(2)
    with pytest.raises(CheckpointError, match=r'holds 2 weights that the teacher Module has no'):
        load_weights(shallow, deep.state_dict(), 'a.pth', 'teacher')
    kept = {**shallow.state_dict(), 'auxiliary_head.weight': torch.zeros(1)}
    load_weights(shallow, kept, 'a.pth', 'teacher')


def test_a_module_that_translates_older_names_is_given_the_chance() -> None:
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            if f'{prefix}old' in state:
                state[f'{prefix}weight'] = state.pop(f'{prefix}old')
            super()._load_from_state_dict(state, prefix, *rest)

    net = nn.Sequential(Renaming(2, 2, bias=False), nn.Linear(2, 2))
    wanted = torch.full((2, 2), 3.0)
    weights = {'0.old': wanted, '1.weight': torch.ones(2, 2), '1.bias': torch.ones(2)}
    load_weights(net, weights, 'a.pth', 'teacher')
    assert torch.equal(net[0].weight, wanted)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(CheckpointError, match='lacks 1 of them, such as 1.bias'):
        load_weights(net, {'0.old': wanted + 1, '1.weight': torch.zeros(2, 2)}, 'a.pth', 'teacher')
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
