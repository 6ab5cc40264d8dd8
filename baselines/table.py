"""The table of methods: parameters, training compute, data, time per action.

    python -m armworld.baselines.table cem=runs/post/model octo=runs/bc/model sac=runs/sac/model --out runs/methods

Training figures come from what each trainer wrote into its checkpoint; time per action is measured here, in processor
seconds of one thread, with the agent's default settings: on a shared machine wall time tells of the others. A figure
that a checkpoint does not tell is shown as a dash.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from armworld.baselines.compute import parameters, pretraining_flop, training_flop
from armworld.evaluation.agents import AGENTS, AgentSettings, load_model, make_agent, needs_model
from armworld.evaluation.cells import single_thread
from armworld.evaluation.files import write_json, write_text
from armworld.types import Goal, Observation, check_name

HEAD = ("method", "agent", "parameters", "training FLOP", "hours", "core hours", "device", "s / action", "data")


@dataclass(frozen=True)
class TableConfig:
    """Write the table of methods.

    Attributes:
        models: AGENT=PATH for each method; an agent without a model stands alone.
        out: Folder for methods.json and methods.md; none to print only.
        repeats: Actions to time, after one that is not counted.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Path | None = None
    repeats: int = 5


@dataclass(frozen=True)
class Row:
    """One method; None where its checkpoint does not tell.

    Attributes:
        method: What it is, in words.
        agent: Its name in `armworld evaluate`.
        model: Its checkpoint.
        parameters: Of all its networks, frozen ones included.
        training_flop: Operations of training; a frozen encoder's own pretraining counts where the checkpoint tells of
            it ("pretraining"), a readout's training does not.
        hours: Wall time of the same.
        core_hours: Processor time, of the last training alone.
        device: Where it ran.
        data: What it learned from.
        seconds_per_action: Median processor time on one thread of this machine.
    """

    method: str
    agent: str
    model: str | None
    parameters: int | None
    training_flop: float | None
    hours: float | None
    core_hours: float | None
    device: str | None
    data: str | None
    seconds_per_action: float | None


def method_row(agent: str, path: str | None, repeats: int = 5, settings: AgentSettings | None = None) -> Row:
    """The row of one method.

    Raises:
        ValueError: Unknown agent, no checkpoint where one is needed, or one of another kind.
    """
    entry = AGENTS[check_name("agent", agent, AGENTS)]
    if not needs_model(agent):
        return Row(entry.summary, agent, None, 0, 0.0, 0.0, 0.0, None, None, None)
    if path is None:
        raise ValueError(f"agent {agent!r} needs a model: write {agent}=PATH")
    model = load_model(agent, path)
    about = _about(agent, path, model)
    before = about.get("pretraining", ())
    seconds, core = about.get("seconds"), about.get("core_seconds")
    flop = about.get("training_flop") or predictor_flop(model, about)
    return Row(
        method=about.get("method", entry.summary),
        agent=agent,
        model=path,
        parameters=about.get("parameters") or _count(model),
        training_flop=None if flop is None else flop + sum(map(pretraining_flop, before)),
        hours=None if seconds is None else (seconds + sum(run["seconds"] for run in before)) / 3600,
        core_hours=None if core is None else core / 3600,
        device=about.get("device"),
        data=_data(about),
        seconds_per_action=time_per_action(agent, model, repeats, settings),
    )


def _about(agent: str, path: str, model: Any) -> dict[str, Any]:
    """What the checkpoint tells of its making."""
    if hasattr(model, "about"):
        return dict(model.about)
    from armworld.worldmodel.checkpoint import read_parts, resolve

    folder = resolve(path)
    is_ours = folder.is_dir() and (folder / "model.safetensors").exists() and (folder / "config.json").exists()
    try:
        return dict(read_parts(folder)[0].get("about", {})) if is_ours else {}
    except ValueError:  # published weights in our file names, without our header: they tell nothing of this kind
        return {}


def _count(model: Any) -> int | None:
    modules = [part for part in vars(model).values() if isinstance(part, nn.Module)]
    return sum(map(parameters, modules)) or None


def predictor_flop(model: Any, about: dict[str, Any]) -> float | None:
    """Operations of `armworld posttrain`, from the settings that it wrote into the checkpoint."""
    training, steps = about.get("training"), about.get("steps")
    if not hasattr(model, "predictor") or not isinstance(training, dict) or steps is None:
        return None
    from armworld.worldmodel.posttrain import PredictionLoss

    loss, patches = PredictionLoss(model.predictor, training["rollout"]), model.grid[0] * model.grid[1]

    def of_clips(frames: int, samples: float) -> float:
        z = torch.zeros(1, frames, patches, model.predictor.config.features, dtype=next(loss.parameters()).dtype)
        cameras = torch.zeros(1, frames, 6) if model.predictor.config.extrinsics else None
        return training_flop(
            lambda: loss(z, torch.zeros(1, frames, 7), torch.zeros(1, frames - 1, 7), cameras), samples
        )

    samples, pairs = training["batch"] * steps, training.get("pair_share", 0.0)  # pairs come in batches twice as large
    return of_clips(training["frames"], (1 - pairs) * samples) + of_clips(2, 2 * pairs * samples)


def _data(about: dict[str, Any]) -> str | None:
    """E.g. "reach+grasp: 2000 episodes, 50000 samples"."""
    told = about.get("data")
    if isinstance(told, list):  # of the world model's trainers
        told = {"folders": told} | ({"frames": about["frames"]} if "frames" in about else {})
    if not isinstance(told, dict):
        return None
    counts = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in told.items() if key != "folders")
    return ": ".join(part for part in ("+".join(told.get("folders", ())), counts) if part)


def time_per_action(agent: str, model: Any, repeats: int, settings: AgentSettings | None = None) -> float | None:
    """Median processor seconds of `act` over `repeats` calls on one thread, on noise; None for zero repeats."""
    if repeats < 1:
        return None
    if agent == "oracle" or getattr(model, "reads_simulator", False):
        return None  # its time is the simulator's, or it sees more than this noise
    rng = np.random.default_rng(0)
    nowhere: Any = SimpleNamespace(unwrapped=SimpleNamespace())
    size, camera = model.image_size or (16, 16), model.camera or "left"

    def look() -> Observation:
        state = np.array([0.5, 0, 0.35, np.pi, 0, 0, 0.2], np.float32)
        state[:3] += rng.uniform(-0.1, 0.1, 3).astype(np.float32)
        return {"state": state, camera: rng.integers(0, 256, (*size, 3), dtype=np.uint8)}

    with single_thread():
        player = make_agent(agent, nowhere, model, 0, settings)
        player.reset(Goal((look(),), (repeats + 1,)))
        player.act(look())
        times = []
        for _ in range(repeats):
            seen, began = look(), time.process_time()
            player.act(seen)
            times.append(time.process_time() - began)
    return statistics.median(times)


def cells_of(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of `HEAD`."""

    def show(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return (
        row.method,
        row.agent,
        "–" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
        show(row.training_flop, ".2g"),
        show(row.hours, ".2f"),
        show(row.core_hours, ".2f"),
        row.device or "–",
        show(row.seconds_per_action, ".4f"),
        row.data or "–",
    )


def markdown(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(cells_of(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table(config: TableConfig, console: Console | None = None) -> list[Row]:
    """Print the table, write it where asked for, and return its rows."""
    if not config.models:
        raise ValueError("no methods: name them as AGENT=PATH")
    pairs = [item.partition("=") for item in config.models]
    rows = [method_row(agent, path or None, config.repeats) for agent, _, path in pairs]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in HEAD[1:]:  # the agent's name says enough on a terminal
        left = name in ("agent", "device", "data")
        shown.add_column(name, justify="left" if left else "right", no_wrap=name != "data")
    for row in rows:
        shown.add_row(*cells_of(row)[1:])
    (console or Console()).print(shown)
    if config.out is not None:
        write_json(config.out / "methods.json", [asdict(row) for row in rows])
        write_text(config.out / "methods.md", markdown(rows))
    return rows


if __name__ == "__main__":
    table(tyro.cli(TableConfig, description="Write the table of methods."))
