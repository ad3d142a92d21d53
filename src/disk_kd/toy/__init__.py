"""The two toy problems of the DiSK paper's poster. They are so small that all minima of a loss can be found."""

from disk_kd.toy.run import PROBLEMS, run_toy

__all__ = ["PROBLEMS", "run_toy"]
