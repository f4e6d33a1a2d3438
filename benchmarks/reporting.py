"""How long a large study takes to load and report: under 30 s for 1,000 trials on 2 cores.

python -m benchmarks.reporting [--trials 1000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from simulated_study import (  # pyright: ignore[reportMissingImports]
    VARIANTS,
    SimulatedStudy,
    write_simulated_study,
)

from analysis.report import Analysis

BUDGETS_MINUTES = (5.0, 10.0, 20.0, 40.0, 80.0)


def main() -> None:
    """Write a study of this size, then time its loading and its report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reporting")
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    seeds = max(1, round(options.trials / len(VARIANTS) / len(BUDGETS_MINUTES)))
    study = SimulatedStudy(budgets_minutes=BUDGETS_MINUTES, seeds=range(seeds), recordings=54,
                           predictions=False)  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_simulated_study(Path(scratch) / "study", study)
        start, cpu_start = time.perf_counter(), time.process_time()
        analysis = Analysis.of([folder], None)
        loaded = time.perf_counter()
        analysis.write(Path(scratch) / "report")
        done, cpu_done = time.perf_counter(), time.process_time()
    print(f"{len(analysis.results.trials)} trials of {study.recordings} recordings")
    print(f"load and compare {loaded - start:.1f} s, report {done - loaded:.1f} s, "
          f"together {done - start:.1f} s (processor {cpu_done - cpu_start:.1f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
