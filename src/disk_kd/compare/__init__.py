"""Several recipes, or the rows of an experiment, over several seeds, side by side."""

from __future__ import annotations

from disk_kd.compare.experiment import Experiment, Row, of_recipes, read_experiment
from disk_kd.compare.plan import Cell, cell_config, plan_waves
from disk_kd.compare.run import compare

__all__ = ["Cell", "Experiment", "Row", "cell_config", "compare", "of_recipes", "plan_waves", "read_experiment"]
