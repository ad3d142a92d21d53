"""Does the help find the images about which the teacher misleads, or errs by itself? Areas under the ROC curve.

python results/misled/misled_help.py RUN, a run of misled-s.yaml's row `disk`; 10,000 training images, view 0.
Legend: B batch, C classes.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parent))
from hypotheses import mislead

from disk_kd.data import Loader
from disk_kd.devices import inference_batch, place
from disk_kd.helpers import exact_helper
from disk_kd.report import Outputs, Run
from disk_kd.support import log_probabilities
from disk_kd.trained import normalisation


@torch.no_grad()
def main(folder: Path, images: int = 10_000) -> None:
    """Print the areas."""
    run, outputs = Run.read(folder), Outputs()
    data, options = run.config.data, run.config.method_options
    student = outputs.student(run)
    teacher = outputs.teacher(run.config, student)
    split = place(outputs.dataset(run.config).train.subset(torch.arange(images)), outputs.device)
    mean, std = normalisation(student)
    loader = Loader(
        split,
        batch_size=inference_batch(outputs.device),
        mean=mean,
        std=std,
        augment=data.augment,
        augment_seed=data.view_seed,
        views=data.views,
        shuffle=False,
        drop_last=False,
        device=outputs.device,
    )
    temperature = options["teacher_temperature"]
    columns = []
    for batch in loader.batches(0):
        s_BC, right = student(batch.images), {**teacher(batch.images), "ids": batch.ids}
        t_BC = mislead(right, options["misled"])["logits"]
        log_s_BC, log_t_BC = log_probabilities(s_BC, temperature), log_probabilities(t_BC, temperature)
        g_B = exact_helper(
            s_BC,
            t_BC,
            batch.targets,
            top_k=options["top_k"],
            price=0.0,
            max_ce=5.0,
            student_temperature=temperature,
            teacher_temperature=temperature,
        )
        misled_B = (t_BC != right["logits"]).any(1).float()
        divergence_B = (log_t_BC.exp() * (log_t_BC - log_s_BC)).sum(1)
        teacher_loss_B = F.cross_entropy(t_BC, batch.targets, reduction="none")
        wrong_B = (right["logits"].argmax(1) != batch.targets).float()
        columns.append(torch.stack([misled_B, wrong_B, g_B, divergence_B, teacher_loss_B]))
    misled, wrong, *scores = torch.cat(columns, dim=1)
    sincere = misled == 0
    print(
        f"misled: {misled.mean():.3f} of {len(misled)} images; wrong by itself: {wrong[sincere].mean():.3f} of the rest"
    )
    print(
        f"g: misled {scores[0][~sincere].mean():.3f}, wrong by itself {scores[0][sincere & (wrong == 1)].mean():.4f}, ",
        end="",
    )
    print(f"right {scores[0][sincere & (wrong == 0)].mean():.4f}")
    for name, score in zip(("g", "divergence of the student", "teacher's loss on the label"), scores, strict=True):
        areas = roc_auc_score(misled, score), roc_auc_score(wrong[sincere], score[sincere])
        print(f"{name}: misled {areas[0]:.3f}, wrong by itself {areas[1]:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
