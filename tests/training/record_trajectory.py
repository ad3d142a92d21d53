"""Record the golden trajectory anew: make golden."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from test_loop import GOLDEN, GOLDEN_RUN, lines  # noqa: E402

from conftest import TINY  # noqa: E402
from disk_kd.cli import main  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    if main([GOLDEN_RUN[0], *TINY, *GOLDEN_RUN[1:], f"--output={run}"]):
        sys.exit(1)
    losses = [round(line["loss"], 6) for line in lines(run)]
GOLDEN.write_text(json.dumps({"note": "losses of 20 steps, float32, CPU", "loss": losses}, indent=1) + "\n")
