"""The mix of behaviours: each task's default, what the card says of it, and how much contact it gives."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import armworld.envs
from armworld.datasets.behaviours import DEFAULTS, Mix, make_behaviour
from armworld.datasets.collect import STREAM, CollectConfig, collect
from armworld.datasets.record import simulator_row

sys.path.insert(0, str(Path(__file__).parent))
import datasets_fake  # noqa: F401  registers the pretend arm

TASK_IDS = {task: env_id for env_id, task in armworld.envs.IDS.items()}


def test_every_task_has_a_default_mix_and_given_shares_replace_it() -> None:
    assert set(DEFAULTS) == set(TASK_IDS)
    assert Mix().for_task("grasp").shares() == DEFAULTS["grasp"].shares()
    assert all(sum(mix.shares().values()) == pytest.approx(1) for mix in DEFAULTS.values())
    given = Mix(play=2).for_task("grasp")
    assert given.shares() == {**dict.fromkeys(Mix().shares(), 0.0), "play": 2.0}
    assert None not in dataclasses.asdict(given).values()


def test_the_card_tells_contact_per_behaviour_and_old_cards_stay_valid(tmp_path: Path) -> None:
    settings = {"image_size": 64, "steps": 5, "task": "datasets_fake:fake/Arm-v0", "workers": 1}
    card = collect(CollectConfig(tmp_path, episodes=4, **settings))
    assert card["config"]["behaviours"] == {**dict.fromkeys(Mix().shares(), 0.0), "reach": 0.5, "play": 0.5}
    counts = card["counts"]["behaviours"]
    assert set(card["contact_shares"]) == set(counts)
    mean = sum(card["contact_shares"][name] * count for name, count in counts.items()) / 4
    assert mean == pytest.approx(card["contact_share"], abs=1e-3)
    assert f"({', '.join(f'{n} {s:.0%}' for n, s in card['contact_shares'].items())})" in (
        tmp_path / "README.md"
    ).read_text().replace("\n", " ")
    del card["config"]["behaviours"]["handle"]  # as written before that behaviour existed
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert collect(CollectConfig(tmp_path, episodes=5, **settings))["counts"]["episodes"] == 5


def busy_share(task: str, behaviour: str, seed: int, steps: int = 25) -> float:
    """Share of an episode's rows with a finger on an object, or an object moving."""
    env = gymnasium.make(TASK_IDS[task], cameras=(), max_steps=steps, disable_env_checker=True)
    observation, info = env.reset(seed=seed)
    agent = make_behaviour(behaviour, env, np.random.default_rng([seed, STREAM]))
    agent.reset(info["goal"])
    simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
    rows = [simulator_row(simulator, ())]
    for _ in range(steps):
        observation, *_ = env.step(agent.act(observation))
        rows.append(simulator_row(simulator, ()))
    env.close()
    return float(np.mean([row["simulation/contact"] or row["simulation/moving"] for row in rows]))


def test_handling_is_in_contact_most_of_the_time() -> None:
    assert np.mean([busy_share("grasp", "handle", seed) for seed in range(2)]) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["grasp", "reach_with_object", "pick_place"])
def test_half_of_the_frames_show_contact(task: str) -> None:
    draws = [(seed, DEFAULTS[task].draw(np.random.default_rng([seed, 7]))) for seed in range(40)]
    assert np.mean([busy_share(task, behaviour, seed) for seed, behaviour in draws]) >= 0.5
