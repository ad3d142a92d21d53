"""What an epoch costs: our methods, other tools, and the bound, in one run."""

from disk_kd.bench.run import bench
from disk_kd.bench.settings import BenchSettings

__all__ = ["BenchSettings", "bench"]
