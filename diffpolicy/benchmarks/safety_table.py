"""The rows of the safety benchmark as a table and as a figure."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLUMNS = {
    "method": "{method}",
    "score": "{score:.3f}",
    "safe success": "{safe_success:.1%} [{safe_success_low:.1%}, {safe_success_high:.1%}]",
    "success without contact": "{clear_success:.1%}",
    "contact sub-steps": "{violations} of {substeps}",
    "over limits": "{over_limits}",
    "at rest": "{at_rest}",
    "episodes with contact": "{violating_episodes} (<= {violating_episodes_at_most:.2%})",
    "deepest, px": "{deepest:.1f}",
    "certified": "{certified_rate:.1%}",
    "fallback": "{fallback_rate:.1%}",
    "first side": "{first_side:.0%} / {first_side_safe:.0%}",
    "entropy, bits": "{mode_entropy:.2f} / {mode_entropy_safe:.2f}",
    "path, jerk": "{path_length:.0f}, {jerk:.2f}",
    "chunk p50, p95": "{latency}",
}
LATENCY = "{latency_ratio:.2f} x, {latency_p95_ratio:.2f} x"


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per scene and fault."""
    parts: list[str] = []
    for scene, fault in dict.fromkeys((row["scene"], row["fault"]) for row in rows):
        parts += [f"**{scene}**" + (f", {fault}" if fault != "none" else ""), ""]
        parts += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in rows:
            if (row["scene"], row["fault"]) == (scene, fault):
                latency = "" if math.isnan(row["latency_ratio"]) else LATENCY.format(**row)
                cells = (cell.format(**row, latency=latency) for cell in COLUMNS.values())
                parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot safe success against episodes with contact, one panel per scene."""
    panels = list(dict.fromkeys((row["scene"], row["fault"]) for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for axes, (scene, fault) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, row in enumerate(r for r in rows if (r["scene"], r["fault"]) == (scene, fault)):
            marker = "o" if row["certified_rate"] > 0 else "x"
            x = 100 * row["violating_episodes"] / row["episodes"]
            axes.plot(x, 100 * row["safe_success"], marker, color=f"C{index % 10}", label=row["method"])
        axes.set(title=scene if fault == "none" else f"{scene}, {fault}", xlabel="episodes with contact, %")
        axes.set(ylabel="safe success, %", xlim=(-3, 103), ylim=(-3, 103))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
