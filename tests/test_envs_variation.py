"""Variation: the draws say everything, restore an image, and leave nothing behind."""

import json

import numpy as np
import pytest

from armworld.envs.base import ArmEnv
from armworld.envs.cameras import Placement
from armworld.envs.randomization import recolour
from armworld.pose import euler_to_matrix


@pytest.fixture(scope="module")
def env():
    environment = ArmEnv(task="grasp", level="full", image_size=48, cameras=("left", "wrist"))
    yield environment
    environment.close()


def test_draws_are_json_and_differ_between_seeds(env: ArmEnv) -> None:
    draws = [env.reset(seed=seed)[1]["draws"] for seed in (1, 2)]
    assert json.loads(json.dumps(draws)) == draws
    assert draws[0] != draws[1]
    assert {"start_state", "objects", "variation", "redraws"} <= set(draws[0])


def test_same_seed_same_look_whatever_came_before(env: ArmEnv) -> None:
    first, _ = env.reset(seed=5)
    env.reset(seed=6)
    again, _ = env.reset(seed=5)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_saved_state_brings_back_the_look_of_another_episode(env: ArmEnv) -> None:
    first, _ = env.reset(seed=7)
    saved = env.save_state()
    actions = np.random.default_rng(0).uniform(-0.04, 0.04, (3, 7))
    frames = [env.step(action)[0] for action in actions]
    qpos = env.simulator.data.qpos.copy()
    env.reset(seed=8)
    restored = env.restore_state(saved)
    for name in first:
        np.testing.assert_array_equal(first[name], restored[name])
    for action, frame in zip(actions, frames, strict=True):
        np.testing.assert_array_equal(env.step(action)[0]["left"], frame["left"])
    np.testing.assert_array_equal(env.simulator.data.qpos, qpos)


def test_draws_reach_the_model(env: ArmEnv) -> None:
    _, info = env.reset(seed=9)
    variation, sim = info["draws"]["variation"], env.simulator
    drawn = variation["objects"]["cup"]
    extent = sim.object_extent("cup")
    assert extent[1, 2] == pytest.approx(0.09 * drawn["size"], rel=0.02)
    assert sim.object_scale("cup") == pytest.approx(drawn["size"])
    mass = 0.12 * drawn["mass"] * drawn["size"] ** 3
    assert sim.model.body("cup").mass[0] == pytest.approx(mass)
    position, rotation = Placement(**variation["cameras"]["left"]).pose()
    pose = sim.extrinsics("left")
    np.testing.assert_allclose(pose[:3], position)
    np.testing.assert_allclose(euler_to_matrix(pose[3:])[:, 2], -rotation[:, 2], atol=1e-9)
    assert variation["start_yaw"] == pytest.approx(sim.state[5], abs=0.02)


def test_absent_objects_are_neither_seen_nor_reported(env: ArmEnv) -> None:
    draws = next(d for d in (env.reset(seed=seed)[1]["draws"] for seed in range(20)) if len(d["objects"]) < 3)
    present = draws["variation"]["present"]
    assert "cup" in present
    assert set(env.simulator.contact_report()) == set(present) == set(draws["objects"])
    absent = next(name for name in ("box", "bottle") if name not in present)
    before = env.simulator.object_pose(absent)[0]
    for _ in range(3):
        env.step(np.zeros(7))
    np.testing.assert_allclose(env.simulator.object_pose(absent)[0], before, atol=1e-9)


def test_larger_object_weighs_and_rests_consistently(env: ArmEnv) -> None:
    """A scaled object still stands on the table without sinking or moving."""
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(4):
            env.step(np.zeros(7))
        report = env.simulator.contact_report()["cup"]
        assert report["other"] and report["speed"] < 1e-3
        assert abs(env.simulator.underside("cup")) < 1.5e-3


def test_levels_are_ordered() -> None:
    """Jitter changes the picture less than full variation does; none not at all."""
    change = {}
    for level in ("none", "jitter", "full"):
        env = ArmEnv(level=level, image_size=32)
        env.reset(seed=0)
        q = env.simulator.arm_qpos
        frames = []
        for seed in (1, 2, 3):
            env.reset(seed=seed)
            env.simulator.set_arm(q)
            for index, name in enumerate(env.simulator.present):
                env.simulator.place_object(name, np.array([0.5, 0.2 - 0.2 * index, 0]))
            frames.append(env.observe()["left"].astype(float))
        change[level] = np.mean([np.abs(frame - frames[0]).mean() for frame in frames[1:]])
        env.close()
    assert change["none"] == 0 < change["jitter"] < change["full"]


def test_placed_camera_survives_resets_and_is_recorded() -> None:
    env = ArmEnv(image_size=32)
    before, _ = env.reset(seed=0)
    placement = Placement(azimuth=-30, elevation=40, distance=1.2)
    env.place_camera("left", placement)
    moved = env.observe()["left"]
    again, info = env.reset(seed=0)
    np.testing.assert_array_equal(moved, again["left"])
    assert (moved != before["left"]).any()
    assert info["draws"]["variation"]["cameras"]["left"] == placement.as_dict()
    env.close()


def test_recolour() -> None:
    red = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(recolour(red, 1 / 3, 1, 1), [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(recolour(red, 0, 0.5, 0.5), [0.5, 0.25, 0.25])
