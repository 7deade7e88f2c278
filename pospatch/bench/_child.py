"""`python -m pospatch.bench._child CELL` prints the peak memory of one cell as JSON."""

from __future__ import annotations

import json
import sys

from pospatch.bench._cell import Cell
from pospatch.bench._memory import measure_here

if __name__ == "__main__":
    print(json.dumps({"bytes": measure_here(Cell.from_json(sys.argv[1]))}))
