"""Several recipes, or the rows of an experiment, over several seeds, side by side."""

from __future__ import annotations

from disk_kd.comparison.control import with_control
from disk_kd.comparison.demo import DEMO, demo_text
from disk_kd.comparison.experiment import Experiment, Row, of_recipes, read_experiment
from disk_kd.comparison.plan import Cell, Plan, waves
from disk_kd.comparison.run import Comparison, Reporter, check_comparison, compare

__all__ = [
    "DEMO",
    "Cell",
    "Comparison",
    "Experiment",
    "Plan",
    "Reporter",
    "Row",
    "check_comparison",
    "compare",
    "demo_text",
    "of_recipes",
    "read_experiment",
    "waves",
    "with_control",
]
