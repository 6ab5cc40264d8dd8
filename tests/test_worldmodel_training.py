"""The training loop: schedule, budget, exact resume, masks' teacher, collapse monitors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from armworld.datasets.files import exclusive
from armworld.datasets.store import WHOLE, Share
from armworld.worldmodel.checkpoint import load_encoder
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_denoiser import MaskDenoiser, collapse_monitors
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import sample_masks
from armworld.worldmodel.pretrain import PretrainConfig, pretrain
from armworld.worldmodel.sizes import MaskPredictorConfig, encoder_config
from armworld.worldmodel.training import (
    Budget,
    Processes,
    TrainingRun,
    make_optimizer,
    parameter_groups,
    read_metrics,
    warmup_constant_decay,
)


class NoiseClips:
    """Clips of smoothly moving noise; interrupts the process at one draw if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.draws, self.stop_at = 0, stop_at

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        self.draws += 1
        if self.draws == self.stop_at:
            raise KeyboardInterrupt
        return generator.integers(0, 256, (batch, frames, 64, 64, 3), dtype=np.uint8)[share]

    def content(self) -> list[str]:
        return ["noise"]

    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[np.ndarray, np.ndarray]:
        states = generator.uniform(-0.5, 0.5, (batch, frames, 7)).astype(np.float32)[share]
        return self.sample(generator, batch, frames, share), states


class Larger(NoiseClips):
    """The same in 96 pixels."""

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        return generator.integers(0, 256, (batch, frames, 96, 96, 3), dtype=np.uint8)[share]


def settings(out, **changes) -> PretrainConfig:
    base = {"size": "debug", "image_size": 64, "batch": 2, "steps": 6, "dtype": "float32", "predictor_width": 48}
    return PretrainConfig(data=(), out=out, predictor_depth=1, predictor_heads=2, **{**base, **changes})


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = make_optimizer("adamw", module, (), 0.1, 0.0)
    generators = np.random.default_rng(0), torch.Generator()
    run = TrainingRun(settings(tmp_path, steps=2), {"m": module}, optimizer, generators, Processes())
    with pytest.raises(ValueError, match=r"the gradient's norm became nan at step 0; the last good state is kept"):
        run.optimise(module(torch.ones(1)).square().sqrt().sum())  # 0, with the slope of a root there
    assert module.weight.item() == 0


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(ValueError, match="another process is writing to"):
        pretrain(settings(tmp_path), NoiseClips())
    assert not (tmp_path / "metrics.jsonl").exists()
    pretrain(settings(tmp_path, steps=1), NoiseClips())


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["modules"]["denoiser"]


def test_schedule_rises_holds_and_decays():
    rates = [warmup_constant_decay(p, 0.1, 1.0, 0.0, warmup=0.1, decay=0.2) for p in (0, 0.05, 0.1, 0.5, 0.8, 0.9, 1)]
    np.testing.assert_allclose(rates, [0.1, 0.55, 1, 1, 1, 0.5, 0], atol=1e-12)


def test_budget_needs_a_positive_bound():
    with pytest.raises(ValueError, match="steps, minutes or both"):
        Budget()
    with pytest.raises(ValueError, match="steps must be above 0, got 0"):
        Budget(steps=0)


def test_only_matrices_decay():
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    decayed, free = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 4)] and decayed["weight_decay"] == 0.1
    assert len(free["params"]) == 3 and free["weight_decay"] == 0


def test_ranks_share_a_batch_without_gaps():
    parts = [list(range(12))[Processes(rank, 3).share(12)] for rank in range(3)]
    assert [item for part in parts for item in part] == list(range(12))
    with pytest.raises(ValueError, match="batch 10 does not divide over 3"):
        Processes(0, 3).share(10)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    pretrain(settings(tmp_path / "whole"), NoiseClips())
    broken = settings(tmp_path / "broken", save_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        pretrain(broken, NoiseClips(stop_at=4))
    assert torch.load(broken.out / "state.pt", weights_only=True)["step"] == 3
    pretrain(broken, NoiseClips())
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(broken.out).items())
    losses = [[row["denoising"] for row in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_a_run_folder_of_other_settings_is_refused(tmp_path):
    pretrain(settings(tmp_path, steps=1), NoiseClips())
    with pytest.raises(ValueError, match=r"other settings \(ema: 0.998 -> 0.5\)"):
        pretrain(settings(tmp_path, steps=1, ema=0.5), NoiseClips())


def test_a_resumed_run_must_find_the_same_data_and_the_same_beginning(tmp_path):
    class Other(NoiseClips):
        def content(self) -> list[str]:
            return ["other noise"]

    first = settings(tmp_path / "first", steps=1)
    encoder = pretrain(first, NoiseClips())
    with pytest.raises(ValueError, match=r"other settings \(sources: \['noise'\] -> \['other noise'\]\)"):
        pretrain(first, Other())
    second = settings(tmp_path / "second", steps=1, init=str(encoder))
    pretrain(second, NoiseClips())
    pretrain(replace(first, steps=2), NoiseClips())
    with pytest.raises(ValueError, match=r"other settings \(initial: '\w+' -> '\w+'\)"):
        pretrain(replace(second, steps=2), NoiseClips())


def test_a_loss_that_is_not_a_number_keeps_the_last_state(tmp_path):
    pretrain(settings(tmp_path, steps=1), NoiseClips())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["modules"]["denoiser"]["student.norm.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match="the loss became nan at step 1"):
        pretrain(settings(tmp_path, steps=3), NoiseClips())
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_device_out_of_memory_keeps_the_last_state_and_says_what_to_do(tmp_path, monkeypatch):
    pretrain(settings(tmp_path, steps=1), NoiseClips())
    before = (tmp_path / "state.pt").read_bytes()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    with monkeypatch.context() as patch:
        patch.setattr(MaskDenoiser, "forward", full)
        with pytest.raises(ValueError, match=r"^CUDA out of memory\. The last good state is kept in .*--recompute"):
            pretrain(settings(tmp_path, steps=2), NoiseClips())
    assert (tmp_path / "state.pt").read_bytes() == before
    pretrain(settings(tmp_path, steps=2, recompute=True), NoiseClips())


def test_the_share_that_is_hidden_follows_the_blocks_asked_for(tmp_path, monkeypatch):
    hidden = []

    def listen(*arguments):
        masks = sample_masks(*arguments)
        hidden.append([m.target.shape[1] / (m.target.shape[1] + m.context.shape[1]) for m in masks])
        return masks

    monkeypatch.setattr("armworld.worldmodel.pretrain.sample_masks", listen)
    for name, scales in (("few", (0.07, 0.15)), ("many", (0.3, 0.7))):
        pretrain(settings(tmp_path / name, steps=1, mask_scales=scales), NoiseClips())
    (few_small, few_large), (many_small, many_large) = hidden
    assert few_small < many_small and few_large < many_large < 1
    with pytest.raises(ValueError, match=r"mask_scales must lie in \(0, 1\), got \(0.2, 1.0\)"):
        settings(tmp_path, mask_scales=(0.2, 1.0))
    with pytest.raises(ValueError, match=r"mask_duration must lie in \(0, 1\], got 1.5"):
        settings(tmp_path, mask_duration=1.5)


def test_collapse_monitors_tell_rank():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(4000, 16, generator=generator)
    line = full[:, :1] * torch.randn(1, 16, generator=generator)
    assert collapse_monitors(full)["feature_rank"] == pytest.approx(16, abs=0.3)
    assert collapse_monitors(line)["feature_rank"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("readout", ["mean", "tokens", "hand"])
def test_the_state_readout_adds_its_error_to_the_loss(tmp_path, readout):
    pretrain(settings(tmp_path, state_loss=1.0, state_batch=2, state_readout=readout), NoiseClips())
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert row["state"] > 0 and row["denoising"] > 0


@pytest.mark.parametrize(("readout", "sizes"), [("hand", {64}), ("tokens", {32, 64})])
def test_a_state_readout_trains_through_a_cooldown_of_larger_frames(tmp_path, monkeypatch, readout, sizes):
    seen, read = [], MaskDenoiser._readout_error

    def listen(self, stills, states):
        seen.append(stills.shape[-1])
        return read(self, stills, states)

    monkeypatch.setattr(MaskDenoiser, "_readout_error", listen)
    growing = {"image_size": 32, "cooldown_image_size": 64, "mask_scales": (0.1, 0.2), "steps": 10}
    pretrain(settings(tmp_path, state_loss=1.0, state_batch=2, state_readout=readout, **growing), NoiseClips())
    assert len(seen) == 10 and set(seen) == sizes


def test_pretraining_starts_from_a_given_encoder_of_the_same_shape(tmp_path):
    first = pretrain(settings(tmp_path / "first", steps=2), NoiseClips())
    again = pretrain(settings(tmp_path / "again", init=str(first), steps=1, learning_rate=1e-12), NoiseClips())
    old, new = load_encoder(first), load_encoder(again)
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    larger = load_encoder(pretrain(settings(tmp_path / "larger", init=str(first), steps=1, image_size=96), Larger()))
    assert larger.config == replace(old.config, image_size=(96, 96))
    with pytest.raises(ValueError, match=r"holds an encoder of another shape \(depth: 2 there, 3 asked\)"):
        pretrain(settings(tmp_path / "deeper", init=str(first), depth=3), NoiseClips())


def test_minutes_spent_before_count_when_a_run_goes_on(tmp_path):
    asked = settings(tmp_path / "run", steps=None, minutes=0.02)
    pretrain(asked, NoiseClips())
    first = torch.load(asked.out / "state.pt", weights_only=True)
    pretrain(asked, NoiseClips())
    again = torch.load(asked.out / "state.pt", weights_only=True)
    assert first["elapsed"] >= 1.2 and again["step"] == first["step"]


def test_the_teacher_is_the_students_average_and_what_is_kept(tmp_path, monkeypatch):
    student = Encoder(encoder_config("debug", image_size=(64, 64)))
    predictor = MaskPredictor(MaskPredictorConfig(student.config.width, width=24, depth=1, heads=2))
    denoiser = MaskDenoiser(student, predictor)
    before = [p.clone() for p in denoiser.teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    denoiser.update_teacher(0.9)
    for old, average in zip(before, denoiser.teacher.parameters(), strict=True):
        torch.testing.assert_close(average, old + 0.1)

    monkeypatch.setattr(MaskDenoiser, "update_teacher", lambda self, decay: None)  # so it stays as it began
    rates = (1e-3, 1e-2)
    kept = [pretrain(settings(tmp_path / str(rate), steps=1, learning_rate=rate), NoiseClips()) for rate in rates]
    first, second = (load_encoder(str(folder)).state_dict() for folder in kept)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    students = [weights(folder.parent) for folder in kept]
    assert any(not torch.equal(value, students[1][key]) for key, value in students[0].items())
