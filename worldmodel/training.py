"""What both trainers share: budget, schedule, optimiser groups, processes, exact resume, the metrics log.

A run folder holds `state.pt` (everything needed to go on), `metrics.jsonl` (one line per logged step) and the
exported checkpoint. `state.pt` is replaced atomically, so an interrupt at any moment leaves the last good one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from armworld.jobs import interruption_flag
from armworld.types import check_name


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
        for name, value in (("steps", self.steps), ("minutes", self.minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")

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
        if self.minutes and dist.is_initialized():
            clock = torch.tensor([self.elapsed], dtype=torch.float64)
            dist.broadcast(clock, 0)
            self.elapsed = float(clock)


def warmup_constant_decay(
    progress: float, start: float, peak: float, final: float = 0.0, warmup: float = 0.05, decay: float = 0.2
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


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay; biases, norms and mask tokens do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2 and p.shape[0] != 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]


class Optimizers:
    """Several optimisers that step together. A group's `rate_scale` multiplies the schedule's learning rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def set_rate(self, rate: float) -> None:
        """Give every group the schedule's learning rate times its own scale."""
        for group in self.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizer(
    name: str, module: nn.Module, blocks: Iterable[nn.Module], rate: float, weight_decay: float
) -> Optimizers:
    """AdamW over everything, or Muon over the transformer blocks' matrices and AdamW over the rest.

    Muon orthogonalises each matrix's momentum (Jordan et al., 2024); updates are scaled to AdamW's size (Liu et al.,
    arXiv 2502.16982, section 2.2), and what AdamW keeps learns at half the rate.

    Args:
        name: "adamw" (as published) or "muon".
        module: Whose trainable parameters are optimised.
        blocks: Its transformer blocks.
        rate: Peak learning rate.
        weight_decay: Decay of matrices.

    Raises:
        ValueError: Unknown name, or a torch without Muon (before 2.9).
    """
    check_name("optimizer", name, ("adamw", "muon"))
    groups = parameter_groups(module, weight_decay)
    if name == "adamw":
        return Optimizers(torch.optim.AdamW(groups, lr=rate))
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer 'muon' needs torch 2.9 or newer, this is {torch.__version__}; valid here: adamw")
    hidden = [p for block in blocks for p in block.parameters() if p.ndim == 2 and p.requires_grad]
    taken = {id(p) for p in hidden}
    rest = [{**g, "params": [p for p in g["params"] if id(p) not in taken], "rate_scale": 0.5} for g in groups]
    muon = torch.optim.Muon(hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Optimizers(muon, torch.optim.AdamW(rest, lr=rate))


@dataclass(frozen=True)
class Processes:
    """This process's place among those that `torchrun` started; rank 0 of 1 without it."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls, device: torch.device) -> Processes:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This rank's slice of a global batch, which every rank draws alike from the same generator."""
        if batch % self.world_size:
            raise ValueError(f"batch {batch} does not divide over {self.world_size} processes")
        size = batch // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the ranks."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        if dist.get_backend() == "nccl":
            tensor = tensor.cuda()
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module under DistributedDataParallel where there are several processes."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


def pick_device(name: str) -> torch.device:
    """`"auto"` is this rank's CUDA device when there is one, else the CPU."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} asked for, but torch sees no CUDA device; valid here: auto, cpu")
        torch.cuda.set_device(device)
    return device


def precision(device: torch.device, dtype: str) -> AbstractContextManager:
    """Autocast to bfloat16, or nothing for float32."""
    if dtype == "float32":
        return nullcontext()
    if dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    raise ValueError(f"unknown dtype {dtype!r}; valid: float32, bfloat16")


class TrainingRun:
    """A run folder and everything that changes while training: modules, optimiser, generators, budget, log.

    Use: `for _ in run.steps(): loss = ...; run.optimise(loss); run.log({...})`. The iterator restores what the folder
    holds, saves every `save_minutes` and at the end, and shows progress. Resuming a run bounded by steps
    gives the same numbers as never having stopped.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        budget: Budget,
        modules: dict[str, nn.Module],
        optimizer: Optimizers,
        generators: tuple[np.random.Generator, torch.Generator],
        processes: Processes,
        save_minutes: float,
    ) -> None:
        self.out, self.settings, self.budget = out, settings, budget
        self.modules, self.optimizer, self.processes = modules, optimizer, processes
        self.numpy_rng, self.torch_rng = generators
        self.save_seconds = 60 * save_minutes
        self.state_path = out / "state.pt"
        self.metrics_path = out / "metrics.jsonl"
        self._progress: Progress | None = None
        out.mkdir(parents=True, exist_ok=True)
        self._restore()
        self._metrics = Metrics(self.metrics_path, budget.step, processes.is_main)

    def steps(self) -> Iterator[int]:
        """Yield the step number until the budget is spent, saving every `save_minutes` and at the end.

        Ctrl-C and SIGTERM are honoured between steps: the state is saved, then KeyboardInterrupt is raised.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        self.budget.start()
        saved = time.monotonic()
        progress = Progress(*columns, TimeRemainingColumn(), disable=not self.processes.is_main)
        with progress as self._progress, interruption_flag() as interrupted:
            self._task = progress.add_task(self.out.name, total=1.0, status="")
            while not self.budget.done:
                yield self.budget.step
                self.budget.tick()
                progress.update(self._task, completed=self.budget.progress)
                if interrupted.is_set() or time.monotonic() - saved > self.save_seconds:
                    self.save()
                    saved = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        self.save()

    def set_learning_rate(self, start: float, peak: float) -> None:
        """Warmup-constant-decay at the budget's progress."""
        self.optimizer.set_rate(warmup_constant_decay(self.budget.progress, start, peak))

    def set_cosine_rate(self, peak: float, warmup_steps: int) -> None:
        """Warmup and cosine at the budget's progress; see `warmup_cosine`."""
        self.optimizer.set_rate(warmup_cosine(self.budget.progress, self.budget.step, peak, warmup_steps))

    def optimise(self, loss: Tensor, clip: float = 1.0) -> None:
        """One optimiser step with the gradient's norm clipped.

        Raises:
            ValueError: The loss is not a number; the last good state stays on disk.
        """
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {float(loss.detach())} at step {self.budget.step}; the last good state is kept "
                f"in {self.out}. Lower the learning rate or use --dtype float32, and run the command again"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
        self.optimizer.step()

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
        """Write the state atomically (rank 0)."""
        if not self.processes.is_main:
            return
        state = {
            "settings": self.settings,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "numpy_rng": self.numpy_rng.bit_generator.state,
            "torch_rng": self.torch_rng.get_state(),
            "step": self.budget.step,
            "elapsed": self.budget.elapsed,
        }
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
        old = state["settings"]
        differing = sorted(k for k in self.settings | old if old.get(k) != self.settings.get(k))
        if differing:
            changes = ", ".join(f"{k}: {old.get(k)!r} -> {self.settings.get(k)!r}" for k in differing)
            raise ValueError(f"{self.out} holds a run with other settings ({changes}); choose another --out")
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.numpy_rng.bit_generator.state = state["numpy_rng"]
        self.torch_rng.set_state(state["torch_rng"])
        self.budget.step, self.budget.elapsed = state["step"], state["elapsed"]


class Metrics:
    """An append-only JSON-lines log; on resume, lines after the resumed step are dropped. Only rank 0 writes."""

    def __init__(self, path: Path, resume_step: int, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        if not enabled:
            return
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, path)

    def write(self, row: dict[str, Any]) -> None:
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


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
