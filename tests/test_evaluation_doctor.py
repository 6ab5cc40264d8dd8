"""Probes, axes, ranking, landscapes: on synthetic worlds with known answers, and once through the simulator."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from armworld.evaluation.doctor import DoctorConfig, doctor, examine
from armworld.evaluation.doctor_picture import doctor_figure
from armworld.evaluation.doctor_stills import Stills, read_stills
from armworld.evaluation.doctor_verdict import judge
from armworld.evaluation.landscape import LandscapeConfig, Step, energy_planes, landscape, load_step, verdict
from armworld.evaluation.probing import RIDGES, fit_axes, fit_probe, latent_and_true_distances, ranking, spearman
from armworld.evaluation.samples import JOGS, Samples, Travel
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_fake import save_debug_model


class LinearWorld:
    """Features are a fixed linear map of the flange's position; imagination turns the action by `yaw` (rad)."""

    step_seconds, image_size, camera = 0.25, (16, 16), "left"

    def __init__(self, yaw: float = 0.0, gain: float = 1.0, width: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        self.map = torch.randn(3, 4 * width, generator=generator)
        c, s = np.cos(yaw), np.sin(yaw)
        self.turn = torch.tensor(gain * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), dtype=torch.float32)

    def see(self, position) -> torch.Tensor:
        flat = torch.as_tensor(np.asarray(position), dtype=torch.float32) @ self.map
        return flat.unflatten(-1, (4, -1))

    def encode(self, images) -> torch.Tensor:
        return self.see(np.asarray(images)[:, :, 0, :3, 0].astype(np.float32) / 100)  # position in three pixels

    def rollout(self, z, state, actions) -> Rollout:
        moved = (actions[..., :3] @ self.turn.T).cumsum(-2) @ self.map
        return Rollout(z[:, None, -1:] + moved.unflatten(-1, (4, -1)), state[:, -1, None, None] + actions.cumsum(-2))


def synthetic(world: LinearWorld, episodes: int = 48, steps: int = 6, candidates: int = 8) -> Samples:
    rng = np.random.default_rng(1)
    actions = np.zeros((episodes, steps, 7), np.float32)
    actions[..., :3] = rng.uniform(-0.07, 0.07, (episodes, steps, 3))
    states = np.zeros((episodes, steps + 1, 7), np.float32)
    states[:, 1:] = actions.cumsum(1)
    states[..., :3] += rng.uniform(-0.2, 0.2, (episodes, 1, 3))
    moments = np.array([(e, 2) for e in range(episodes)])
    branch = np.zeros((episodes, candidates + 6, 7), np.float32)
    branch[:, :candidates, :3] = rng.uniform(-0.07, 0.07, (episodes, candidates, 3))
    branch[:, candidates:, :3] = JOGS
    after = states[:, 2, None] + branch
    return Samples(world.see(states[..., :3]), states, actions, moments, branch, world.see(after[..., :3]), after)


def stills(world: LinearWorld, frames: int = 160) -> Stills:
    """Frames of a hand that turns and grips and of an object; three channels of a fifth patch show the last three."""
    rng = np.random.default_rng(2)
    states = np.zeros((frames, 7), np.float32)
    states[:, :3] = rng.uniform(-0.2, 0.2, (frames, 3))
    states[:, 5], states[:, 6] = rng.uniform(-0.3, 0.3, frames), rng.uniform(0, 1, frames)
    objects = rng.uniform(-0.2, 0.2, (frames, 2))
    shown = torch.zeros(frames, 1, 6)
    shown[:, 0, :4] = torch.from_numpy(np.hstack([np.sin(states[:, 5:6]), states[:, 6:], objects]))
    return Stills(torch.cat([world.see(states[:, :3]), shown], 1), states, objects)


def examined(world: LinearWorld, episodes: int = 48, frames: int = 160) -> dict[str, Any]:
    samples = synthetic(world, episodes)
    far = Travel(samples.z, samples.states, samples.actions)
    return examine(world, samples, far, stills(world, frames), np.random.default_rng(0))


FEW = [
    ({"episodes": 12}, "Seeing"),
    ({"frames": 40}, "State Object"),
    ({"episodes": 6, "frames": 16}, "Seeing State Object"),
]


@pytest.mark.parametrize(("sizes", "left"), FEW)
def test_too_few_frames_to_fit_a_probe_to_are_not_the_models_fault(sizes: dict[str, int], left: str) -> None:
    marks = judge(examined(LinearWorld(), **sizes))
    told = [text for mark, text in marks[:-1] if mark == "open"]
    assert " ".join(text.split(":")[0] for text in told) == left
    assert all("Too few to judge: " in text and "are needed; give more with --" in text for text in told)
    assert {mark for mark, _ in marks[:-1]} == {"good", "open"}
    judged = ("open", "Fit for planning, as far as it was judged. Not judged: seeing.")
    assert marks[-1] == (judged if "Seeing" in left else ("good", "Fit for planning."))


def test_a_perfect_model_passes() -> None:
    world = LinearWorld()
    findings = examined(world)
    assert findings["probe"]["position_error_m"] < 1e-3 < findings["probe"]["guessing_error_m"]
    assert findings["sensitivity"]["true_l1"] < 1e-5 < findings["sensitivity"]["shuffled_l1"]
    assert findings["sensitivity"]["response"] == pytest.approx(1, abs=0.01)
    assert findings["axes"]["imagined"]["yaw_deg"] == pytest.approx(0, abs=0.5)
    assert findings["axes"]["imagined"]["gain"] == pytest.approx(1, abs=0.01)
    assert findings["ranking"]["top_1"] == 1.0 and findings["ranking"]["mean_rank"] == 1.0
    assert findings["latent_distance"]["spearman"] > 0.9
    assert max(findings["drift"]["l1"]) < 1e-5 < min(findings["drift"]["copy_l1"])
    assert findings["stills"]["probe"]["position_m"] < 0.002 and findings["stills"]["probe"]["closedness"] < 0.01
    assert findings["stills"]["object_error_m"] < 0.002 < 0.05 < findings["stills"]["object_guessing_m"]
    assert {mark for mark, _ in judge(findings)} == {"good"}
    panels = doctor_figure(findings).axes
    assert len(panels) == 9  # eight panels, one of them with a second axis
    (state,) = (panel for panel in panels if panel.get_title(loc="left").startswith("State: yaw within 0°"))
    told = [text.get_text() for text in state.get_legend().texts]  # pyright: ignore[reportOptionalMemberAccess]
    assert told == ["yaw (°)", "closedness (% of a stroke)"] and state.get_xlabel() == "true (° or %)"


class PositionReadout(torch.nn.Module):
    """Reads the position that the world's first four patches hold, through the pseudo-inverse of how it sees."""

    def __init__(self, world: LinearWorld) -> None:
        super().__init__()
        unit = world.see(np.eye(4, 3, dtype=np.float32)).flatten(1)  # the last row: the origin
        self.origin = torch.nn.Parameter(unit[3], requires_grad=False)
        self.inverse = torch.linalg.pinv(unit[:3] - unit[3])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        position = (z[..., :4, :].flatten(-2) - self.origin) @ self.inverse
        return torch.cat([position, torch.ones_like(position[..., :1]), torch.zeros_like(position[..., :2])], -1)


def test_the_cost_is_judged_by_the_aligned_energy_where_there_is_one() -> None:
    world = LinearWorld()
    plain = examined(world)["latent_distance"]
    assert plain["aligned"] is None
    world.readout = PositionReadout(world)  # type: ignore[attr-defined]
    findings = examined(world)
    assert plain["spearman_near"] < findings["latent_distance"]["aligned"]["spearman_near"] <= 1
    assert "the aligned energy and true distance by" in judge(findings)[4][1]
    assert findings["stills"]["readout"]["position_m"] < 1e-3 and "own readout 0.0 cm" in judge(findings)[6][1]
    assert len(doctor_figure(findings).axes) == 10


def test_what_the_features_do_not_show_is_not_read() -> None:
    world = LinearWorld()
    blind = stills(world)
    read = read_stills(world, Stills(blind.z[:, :4], blind.states, blind.objects), np.random.default_rng(0))
    assert read["probe"]["position_m"] < 0.002
    assert read["object_error_m"] > 0.7 * read["object_guessing_m"]


def test_each_fault_is_named() -> None:
    turned, deaf = LinearWorld(yaw=0.7), LinearWorld(gain=0.0)
    findings = examined(turned)
    assert findings["axes"]["imagined"]["yaw_deg"] == pytest.approx(np.degrees(0.7), abs=0.5)
    assert findings["axes"]["encoded"]["yaw_deg"] == pytest.approx(0, abs=0.5)
    assert "camera where it was" in judge(findings)[-1][1]
    findings = examined(deaf)
    assert findings["axes"]["imagined"]["gain"] == pytest.approx(0, abs=0.01)
    assert judge(findings)[-1] == (
        "bad",
        "Planning will hardly work: the predictor ignores actions: train it longer, or check the units of its data.",
    )


@pytest.mark.parametrize("yaw", [-150.0, -10.0, 0.3, 90.0])
def test_the_axis_rotation_is_exact(yaw: float) -> None:
    rng = np.random.default_rng(0)
    commanded = rng.normal(size=(30, 3))
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    predicted = commanded @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T * [0.8, 0.8, 0.5]
    axes = fit_axes(commanded, predicted)
    assert (axes.yaw_deg, axes.gain, axes.gain_z) == pytest.approx((yaw, 0.8, 0.5))
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        fit_axes(commanded, predicted[:, :2])
    with pytest.raises(ValueError, match="horizontal"):
        fit_axes(np.zeros((2, 3)), np.zeros((2, 3)))


def test_probe_recovers_a_linear_map_and_needs_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 2, 5, generator=generator)
    weights = torch.randn(10, 3, generator=generator)
    targets = (features.flatten(1) @ weights + 2).numpy()
    probe = fit_probe(features, targets, np.arange(80) // 10, np.random.default_rng(0))
    assert np.abs(probe(features[None])[0] - targets).max() < 1e-3
    with pytest.raises(ValueError, match="at least 2 episodes"):
        fit_probe(features, targets, np.zeros(80), np.random.default_rng(0))


def test_ranking_and_correlation() -> None:
    outcomes = torch.randn(3, 6, 2, 4, generator=torch.Generator().manual_seed(0))
    assert (ranking(outcomes, outcomes) == 1).all()
    swapped = outcomes.clone()
    swapped[0, [0, 1]] = outcomes[0, [1, 0]]
    assert (ranking(swapped, outcomes)[0, :2] > 1).all() and (ranking(swapped, outcomes)[1:] == 1).all()
    same = outcomes[:, :1].expand_as(outcomes)  # who imagines the same of all actions, or nothing, ranks none of them
    assert (ranking(same, outcomes) == 6).all() and (ranking(same * torch.nan, outcomes) == 6).all()
    assert spearman(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert spearman(np.ones(5), np.arange(5.0)) == 0
    latent, true = latent_and_true_distances([torch.tensor([0.0, 1, 3])[:, None, None]], [np.eye(3)])
    assert latent.tolist() == [1, 3, 2] and true == pytest.approx(2**0.5)


def test_the_landscape_finds_a_known_minimum() -> None:
    world = LinearWorld()
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, 0, :3, 0] = (5, 2, 3)  # cm: LinearWorld reads the position from pixels
    states = np.zeros((2, 7), np.float32)
    states[1, :3] = (0.05, 0.02, 0.03)
    findings = energy_planes(world, Step(images, states), points=31)
    assert all(error < 0.004 for error in findings["error_m"].values())
    assert findings["energy_of_truth"] < 1e-6 < findings["energy_of_holding"]
    assert "100 % below" in verdict(findings)
    truth = np.unravel_index(findings["energy"]["xy"].argmin(), (31, 31))
    assert findings["axis_m"][truth[1]] == pytest.approx(0.05, abs=0.003)  # x runs along the columns
    turned = energy_planes(LinearWorld(yaw=1.0), Step(images, states), points=31)
    assert turned["error_m"]["xy"] > 0.03


def test_landscape_data_is_checked(tmp_path: Path) -> None:
    good = {"observations": np.zeros((1, 2, 8, 8, 3), np.uint8), "states": np.zeros((1, 2, 7))}
    np.savez(tmp_path / "good.npz", **good)
    assert load_step(tmp_path / "good.npz").images.shape == (2, 8, 8, 3)
    for name, change in {
        "states [1,T,7]": {"states": np.zeros((1, 2, 6))},
        "observations uint8": {"observations": np.zeros((1, 2, 8, 8, 3))},
        "finite states": {"states": np.full((1, 2, 7), np.nan)},
    }.items():
        np.savez(tmp_path / "bad.npz", **(good | change))
        with pytest.raises(ValueError, match=name.replace("[", r"\[")):
            load_step(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="with observations and states"):
        load_step(tmp_path / "bad.npz")


@pytest.fixture(scope="module")
def debug_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_debug_model(tmp_path_factory.mktemp("model"))


def test_doctor_and_landscape_through_the_simulator(tmp_path: Path, debug_model: str) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    config = DoctorConfig(
        debug_model,
        episodes=4,
        steps=3,
        candidates=4,
        far_seconds=1,
        far_episodes=1,
        stills=16,
        out=tmp_path / "doctor",
    )
    record = doctor(config, console)
    assert json.loads((tmp_path / "doctor" / "doctor.json").read_text()) == record
    assert set(record["findings"]) == {"probe", "sensitivity", "axes", "ranking", "latent_distance", "drift", "stills"}
    assert record["verdict"][-1].startswith(("BAD", "WEAK", "GOOD")) and "Planning" in printed.getvalue()
    assert "data:image/png" in (tmp_path / "doctor" / "index.html").read_text()
    record = landscape(LandscapeConfig(debug_model, points=5, out=tmp_path / "landscape"), console)
    assert np.array(record["energy"]["xy"]).shape == (5, 5) and 0.02 < np.linalg.norm(record["true_m"]) < 0.13
    assert {"landscape.png", "collapse.png"} <= {path.name for path in (tmp_path / "landscape").iterdir()}
    assert (tmp_path / "landscape" / "index.html").read_text().count("data:image/png") == 2
    with pytest.raises(ValueError, match="unknown planner that samples 'servo'; valid: cem, "):
        LandscapeConfig(debug_model, planner="servo")
    with pytest.raises(ValueError, match="unknown planner to examine 'gradient'; valid: cem, icem, mppi, servo"):
        DoctorConfig(debug_model, agent="gradient")
    with pytest.raises(ValueError, match="episodes must be at least 4, got 3"):
        DoctorConfig(debug_model, episodes=3)
    with pytest.raises(
        ValueError, match="episodes must be at least 4, got 3"
    ):  # the planner's settings are options beside it
        DoctorConfig(debug_model, episodes=3, samples=48, iterations=3, objective="final")
    with pytest.raises(ValueError, match="stills must be at least 16, got 4"):
        DoctorConfig(debug_model, stills=4)


def test_planning_through_the_simulator(tmp_path: Path, debug_model: str) -> None:
    """The whole chain with an untrained model: it plans, it does not crash, the oracle puts the scene back."""
    from armworld.evaluation.plan import PlanConfig, plan

    settings: dict[str, Any] = {"samples": 8, "iterations": 1, "elites": 2, "max_steps": 3, "episodes": 1}
    config = PlanConfig(model=debug_model, baselines="hold,random,expert,oracle", out=tmp_path, **settings)
    record = plan(config, Console(file=io.StringIO()))
    assert record["model"] == debug_model and record["step_seconds"] == 0.25
    reasons = {name: method["episodes"][0]["reason"] for name, method in record["baselines"].items()}
    assert not any("failed" in reason for reason in [*reasons.values(), record["episodes"][0]["reason"]]), reasons
    assert record["baselines"]["hold"]["summary"]["final_distance_mean_m"] >= 0.1
    with pytest.raises(ValueError, match=r"was made for image_size 64, got 128"):
        plan(PlanConfig(model=debug_model, image_size=128, out=tmp_path / "x"))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_a_probes_penalty_is_chosen_on_episodes_that_it_was_not_fitted_to() -> None:
    """Frames that tell their episode and nothing else: who looked at frames of the same episodes would trust them."""
    signature, position = noise(24, 1, 200), np.random.default_rng(0).normal(size=(24, 3))
    probe = fit_probe(
        signature.repeat_interleave(2, 0), position.repeat(2, 0), np.arange(48) // 2, np.random.default_rng(0)
    )
    assert probe.ridge == max(RIDGES)


def test_no_probe_is_judged_by_what_it_was_fitted_to() -> None:
    """Features that tell nothing: of frames that a probe was fitted to it would read much, of others nothing."""
    world = LinearWorld(width=100)
    samples, seen = synthetic(world, 12), stills(LinearWorld(), 60)
    blind = replace(samples, z=noise(12, 7, 4, 100), branch_z=noise(*samples.branch_z.shape))
    findings = examine(
        world,
        blind,
        Travel(blind.z, blind.states, blind.actions),
        replace(seen, z=noise(60, 4, 100)),
        np.random.default_rng(0),
    )
    told = findings["probe"]
    assert told["position_error_m"] > 0.8 * told["guessing_error_m"]
    assert findings["axes"]["encoded"]["error_m"] < 0.1  # 5 cm were commanded; fitted-to frames lie 20 cm from the mean
    assert findings["stills"]["object_error_m"] > 0.8 * findings["stills"]["object_guessing_m"]


def test_the_doctors_probe_knows_which_frames_are_of_one_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.Tensor, np.ndarray]] = []

    def spy(features: torch.Tensor, targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> Any:
        asked.append((features, groups))
        return fit_probe(features, targets, groups, rng)

    monkeypatch.setattr("armworld.evaluation.doctor.fit_probe", spy)
    world = LinearWorld()
    samples = synthetic(world, 12)
    signed = replace(samples, z=torch.arange(12.0)[:, None, None, None].expand(-1, 7, 4, 6))
    examine(world, signed, Travel(samples.z, samples.states, samples.actions), stills(world), np.random.default_rng(0))
    ((features, groups),) = asked
    np.testing.assert_array_equal(features[:, 0, 0], groups)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text", "npy", "other"])
def test_what_is_no_recorded_step_is_named(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "step.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3)) if content == "npy" else np.savez(file, images=np.zeros(3))
    with pytest.raises(ValueError, match=r"step\.npz is no \.npz with observations and states"):
        load_step(path)


@pytest.mark.parametrize(
    ("make", "changes", "told"),
    [
        (DoctorConfig, {"far_seconds": float("nan")}, "far_seconds must be above 0, got nan"),
        (DoctorConfig, {"task": "CartPole-v1"}, "unknown task 'CartPole-v1'; valid: reach"),
        (DoctorConfig, {"level": "wild"}, "unknown level 'wild'"),
        (DoctorConfig, {"seed": -1}, "seed must be at least 0, got -1"),
        (DoctorConfig, {"planner": True, "samples": 0}, "2 <= elites <= samples"),
        (LandscapeConfig, {"seed": -1}, "seed must be at least 0, got -1"),
        (LandscapeConfig, {"reach_m": float("nan")}, "reach_m must be above 0, got nan"),
        (LandscapeConfig, {"planner": "random"}, "unknown planner that samples 'random'; .*random_shooting"),
        (LandscapeConfig, {"objective": "finale"}, "unknown objective 'finale'"),
        (LandscapeConfig, {"task": "CartPole-v1"}, "not of armworld's interface"),
    ],
)
def test_bad_settings_are_named_before_the_model_is_loaded(make: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make("nowhere", **changes)
