"""The trainers' log: JSON lines, optionally TensorBoard, and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from armworld.types import require


class Metrics:
    """An append-only JSON-lines log; on resume, rows of steps that will be taken again are dropped.

    Args:
        path: The log's file.
        resume_step: The next step to be taken; rows from it on are dropped.
        enabled: False on all ranks but the first, which do not write.
        tensorboard: Also write event files to `tensorboard/` beside the log (needs the extra of that name).
    """

    def __init__(self, path: Path, resume_step: int, enabled: bool = True, tensorboard: bool = False) -> None:
        self.path, self.enabled = path, enabled
        self._board: Any = None
        if not enabled:
            return
        kept = [row for row in read_metrics(path) if row["step"] < resume_step] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, path)
        if tensorboard:
            require("tensorboard", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=resume_step)

    def write(self, row: dict[str, Any]) -> None:
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name in row.keys() - {"step"}:
                self._board.add_scalar(name, row[name], row["step"])
            self._board.flush()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log's rows; a last line cut short by an interrupt is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_metrics(path: Path, out: Path, keys: Iterable[str]) -> None:
    """Draw the logged curves that exist, one panel each, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(path)
    keys = [k for k in keys if any(k in row for row in rows)]
    if not keys:
        return
    figure, axes = plt.subplots(1, len(keys), figsize=(3.6 * len(keys), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True))
        axis.set(title=key.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
