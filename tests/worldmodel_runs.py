"""Small trainings on recorded synthetic episodes; as a script, run under torchrun to do them over several processes."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from armworld.worldmodel.posttrain import PosttrainConfig, posttrain
from armworld.worldmodel.pretrain import PretrainConfig, pretrain
from armworld.worldmodel.training import TrainingRun


def pretraining(data: Path, out: Path, **changes) -> PretrainConfig:
    """Four steps of the debug size in float32; every step is logged."""
    config = PretrainConfig(
        data=(data,),
        out=out,
        size="debug",
        image_size=64,
        batch=4,
        steps=4,
        predictor_width=48,
        predictor_depth=1,
        predictor_heads=2,
        dtype="float32",
        log_every=1,
    )
    return replace(config, **changes)


def posttraining(data: Path, out: Path, **changes) -> PosttrainConfig:
    """Four steps of a small predictor over a random debug encoder in float32; every step is logged."""
    config = PosttrainConfig(
        data=(data,),
        out=out,
        cache=data.parent / "features",
        encoder="random:debug",
        image_size=64,
        width=48,
        depth=2,
        heads=2,
        batch=4,
        steps=4,
        pair_share=0.5,
        held_out=0.4,
        validate_every=2,
        dtype="float32",
        log_every=1,
    )
    return replace(config, **changes)


def run_all(data: Path, out: Path, **changes) -> None:
    """Pretraining by the paper's objective, and post-training with all losses on."""
    pretrain(pretraining(data, out / "pretrain", **changes))
    posttrain(posttraining(data, out / "posttrain", state_loss=0.5, inverse_loss=0.5, **changes))


def copy_states(source: Path, out: Path) -> None:
    """Put what `run_all` saved in `source` where it will go on from it in `out`."""
    for run in ("pretrain", "posttrain"):
        (out / run).mkdir(parents=True)
        shutil.copy(source / run / "state.pt", out / run)


def stop_at(config: PretrainConfig | PosttrainConfig, step: int) -> None:
    """Train and be interrupted after `step` steps, with the state saved; `config` must save after every step."""
    save = TrainingRun.save

    def save_and_stop(self: TrainingRun) -> None:
        save(self)
        if self.budget.step == step:
            raise KeyboardInterrupt

    TrainingRun.save = save_and_stop
    try:
        pretrain(config) if isinstance(config, PretrainConfig) else posttrain(config)
    except KeyboardInterrupt:
        return
    finally:
        TrainingRun.save = save
    raise AssertionError(f"training ended before step {step}")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    run_all(root / "data", root / "ddp")
    run_all(root / "data", root / "fsdp", fsdp=True)
    run_all(root / "data", root / "muon_fsdp", fsdp=True, optimizer="muon")
    run_all(root / "data", root / "resumed_ddp", steps=6)
