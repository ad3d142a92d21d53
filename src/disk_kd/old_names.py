"""Option names of versions before 0.2, which called an epoch a pass. They are still read and translated."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


class OldNameWarning(UserWarning):
    """An option was given by its old name."""


_OPTIONS = {
    "passes": "epochs",
    "warmup_passes": "warmup_epochs",
    "cooldown_passes": "cooldown_epochs",
    "student_passes": "student_epochs",
    "helper_passes": "helper_epochs",
    "helper_warmup_passes": "helper_warmup_epochs",
}
"""Keywords of training settings, methods and hints."""
_KEYS = _OPTIONS | {
    "start_passes": "start_epochs",
    "all_passes": "all_epochs",
    "selected_pass": "selected_epoch",
    "best_pass": "best_epoch",
    "train_pass": "epoch",
    "best_top1": "best_score",
}
"""Keys of a run's summary, its log and its checkpoint."""
_PARTS = ("method", "hint", "train")


def new_options(tree: Mapping[str, Any], tell: bool = True) -> dict[str, Any]:
    """Options of a run with old names replaced by new ones.

    Args:
        tree: options by part, as in a recipe.
        tell: whether to warn about renamed options.
    """
    renamed = dict(tree)
    for part in _PARTS:
        found = tree.get(part)
        if isinstance(found, Mapping):
            old = [key for key in found if key in _OPTIONS and _OPTIONS[key] not in found]
            renamed[part] = {_OPTIONS[key] if key in old else key: value for key, value in found.items()}
            for key in old if tell else ():
                warnings.warn(
                    f"{part}.{key} is now called {part}.{_OPTIONS[key]}; the old name is still read",
                    OldNameWarning,
                    stacklevel=3,
                )
    return renamed


def new_keys(written: Mapping[str, Any]) -> dict[str, Any]:
    """A record that a run wrote, with old names replaced by new ones."""
    return {_KEYS.get(key, key): value for key, value in written.items()}
