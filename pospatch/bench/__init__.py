"""What a method costs: time and memory against plain attention and against the reference form, at growing lengths.

    report = pospatch.bench.bench("gpt2", ["alibi"], works=["prefill", "decode"], lengths=[1024, 4096])
    report.save("bench")

Everything compared is run alternately in one process, and ratios are medians of pairs; memory is measured in a process
of its own for each cell.
"""

from pospatch.bench._cell import LEVELS, SHAPES, WORKS, Cell
from pospatch.bench._measure import bench
from pospatch.bench._report import Report

__all__ = ["LEVELS", "SHAPES", "WORKS", "Cell", "Report", "bench"]
