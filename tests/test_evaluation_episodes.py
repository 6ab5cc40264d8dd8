"""The strict runner, its reasons, its storage: on a point world."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402

from armworld.evaluation.agents import AGENTS, Entry, agent_seed, make_agent  # noqa: E402
from armworld.evaluation.cells import Cell, claim, env_id_of, open_env, run_cells, run_episodes  # noqa: E402
from armworld.evaluation.episodes import EpisodeResult, reason_counts, run_episode  # noqa: E402
from armworld.evaluation.files import plain, read_json, write_json  # noqa: E402
from armworld.evaluation.picture import figure_png, summary_figure  # noqa: E402
from armworld.evaluation.records import commits_of, summary  # noqa: E402
from armworld.evaluation.video import read_mp4  # noqa: E402
from armworld.worldmodel.ac_predictor import ACPredictor  # noqa: E402
from armworld.worldmodel.checkpoint import save_world_model  # noqa: E402
from armworld.worldmodel.encoder import Encoder  # noqa: E402
from armworld.worldmodel.model import WorldModelConfig  # noqa: E402
from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config  # noqa: E402


@pytest.fixture
def env():
    env = open_env(fake.ID, {})
    yield env
    env.close()


class Scripted:
    """Plays a function of (step, observation, target)."""

    def __init__(self, act) -> None:
        self._act, self.step = act, 0

    def reset(self, goal) -> None:
        self.target = goal.observations[-1]["state"]

    def act(self, observation):
        action = self._act(self.step, observation, self.target)
        self.step += 1
        return action


def to_goal(observation, target, fraction=1.0):
    return np.append(fraction * (target - observation["state"])[:3], np.zeros(4))


def test_a_model_that_reads_the_cameras_place_is_told_that_of_its_episode(tmp_path, monkeypatch) -> None:
    told = []

    def build(env, model, seed, settings):
        told.append(env.unwrapped.target.tolist())
        return fake.Walk(seed)

    model = SimpleNamespace(config=SimpleNamespace(extrinsics=(0.0,) * 6), step_seconds=0.25)
    entry = Entry(build, True, "for tests", lambda name: model)
    monkeypatch.setitem(AGENTS, "told", entry)
    monkeypatch.setattr("armworld.evaluation.cells.model_identity", lambda name: {"name": name})
    results = run_episodes(Cell(fake.ID, {}, "told", tmp_path, "somewhere"), [1, 2, 3])
    assert told == [result.draws["target"] for result in results]


def test_a_seed_without_a_start_fails_alone(tmp_path, monkeypatch) -> None:
    """Also where the model is told its camera's place before the episode, and where the episode was to be filmed."""
    model = SimpleNamespace(config=SimpleNamespace(extrinsics=(0.0,) * 6), step_seconds=0.25)
    entry = Entry(lambda env, model, seed, settings: fake.Walk(seed), True, "for tests", lambda name: model)
    monkeypatch.setitem(AGENTS, "told", entry)
    monkeypatch.setattr("armworld.evaluation.cells.model_identity", lambda name: {"name": name})
    for agent in ("told", "walk"):
        cell = Cell(fake.NO_START, {}, agent, tmp_path / agent, "somewhere", film=frozenset({6}))
        results = run_episodes(cell, [5, 6, 7])
        assert [result.success for result in results] == [True, False, True]
        assert results[1].reason == "environment_failed: RuntimeError: no feasible start in 200 draws"
        stamp = cell.episode_file(6).stat().st_mtime_ns
        assert run_episodes(cell, [5, 6, 7]) == results and cell.episode_file(6).stat().st_mtime_ns == stamp


def test_episodes_remember_the_commit_that_ran_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("armworld.evaluation.cells.commit", lambda: "first")
    run_episodes(cell(tmp_path), [1, 2])
    record = read_json(tmp_path / "episodes" / "1.json")
    del record["commit"], record["off_m"], record["off_rad"]  # as it was written before these were kept
    write_json(tmp_path / "episodes" / "1.json", record)
    monkeypatch.setattr("armworld.evaluation.cells.commit", lambda: "second")
    results = run_episodes(cell(tmp_path), [1, 2, 3])
    assert [result.commit for result in results] == ["unknown", "first", "second"] and results[0].off_m is None
    assert commits_of(results) == ["first", "second", "unknown"]


def test_how_far_the_arm_was_from_where_it_was_sent(env) -> None:
    """A point goes where it is sent; behind the wall it does not, by at most what is asked for."""
    free = run_episode(env, fake.Walk(1), 3)
    assert free.off_m == pytest.approx(0, abs=1e-6) and free.off_rad == pytest.approx(0, abs=1e-6)
    walled = open_env(fake.WALLED, {})
    held_up = run_episode(walled, Scripted(lambda i, o, t: np.array([0.09, 0, 0, 0, 0, 0, 0])), 3)
    assert held_up.off_m == pytest.approx(0.09, abs=0.001) and held_up.off_rad == pytest.approx(0, abs=1e-6)


def test_distances_that_are_not_measured_are_none(tmp_path) -> None:
    """Fresh and read again, in pictures and in films."""
    unmeasured = Cell(fake.UNMEASURED, {"max_steps": 3}, "walk", tmp_path, film=frozenset({1}), threshold_m=0.04)
    (fresh,) = run_episodes(unmeasured, [1])
    (stored,) = run_episodes(unmeasured, [1])
    assert fresh == stored and fresh.distances_m == (None,) * 4 and fresh.final_distance_m is None
    assert fresh.reason == "missed" and summary([fresh])["final_distance_mean_m"] is None
    assert len(read_mp4(unmeasured.video_file(1))) == 4 + 8
    partly = replace(fresh, distances_m=(None, 0.3, None, 0.1), final_distance_m=0.1)
    for results in ([stored], [partly], [partly, stored]):
        assert figure_png(summary_figure({"walk": results}), dpi=40)[:4] == b"\x89PNG"


def test_too_little_memory_is_the_set_ups_fault_and_no_episodes(env) -> None:
    def act(i, o, t):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise ValueError("Load the model with a smaller memory_mb") from error

    with pytest.raises(ValueError, match="smaller memory_mb"):
        run_episode(env, Scripted(act), 3)


def test_success_needs_the_end_and_the_dwell(env) -> None:
    result = run_episode(env, Scripted(lambda i, o, t: to_goal(o, t)), 3)
    assert result.success and result.reason == "success" and result.steps == 8
    assert len(result.distances_m) == 9 and result.final_distance_m == result.distances_m[-1]
    assert result.final_distance_m == pytest.approx(0, abs=1e-6)
    assert result.solved_steps == tuple(range(1, 9))
    assert result.seconds_per_action >= 0 and result.draws["target"]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda i, o, t: np.zeros(7), "missed"),
        (lambda i, o, t: to_goal(o, t) if i == 6 else np.zeros(7), "timed_out"),  # solved, not held
        (lambda i, o, t: to_goal(o, t, 1 / 16), "timed_out"),  # still closing in
        (lambda i, o, t: to_goal(o, t) if i < 7 else np.full(7, 0.3), "drifted"),
    ],
)
def test_reasons(env, act, reason: str) -> None:
    result = run_episode(env, Scripted(act), 3)
    assert not result.success and result.reason == reason


def test_the_task_may_name_the_failure(env) -> None:
    class Told(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "failure": "dropped"}

    result = run_episode(Told(env), Scripted(lambda i, o, t: np.zeros(7)), 3)
    assert result.reason == "dropped"


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda i, o, t: np.zeros(6), "float64 [6]"),
        (lambda i, o, t: np.zeros(7, int), "int64 [7]"),
        (lambda i, o, t: np.full(7, np.nan), "non-finite"),
        (lambda i, o, t: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_failing_agent_fails_its_episode_only(env, act, told: str) -> None:
    result = run_episode(env, Scripted(lambda i, o, t: act(i, o, t) if i == 2 else to_goal(o, t)), 3)
    assert not result.success and result.steps == 2
    assert result.reason.startswith("planning_failed: ") and told in result.reason
    assert result.final_distance_m == pytest.approx(0, abs=1e-6)


def test_a_failing_environment_is_told_apart(env) -> None:
    class Ends(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, _, _, info = self.env.step(action)
            return observation, reward, True, False, {**info, "success": True}

    class Raises(gymnasium.Wrapper):
        def reset(self, **keywords):
            raise RuntimeError("no free place for the cup")

    ended = run_episode(Ends(env), Scripted(lambda i, o, t: np.zeros(7)), 3)
    assert not ended.success and ended.reason == "environment_failed: terminated by itself at step 1"
    broken = run_episode(Raises(env), Scripted(lambda i, o, t: np.zeros(7)), 3)
    assert "no free place" in broken.reason and broken.final_distance_m is None and broken.steps == 0


def test_records_survive_json(env, tmp_path: Path) -> None:
    result = run_episode(env, fake.Walk(1), 4)
    write_json(tmp_path / "r.json", result.to_json())
    assert EpisodeResult.from_json(read_json(tmp_path / "r.json")) == result
    with pytest.raises(ValueError, match="not an episode"):
        EpisodeResult.from_json({"seed": 1})
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ValueError, match=r"r\.json is not valid JSON"):
        read_json(tmp_path / "r.json")
    assert plain({"a": np.float32("nan"), "b": (np.int64(2), Path("x"))}) == {"a": None, "b": [2, "x"]}
    assert reason_counts([result, replace(result, reason="planning_failed: x")])["planning_failed"] == 1


def cell(out: Path, agent: str = "walk", **kwargs) -> Cell:
    return Cell(fake.ID, {"max_steps": 8, **kwargs}, agent, out)


def outcome(result: EpisodeResult) -> EpisodeResult:
    return replace(result, seconds_per_action=0.0, cpu_seconds_per_action=0.0)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_resume_runs_only_what_is_missing(tmp_path: Path) -> None:
    whole = run_episodes(cell(tmp_path / "a"), range(10, 16))
    first = run_episodes(cell(tmp_path / "b"), range(10, 13))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "b" / "episodes").iterdir()}
    seen = []
    both = run_episodes(cell(tmp_path / "b"), range(10, 16), progress=lambda c, r: seen.append(r.seed))
    assert both[:3] == first and sorted(seen) == list(range(10, 16))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert [outcome(r) for r in both] == [outcome(r) for r in whole]


def test_an_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_episodes(cell(tmp_path, "interrupt"), range(10, 16))
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == ["10.json", "11.json"]


def test_a_folder_of_another_question_is_refused(tmp_path: Path) -> None:
    run_episodes(cell(tmp_path), [1])
    with pytest.raises(ValueError, match=r"holds episodes of another run.*max_steps"):
        run_episodes(cell(tmp_path, max_steps=9), [1])
    with pytest.raises(ValueError, match="valid: cup, box"):
        run_episodes(cell(tmp_path / "new", object="cupp"), [1])
    run_episodes(cell(tmp_path / "new", object="cup"), [1])  # the misspelt question left no claim behind


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        run_episodes(cell(tmp_path), [1], workers=0)
    with pytest.raises(ValueError, match="differ"):
        run_episodes(cell(tmp_path), [1, 1])
    with pytest.raises(ValueError, match=r"unknown task 'reech'; valid: reach, grasp"):
        env_id_of("reech")
    with pytest.raises(ValueError, match="no environment"):
        open_env("evaluation_fake:Nothing-v0", {})
    with pytest.raises(ValueError, match="unknown agent 'walkk'"):
        run_episodes(cell(tmp_path, "walkk"), [1])


def test_processes_give_the_same_episodes_and_pass_errors_on(tmp_path: Path) -> None:
    alone = run_cells([cell(tmp_path / "1"), cell(tmp_path / "2", "broken")], [5, 6, 7])
    spread = run_cells([cell(tmp_path / "3"), cell(tmp_path / "4", "broken")], [5, 6, 7], workers=2)
    assert [[outcome(r) for r in run] for run in spread] == [[outcome(r) for r in run] for run in alone]
    assert all(r.reason == "planning_failed: RuntimeError: no plan has a finite energy" for r in spread[1])
    with pytest.raises(ValueError, match="valid: cup, box"):
        run_episodes(cell(tmp_path / "5", object="pan"), [1, 2], workers=2)


SLOW = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell in the background ignore it
sys.path.insert(0, sys.argv[1])
import evaluation_fake as fake
from pathlib import Path
from armworld.evaluation.cells import Cell, run_episodes
if __name__ == "__main__":
    run_episodes(Cell(fake.ID, {"max_steps": 8}, "walk_slowly", Path(sys.argv[2])), range(400), 2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_resume_after_a_kill(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    run = subprocess.Popen([sys.executable, str(script), str(TESTS), str(tmp_path / "out")], stderr=subprocess.PIPE)
    episodes = tmp_path / "out" / "episodes"
    while len(list(episodes.glob("*.json"))) < 3:
        assert run.poll() is None, run.stderr and run.stderr.read().decode()
        time.sleep(0.02)
    run.send_signal(how)
    run.communicate()
    done = len(list(episodes.glob("*.json")))
    assert 3 <= done < 400
    for path in episodes.glob("*.json"):
        EpisodeResult.from_json(json.loads(path.read_text()))
    finished = run_episodes(cell(tmp_path / "out", "walk_slowly"), range(40))
    again = run_episodes(cell(tmp_path / "again", "walk_slowly"), range(40))
    assert [outcome(r) for r in finished] == [outcome(r) for r in again]


def test_every_episode_has_noise_of_its_own() -> None:
    assert len({agent_seed(seed) for seed in range(50)}) == 50
    env = fake.PointEnv()
    first, second = (make_agent("random", env, None, seed).act({}) for seed in (1, 2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, make_agent("random", env, None, 1).act({}))


def test_episodes_of_a_model_trained_anew_in_place_are_not_mixed(tmp_path) -> None:
    def train(seed: int, **usage) -> None:
        torch.manual_seed(seed)
        encoder = Encoder(encoder_config("debug", image_size=(64, 64)))
        predictor = ACPredictor(
            ACPredictorConfig(encoder.config.width, width=24, depth=1, heads=2, image_size=(64, 64))
        )
        save_world_model(tmp_path / "model", encoder, predictor, WorldModelConfig(image_size=(64, 64), **usage))

    asked = Cell(fake.ID, {}, "cem", tmp_path / "cell", str(tmp_path / "model"))
    train(0)
    claim(asked)
    write_json(asked.episode_file(1), {})
    claim(asked)
    for changes, what in (({"seed": 1}, "weights_id"), ({"seed": 0, "window": 1}, "'window': 1")):
        train(**changes)
        with pytest.raises(ValueError, match=f"holds episodes of another run .*{what}"):
            claim(asked)
