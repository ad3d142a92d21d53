"""The report of runs, and the ranking of training examples by help or by doubt about their labels."""

from disk_kd.report.inspection import RANKINGS, Inspection, inspect_run
from disk_kd.report.listing import Found, csv_text, faults_table, found_faults
from disk_kd.report.outputs import Outputs
from disk_kd.report.page import REPORT, report, report_comparison
from disk_kd.report.reading import Run, find_runs

__all__ = [
    "RANKINGS",
    "REPORT",
    "Found",
    "Inspection",
    "Outputs",
    "Run",
    "csv_text",
    "faults_table",
    "find_runs",
    "found_faults",
    "inspect_run",
    "report",
    "report_comparison",
]
