"""What every benchmark leaves behind: NAME.json with everything, NAME.csv with a line per row; the .png is its own."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpolicy.files import write_text


def write_rows(folder: Path, name: str, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """`document` as FOLDER/NAME.json; `rows`, which have the same keys, as FOLDER/NAME.csv."""
    write_text(folder / f"{name}.json", json.dumps(document, indent=2))
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
