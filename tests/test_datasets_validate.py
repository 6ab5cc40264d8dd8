"""Every fault is named with its path; repair sets bad episodes aside and loses nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest

from armworld.datasets.card import finish_card, start_card
from armworld.datasets.checks import flange_pose
from armworld.datasets.droid import camera_serial, find_episodes, write_episode
from armworld.datasets.files import temporary_name
from armworld.datasets.validate import QUARANTINE, validate
from armworld.pose import matrix_to_euler

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import edit_array, make_episode, write_dataset

STATE = "observation/robot_state"
VIDEO = f"recordings/MP4/{camera_serial('left')}.mp4"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    start_card(tmp_path, {"task": "reach"})
    write_dataset(tmp_path, 3, cameras=("left", "right"))
    finish_card(tmp_path)
    return tmp_path


def the_bad_one(root: Path) -> Path:
    return find_episodes(root)[1]


def test_good_datasets_pass(root: Path) -> None:
    assert validate(root) == []


def rotated(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :3], np.rad2deg(poses[:, 3:])], 1)


@pytest.mark.parametrize(
    ("key", "change", "kind", "message"),
    [
        (f"{STATE}/cartesian_position", lambda a: None, "trajectory", "cartesian_position is missing"),
        (f"{STATE}/joint_positions", lambda a: None, "trajectory", "joint_positions is missing"),
        ("action/cartesian_velocity", lambda a: None, "trajectory", "action/cartesian_velocity is missing"),
        (f"{STATE}/cartesian_position", lambda a: a.astype("S8"), "trajectory", "dtype"),
        (f"{STATE}/cartesian_position", lambda a: np.where(a > 0.4, np.nan, a), "trajectory", "NaN"),
        (f"{STATE}/cartesian_position", rotated, "units", "degrees"),
        (f"{STATE}/cartesian_position", lambda a: a * [1000, 1000, 1000, 1, 1, 1], "units", "metres"),
        (f"{STATE}/joint_positions", lambda a: a + 90, "units", "degrees"),
        (f"{STATE}/gripper_position", lambda a: 100 * a, "units", "0 open"),
        (f"{STATE}/gripper_position", lambda a: a[:-1], "trajectory", "11 rows"),
        ("observation/timestamp/control/step_start", lambda a: a[::-1], "timestamps", "does not increase"),
        ("observation/timestamp/robot_state/read_start", lambda a: 2 * a, "rate", "steps by 0.500 s"),
        ("observation/timestamp/control/step_start", lambda a: a / 1e3, "timestamps", "dtype float64"),
        (f"observation/camera_extrinsics/{camera_serial('left')}_left", lambda a: None, "trajectory", "missing"),
        (f"observation/camera_extrinsics/{camera_serial('left')}_left", lambda a: 100 * a, "extrinsics", "not m"),
        (f"observation/camera_type/{camera_serial('left')}", lambda a: None, "trajectory", "camera_type"),
        ("simulation/physics", lambda a: a * np.nan, "trajectory", "simulation/physics holds NaN"),
        ("simulation/contact", lambda a: a[:5], "trajectory", "simulation/contact has shape [5]"),
    ],
)
def test_faults_of_the_trajectory(root: Path, key: str, change, kind: str, message: str) -> None:
    edit_array(the_bad_one(root), key, change)
    problems = validate(root)
    assert any(p.kind == kind and message in p.message for p in problems), problems
    assert {p.path for p in problems} == {the_bad_one(root) / "trajectory.h5"}


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        ('"building": "simulation",', "", "metadata", "keys are missing: building"),
        ('"lab": "lab1"', '"lab": "lab7"', "metadata", "lab 'lab7'"),
        ('"success": false', '"success": true', "metadata", "the folder says failure"),
        ('"trajectory_length": 12', '"trajectory_length": 13', "trajectory", "trajectory_length is 13"),
        ('"control_hz": 4.0', '"control_hz": 15.0', "rate", "contradict"),
        ('"frame_hz": 4.0', '"frame_hz": null', "rate", "positive numbers"),
        ('"video_header_fps": 4.0', '"video_header_fps": 60.0', "rate", "the header says 4 fps"),
        ("{", "{{", "metadata", "not valid JSON"),
        ('"seed":', '"sed":', "metadata", "keys are missing: seed"),
        ('"cameras": {', '"cameras": 1, "others": {', "metadata", "cameras must be an object, got 1"),
        (
            '"left_mp4_path": ',
            '"left_mp4_path": 5, "other": ',
            "metadata",
            "left_mp4_path must be a path or null, got 5",
        ),
    ],
)
def test_faults_of_the_metadata(root: Path, old: str, new: str, kind: str, message: str) -> None:
    path = next(the_bad_one(root).glob("*.json"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    problems = validate(root)
    assert any(p.kind == kind and message in p.message for p in problems), problems
    assert all(str(the_bad_one(root)) in str(p.path) for p in problems)


def test_empty_metadata_lack_every_key(root: Path) -> None:
    next(the_bad_one(root).glob("*.json")).write_text("{}")
    assert any(p.kind == "metadata" and "keys are missing: uuid, lab" in p.message for p in validate(root))


def test_a_card_without_settings_is_a_problem(root: Path) -> None:
    (root / "card.json").write_text("{}")
    (problem,) = validate(root)
    assert problem.kind == "card" and "an object with the key config is expected" in problem.message


def test_swapped_left_and_right(root: Path) -> None:
    path = next(the_bad_one(root).glob("*.json"))
    text = path.read_text().replace('"left_mp4_path"', '"x"').replace('"right_mp4_path"', '"left_mp4_path"')
    path.write_text(text.replace('"x"', '"right_mp4_path"'))
    assert any(p.kind == "extrinsics" and "larger base-frame y" in p.message for p in validate(root))


def test_faults_of_the_video(root: Path) -> None:
    video = the_bad_one(root) / VIDEO
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    assert [(p.path, p.kind) for p in validate(root)] == [(video, "video")]
    video.unlink()
    assert {(p.path, p.kind) for p in validate(root)} >= {(video, "video")}
    other = find_episodes(root)[0].parent / "x.mp4"
    write_dataset(root / "long", 1, rows=14)
    (find_episodes(root / "long")[0] / VIDEO).rename(other)
    video.write_bytes(other.read_bytes())
    assert any(p.kind == "frames" and p.message == "14 frames for 12 rows" for p in validate(root))


def test_av1_is_refused(root: Path) -> None:
    if "libsvtav1" not in av.codecs_available and "libaom-av1" not in av.codecs_available:
        pytest.skip("no AV1 encoder in this FFmpeg")
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    with av.open(str(the_bad_one(root) / VIDEO), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert any("AV1" in p.message for p in validate(root))


def test_doubled_uuid_names_both(root: Path) -> None:
    first, second = find_episodes(root)[:2]
    metadata = [next(folder.glob("*.json")) for folder in (first, second)]
    text = metadata[0].read_text()
    metadata[1].unlink()
    (second / metadata[0].name).write_text(text)
    problems = [p for p in validate(root) if p.kind == "uuid"]
    assert [p.path for p in problems] == [second] and str(first) in problems[0].message


def test_gripper_in_metres_is_caught(root: Path) -> None:
    for folder in find_episodes(root):  # width, as the Franka Hand reports it: 0.08 m open
        edit_array(folder, f"{STATE}/gripper_position", lambda a: 0.08 * (1 - a))
    problems = [p for p in validate(root) if p.kind == "units" and "metres" in p.message]
    assert len(problems) == 3


def test_one_gripper_in_metres_among_good_ones(tmp_path: Path) -> None:
    episode = make_episode(9)
    closing = np.linspace(0, 1, 12)
    states, actions = episode.states.copy(), episode.actions.copy()
    states[:, 6], actions[:-1, 6] = closing, np.diff(closing)
    folder = write_episode(tmp_path, type(episode)(**{**vars(episode), "states": states, "actions": actions}))
    write_dataset(tmp_path, 2)
    edit_array(folder, f"{STATE}/gripper_position", lambda a: 0.08 * (1 - a))
    problems = [p for p in validate(tmp_path, strict=False) if "metres" in p.message]
    assert [p.path.parent for p in problems] == [folder]


def test_tool_frames_are_caught(root: Path) -> None:
    """States of libfranka's O_T_EE (0.1034 m further out, turned by -45 degrees) instead of the flange."""
    joints = np.tile([0.1, 0.2, -0.1, -2.0, 0.05, 2.2, 0.8], (12, 1)) + np.linspace(0, 0.1, 12)[:, None]
    position, rotation = flange_pose(joints)
    folder = the_bad_one(root)
    edit_array(folder, f"{STATE}/joint_positions", lambda _: joints)
    right = np.concatenate([position, matrix_to_euler(rotation)], 1)
    edit_array(folder, f"{STATE}/cartesian_position", lambda _: right)
    assert validate(root) == []
    c = np.sqrt(0.5)
    turn = np.array([[c, c, 0], [-c, c, 0], [0, 0, 1]])
    tool = np.concatenate([position + 0.1034 * rotation[:, :, 2], matrix_to_euler(rotation @ turn)], 1)
    edit_array(folder, f"{STATE}/cartesian_position", lambda _: tool)
    messages = [p.message for p in validate(root) if p.kind == "frame"]
    assert any("O_T_EE" in m for m in messages) and any("45 deg" in m for m in messages)


def test_real_droid_gaps_pass_where_the_layout_is_not_ours(tmp_path: Path) -> None:
    """No timestamps, no action group, one frame fewer than rows, another header rate: known in real folders."""
    folder = write_episode(tmp_path, make_episode(1, rows=13))
    edit_array(folder, "observation/timestamp/control/step_start", lambda a: None)
    edit_array(folder, "action/joint_velocity", lambda a: None)
    short = make_episode(1, rows=12, step_seconds=1 / 60)
    video = find_short_video(tmp_path / "short", short)
    (folder / VIDEO).write_bytes(video.read_bytes())
    assert validate(tmp_path) == []
    assert {p.kind for p in validate(tmp_path, strict=True) if "card" not in p.kind} >= {"frames", "rate", "trajectory"}


def find_short_video(root: Path, episode) -> Path:
    return write_episode(root, episode) / VIDEO


def test_leftovers_and_card(root: Path) -> None:
    leftover = find_episodes(root)[0].with_name(temporary_name("x"))
    leftover.mkdir()
    write_episode(root, make_episode(8))
    problems = {(p.path, p.kind) for p in validate(root)}
    assert problems == {(leftover, "unfinished"), (root / "card.json", "card")}


def test_a_card_that_says_too_little_or_nothing(root: Path) -> None:
    card = root / "card.json"
    text = card.read_text()
    card.write_text(text.replace('"licence"', '"license"'))
    assert [(p.kind, p.message) for p in validate(root)] == [("card", "keys are missing: licence")]
    card.write_text(text[:50])
    (problem,) = validate(root)
    assert problem.path == card and "not valid JSON" in problem.message


@pytest.mark.parametrize("name", ["trajectory.h5", "left.mp4", "metadata.json"])
def test_damaged_bytes_never_stop_the_check(root: Path, name: str) -> None:
    """Whatever a disk made of a file: the other episodes are still checked, and a file that was cut is named."""
    folder, rng = the_bad_one(root), np.random.default_rng(0)
    path = {"left.mp4": folder / VIDEO, "metadata.json": next(folder.glob("*.json"))}.get(name, folder / name)
    whole = path.read_bytes()
    for trial in range(8):
        damaged = bytearray(whole)
        if trial % 2:
            damaged = damaged[: int(rng.integers(len(whole)))]
        else:
            for at in rng.integers(0, len(whole), 20):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        problems = validate(root)
        assert all(str(folder) in str(problem.path) for problem in problems)
        assert problems or not trial % 2


def test_repair_sets_bad_episodes_aside(root: Path) -> None:
    bad = the_bad_one(root)
    edit_array(bad, f"{STATE}/cartesian_position", rotated)
    assert validate(root, repair=True)
    assert validate(root) == [] and len(find_episodes(root)) == 2
    aside = root / QUARANTINE / bad.relative_to(root)
    assert "degrees" in (aside / "problems.txt").read_text() and (aside / "trajectory.h5").exists()
