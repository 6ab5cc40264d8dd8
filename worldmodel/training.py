"""What the trainers share: budget, schedule and exact resume; processes, optimisers and the log come along.

A run folder holds `state.pt` (everything needed to go on), `metrics.jsonl` (one line per logged step) and the
exported checkpoint. `state.pt` is replaced atomically, so an interrupt at any moment leaves the last good one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from armworld.datasets.files import exclusive
from armworld.jobs import interruption_flag
from armworld.types import check_folder, check_numbers
from armworld.worldmodel.metrics import Metrics, plot_metrics, read_metrics
from armworld.worldmodel.optimizers import Optimizers, check_optimizer, make_optimizer, parameter_groups
from armworld.worldmodel.processes import (
    Processes,
    check_device,
    check_dtype,
    gather,
    load_module,
    memory_advice,
    pick_device,
    precision,
    rank_zero_value,
)

DECAY_SHARE = 0.2  # of the budget, at the end of the schedule: the cooldown, unless asked for otherwise
LAST_SEED = 2**63 - 1  # torch and NumPy both take it

__all__ = [
    "DECAY_SHARE",
    "Budget",
    "Metrics",
    "Optimizers",
    "Processes",
    "TrainingConfig",
    "TrainingRun",
    "check_optimizer",
    "make_optimizer",
    "parameter_groups",
    "pick_device",
    "plot_metrics",
    "precision",
    "read_metrics",
    "warmup_constant_decay",
    "warmup_cosine",
]


@dataclass
class Budget:
    """How long to train: a number of optimiser steps, minutes of wall time, or whichever ends first.

    Time spent before an interrupt counts: `elapsed` travels with the saved state. A run bounded by steps alone
    is reproducible to the bit; one bounded by minutes ends its learning-rate schedule when the time is over.
    """

    steps: int | None = None
    minutes: float | None = None
    step: int = 0
    elapsed: float = 0.0
    _last: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a training budget needs steps, minutes or both")
        check_numbers(self, "steps", "minutes", above=0)

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        by_steps = self.step / self.steps if self.steps else 0.0
        by_time = self.elapsed / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    def start(self) -> None:
        """Start the clock (again): time before this call is not counted."""
        self._last = time.monotonic()

    def tick(self) -> None:
        """Count one optimiser step and the time since the last one. All ranks agree on rank 0's clock."""
        now = time.monotonic()
        self.elapsed += now - self._last
        self._last = now
        self.step += 1
        if self.minutes:
            self.elapsed = rank_zero_value(self.elapsed)


def warmup_constant_decay(
    progress: float, start: float, peak: float, final: float = 0.0, warmup: float = 0.05, decay: float = DECAY_SHARE
) -> float:
    """Learning rate at `progress` in [0, 1]: linear up, constant, linear down (V-JEPA 2, section 3.2)."""
    if progress < warmup:
        return start + (peak - start) * progress / warmup
    if progress > 1 - decay:
        return peak + (final - peak) * (progress - (1 - decay)) / decay
    return peak


def warmup_cosine(progress: float, step: int, peak: float, warmup_steps: int) -> float:
    """Learning rate at `progress` in [0, 1]: half a cosine down to 0, times a linear rise.

    The rise takes `warmup_steps` or a tenth of the budget, whichever ends first.
    """
    rise = min(1.0, max((step + 1) / max(warmup_steps, 1), progress / 0.1))
    return peak * rise * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the configuration of every trainer has.

    Attributes:
        data: Dataset folders, as `armworld collect` writes them.
        out: Run folder; the same command goes on with what it holds.
        steps: Optimiser steps; none to train by time alone.
        minutes: Wall-time budget, resumed runs included; none to train by steps alone.
        save_minutes: Minutes between saved states.
        seed: Seed of weights, clips, masks and noise.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({"data", "out", "steps", "minutes", "save_minutes", "device"})

    data: tuple[Path, ...]
    out: Path
    steps: int | None = None
    minutes: float | None = None
    save_minutes: float = 3.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        Budget(self.steps, self.minutes)
        check_numbers(self, "save_minutes", least=0)
        check_numbers(self, "seed", least=0, most=LAST_SEED)
        check_device(self.device)
        check_dtype(self.dtype)
        check_folder("out", Path(self.out))

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed. `FREE` may change: where it runs, on what and for how long; what
        the data holds is compared by itself (`TrainingRun`)."""
        return {name: value for name, value in asdict(self).items() if name not in self.FREE}


class TrainingRun:
    """A run folder and everything that changes while training: modules, optimiser, generators, budget, log.

    Use: `for _ in run.steps(): loss = ...; run.optimise(loss); run.log({...})`. The iterator restores what the folder
    holds, saves every `save_minutes` and at the end, and shows progress. Resuming a run bounded by steps
    gives the same numbers as never having stopped.
    """

    def __init__(
        self,
        config: TrainingConfig,
        modules: dict[str, nn.Module],
        optimizer: Optimizers,
        generators: tuple[np.random.Generator, torch.Generator],
        processes: Processes,
        told: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Open the folder and restore what it holds.

        Args:
            config: Folder, budget and settings. Those with a default value have it in folders of earlier versions,
                which do not name them.
            told: What it trains on and from (`Store.content`, hashes of weights): settings like the others, but that
                earlier versions do not name.
            settings: More of what must be equal for a run to be resumed.
            tensorboard: Also log to `out/tensorboard`.

        Raises:
            ValueError: A run of other settings is there, or another process trains there now.
        """
        self.defaults = {**_defaults_of(config), **(told or {})}
        self.out, self.settings = config.out, {**config.identity(), **(settings or {}), **(told or {})}
        self.budget = Budget(config.steps, config.minutes)
        self.modules, self.optimizer, self.processes = modules, optimizer, processes
        self.numpy_rng, self.torch_rng = generators
        self.save_seconds = 60 * config.save_minutes
        self.state_path = self.out / "state.pt"
        self.metrics_path = self.out / "metrics.jsonl"
        self._progress: Progress | None = None
        with ExitStack() as held:
            if processes.is_main:
                held.enter_context(exclusive(self.out))
            self._restore()
            self._metrics = Metrics(self.metrics_path, self.budget.step, processes.is_main, tensorboard)
            self._held = held.pop_all()  # the folder, until the end of `steps`

    def steps(self) -> Iterator[int]:
        """Yield the step number until the budget is spent, saving every `save_minutes` and at the end.

        Ctrl-C and SIGTERM are honoured between steps: the state is saved, then KeyboardInterrupt is raised.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        self.budget.start()
        saved = time.monotonic()
        progress = Progress(*columns, TimeRemainingColumn(), disable=not self.processes.is_main)
        with self._held:
            with progress as self._progress, interruption_flag() as interrupted:
                self._task = progress.add_task(self.out.name, total=1.0, status="")
                while not self.budget.done:
                    yield self.budget.step
                    self.budget.tick()
                    progress.update(self._task, completed=self.budget.progress)
                    due = time.monotonic() - saved > self.save_seconds
                    stop, due = self.processes.any(interrupted.is_set(), due)
                    if stop or due:
                        self.save()
                        saved = time.monotonic()
                    if stop:
                        raise KeyboardInterrupt
            self.save()
        self._metrics.close()

    def memory_advice(self) -> AbstractContextManager[None]:
        """Around each step: a device out of memory becomes a ValueError; the last good state stays on disk."""
        return memory_advice(
            f"The last good state is kept in {self.out}. Run the command again with --recompute, or --fsdp under "
            "torchrun on more devices; or with a smaller --batch into another --out"
        )

    def set_learning_rate(self, start: float, peak: float, decay: float = DECAY_SHARE) -> None:
        """Warmup-constant-decay at the budget's progress; the rate falls in the last `decay` of it."""
        self.optimizer.set_rate(warmup_constant_decay(self.budget.progress, start, peak, decay=decay))

    def set_cosine_rate(self, peak: float, warmup_steps: int) -> None:
        """Warmup and cosine at the budget's progress; see `warmup_cosine`."""
        self.optimizer.set_rate(warmup_cosine(self.budget.progress, self.budget.step, peak, warmup_steps))

    def optimise(self, loss: Tensor, clip: float = 1.0) -> None:
        """One optimiser step with the gradient's norm clipped.

        Raises:
            ValueError: The loss or the gradient is not finite; the last good state stays on disk.
        """
        self._check_finite("loss", loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._check_finite("gradient's norm", gather(nn.utils.clip_grad_norm_(parameters, clip)))
        self.optimizer.step()

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise ValueError(
                f"the {what} became {float(value.detach())} at step {self.budget.step}; the last good state is kept "
                f"in {self.out}. Lower the learning rate or use --dtype float32, and run the command again"
            )

    def log(self, row: dict[str, float]) -> None:
        """Append the ranks' mean to the metrics log and show it."""
        row = self.processes.mean(row)
        rate, seconds = self.optimizer.param_groups[0]["lr"], self.budget.elapsed
        self._metrics.write({"step": self.budget.step, **row, "learning_rate": rate, "seconds": round(seconds, 1)})
        if self._progress is not None:
            status = "  ".join(f"{k} {v:.4g}" for k, v in row.items())
            self._progress.update(self._task, status=f"step {self.budget.step}  {status}")
            if self.processes.is_main and not self._progress.console.is_terminal:
                self._progress.console.print(f"step {self.budget.step}  {seconds:.0f} s  {status}", soft_wrap=True)

    def save(self) -> None:
        """Write the state atomically, whole tensors whatever the processes (rank 0 writes, all ranks call)."""
        state = {
            "settings": self.settings,
            "modules": gather({name: module.state_dict() for name, module in self.modules.items()}),
            "optimizer": gather(self.optimizer.state_dict()),
            "numpy_rng": self.numpy_rng.bit_generator.state,
            "torch_rng": self.torch_rng.get_state(),
            "step": self.budget.step,
            "elapsed": self.budget.elapsed,
        }
        if not self.processes.is_main:
            return
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.state_path)

    def _restore(self) -> None:
        if not self.state_path.exists():
            return
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.state_path} cannot be read ({error}); delete it to start anew") from error
        old = {**{k: v for k, v in self.defaults.items() if k in self.settings}, **state["settings"]}
        differing = sorted(k for k in self.settings | old if old.get(k) != self.settings.get(k))
        if differing:
            changes = ", ".join(f"{k}: {old.get(k)!r} -> {self.settings.get(k)!r}" for k in differing)
            raise ValueError(f"{self.out} holds a run with other settings ({changes}); choose another --out")
        for name, module in self.modules.items():
            load_module(module, state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.numpy_rng.bit_generator.state = state["numpy_rng"]
        self.torch_rng.set_state(state["torch_rng"])
        self.budget.step, self.budget.elapsed = state["step"], state["elapsed"]


def _defaults_of(config: TrainingConfig) -> dict[str, Any]:
    """The default values of a dataclass's fields, where they have one: what older runs trained with."""
    return {f.name: f.default for f in fields(config) if f.default is not MISSING}
