"""The two toy problems of the paper's poster: small enough that every minimum of a loss can be found."""

from disk_kd.toy.run import PROBLEMS, run_toy

__all__ = ["PROBLEMS", "run_toy"]
