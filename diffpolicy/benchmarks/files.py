"""What every benchmark leaves behind: NAME.json with everything, NAME.csv with a line per row; the .png is its own.

And how what was measured in turns is told: as a median with its range.
"""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpolicy.system.files import write_text


def write_rows(folder: Path, name: str, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """`document` as FOLDER/NAME.json; `rows`, which have the same keys, as FOLDER/NAME.csv."""
    write_text(folder / f"{name}.json", json.dumps(document, indent=2))
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def with_range(name: str, values: Sequence[float]) -> dict[str, float]:
    """Their median as `name`, with NAME_lowest and NAME_highest."""
    return {name: statistics.median(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}
