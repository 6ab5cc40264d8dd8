"""Collection: the same episodes whatever interrupts it and however many processes make them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from armworld.datasets import collect as collect_module
from armworld.datasets.behaviours import BEHAVIOURS, Mix, make_behaviour
from armworld.datasets.card import start_card
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.droid import find_episodes
from armworld.datasets.trajectory import read_episode, read_trajectory
from armworld.datasets.validate import validate
from armworld.envs.controller import ACTION_BOUND
from armworld.jobs import WorkersLost, run_jobs

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import datasets_fake  # noqa: E402
from datasets_helpers import kill_at_random, tree_bytes  # noqa: E402

TASK = "datasets_fake:fake/Arm-v0"


def settings(out: Path, episodes: int = 6, workers: int = 1, **changes) -> CollectConfig:
    values = {"image_size": 64, "steps": 5, "task": TASK, "behaviours": Mix(reach=1, play=1, objects=1)}
    return CollectConfig(out, episodes=episodes, workers=workers, **{**values, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes, collected in one go by this process."""
    out = tmp_path_factory.mktemp("whole") / "data"
    collect(settings(out))
    return out


def content(root: Path) -> dict[str, bytes]:
    """Every file but the index, which holds absolute paths, and without the commit, which may move meanwhile."""
    files = {name: data for name, data in tree_bytes(root).items() if name != "index.csv"}
    return {name: re.sub(rb"[0-9a-f]{40}\+?|unknown", b"", data) for name, data in files.items()}


def test_collected_data_pass_validation(whole: Path) -> None:
    assert validate(whole) == []
    card = collect(settings(whole))  # nothing is missing: only counts anew
    assert card["counts"]["episodes"] == 6 and card["counts"]["frames"] == 36 and card["seeds"] == [0, 5]
    assert 0 <= card["contact_share"] <= 1
    assert card["licence"] == "Apache-2.0" and card["rates"]["step_seconds"] == 0.25
    assert "6 episodes" in (whole / "README.md").read_text()
    assert len((whole / "index.csv").read_text().splitlines()) == 6


def test_states_are_the_reached_ones_and_actions_lead_from_one_to_the_next(whole: Path) -> None:
    for folder in find_episodes(whole):
        episode = read_episode(folder)
        assert len(episode) == 6 and not episode.actions[-1].any()
        assert (np.abs(episode.actions) <= ACTION_BOUND + 1e-12).all()
        np.testing.assert_array_equal(episode.simulation["physics"], episode.states)
        inside = np.abs(np.diff(episode.states[:, :3], axis=0) - episode.actions[:-1, :3]) < 1e-9
        assert inside.mean() > 0.5  # the rest was held at the workspace's walls
        assert set(episode.details) >= {"behaviour", "draws", "level", "lab", "object", "contact_rows"}


def test_the_number_of_workers_changes_nothing(whole: Path, tmp_path: Path) -> None:
    collect(settings(tmp_path / "two", workers=2))
    assert content(tmp_path / "two") == content(whole)


def test_an_interrupt_keeps_what_is_done_and_a_rerun_completes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def interrupted(config: CollectConfig, seed: int) -> str:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(seed)
        return original(config, seed)

    original = collect_module.collect_episode
    monkeypatch.setattr(collect_module, "collect_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(settings(tmp_path))
    assert len(find_episodes(tmp_path)) == 3 and validate(tmp_path) == []
    monkeypatch.undo()
    collect(settings(tmp_path))
    assert content(tmp_path) == content(whole)


def test_growing_in_two_runs_equals_one(whole: Path, tmp_path: Path) -> None:
    collect(settings(tmp_path, episodes=2))
    collect(settings(tmp_path, episodes=6))
    assert content(tmp_path) == content(whole)


def test_where_an_episode_starts_says_nothing_about_its_behaviour(tmp_path: Path) -> None:
    collect(settings(tmp_path, episodes=40, steps=1, image_size=16, behaviours=Mix(reach=1, play=1)))
    episodes = [read_episode(folder) for folder in find_episodes(tmp_path)]
    for axis in range(3):
        reach, play = (
            np.array([e.states[0, axis] for e in episodes if e.details["behaviour"] == name])
            for name in ("reach", "play")
        )
        further = (reach[:, None] > play).mean()  # 0 or 1 where the behaviour follows from the place
        assert 0.2 < further < 0.8, f"axis {axis}: {further:.2f}"


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    collect(settings(tmp_path, episodes=1))
    with pytest.raises(ValueError, match=r"another configuration.*steps: 5 there, 6 asked for"):
        collect(settings(tmp_path, steps=6))
    assert len(find_episodes(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dance"}, r"unknown environment 'armworld/Dance-v0'; valid: .*armworld/Grasp-v0"),
        ({"task": "reach", "objects": ("cup", "cupp")}, "unknown object 'cupp'; valid: cup, box, bottle"),
        ({"task": "reach", "labs": ("lab3",)}, "unknown lab 'lab3'; valid: lab1, lab2"),
        ({"task": "reach", "level": "wild"}, "unknown level 'wild'; valid: none, jitter, full"),
        ({"task": "reach", "robot": "ur5"}, "unknown robot 'ur5'; valid: robotiq_2f85, franka_hand"),
        ({"task": "reach", "cameras": ("lefft",)}, "unknown camera 'lefft'; valid: left, right, wrist"),
        ({"task": "reach", "step_seconds": 0.2501}, "multiple of the physics step"),
        ({"task": "foo/Bar-v0"}, "environment 'foo/Bar-v0' cannot be made .* foo not found"),
        ({"task": "gymnasium:CartPole-v1"}, "cannot be made with our settings: .*unexpected keyword"),
    ],
)
def test_what_the_environment_refuses_begins_no_folder(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(settings(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_episodes_for_tests_may_show_any_laboratory_and_train_nothing(tmp_path: Path) -> None:
    from armworld.datasets.clips import load_frames

    with pytest.raises(ValueError, match=r"lab2 is for tests .*: no training data; --for-tests makes episodes"):
        settings(tmp_path, labs=("lab1", "lab2"))
    with pytest.raises(ValueError, match=r"seeds of tests lie in 1000000 \.\.\. 1999999 .*, got 0 \.\.\. 5"):
        settings(tmp_path, labs=("lab2",), for_tests=True)
    collect(settings(tmp_path, episodes=2, seed=1_000_000, labs=("lab2",), for_tests=True))
    assert all(episode.parts[-4] == "lab2" for episode in find_episodes(tmp_path))
    with pytest.raises(ValueError, match=r"lab2.*was collected to test on \(seed 1000000\): it is no training data"):
        load_frames(tmp_path)


def test_a_folder_of_something_else_is_left_as_it_is(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plans holds something that is no dataset of ours \(results.json\)"):
        collect(settings(tmp_path / "plans"))
    assert [path.name for path in (tmp_path / "plans").iterdir()] == ["results.json"]
    with pytest.raises(ValueError, match=r"results.json is a file; a dataset needs a folder"):
        collect(settings(tmp_path / "plans" / "results.json"))
    with pytest.raises(ValueError, match="cannot hold a path with spaces"):
        collect(settings(tmp_path / "my data"))
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "card.json").write_text("{}")
    with pytest.raises(ValueError, match=r"card.json is no dataset's card: an object with the key config"):
        collect(settings(tmp_path / "copy"))


def test_a_dataset_that_never_began_binds_nobody(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: CollectConfig, seed: int) -> str:
        raise ValueError("broken")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="broken"):
        patch.setattr(collect_module, "collect_episode", broken)
        collect(settings(tmp_path, steps=7))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    start_card(tmp_path, {"steps": 8})  # as a killed process leaves it
    collect(settings(tmp_path))
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"image_size": 33}, "image_size must be even, for video, and 16 ... 1280, got 33"),
        ({"image_size": 14}, "16 ... 1280, got 14"),
        ({"step_seconds": 0.0}, "step_seconds must be above 0 and at most 10, got 0"),
        ({"step_seconds": float("nan")}, "step_seconds must be .* got nan"),
        ({"cameras": ()}, "cameras must name"),
        ({"cameras": ("left", "left")}, "cameras must name at least one, and none twice"),
        ({"cameras": ("wrist",)}, "one or two exterior cameras beside the wrist's, got none"),
        ({"seed": 999_999, "episodes": 2}, "training seeds lie in 0 ... 999999"),
        ({"seed": -1}, "training seeds"),
        ({"labs": ("lab1", "lab2")}, "lab2 is for tests"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"reach": 0, "play": 0}, "of the behaviours' shares one must be above 0"),
        ({"reach": -1.0, "play": 2.0}, "reach must be at least 0, got -1"),
        ({"reach": float("nan")}, "reach must be at least 0, got nan"),
    ],
)
def test_bad_shares_are_refused(shares: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mix(**shares)


def test_a_lost_worker_s_episodes_are_redone(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    monkeypatch.setenv(datasets_fake.CRASH_VARIABLE, str(trap))
    collect(settings(tmp_path / "data", workers=2))
    assert not trap.exists(), "a worker died"
    assert content(tmp_path / "data") == content(whole)


def die(_: int) -> int:
    os._exit(3)


def test_workers_that_always_die_end_the_run() -> None:
    with pytest.raises(WorkersLost, match="2 jobs left"):
        list(run_jobs(die, [1, 2], 2))


def test_an_interrupt_while_the_last_result_is_taken_still_interrupts() -> None:
    taken = []
    with pytest.raises(KeyboardInterrupt):
        for _, result in run_jobs(abs, [-1, -2], 2):
            taken.append(result)
            if len(taken) == 2:
                signal.raise_signal(signal.SIGTERM)
    assert sorted(taken) == [1, 2]


def test_kill_at_a_few_random_moments(whole: Path, tmp_path: Path) -> None:
    kill_collection(whole, tmp_path, moments=3, seed=0)


@pytest.mark.slow
def test_kill_at_fifty_random_moments(whole: Path, tmp_path: Path) -> None:
    kill_collection(whole, tmp_path, moments=50, seed=1)


def kill_collection(whole: Path, tmp_path: Path, moments: int, seed: int) -> None:
    """SIGKILL a collection again and again, each time a little later or earlier; the last run completes."""
    out = tmp_path / "data"

    def visible() -> None:
        for folder in find_episodes(out) if list(out.glob("lab1/*/*/[0-9]*")) else []:
            read_trajectory(folder)  # whatever is visible is whole

    def finished() -> None:
        assert content(out) == content(whole)
        shutil.rmtree(out)

    kill_at_random(collect, (settings(out),), moments, seed, visible, finished)
    collect(settings(out))
    assert content(out) == content(whole)


def test_every_behaviour_stays_in_bounds_and_moves() -> None:
    arm = datasets_fake.FakeArm(cameras=("left",), image_size=16, max_steps=60)
    box = arm.simulator.workspace
    for name in ("reach", "play", "objects"):
        travelled = []
        for seed in range(4):
            observation, _ = arm.reset(seed=seed)
            agent = make_behaviour(name, arm, np.random.default_rng(seed))
            for _ in range(60):
                action = agent.act(observation)
                assert action.shape == (7,) and (np.abs(action) <= ACTION_BOUND).all()
                observation, *_ = arm.step(action)
                assert (arm.simulator.state[:3] >= np.array(box.low) - 1e-9).all()
                assert (arm.simulator.state[:3] <= np.array(box.high) + 1e-9).all()
                travelled.append(np.abs(action[:3]).max())
        assert max(travelled) > 0.05 and np.percentile(travelled, 20) < 0.02, "large and fine motions both occur"
    with pytest.raises(ValueError, match="unknown behaviour 'dance'; valid: reach, play"):
        make_behaviour("dance", arm, np.random.default_rng(0))
    assert set(BEHAVIOURS) == set(Mix().shares())


def test_reaching_covers_the_workspace() -> None:
    arm = datasets_fake.FakeArm(cameras=("left",), image_size=16, max_steps=60)
    places = []
    for seed in range(60):
        observation, _ = arm.reset(seed=seed)
        agent = make_behaviour("reach" if seed % 2 else "play", arm, np.random.default_rng(seed))
        for _ in range(25):
            observation, *_ = arm.step(agent.act(observation))
            places.append(arm.simulator.state[:3].copy())
    low, high = np.array(arm.simulator.workspace.low), np.array(arm.simulator.workspace.high)
    unit = (np.stack(places) - low) / (high - low)
    for axis in range(3):
        counts, _ = np.histogram(unit[:, axis], bins=10, range=(0, 1))
        assert counts.min() > 0.03 * len(places), f"axis {axis}: {counts}"


def test_same_mix_same_draws() -> None:
    mix = Mix(reach=1, play=3)
    draws = [mix.draw(np.random.default_rng(seed)) for seed in range(400)]
    assert draws == [mix.draw(np.random.default_rng(seed)) for seed in range(400)]
    assert 0.65 < draws.count("play") / 400 < 0.85 and set(draws) == {"reach", "play"}
