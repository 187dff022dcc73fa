"""CWD on Cityscapes: DeepLabV3+ R-18 learns from a transformer, SegFormer MiT-B2.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/cwd/segmentation/deeplabv3plus/cwd_deeplabv3plus_r18_80k_cityscapes_teacher_segformer_b2_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 81.08).
          Not yet run by us.

Both decoders give logits at stride 4, compared with the authors' weight 3 and temperature 4. Of the
backbones, the student's last stage (stride 8, 512 channels) learns from the teacher's third (stride
16, 320 channels): a 1x1 convolution takes it to as many channels, and the larger map is averaged
down. The teacher's own last stage has stride 32, too far for a comparison cell by cell. Weight 10
and temperature 1 are those of public ports for features of detectors; here they are a start.

Where a module in the midst of a transformer hands out tokens, dict(path=..., tokens=True) reads
them as a map: with path='backbone.layers.2.1.5', the teacher's third stage before its last norm.
"""

_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/'
    'segformer_mit-b2_8x1_1024x1024_160k_cityscapes/'
    'segformer_mit-b2_8x1_1024x1024_160k_cityscapes_20211207_134205-6096669a.pth'
)
model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model='mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
        checkpoint=teacher_checkpoint,
    ),
    distillers=[
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='CWDDistillationHead',
                loss=dict(type='CWDLoss', loss_weight=3.0, tau=4.0),
                name='cwd',
            ),
        ),
        dict(
            student_module='backbone.c5',
            teacher_module='backbone.c4',
            head=dict(
                type='CWDDistillationHead',
                loss=dict(type='CWDLoss', loss_weight=10.0, tau=1.0),
                stu_connector=dict(type='ConvConnector', bias=False),
                align='pool_larger',
                name='cwd_c5',
            ),
        ),
    ],
)
