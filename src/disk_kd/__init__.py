"""disk-kd: knowledge distillation for image classifiers, with DiSK at its heart.

    task = DiSKTask(student, teacher)
    for x, y in loader:
        task(x, y)["loss"].backward(); optimizer.step(); optimizer.zero_grad()

Importing the package registers its models with timm under `cifar_*`.
"""

from importlib.metadata import version

from disk_kd import helpers, losses, models
from disk_kd.tasks import CETask, Cosine, DiSKTask, KDTask
from disk_kd.teacher import Teacher

__version__ = version("disk-kd")

__all__ = ["CETask", "Cosine", "DiSKTask", "KDTask", "Teacher", "helpers", "losses", "models"]
