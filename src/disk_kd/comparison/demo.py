"""The recipes of the demo, and the text that it prints first."""

from __future__ import annotations

from disk_kd import ranks

DEMO = {
    "ce": "cross-entropy on the labels alone, the baseline",
    "fitnet": "the labels, and the teacher's features",
    "kd": "the teacher's softened probabilities (nine tenths), the labels (one tenth)",
    "disk-constant": "DiSK with the same help for every image, the control",
    "disk": "DiSK: as kd, with help for the images that the student cannot follow",
}
"""The recipes of digits-demo, with what their students learn from."""


def demo_text(seeds: int, jobs: int) -> str:
    """The text that says what the demo does and how long it takes."""
    runs = len(DEMO) * seeds + 1
    methods = "\n".join(f"  {name:<14} {what}" for name, what in DEMO.items())
    return f"""Data: handwritten digits, 8x8 pixels, from scikit-learn. Nothing is downloaded.
A teacher learns from 1,006 images with correct labels. Small students learn from 100 images, of which 30 have a
wrong label, for 100 epochs each, with five methods:
{methods}
{seeds} seeds each, {runs} runs, {jobs} at a time: about {_minutes(runs, jobs)}.
Finished runs are reused. At the end: a table, and a report to open in a browser.
"""


def _minutes(runs: int, jobs: int) -> str:
    """The estimated time, from 2.2 core seconds per run and 30 seconds for the start and the report."""
    minutes = -(-(30 + 2.2 * runs / min(jobs, ranks.cores())) // 60)
    return f"{minutes:.0f} minute{'s' if minutes > 1 else ''}"
