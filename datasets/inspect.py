"""One HTML page about a dataset: counts, action histograms, workspace coverage, contact, sample videos."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armworld.datasets.droid import find_episodes
from armworld.datasets.files import write_text
from armworld.datasets.trajectory import Trajectory, actions_of, read_trajectories

AXES = ("dx (m)", "dy (m)", "dz (m)", "droll (rad)", "dpitch (rad)", "dyaw (rad)", "dclosedness")
STYLE = """body{font-family:sans-serif;max-width:70em;margin:2em auto;color:#222}table{border-collapse:collapse}
td,th{border:1px solid #bbb;padding:.2em .7em;text-align:right}th{background:#eee}video{width:100%}
figure{display:inline-block;vertical-align:top;width:15em;margin:.4em;font-size:small}img{max-width:100%}"""


def inspect(root: Path, out: Path | None = None, samples: int = 8) -> Path:
    """Write the page (by default `<root>/inspect.html`) and answer its path; it needs no other file.

    Args:
        root: Dataset folder.
        out: The page.
        samples: Number of episodes whose left video is shown, spread evenly.

    Raises:
        ValueError: `out` is a folder.
        EpisodeError: A damaged episode, by its path.
    """
    root = Path(root)
    out = Path(out) if out else root / "inspect.html"
    if out.is_dir():
        raise ValueError(f"{out} is a folder; the page is a file, e.g. {out / 'inspect.html'}")
    trajectories = read_trajectories(find_episodes(root))
    states = np.concatenate([t.states for t in trajectories])
    actions = np.concatenate([actions_of(t.states)[:-1] for t in trajectories])
    chosen = [trajectories[i] for i in np.unique(np.linspace(0, len(trajectories) - 1, samples).astype(int))]
    body = [
        f"<h1>{html.escape(root.name)}</h1>",
        _summary(trajectories, states),
        "<h2>Behaviours</h2>",
        _behaviours(trajectories),
        "<h2>Actions</h2><p>Recovered from consecutive states; the count is on a logarithmic scale.</p>",
        _picture(_histograms(actions)),
        "<h2>Workspace</h2><p>Frames per cell of the flange's position, seen from above and from the side.</p>",
        _picture(_coverage(states)),
        "<h2>Samples</h2>",
        "".join(_sample(trajectory) for trajectory in chosen),
    ]
    title = html.escape(f"Dataset {root.name}")
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(body)
    write_text(out, page + "\n")
    return out


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cells(tag: str, values: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

    return "<table>" + cells("th", header) + "".join(cells("td", row) for row in rows) + "</table>"


def _summary(trajectories: Sequence[Trajectory], states: np.ndarray) -> str:
    extras = [t.metadata.get("simulation", {}) for t in trajectories]
    busy = sum(extra.get("contact_rows", 0) for extra in extras)
    known = any("contact_rows" in extra for extra in extras)
    rows = [
        ("episodes", len(trajectories)),
        ("frames per camera", len(states)),
        ("ended solved", sum(bool(t.metadata.get("success")) for t in trajectories)),
        ("labs", ", ".join(sorted({str(t.metadata.get("lab")) for t in trajectories}))),
        ("cameras", ", ".join(sorted({name for t in trajectories for name in t.videos}))),
        ("seconds per row", ", ".join(f"{s:.4g}" for s in sorted({t.step_seconds for t in trajectories}))),
        ("frames with contact or a moving object", f"{100 * busy / len(states):.1f} %" if known else "not recorded"),
    ]
    return _table(("of the dataset", "value"), rows)


def _behaviours(trajectories: Sequence[Trajectory]) -> str:
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.metadata.get("simulation", {}).get("behaviour", "unknown")].append(trajectory)
    rows = []
    for name, group in sorted(groups.items()):
        frames = sum(len(t) for t in group)
        busy = sum(t.metadata.get("simulation", {}).get("contact_rows", 0) for t in group)
        solved = sum(bool(t.metadata.get("success")) for t in group)
        rows.append((name, len(group), frames, f"{100 * busy / frames:.1f} %", solved))
    return _table(("behaviour", "episodes", "frames", "contact", "solved"), rows)


def _histograms(actions: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6))
    for index, name in enumerate(AXES):
        axis = figure.add_subplot(2, 4, index + 1)
        axis.hist(actions[:, index], bins=61, log=True)
        axis.set_xlabel(name)
    figure.tight_layout()
    return figure


def _coverage(states: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2))
    panels = ((1, 0, "y (m)", "x (m)"), (1, 2, "y (m)", "z (m)"), (0, 2, "x (m)", "z (m)"))
    for number, (first, second, across, up) in enumerate(panels):
        axis = figure.add_subplot(1, 3, number + 1)
        *_, picture = axis.hist2d(states[:, first], states[:, second], bins=40, cmin=1)
        figure.colorbar(picture, ax=axis)
        axis.set(xlabel=across, ylabel=up)
    figure.tight_layout()
    return figure


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _sample(trajectory: Trajectory) -> str:
    name, video = next(iter(trajectory.videos.items()))
    data = base64.b64encode(video.read_bytes()).decode()
    extra = trajectory.metadata.get("simulation", {})
    words = (
        f"{extra.get('behaviour', '')} {trajectory.metadata.get('current_task', '')}, {name}, {len(trajectory)} frames"
    )
    source = f'<video controls loop muted src="data:video/mp4;base64,{data}"></video>'
    return f"<figure>{source}<figcaption>{html.escape(words)}</figcaption></figure>"
