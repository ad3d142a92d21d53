"""Training on several ranks: synchronised batch norms, and `DistributedDataParallel` around the trained modules."""

from __future__ import annotations

from timm.layers import convert_sync_batchnorm

from disk_kd.errors import ConfigError
from disk_kd.tasks import StudentTask
from disk_kd.training.settings import TrainSettings


def prepare_ranks(task: StudentTask, settings: TrainSettings) -> None:
    """Prepare a task for training on several ranks.

    Args:
        task: on the rank's own device, equal on all ranks.
        settings: states whether batch norms are synchronised.

    Raises:
        ConfigError: the method does not support several ranks, or the device does not support synchronised batch norms.
    """
    if task.needs_ids:
        raise ConfigError(
            "the method keeps a memory of every sample, which ranks do not share; start it without torchrun"
        )
    on_gpu = task.device.type == "cuda"
    if settings.sync_batchnorm:
        if not on_gpu:
            raise ConfigError(
                "train.sync_batchnorm needs GPUs, on a CPU torch has none; give --train.sync_batchnorm false"
            )
        task.trainable_module = convert_sync_batchnorm(task.trainable_module)
    task.prepare_distributed([task.device.index] if on_gpu else None)
