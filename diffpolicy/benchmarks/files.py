"""Output files of the benchmarks: NAME.json with everything, and NAME.csv with one line per row.

Each benchmark writes its own NAME.png. Repeated measurements are reported as a median with its range.
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpolicy.system.files import write_text


def write_rows(folder: Path, name: str, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `document` to FOLDER/NAME.json and `rows`, which all have the same keys, to FOLDER/NAME.csv."""
    write_text(folder / f"{name}.json", json.dumps(document, indent=2))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", table.getvalue())


def with_range(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median of the values as NAME, with NAME_lowest and NAME_highest."""
    return {name: statistics.median(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}
