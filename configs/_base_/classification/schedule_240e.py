"""240 epochs on CIFAR: SGD, a tenth of the rate after 150, 180 and 210, for batches of 64."""

_base_ = ['./runtime.py']

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
)
max_epochs = 240
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[150, 180, 210], gamma=0.1)]
auto_scale_lr = dict(enable=False, base_batch_size=64)
