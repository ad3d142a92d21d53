"""The network is reached only where the user allows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MODULES = ("huggingface_hub.constants", "datasets.config")
"""Modules of Hugging Face's libraries. Their HF_HUB_OFFLINE is read before each request."""


@contextmanager
def network(*, allowed: bool) -> Iterator[None]:
    """Inside the block, Hugging Face's libraries read only their cache and local files, unless the network is allowed.

    With the network allowed, the environment's HF_HUB_OFFLINE decides.

    Args:
        allowed: whether the user asked for downloads.
    """
    modules = [] if allowed else [vars(sys.modules[name]) for name in _MODULES if name in sys.modules]
    before = [module["HF_HUB_OFFLINE"] for module in modules]
    for module in modules:
        module["HF_HUB_OFFLINE"] = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module["HF_HUB_OFFLINE"] = value
