"""The processes that `torchrun` starts: who draws what, data parallelism (DDP), sharding (FSDP2), devices, precision.

Under FSDP2 every parameter is a DTensor of which each rank holds a slice; `gather` turns a state into whole tensors,
so that what is saved does not depend on how many processes trained it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from armworld.types import check_name
from armworld.worldmodel.blocks import Block

PATIENCE = timedelta(hours=3)  # other ranks wait while rank 0 packs frames or caches features
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Processes:
    """This process's place among those that `torchrun` started; rank 0 of 1 without it.

    Attributes:
        sharded: Parameters, gradients and optimiser states are spread over the ranks (FSDP2), not repeated (DDP).
    """

    rank: int = 0
    world_size: int = 1
    sharded: bool = False

    @classmethod
    def from_environment(cls, device: torch.device, sharded: bool = False) -> Processes:
        """The place that `torchrun`'s variables state; starts the process group.

        Raises:
            ValueError: `sharded` without `torchrun`.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            if sharded:
                raise ValueError("fsdp needs several processes: torchrun --nproc-per-node N -m armworld ...")
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), sharded)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This rank's slice of a global batch, which every rank draws alike from the same generator."""
        if batch % self.world_size:
            raise ValueError(f"batch {batch} does not divide over {self.world_size} processes")
        size = batch // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def in_turn(self, prepare: Callable[[], _Result]) -> _Result:
        """`prepare()` on one rank after the other: rank 0 makes its files, the others find them, one writer at a time.

        For packed frames and cached features, whose folders take one writer.
        """
        result: list[_Result] = []
        for rank in range(self.world_size):
            if rank == self.rank:
                result.append(prepare())
            if self.world_size > 1:
                dist.barrier()
        return result[0]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the ranks."""
        if self.world_size == 1:
            return values
        total = _collective(list(values.values()))
        dist.all_reduce(total)
        return dict(zip(values, (total / self.world_size).tolist(), strict=True))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set on any rank, so that all ranks do the same."""
        if self.world_size == 1:
            return flags
        total = _collective([float(flag) for flag in flags])
        dist.all_reduce(total)
        return tuple(value > 0 for value in total.tolist())

    def wrap(self, module: nn.Module, *parts: nn.Module) -> nn.Module:
        """The module under DDP or FSDP2 where there are several processes.

        Args:
            module: Whose forward is the loss.
            parts: Its models, which FSDP2 shards block by block.
        """
        if self.sharded:
            for part in parts:
                self.shard(part)
            return _shard(module)
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def shard(self, model: nn.Module) -> nn.Module:
        """The model in place under FSDP2, one unit per transformer block, if this run is sharded."""
        if self.sharded:
            for block in model.modules():
                if isinstance(block, Block):
                    _shard(block)
            _shard(model)
        return model


def _shard(module: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh  # here: a second of imports, needed by few runs
    from torch.distributed.fsdp import fully_shard

    kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    fully_shard(module, mesh=mesh, reshard_after_forward=True)  # the teacher too, which sees no backward pass
    return module


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor, told without importing that module."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def _collective(values: list[float]) -> Tensor:
    """Numbers where the process group can reduce them."""
    return torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")


def rank_zero_value(value: float) -> float:
    """Rank 0's number on every rank; the number itself without `torchrun`."""
    if not dist.is_initialized():
        return value
    clock = _collective([value])
    dist.broadcast(clock, 0)
    return float(clock)


def gather(state: Any) -> Any:
    """A nested state with every sharded tensor whole, on the CPU. All ranks must call it."""
    if is_sharded(state):
        return state.full_tensor().detach().cpu()
    if isinstance(state, dict):
        return {key: gather(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gather(value) for value in state)
    return state


def spread_like(value: Any, model: Tensor) -> Any:
    """A whole tensor sharded as the parameter `model` is, where both are tensors of one shape and it is sharded."""
    if not is_sharded(model) or not isinstance(value, Tensor) or value.shape != model.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(model, DTensor)
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)


def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a module, sharded or not."""
    own = module.state_dict()
    module.load_state_dict({key: spread_like(value, own[key]) if key in own else value for key, value in state.items()})


def unsharded(module: nn.Module) -> nn.Module:
    """The module itself, or, where it is sharded, a whole copy on the CPU, built from its `.config`.

    All ranks must call it.
    """
    state = module.state_dict()
    if not any(is_sharded(value) for value in state.values()):
        return module
    whole = type(module)(module.config)  # fully_shard's class builds the original one
    whole.load_state_dict(gather(state))
    return whole.eval()


def check_device(name: str) -> str:
    """Return `name` if it can be used here: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: Another name, or a CUDA device that torch does not see.
    """
    kind, colon, number = name.partition(":")
    if name in ("auto", "cpu"):
        return name
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no CUDA device; valid here: auto, cpu")
    if number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"device {name!r} asked for, but the last CUDA device that torch sees is cuda:{last}")
    return name


def check_dtype(name: str) -> str:
    """Return `name` if models can be trained in it: float32, or bfloat16 (autocast)."""
    return check_name("dtype", name, ("float32", "bfloat16"))


def pick_device(name: str) -> torch.device:
    """`"cuda"` is this rank's CUDA device; `"auto"` the same when there is one, else the CPU. See `check_device`."""
    check_device(name)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device(name if ":" in name else f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    torch.cuda.set_device(device)
    return device


def precision(device: torch.device, dtype: str) -> AbstractContextManager:
    """Autocast to bfloat16, or nothing for float32."""
    if check_dtype(dtype) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a device's "out of memory" into a ValueError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = (str(error).splitlines() or ["out of memory"])[0].split(". ")[0].rstrip(".")
        raise ValueError(f"{reason}. {advice}") from error
