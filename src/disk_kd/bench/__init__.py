"""The benchmark of an epoch's cost: our methods, other tools, and a lower bound, in one run."""

from disk_kd.bench.run import bench
from disk_kd.bench.settings import BenchSettings

__all__ = ["BenchSettings", "bench"]
