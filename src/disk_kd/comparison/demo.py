"""What the demo compares, and what it says before it begins."""

from __future__ import annotations

from disk_kd import ranks

DEMO = {
    "ce": "cross-entropy on the labels alone, the baseline",
    "fitnet": "the labels, and the teacher's features",
    "kd": "the teacher's softened probabilities (nine tenths), the labels (one tenth)",
    "disk-constant": "DiSK with the same help for every image, the control",
    "disk": "DiSK: as kd, with help for the images that the student cannot follow",
}
"""The recipes of digits-demo, and what their students learn from."""


def demo_text(seeds: int, jobs: int) -> str:
    """What the demo will do, and how long it takes."""
    runs = len(DEMO) * seeds + 1
    methods = "\n".join(f"  {name:<14} {what}" for name, what in DEMO.items())
    return f"""Handwritten digits, 8x8 pixels, from scikit-learn: nothing is downloaded.
A teacher learns 1,006 of them with their right labels. Small students get 100, of which 30 have a wrong label,
and the same 100 epochs, by five methods:
{methods}
{seeds} seeds each, {runs} runs, {jobs} at a time: about {_minutes(runs, jobs)}.
Finished runs are reused. At the end: a table, and a report to open in a browser.
"""


def _minutes(runs: int, jobs: int) -> str:
    """How long that is, from 2.2 core seconds a run and 30 seconds for the start and the report."""
    minutes = -(-(30 + 2.2 * runs / min(jobs, ranks.cores())) // 60)
    return f"{minutes:.0f} minute{'s' if minutes > 1 else ''}"
