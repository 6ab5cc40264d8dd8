"""Cameras: extrinsics against MuJoCo and against pixels, placement, and the choice of an OpenGL backend."""

import os
import subprocess
import sys

import numpy as np
import pytest

from armworld.envs import rendering
from armworld.envs.base import ArmEnv
from armworld.envs.cameras import PRESETS, Placement, intrinsics, place_camera, project
from armworld.envs.scene import SceneConfig
from armworld.envs.simulator import Simulator
from armworld.pose import euler_to_matrix


@pytest.fixture(scope="module")
def sim() -> Simulator:
    simulator = Simulator(SceneConfig(objects=("box",)))
    simulator.reset()
    return simulator


def test_placement_geometry(sim: Simulator) -> None:
    sim.place_camera("left", Placement(azimuth=90, elevation=0, distance=2.0, look_at=(0.4, 0.1, 0.2), fovy=30))
    pose = sim.extrinsics("left")
    np.testing.assert_allclose(pose[:3], [0.4, 2.1, 0.2], atol=1e-12)
    right, down, forward = euler_to_matrix(pose[3:]).T
    np.testing.assert_allclose(right, [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(down, [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(forward, [0, -1, 0], atol=1e-12)


@pytest.mark.parametrize("camera", ["left", "right", "wrist"])
def test_extrinsics_match_mujoco(sim: Simulator, camera: str) -> None:
    data = sim.data.camera(camera)
    pose = sim.extrinsics(camera)
    np.testing.assert_allclose(pose[:3], data.xpos)
    expected = data.xmat.reshape(3, 3) * [1, -1, -1]
    np.testing.assert_allclose(euler_to_matrix(pose[3:]), expected, atol=1e-9)


@pytest.mark.parametrize("placement", [Placement(40, 35, 0.9), Placement(-70, 20, 1.3, fovy=35)])
def test_projection_hits_the_rendered_object(sim: Simulator, placement: Placement) -> None:
    """The pixels that change when the box appears surround the projection of its centre."""
    sim.place_camera("left", placement)
    sim.place_object("box", np.array([5.0, 5.0, 0.0]))
    empty = sim.observe(("left",), 128, 128)["left"].astype(int)
    sim.place_object("box", np.array([0.55, 0.05, 0.0]))
    changed = np.abs(sim.observe(("left",), 128, 128)["left"].astype(int) - empty).sum(-1) > 30
    rows, columns = np.nonzero(changed)
    centre = np.array([0.55, 0.05, 0.0]) + sim.object_extent("box").mean(0)
    expected = project(centre, sim.extrinsics("left"), intrinsics(sim.model, "left", 128, 128))
    np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=2.5)


def test_frames_repeat_and_sizes_share_a_renderer(sim: Simulator) -> None:
    first = sim.observe(("left", "wrist"), 64, 64)
    renderer = sim.renderer
    sim.observe(("left",), 96, 128)
    second = sim.observe(("left", "wrist"), 64, 64)
    assert sim.renderer is renderer
    for name in ("left", "wrist"):
        assert first[name].tobytes() == second[name].tobytes()
        assert first[name].dtype == np.uint8 and first[name].std() > 5


def test_bad_cameras_are_named(sim: Simulator) -> None:
    with pytest.raises(ValueError, match=r"unknown camera 'top'; this scene has: .*left, right"):
        sim.observe(("top",), 32, 32)
    with pytest.raises(ValueError, match="exceeds this renderer's 256x256"):
        sim.observe(("left",), 300, 300)
    with pytest.raises(ValueError, match="valid: left, right"):
        place_camera(sim.model, "wrist", Placement(0, 30, 1))
    with pytest.raises(ValueError, match="elevation in"):
        Placement(0, 90, 1.0)


def test_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_chosen", None)
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ValueError, match=r"MUJOCO_GL='vulkan'.*valid: egl, osmesa, glfw"):
        rendering.choose_backend()


def test_no_backend_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_chosen", None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_probe", lambda backend: f"{backend} is missing")
    with pytest.raises(rendering.RenderingUnavailable, match=r"apt-get install libegl1.*libosmesa6.*egl is missing"):
        rendering.choose_backend()


def test_a_backend_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "PROBE_SECONDS", 0.001)
    assert rendering._probe("egl") == "no answer within 0.001 s"


def test_second_backend_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_chosen", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("MUJOCO_GL", None)
    monkeypatch.setattr(rendering, "_probe", lambda backend: None if backend == "osmesa" else "no")
    assert rendering.choose_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_process_that_leaves_a_renderer_open_ends_quietly() -> None:
    code = (
        "import gymnasium, armworld.envs\nenv = gymnasium.make('armworld/Reach-v0', image_size=32)\nenv.reset(seed=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr and "Exception" not in done.stderr, done.stderr


def test_an_environment_is_made_with_a_camera_elsewhere() -> None:
    fields = {"azimuth": 10.0, "elevation": 40.0, "distance": 1.1, "look_at": [0.4, 0.0, 0.1], "fovy": 50.0}
    env = ArmEnv(image_size=32, placements={"left": fields})
    try:
        env.reset(seed=1)
        assert env.draws["variation"]["cameras"]["left"] == fields
        expected, _ = Placement(**{**fields, "look_at": (0.4, 0.0, 0.1)}).pose()
        np.testing.assert_allclose(env.extrinsics("left")[:3], expected, atol=1e-9)
    finally:
        env.close()


def test_an_environment_is_made_with_a_preset() -> None:
    env = ArmEnv(cameras=("left",), image_size=32, placements={"left": "above"})
    np.testing.assert_allclose(Placement(**env.randomizer.rigs["left"].as_dict()).pose()[0], PRESETS["above"].pose()[0])
    env.close()


@pytest.mark.parametrize(
    ("placements", "named"),
    [
        ({"left": {"azimut": 3}}, "azimut"),
        ({"left": "frnt"}, "front"),
        ({"left": {"azimuth": 3}}, "distance"),
        ({"wrist": {}}, "wrist"),
    ],
)
def test_a_wrong_placement_is_named(placements: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ArmEnv(image_size=32, placements=placements)


def frame_digest(backend: str) -> str:
    """Of the first frame of an episode, drawn with a backend in a process of its own."""
    code = (
        "import hashlib, gymnasium, armworld.envs\n"
        "env = gymnasium.make('armworld/Reach-v0', image_size=64)\n"
        "print(hashlib.md5(env.reset(seed=0)[0]['left'].tobytes()).hexdigest())\n"
        "env.close()\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | {"MUJOCO_GL": backend}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_osmesa_draws_the_same_bytes_as_egl() -> None:
    for backend in ("egl", "osmesa"):
        if reason := rendering._probe(backend):
            pytest.skip(f"{backend} does not work here: {reason}")
    assert frame_digest("osmesa") == frame_digest("egl")
