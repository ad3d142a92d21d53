"""Student and helper network behind one forward pass. Shape letters: B batch, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from disk_kd.helpers import HelperNetwork
from disk_kd.hints import StudentAndHint, StudentWrapper
from disk_kd.teacher import forward_with_features


class StudentAndHelper(StudentWrapper):
    """The student, with its hint if there is one, and a helper network behind one forward pass.

    Data-parallel wrappers need a single module that holds everything that trains.

    Args:
        student: a plain model, or a `StudentAndHint`.
        helper: the network.
    """

    def __init__(self, student: nn.Module, helper: HelperNetwork) -> None:
        super().__init__()
        self.student = student
        self.helper = helper

    def forward(
        self, input: Tensor, target: Tensor, teacher: Mapping[str, Tensor], phase: str | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, C), g (B,), and the hint's weighted loss.

        The part that `phase` does not train has no gradients.
        """
        names = ("map",) if "student_map" in self.helper.needs else ()
        with torch.set_grad_enabled(torch.is_grad_enabled() and phase != "helper"):
            if isinstance(self.student, StudentAndHint) and phase != "helper":
                outputs = self.student(input, target, teacher, names)
            else:
                plain = self.student.student if isinstance(self.student, StudentAndHint) else self.student
                outputs = forward_with_features(plain, input, ("logits", *names))
        seen = {f"teacher_{name}": value for name, value in teacher.items()}
        seen |= {f"student_{name}": outputs[name] for name in names}
        with torch.set_grad_enabled(torch.is_grad_enabled() and phase != "student"):
            return outputs["logits"], self.helper(seen), outputs.get("hint_loss")
