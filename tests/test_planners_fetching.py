"""The way to an object that a vertical agent imagines, and how it chooses the depth from what was imagined."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_planners_vertical import OneObject, drive, lifted, make_agent, picture

from armworld.planners.objectives import LatentGoal
from armworld.planners.vertical import VerticalConfig
from armworld.worldmodel.model import Rollout


def fetching(
    here: list[float], hand: list[float], depths: tuple[float, ...], closedness: float = 0.0
) -> tuple[np.ndarray, float]:
    """Actions [K, H, 7] of a hand read at `here`, (x, y, z, yaw), and the longest step; `hand` has its closedness."""
    agent = make_agent()
    agent.reset(lifted())
    agent.act(picture([0.0, 0.0, 2.0, closedness], [3.0, 1.0, 0.0]))
    read = [torch.tensor([*p[:3], np.cos(p[3]), np.sin(p[3]), *p[4:]]).float() for p in ([*here, closedness], hand)]
    return agent._fetching(read[0], read[1], depths)[0].numpy(), agent.planner.config.space.max_position


@pytest.mark.parametrize(("yaw", "there", "turn"), [(0.1, 0.4, 0.3), (3.0, -3.0, 0.2832), (-3.0, 3.0, -0.2832)])
def test_an_imagined_grasp_goes_down_turned_closes_there_and_comes_up_to_where_the_hand_is_shown(
    yaw: float, there: float, turn: float
) -> None:
    here, hand, depths = [0.1, 0.2, 0.5, yaw], [0.16, 0.12, 0.3, there, 0.4], (0.0, 0.05, 0.12)
    actions, longest = fetching(here, hand, depths, closedness=0.1)
    places = np.array(here[:3]) + actions[:, :, :3].cumsum(1)
    np.testing.assert_allclose(places[:, -1], np.tile(hand[:3], (3, 1)), atol=1e-6)
    closing = np.argmax(actions[0, :, 6] != 0)
    np.testing.assert_allclose(places[:, closing, 2], 0.3 - np.array(depths), atol=1e-6)
    np.testing.assert_allclose(places[:, closing, :2], np.tile(hand[:2], (3, 1)), atol=1e-6)  # straight up from there
    np.testing.assert_allclose(actions[:, :, 5].sum(1), turn, atol=1e-3)  # the shorter way round, and before it closes
    np.testing.assert_allclose(actions[:, :closing, 5].sum(1), turn, atol=1e-3)
    np.testing.assert_allclose(actions[:, closing, 6], 0.4 - 0.1, atol=1e-6)
    assert not actions[:, :closing, 6].any() and not actions[:, closing, :6].any()
    assert np.abs(actions[:, :, 2]).max() <= longest + 1e-6


def test_depths_imagined_apart_take_as_many_steps_as_together() -> None:
    """Errors of imagination grow with its length: scores of different lengths would not compare."""
    here, hand = [0.1, 0.2, 0.5, 0.0], [0.1, 0.2, 0.3, 0.0, 0.4]
    together, _ = fetching(here, hand, (0.0, 0.04, 0.14))
    for row, depth in enumerate((0.0, 0.04, 0.14)):
        np.testing.assert_array_equal(fetching(here, hand, (depth,))[0][0], together[row])


@pytest.mark.parametrize(
    ("scores", "depth"),
    [
        ((1.0, 0.96, 1.2), 0.0),
        ((1.0, 0.94, 1.2), 0.06),
        ((1.0, 1.2, 0.9), 0.10),
        ((-1.0, -1.04, 0.0), 0.0),
        ((-1.0, -1.06, 0.0), 0.06),
        ((1.0, 1.5, 1.2), 0.0),
    ],
)
def test_a_depth_is_taken_only_where_it_scores_clearly_better_than_none(
    scores: tuple[float, ...], depth: float
) -> None:
    """By 5 % of the score of depth 0, whatever its sign; and the hand is sent 2 cm deeper than what is taken."""
    agent = make_agent(VerticalConfig(depths=(0.04, 0.08), margin=0.05, bite=0.02))
    agent._imagined_scores = lambda *_: torch.tensor(scores)  # type: ignore[method-assign]
    drive(agent, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 4)
    assert agent.depths[0] == pytest.approx(depth)


def test_a_depth_counts_for_more_where_open_fingers_would_not_do() -> None:
    """Closed fingers end equally near the image (0.5) from three depths; open ones end 0.5, 1 and 0.2 off.

    A score of 2 * E - E_open: what the image would look like anyway tells nothing of a grasp.
    """
    goal = torch.from_numpy(lifted().observations[0]["left"])[None]

    class Ends(OneObject):
        def rollout(self, z: torch.Tensor, state: torch.Tensor, actions: torch.Tensor) -> Rollout:
            off = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.2])
            assert actions[0, :3, :, 6].any(1).all() and not actions[0, 3:, :, 6].any()
            end = goal[:, None, None] + off.view(1, 6, 1, 1, 1)
            return Rollout(z=end.expand(1, 6, actions.shape[2], 2, 4), state=state[:, -1:, None] + actions.cumsum(2))

    agent = make_agent()
    agent.reset(lifted())
    agent.act(picture([0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0]))
    agent.model = Ends()  # type: ignore[assignment]
    scores = agent._imagined_scores(LatentGoal(goal), agent.objective.readout(goal), (0.0, 0.04, 0.08))  # type: ignore
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.0, 0.8]))


@pytest.mark.parametrize(("closes_to", "tries"), [(0.6, 1), (0.75, 2), (1.0, 2)])
def test_fingers_that_close_a_little_further_than_shown_hold_something(closes_to: float, tries: int) -> None:
    """The image shows them at 0.4; up to 0.3 further the object may be softer or narrower, beyond that it is air."""

    def squeezed(frame: torch.Tensor) -> torch.Tensor:
        frame[0, 3] = frame[0, 3].clamp_max(0.0) if frame[0, 3] < 0.2 else closes_to
        return frame

    agent = make_agent(VerticalConfig(depths=(0.04,), retries=1), OneObject(blind=True))
    drive(agent, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 12, squeezed)
    assert len(agent.depths) == tries
