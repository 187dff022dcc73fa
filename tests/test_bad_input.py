"""Every mistake that is foreseen: one sentence, before the first step, with nothing written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.wrappers.build import build_network
from densekd.wrappers.config import load_config, plain
from tests.helpers.commands import (
    Snapshot,
    command,
    hint,
    make_workplace,
    network,
    tiny_config,
    write_config,
)
from tests.helpers.detectors import backbone, bounded, faster_rcnn, retinanet


@dataclass
class Setting:
    """A correct run, for a case to break: its config, its folder, and further arguments."""

    cfg: dict[str, Any]
    folder: Path
    argv: list[str]

    @property
    def model(self) -> dict[str, Any]:
        return self.cfg['model']

    @property
    def distiller(self) -> dict[str, Any]:
        return self.model['distillers'][0]

    @property
    def data(self) -> dict[str, Any]:
        return self.cfg['train_dataloader']['dataset']

    def own_annotations(self, content: Any) -> None:
        """Gives the run an annotation file of its own."""
        path = self.folder / 'instances.json'
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.data['ann_file'] = str(path)

    def annotations(self) -> dict[str, Any]:
        return json.loads((Path(self.data['data_root']) / self.data['ann_file']).read_text())

    def teacher_file(self, content: Any) -> None:
        """Gives the teacher a checkpoint of its own."""
        path = self.folder / 'other.pth'
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        self.model['teacher']['checkpoint'] = str(path)


Break = Callable[[Setting], None]
CASES: dict[str, tuple[Break, str]] = {}


def case(sentence: str) -> Callable[[Break], Break]:
    """Adds a broken input with the sentence that answers it; in it, … stands for anything."""

    def add(function: Break) -> Break:
        CASES[function.__name__] = (function, sentence)
        return function

    return add


# Taps ---------------------------------------------------------------------------------------------


@case(
    "distillers[0].student_module: the student: RetinaNet has no place 'neck.p33'. Did you mean "
    "'neck.p3'…"
)
def misspelt_tap(run: Setting) -> None:
    run.distiller.update(student_module='neck.p33', teacher_module='neck.p3')


@case(
    "distillers[0].teacher_module: the teacher: RetinaNet has no place 'backbone.layer5'. "
    "Did you mean 'backbone.layer4'…"
)
def misspelt_tap_of_the_teacher(run: Setting) -> None:
    run.distiller['teacher_module'] = 'backbone.layer5'


@case(
    "tap 'bbox_head.loss_cls': the place exists in RetinaNet, but it never ran in this pass. "
    'Tap a module whose forward is called (a list of modules is not).'
)
def tap_that_never_runs(run: Setting) -> None:
    run.distiller['student_module'] = 'bbox_head.loss_cls'


@case(
    'distillers[0].student_module: a tap is a name such as "backbone.c4", a module path, or '
    'dict(path=…, side=…, call=…), not 3.'
)
def tap_that_is_a_number(run: Setting) -> None:
    run.distiller['student_module'] = 3


@case("tap 'neck': 'side' is 'out' or 'in', not 'left'.")
def tap_with_another_side(run: Setting) -> None:
    run.distiller['student_module'] = dict(path='neck', side='left')


@case("tap 'backbone.layer2': call 4 was asked for, but the module ran 1 times in this pass.")
def tap_of_a_call_that_is_not_made(run: Setting) -> None:
    run.distiller['student_module'] = dict(path='backbone.layer2', call=4)


@case(
    "tap 'backbone.c2': no gradient reaches the student here, since everything before the "
    'place is frozen (frozen_stages, requires_grad=False), so that distilling it teaches '
    'nothing. Tap a deeper place, or unfreeze the stages before it.'
)
def tap_in_a_frozen_stage(run: Setting) -> None:
    run.model['student']['backbone'] = backbone(4, frozen_stages=1)
    run.model['distillers'] = [hint('backbone.c2')]


@case(
    "tap 'backbone.layer3.0.bn2': the place is inside activation checkpointing (with_cp), "
    'where the forward pass records no gradient. Tap the end of the block, as '
    '"backbone.cN.pre_relu" does, or switch checkpointing off there.'
)
def tap_under_checkpointing(run: Setting) -> None:
    run.model['student']['backbone'] = backbone(4, with_cp=True)
    run.model['distillers'] = [hint('backbone.layer3.0.bn2')]


# Keys and names -----------------------------------------------------------------------------------


@case(
    "distillers[0].head: DistillationHead.loss: PKDLoss takes no 'los_weight'. Did you mean "
    "'loss_weight'…"
)
def key_that_no_loss_takes(run: Setting) -> None:
    run.distiller['head']['loss'] = dict(type='PKDLoss', los_weight=1.0)


@case(
    'distillers[0].head: DistillationHead.stu_connector: ConvConnector takes no '
    "'kernelsize'. Did you mean 'kernel_size'…"
)
def key_that_no_connector_takes(run: Setting) -> None:
    run.distiller['head']['stu_connector'] = dict(type='ConvConnector', kernelsize=3)


@case("distillers[0].head: DistillationHead takes no 'nme'. Did you mean 'name'…")
def key_that_no_head_takes(run: Setting) -> None:
    run.distiller['head']['nme'] = 'x'


@case("distillers[0]: there is no key 'students_module'. Did you mean 'student_module'…")
def key_that_no_distiller_takes(run: Setting) -> None:
    run.distiller['students_module'] = 'neck.p3'


@case("distillers[0].schedule: Schedule takes no 'warm_up'. Did you mean 'warmup'…")
def key_that_no_schedule_takes(run: Setting) -> None:
    run.distiller['schedule'] = dict(warm_up=100)


@case("teacher: there is no key 'ckpt'. It has: checkpoint, …")
def key_that_no_teacher_takes(run: Setting) -> None:
    run.model['teacher']['ckpt'] = 'teacher.pth'


@case("model: DistillDetector takes no 'studnet'. Did you mean 'student'…")
def key_that_the_model_does_not_take(run: Setting) -> None:
    run.model['studnet'] = run.model.pop('student')


@case("model.type: densekd has no 'DistillDetecter'. Did you mean 'DistillDetector'…")
def unknown_model(run: Setting) -> None:
    run.model['type'] = 'densekd.DistillDetecter'


@case(
    "distillers[0].head: there is no distillation head 'PKDDistilationHead'. Did you mean "
    "'PKDDistillationHead'…"
)
def unknown_head(run: Setting) -> None:
    run.distiller['head'] = dict(type='PKDDistilationHead')


@case(
    "distillers[0].head: DistillationHead.loss: there is no loss 'PDKLoss'. Did you mean 'PKDLoss'…"
)
def unknown_loss(run: Setting) -> None:
    run.distiller['head']['loss'] = dict(type='PDKLoss')


@case(
    "distillers[0].head: 'PKDLoss' is a loss, and a distiller needs a head around it. Write "
    "head=dict(type='DistillationHead', loss=dict(type='PKDLoss'))."
)
def loss_without_a_head(run: Setting) -> None:
    run.distiller['head'] = dict(type='PKDLoss')


@case(
    "student: mmdet can't build RetinaNet: FPN.__init__() got an unexpected keyword argument "
    "'out_chanels'"
)
def student_that_its_toolbox_refuses(run: Setting) -> None:
    run.model['student']['neck']['out_chanels'] = 16


@case(
    "teacher.model: mmdet can't build RetinaNett: there is no model 'RetinaNett'. Did you "
    "mean 'RetinaNet'…"
)
def teacher_of_unknown_type(run: Setting) -> None:
    run.model['teacher']['model']['type'] = 'RetinaNett'


@case("distillers: the name 'x' is used twice; give each head a name of its own.")
def two_distillers_of_one_name(run: Setting) -> None:
    run.model['distillers'] = [hint('neck.p3', name='x'), hint('neck.p4', name='x')]


@case(
    'distillers: the name \'my_loss\' holds the word "loss", by which the runner picks what it '
    'sums; the log puts "distill.loss_" before every name by itself.'
)
def name_with_loss_in_it(run: Setting) -> None:
    run.distiller['head']['name'] = 'my_loss'


@case('distillers: there are none. Give a list, or preset=… (…).')
def no_distillers(run: Setting) -> None:
    run.model['distillers'] = []


@case("preset: there is no preset 'pdk'. Did you mean 'pkd'…")
def unknown_preset(run: Setting) -> None:
    run.model.pop('distillers')
    run.model['preset'] = 'pdk'


@case(
    "preset 'kd_qfl': it needs a tap head.cls_logits that both models have and that is not "
    'frozen in the student. They have: backbone.c2…'
)
def preset_that_does_not_fit(run: Setting) -> None:
    run.model.update(student=faster_rcnn(4, 16, 10), preset='kd_qfl')
    run.model['teacher'] = dict(model=faster_rcnn(4, 16, 10), untrained=True)
    run.model.pop('distillers')


@case("preset 'fgfi': there is no at='backbone'. It has: neck.")
def preset_at_another_level(run: Setting) -> None:
    run.model.pop('distillers')
    run.model.update(preset='fgfi', at='backbone')


@case('preset and distillers: give one of them, not both.')
def preset_and_distillers(run: Setting) -> None:
    run.model['preset'] = 'pkd'


@case("scale_student_loss: the student has no term 'loss_clss'. Did you mean 'loss_cls'…")
def factor_on_a_term_that_the_student_lacks(run: Setting) -> None:
    run.model['scale_student_loss'] = dict(loss_clss=0.5)


@case(
    'scale_student_loss: numbers by the names of terms are needed, such as dict(loss_cls=0.5), '
    "not {'loss_cls': 'half'}."
)
def factor_that_is_no_number(run: Setting) -> None:
    run.model['scale_student_loss'] = dict(loss_cls='half')


@case(
    'scale_student_loss: numbers by the names of terms are needed, such as dict(loss_cls=0.5), '
    'not 0.5.'
)
def factor_without_a_term(run: Setting) -> None:
    run.model['scale_student_loss'] = 0.5


@case(
    "distillers[0].head: BoundedRegressionLoss: there is no boxes='dens'. Did you mean 'dense'? It "
    'has: dense, roi, rpn.'
)
def boxes_of_an_unknown_head(run: Setting) -> None:
    run.model['distillers'] = [bounded('head.bbox_deltas', 'dens')]


@case(
    "distiller 'head_bounded_roi': BoundedRegressionLoss needs rois (…), which DistillDetector "
    "can't supply for this student. It supplies: …"
)
def boxes_that_the_student_lacks(run: Setting) -> None:
    run.model['distillers'] = [bounded('head.bbox_deltas', 'roi')]


@case(
    'peers: DistillDetector trains one student beside frozen teachers; mutual learning and '
    'moving teachers are for the classifier path.'
)
def peers(run: Setting) -> None:
    run.model['peers'] = [retinanet(4, 16, 10)]


@case('HERE/config.py: there is no model in it.')
def config_without_a_model(run: Setting) -> None:
    run.cfg.pop('model')


# Teachers -----------------------------------------------------------------------------------------


@case(
    'teacher: no checkpoint is given, and an untrained teacher has nothing to teach. Give '
    'teacher.checkpoint=…, or teacher.untrained=True if that is meant.'
)
def teacher_without_a_checkpoint(run: Setting) -> None:
    run.model['teacher'].pop('checkpoint')


@case('teacher: there is none. Give teacher=dict(model=…, checkpoint=…).')
def no_teacher(run: Setting) -> None:
    run.model.pop('teacher')


@case("teacher[0]: with several teachers each needs a 'name'.")
def teachers_without_names(run: Setting) -> None:
    run.model['teacher'] = [run.model['teacher'], dict(run.model['teacher'])]


@case("distillers[0]: there are several teachers (a, b), so 'teacher' must say which.")
def several_teachers_and_none_said(run: Setting) -> None:
    teacher = run.model['teacher']
    run.model['teacher'] = [dict(teacher, name='a'), dict(teacher, name='b')]


@case('HERE/techer.pth: there is no such checkpoint. The folder HERE holds no .pth file.')
def missing_checkpoint(run: Setting) -> None:
    run.model['teacher']['checkpoint'] = str(run.folder / 'techer.pth')


@case(
    'teacher.pth: it could not be fetched (127.0.0.1:9: …). Get the file another way and '
    'give its path, or put it into a folder named in $DENSEKD_CHECKPOINTS.'
)
def checkpoint_that_no_host_has(run: Setting) -> None:
    run.model['teacher']['checkpoint'] = 'http://127.0.0.1:9/teacher.pth'


@case(
    "HERE/other.pth: the file can't be read as a checkpoint; it is truncated or of another kind (…"
)
def truncated_checkpoint(run: Setting) -> None:
    whole = Path(run.model['teacher']['checkpoint']).read_bytes()
    run.teacher_file(whole[: len(whole) // 2])


@case(
    'HERE/other.pth: the teacher RetinaNet needs 144 weights, but the file lacks 124 of '
    'them, such as backbone.conv1.weight, and it has 2 others, such as weight. It is of '
    "another model: check the teacher's config against its checkpoint."
)
def checkpoint_of_another_model(run: Setting) -> None:
    run.teacher_file({'state_dict': torch.nn.Conv2d(3, 8, 3).state_dict()})


@case(
    'HERE/other.pth: the teacher RetinaNet needs 144 weights, but the file lacks … of them, such '
    'as bbox_head.…, and it has … others, such as … It is of another model: check the '
    "teacher's config against its checkpoint."
)
def checkpoint_of_another_architecture(run: Setting) -> None:
    two_stage = build_network(faster_rcnn(8, 24, 10), 'mmdet', 'other')
    run.teacher_file({'state_dict': two_stage.state_dict()})


@case(
    'HERE/other.pth: backbone.conv1.weight is (4, 3, 7, 7) in the file and (8, 3, 7, 7) in '
    'the model (and 121 more). The teacher config and its checkpoint differ, perhaps in the '
    'number of classes or in the width.'
)
def checkpoint_of_another_width(run: Setting) -> None:
    run.teacher_file({'state_dict': network(4, 16).state_dict()})


@case(
    'HERE/other.pth: the teacher RetinaNet needs 144 weights, but the file lacks 1 of them, '
    "such as bbox_head.retina_reg.weight. It is of another model: check the teacher's config "
    'against its checkpoint.'
)
def checkpoint_that_lacks_a_weight(run: Setting) -> None:
    weights = network(8, 24).state_dict()
    weights.pop('bbox_head.retina_reg.weight')
    run.teacher_file({'state_dict': weights})


@case('HERE/other.pth: the file holds no weights (no state_dict).')
def checkpoint_without_weights(run: Setting) -> None:
    run.teacher_file({'epoch': 3})


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f'touch {self.path}',)


@case(
    'HERE/other.pth: the file carries code (…system), which reading it would run. If you '
    'trust whoever made it, pass --trust-checkpoint.'
)
def checkpoint_that_carries_code(run: Setting) -> None:
    weights = network(8, 24).state_dict()
    run.teacher_file({'state_dict': weights, 'meta': Code(run.folder / 'was_run')})


@case("teacher 'teacher': its weights are not all finite numbers.")
def checkpoint_of_nan(run: Setting) -> None:
    weights = {k: v * float('nan') for k, v in network(8, 24).state_dict().items()}
    run.teacher_file({'state_dict': weights})


@case(
    "model.student.backbone.init_cfg: the student's initial weights can't be had: "
    'torchvision://resnet18: resnet18-f37072fd.pth: it could not be fetched '
    '(download.pytorch.org: …). Get the file another way and give its path, or put it into a '
    'folder named in $DENSEKD_CHECKPOINTS. To start from random weights instead: '
    '--cfg-options model.student.backbone.init_cfg=None'
)
def initial_weights_that_are_missing(run: Setting) -> None:
    weights = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    run.model['student']['backbone']['init_cfg'] = weights


@case(
    "model.student.backbone.init_cfg: the student's initial weights can't be had: "
    'torchvision://resnet_18: torchvision has no weights of that name. Did you mean '
    "'resnet18'…To start from random weights instead: --cfg-options "
    'model.student.backbone.init_cfg=None'
)
def initial_weights_of_an_unknown_name(run: Setting) -> None:
    weights = dict(type='Pretrained', checkpoint='torchvision://resnet_18')
    run.model['student']['backbone']['init_cfg'] = weights


# Shapes -------------------------------------------------------------------------------------------


@case(
    "distiller 'neck_pkd_p3': pkd_loss: the student has 16 channels and the teacher 24, in "
    '(2, 16, 8, 8) and (2, 24, 8, 8). Give the head stu_connector=dict(type="ConvConnector").'
)
def unlike_channels(run: Setting) -> None:
    run.distiller['head'] = dict(type='DistillationHead', loss=dict(type='PKDLoss'))


@case(
    "ConvConnector: in_channel=7 was given, but tap 'neck.p3' has 16 channels. Leave "
    'in_channel out and it is taken from the tap.'
)
def connector_of_other_channels(run: Setting) -> None:
    run.distiller['head']['stu_connector'] = dict(type='ConvConnector', in_channel=7)


@case(
    "distillers[0]: the student's 'neck.p3' has stride 8 and the teacher's 'neck.p5' stride "
    '32; FitNetLoss compares cell by cell. Pair places of equal stride.'
)
def unlike_strides(run: Setting) -> None:
    run.distiller.update(student_module='neck.p3', teacher_module='neck.p5')


@case(
    "distillers[0]: the student gives 2 tensors at 'neck.p3' and the teacher 1 at 'neck.p3'. "
    'Tap the same levels on both sides, by name.'
)
def unlike_numbers_of_levels(run: Setting) -> None:
    run.distiller.update(student_module=['neck.p3', 'neck.p4'], teacher_module=['neck.p3'])


@case(
    "OFDLoss: tap 'backbone.c4' comes out of a ReLU, where nothing is negative and the "
    'margins never act. Tap the place before it, such as "backbone.c4.pre_relu".'
)
def margins_after_a_relu(run: Setting) -> None:
    run.model['distillers'] = [
        dict(student_module='backbone.c4', head=dict(type='OFDDistillationHead'))
    ]


# Data ---------------------------------------------------------------------------------------------


@case('train_dataloader: HERE/instances.json is no COCO file: it is not JSON (…).')
def annotations_that_are_no_json(run: Setting) -> None:
    run.own_annotations('<xml/>')


@case(
    'train_dataloader: HERE/instances.json is no COCO file: it has no list of annotations. '
    'It has: images, labels.'
)
def annotations_that_are_no_coco(run: Setting) -> None:
    run.own_annotations({'images': [], 'labels': []})


@case(
    'train_dataloader: HERE/instances.json has … objects, but each is a crowd, has no area, lies '
    'outside its image or is of a class that is not listed, so that there is nothing to learn.'
)
def data_of_crowds(run: Setting) -> None:
    content = run.annotations()
    for entry in content['annotations']:
        entry['iscrowd'] = 1
    run.own_annotations(content)


@case(
    'train_dataloader: there is no annotation file data/VOCdevkit/VOC2007/ImageSets/Main/'
    'trainval.txt. There is no folder …'
)
def pascal_voc_that_is_not_there(run: Setting) -> None:
    dataset = load_config('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py').train_dataloader
    run.cfg['train_dataloader'] = plain(dataset)


@case(
    'train_dataloader: HERE/instances.json is no COCO instances file: an entry of '
    "annotations lacks 'bbox'."
)
def annotations_without_boxes(run: Setting) -> None:
    content = run.annotations()
    for entry in content['annotations']:
        entry.pop('bbox')
    run.own_annotations(content)


@case('train_dataloader: HERE/instances.json is no COCO file: it holds a list, not an object.')
def annotations_of_a_list(run: Setting) -> None:
    run.own_annotations([])


@case(
    'train_dataloader: there is no annotation file '
    "DATA/digits/annotations/instances_trian.json. Did you mean 'instances_train.json'…"
)
def missing_annotation_file(run: Setting) -> None:
    run.data['ann_file'] = 'annotations/instances_trian.json'


@case(
    'train_dataloader: the image 000000.png of DATA/digits/annotations/instances_train.json '
    'is not in DATA/digits/trian.'
)
def missing_image_folder(run: Setting) -> None:
    run.data['data_prefix'] = dict(img='trian/')


@case(
    "train_dataloader: DATA/digits/annotations/instances_train.json has no category 'cat', "
    'which the config lists among its classes. It has: eight, five, four, nine, one, seven, '
    'six, three, two, zero.'
)
def other_classes(run: Setting) -> None:
    run.data['metainfo'] = dict(classes=('cat', 'dog'))


@case('train_dataloader: HERE/instances.json has no images.')
def empty_data(run: Setting) -> None:
    run.own_annotations({**run.annotations(), 'images': [], 'annotations': []})


@case('train_dataloader: HERE/instances.json has no objects, so that there is nothing to learn.')
def data_without_objects(run: Setting) -> None:
    run.own_annotations({**run.annotations(), 'annotations': []})


@case("train_dataloader.dataset: there is no dataset 'CocoDatasett'. Did you mean 'CocoDataset'…")
def unknown_dataset(run: Setting) -> None:
    run.data['type'] = 'CocoDatasett'


@case(
    "train_dataloader.dataset.pipeline[2]: there is no transform 'Resise'. Did you mean 'Resize'…"
)
def unknown_transform(run: Setting) -> None:
    run.data['pipeline'][2] = dict(type='Resise', scale=(64, 64))


@case("train_dataloader.dataset.pipeline[2]: Resize takes no 'scales'. Did you mean 'scale'…")
def transform_with_another_key(run: Setting) -> None:
    run.data['pipeline'][2] = dict(type='Resize', scales=(64, 64))


# Stages -------------------------------------------------------------------------------------------


@case("stages[0]: there is no key 'trainable'. Did you mean 'train'…")
def stage_with_an_unknown_key(run: Setting) -> None:
    run.cfg['stages'] = [dict(name='first', trainable=['backbone.*'])]


@case("stages[0]: a stage needs a 'name', which names its folder as well.")
def stage_without_a_name(run: Setting) -> None:
    run.cfg['stages'] = [dict(train=['backbone.*'])]


@case("stages[1]: the name 'first' is used twice.")
def stages_of_one_name(run: Setting) -> None:
    run.cfg['stages'] = [dict(name='first'), dict(name='first')]


@case("stage 'first': train: 'bakbone.*' matches nothing. Did you mean 'backbone'…")
def stage_that_trains_nothing(run: Setting) -> None:
    run.cfg['stages'] = [dict(name='first', train=['bakbone.*'])]


@case("stage 'first': hand_over: 'bakbone.*' matches nothing. Did you mean 'backbone'…")
def stage_that_hands_over_nothing(run: Setting) -> None:
    run.cfg['stages'] = [dict(name='first', hand_over=['bakbone.*']), dict(name='second')]


@case("stage 'second': preset: there is no preset 'pdk'. Did you mean 'pkd'…")
def second_stage_that_is_wrong(run: Setting) -> None:
    run.cfg['stages'] = [dict(name='first'), dict(name='second', preset='pdk')]


# The run ------------------------------------------------------------------------------------------


@case(
    'HERE/work: the folder holds another run (epoch_3.pth). Give another --work-dir, or '
    '--resume to go on with that one.'
)
def work_dir_of_another_run(run: Setting) -> None:
    (run.folder / 'work').mkdir()
    (run.folder / 'work' / 'epoch_3.pth').write_bytes(b'of another run')


@case('HERE/work: the work_dir is a file. Give another --work-dir.')
def work_dir_that_is_a_file(run: Setting) -> None:
    (run.folder / 'work').write_text('notes')


@case("optim_wrapper.optimizer: there is no optimizer 'AdamWW'. Did you mean 'AdamW'…")
def unknown_optimizer(run: Setting) -> None:
    run.cfg['optim_wrapper']['optimizer']['type'] = 'AdamWW'


NO_OPTIMIZER = (
    "optim_wrapper.optimizer: a dict such as dict(type='AdamW', lr=0.001) is needed, not "
)


@case(f'{NO_OPTIMIZER}1.')
def optimizer_that_is_a_number(run: Setting) -> None:
    run.argv += ['--cfg-options', 'optim_wrapper.optimizer=1']


@case(f"{NO_OPTIMIZER}'AdamW'.")
def optimizer_that_is_a_name(run: Setting) -> None:
    run.cfg['optim_wrapper']['optimizer'] = 'AdamW'


@case(f"{NO_OPTIMIZER}'AdamW'.")
def optimizer_that_is_a_name_without_the_proof(run: Setting) -> None:
    run.cfg['optim_wrapper']['optimizer'] = 'AdamW'
    run.argv.append('--no-check')


@case(
    'optim_wrapper.optimizer: there is none, so that nothing would be trained. Give one, such as '
    "dict(type='AdamW', lr=0.001)."
)
def no_optimizer(run: Setting) -> None:
    run.cfg['optim_wrapper'].pop('optimizer')


@case(NO_OPTIMIZER.replace('0.001)', '0.001), or a list of such,') + '1.')
def optimizer_that_is_a_number_beside_a_constructor(run: Setting) -> None:
    run.cfg['optim_wrapper'].update(constructor='DefaultOptimWrapperConstructor', optimizer=1)


@case(
    "optim_wrapper: a dict such as dict(type='OptimWrapper', optimizer=dict(type='AdamW', "
    "lr=0.001)) is needed, not 'AdamW'."
)
def optim_wrapper_that_is_a_name(run: Setting) -> None:
    run.cfg['optim_wrapper'] = 'AdamW'


@case(
    'optim_wrapper: there is none, so that nothing would be trained. Give one, such as '
    "dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.001))."
)
def no_optim_wrapper(run: Setting) -> None:
    run.argv += ['--cfg-options', 'optim_wrapper=None', '--no-check']


@case(
    "param_scheduler: a dict such as dict(type='MultiStepLR', milestones=[8, 11]), or a list of "
    'such, is needed, not 0.1.'
)
def scheduler_that_is_a_number(run: Setting) -> None:
    run.cfg['param_scheduler'] = 0.1


@case(
    "param_scheduler[1]: a dict such as dict(type='MultiStepLR', milestones=[8, 11]) is needed, "
    "not 'MultiStepLR'."
)
def scheduler_that_is_a_name(run: Setting) -> None:
    run.cfg['param_scheduler'].append('MultiStepLR')


@case("train_cfg: EpochBasedTrainLoop takes no 'max_epoch'. Did you mean 'max_epochs'…")
def loop_with_another_key(run: Setting) -> None:
    run.cfg['train_cfg']['max_epoch'] = 2


@case("custom_hooks[0]: there is no hook 'EMAHok'. Did you mean 'EMAHook'…")
def unknown_hook(run: Setting) -> None:
    run.cfg['custom_hooks'] = [dict(type='EMAHok')]


@case('train_dataloader: there is none, so that there is nothing to train on.')
def no_training_data(run: Setting) -> None:
    run.cfg.pop('train_dataloader')


@case(
    '--amp: automatic mixed precision needs a GPU in mmengine, and none is visible. Leave '
    'out --amp.'
)
def amp_without_a_gpu(run: Setting) -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    run.argv.append('--amp')


@case("--cfg-options: 'train_cfg.max_epochs' is no KEY=VALUE.")
def option_without_a_value(run: Setting) -> None:
    run.argv += ['--cfg-options', 'train_cfg.max_epochs']


@case(
    "--cfg-options: max_epochs={'x': 2} in child config cannot inherit from base because "
    "max_epochs is a dict in the child config but is of type <class 'int'> in base config. "
    'You may set `_delete_=True` to ignore the base config.'
)
def option_inside_a_number(run: Setting) -> None:
    run.argv += ['--cfg-options', 'train_cfg.max_epochs.x=2']


@pytest.fixture(scope='module')
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a teacher that all cases share."""
    root = tmp_path_factory.mktemp('workplace')
    make_workplace(root)
    return root


@pytest.fixture
def run(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A run that would succeed, in a folder of its own, without a network."""
    monkeypatch.setenv('DENSEKD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('DENSEKD_CHECKPOINTS', raising=False)
    # Nothing is fetched: the address that requests are sent to answers none.
    for name in ('http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    return Setting(tiny_config(workplace), tmp_path, [])


@pytest.mark.parametrize('name', CASES)
def test_a_sentence_before_the_first_step(name: str, run: Setting, workplace: Path) -> None:
    """The command ends with 1, one sentence, and files as they were."""
    broken, sentence = CASES[name]
    broken(run)
    config = write_config(run.cfg, run.folder / 'config.py')
    before = Snapshot([run.folder, workplace])
    answer = command('train', config, '--work-dir', run.folder / 'work', *run.argv)
    said = answer.err.replace(str(run.folder), 'HERE').replace(str(workplace), 'DATA')
    assert before.changes() == []
    assert answer.code == 1
    assert answer.err.count('\n') == 1 and 'Traceback' not in answer.err, answer.err
    pattern = '.*'.join(re.escape(part) for part in f'densekd train: {sentence}\n'.split('…'))
    assert re.fullmatch(pattern, said), said


@pytest.mark.parametrize(
    'name',
    [
        'misspelt_tap',
        'unlike_channels',
        'unknown_transform',
        'factor_on_a_term_that_the_student_lacks',
        'factor_that_is_no_number',
        'boxes_of_an_unknown_head',
        'boxes_that_the_student_lacks',
        'optimizer_that_is_a_name',
        'scheduler_that_is_a_number',
    ],
)
def test_check_says_the_same(name: str, run: Setting) -> None:
    """The wiring is refused without data or training too."""
    broken, sentence = CASES[name]
    broken(run)
    config = write_config(run.cfg, run.folder / 'config.py')
    before = Snapshot([run.folder])
    answer = command('check', config)
    pattern = '.*'.join(re.escape(part) for part in f'densekd check: {sentence}\n'.split('…'))
    assert answer.code == 1 and re.fullmatch(pattern, answer.err), answer.err
    assert before.changes() == []


def test_code_in_a_checkpoint_is_not_run(run: Setting) -> None:
    """The file would touch another one if it were read as pickles are; with trust it does."""
    checkpoint_that_carries_code(run)
    config = write_config(run.cfg, run.folder / 'config.py')
    assert command('check', config).code == 1
    assert not (run.folder / 'was_run').exists()
    command('check', config, '--trust-checkpoint')
    assert (run.folder / 'was_run').exists()
