"""Linear probes: a backbone without a classifier becomes a teacher.

The backbone runs once over the labelled images, and its pooled features are stored. A multinomial logistic regression
on them becomes the classifier.
"""

from disk_kd.probe.fit import FittedProbe, fit_probe
from disk_kd.probe.run import PROBE, ProbeResult, probe
from disk_kd.probe.settings import ProbeSettings, read_probe

__all__ = ["PROBE", "FittedProbe", "ProbeResult", "ProbeSettings", "fit_probe", "probe", "read_probe"]
