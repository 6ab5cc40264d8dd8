"""Coming to objects from above and leaving upwards, in a world of one hand and one object that only fingers lift."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.planners.gripper import understood
from armworld.planners.mpc import AgentConfig, PlanningAgent
from armworld.planners.objectives import AlignedL1, FinalL1, LatentGoal
from armworld.planners.registry import make_planner
from armworld.planners.turning import TurnedModel
from armworld.planners.vertical import VerticalAgent, VerticalConfig
from armworld.types import Goal, Observation
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import goal_at

UNIT = torch.tensor([0.1, 0.1, 0.1, 1.0])  # of the hand's coordinates (m) and of the closedness
AROUND = 0.3  # dm: fingers that close so near to the object's middle hold it, at a closedness of 0.4
HELD = 0.4


class OneObject:
    """Latent [2, 4]: the hand (x, y, z in dm, closedness), and the object (x, y, z in dm, 1).

    Closing within `AROUND` of the object holds it: from then on it moves as the hand does. `blind` imagines that closed
    fingers hold the object wherever it is.
    """

    step_seconds = 0.25

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(images, dtype=torch.float32)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        frame = z[:, -1:].expand(-1, actions.shape[1], -1, -1)
        frames = []
        for step in range(actions.shape[2]):
            frame = self.step(frame, actions[:, :, step])
            frames.append(frame)
        return Rollout(z=torch.stack(frames, 2), state=state[:, -1:, None] + actions.cumsum(2))

    def step(self, frame: Tensor, action: Tensor) -> Tensor:
        """The next frame [..., 2, 4] after actions [..., 7]."""
        hand, thing = frame[..., 0, :], frame[..., 1, :]
        near = torch.linalg.vector_norm(hand[..., :3] - thing[..., :3], dim=-1) <= AROUND
        moved = hand + action[..., [0, 1, 2, 6]] / UNIT
        closed = near & (moved[..., 3] >= HELD - 1e-4)
        moved[..., 3] = torch.where(closed, HELD, moved[..., 3].clamp(0, 1))
        carried = closed if not self.blind else moved[..., 3] >= HELD - 1e-4
        thing = thing + torch.where(carried[..., None], moved - hand, 0.0) * torch.tensor([1.0, 1, 1, 0])
        return torch.stack([moved, thing], -2)


class HandReading(torch.nn.Module):
    """Reads the hand's position (m) and closedness, and no turn."""

    def forward(self, z: Tensor) -> Tensor:
        hand = z[..., 0, :]
        still = torch.ones_like(hand[..., :1])
        return torch.cat([0.1 * hand[..., :3], still, 0 * still, hand[..., 3:]], -1)


def picture(hand: list[float], thing: list[float]) -> Observation:
    """What it looks like with the hand (dm, closedness) and the object (dm) there."""
    image = np.array([hand, [*thing, 1.0]], np.float32)
    return {"state": np.array([*(0.1 * image[0, :3]), 0, 0, 0, image[0, 3]], np.float32), "left": image}


def make_agent(
    vertical: VerticalConfig | None = None,
    model: OneObject | None = None,
    read_gripper: bool = False,
    seconds_per_action: float | None = None,
) -> VerticalAgent:
    return VerticalAgent(
        model or OneObject(),  # type: ignore[arg-type]
        make_planner("cem", samples=128, space={"max_position": 0.075, "max_gripper": 1.0, "stroke": True}),
        AlignedL1(HandReading(), goal_gripper=True, closed_enough=read_gripper),  # type: ignore[arg-type]
        "left",
        torch.Generator().manual_seed(0),
        AgentConfig(
            schedule="arrival",
            gripper="last",
            gripper_margin=0.03,
            full_grip=True,
            patience=2.0,
            rest=True,
            read_gripper=read_gripper,
            seconds_per_action=seconds_per_action,
        ),
        vertical=vertical,
    )


def drive(
    agent: PlanningAgent,
    goal: Goal,
    hand: list[float],
    thing: list[float],
    steps: int,
    stop: Callable[[Tensor], Tensor] = lambda frame: frame,
    gate: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Frames [steps + 1, 2, 4] of an episode; `stop` may take back what a step did, `gate` changes what is done."""
    agent.reset(goal)
    seen = picture(hand, thing)
    frames, executed = [seen["left"]], {}
    for step in range(steps):
        action = agent.act(seen)
        if gate is not None:
            action = gate(step, action)
            executed = {"executed": action}
        frame = stop(OneObject().step(torch.from_numpy(frames[-1]), torch.from_numpy(action)))
        seen = picture(frame[0].tolist(), frame[1, :3].tolist()) | executed
        frames.append(seen["left"])
    return np.stack(frames)


def lifted(height: float = 1.0) -> Goal:
    """One image: the object held, `height` decimetres above where it stands."""
    return Goal((picture([3.0, 1.0, height, HELD], [3.0, 1.0, height]),), (30,))


def test_a_lifted_object_is_fetched_from_where_it_stands() -> None:
    agent = make_agent()
    frames = drive(agent, lifted(), [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 25)
    assert agent.depths == pytest.approx([0.12])  # 2 cm deeper than the one of those tried at which the object is
    np.testing.assert_allclose(frames[-1][1, :3], [3.0, 1.0, 1.0], atol=0.4)
    closing = int((frames[:, 0, 3] > 0.2).argmax())
    above = frames[:closing, 0]
    low = above[:, 2] < 0.9
    assert (np.abs(above[low][:, :2] - [3.0, 1.0]) < 0.35).all(), "it comes down slantwise"
    assert np.abs(frames[:closing, 1, :3] - [3.0, 1.0, 0.0]).max() == 0


def test_depths_for_which_no_time_is_left_are_imagined_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every depth takes a second, and there is half of one: a depth per call, while the hand holds still."""

    class Slow(OneObject):
        seconds = 0.0

        def perf_counter(self) -> float:
            return self.seconds

        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            if actions.shape[2] > 1:  # no search, which looks one step ahead; a depth is two candidates
                self.seconds += actions.shape[1] / 2
            return super().rollout(z, state, actions)

    model = Slow()
    monkeypatch.setattr("armworld.planners.mpc.time", model)
    agent = make_agent(model=model, seconds_per_action=0.5)
    frames = drive(agent, lifted(), [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 32)
    assert agent.depths == pytest.approx([0.12])  # as with time for all of them at once
    np.testing.assert_allclose(frames[-1][1, :3], [3.0, 1.0, 1.0], atol=0.4)
    taken = [record.encode_seconds + record.plan_seconds for record in agent.history]
    slow = [step for step, seconds in enumerate(taken) if seconds]
    assert [taken[step] for step in slow] == [1.0] * 7 and slow == list(range(slow[0], slow[0] + 7))
    assert (frames[slow[0] : slow[6] + 1, 0] == frames[slow[0], 0]).all()  # it goes on at the seventh
    assert [agent.history[step].planned for step in slow] == [False] * 6 + [True]


def test_without_it_the_hand_stays_where_the_image_has_it() -> None:
    vertical = make_agent()
    agent = PlanningAgent(
        vertical.model, vertical.planner, vertical.objective, "left", vertical.generator, vertical.config
    )
    frames = drive(agent, lifted(), [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 25)
    assert frames[-1][1, 2] == 0.0 and frames[:, 0, 2].min() > 0.5


def test_a_model_whose_axes_are_turned_back_imagines_the_same_grasps() -> None:
    """What is read is along the model's axes, and so is the way to the object that it imagines."""
    goal, scores = lifted().observations[0], []
    for model in (OneObject(), TurnedModel(OneObject(), 90.0)):  # type: ignore[arg-type]
        agent = make_agent(model=model)  # type: ignore[arg-type]
        agent.reset(lifted())
        agent.act(picture([2.5, 1.4, 2.0, 0.0], [3.0, 1.0, 0.0]))
        hand = HandReading()(torch.from_numpy(goal["left"])[None])
        latent = LatentGoal(torch.from_numpy(goal["left"])[None])
        scores.append(agent._imagined_scores(latent, hand, (0.0, 0.06, 0.10)))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    assert int(scores[0].argmin()) == 2


def test_an_object_grasped_where_it_stands_is_not_looked_for_below() -> None:
    agent = make_agent()
    goal = Goal((picture([3.0, 1.0, 0.0, HELD], [3.0, 1.0, 0.0]),), (30,))
    frames = drive(agent, goal, [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 20)
    assert agent.depths == [0.0]
    assert frames[-1][0, 3] == pytest.approx(HELD) and frames[:, 0, 2].max() <= 2.01


@pytest.mark.parametrize("shown", [0.0, 0.2])
def test_a_released_object_is_left_upwards(shown: float) -> None:
    """Also where the image was taken while the fingers were opening."""
    agent = make_agent(VerticalConfig(height=0.15))
    goal = Goal((picture([3.0, 1.0, 0.0, shown], [3.0, 1.0, 0.0]),), (30,))
    frames = drive(agent, goal, [2.8, 1.0, 0.1, HELD], [2.8, 1.0, 0.1], 15)
    np.testing.assert_allclose(frames[-1][1, :3], [3.0, 1.0, 0.0], atol=0.3)
    np.testing.assert_allclose(frames[-1][0], [3.0, 1.0, 1.5, 0.0], atol=0.3)
    assert agent.depths == []


def test_fingers_that_close_on_nothing_try_deeper() -> None:
    config = VerticalConfig(depths=(0.04,), retries=2)
    agent = make_agent(config, OneObject(blind=True))
    frames = drive(agent, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 25)
    assert agent.depths == pytest.approx([0.06, 0.10])
    assert {record.image for record in agent.history} == {0}  # one image was given
    assert frames[-1][1, 2] > 0.5
    once = make_agent(VerticalConfig(depths=(0.04,), retries=0), OneObject(blind=True))
    assert drive(once, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 25)[-1][1, 2] == 0.0


def test_a_second_try_takes_the_next_best_depth_of_those_imagined() -> None:
    """The object is 1.4 dm below the image's hand; imagination is fooled, and told what to prefer."""
    agent = make_agent(VerticalConfig(depths=(0.04, 0.08, 0.14), retries=1), OneObject(blind=True))
    agent._imagined_scores = lambda *_: torch.tensor([1.0, 0.1, 0.2, 0.3])  # type: ignore[method-assign]
    frames = drive(agent, lifted(1.4), [3.0, 1.0, 2.4, 0.0], [3.0, 1.0, 0.0], 25)
    assert agent.depths == pytest.approx([0.06, 0.16])  # 8 cm is hardly deeper than the 6 that were tried
    assert frames[-1][1, 2] > 0.5


def test_a_later_grasp_is_looked_for_as_well_where_an_earlier_one_was_tried_again() -> None:
    """Lifted, put down, lifted: the first grasp takes one more try, the second has its depth chosen all the same."""
    down = picture([3.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0])
    goal = Goal((*lifted().observations, down, *lifted().observations), (8, 8, 8))
    agent = make_agent(VerticalConfig(depths=(0.04,), retries=1), OneObject(blind=True))
    drive(agent, goal, [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 60)
    assert agent.depths == pytest.approx([0.06, 0.10, 0.06])


def test_a_hand_that_is_stopped_closes_where_it_is() -> None:
    def floor(frame: Tensor) -> Tensor:
        frame[0, 2] = frame[0, 2].clamp_min(0.2)
        return frame

    agent = make_agent(VerticalConfig(depths=(0.16,)), OneObject(blind=True))
    frames = drive(agent, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 20, floor)
    assert frames[:, 0, 2].min() == pytest.approx(0.2)
    assert frames[-1][1, 2] > 0.5


@pytest.mark.parametrize(
    "gate",
    [
        lambda step, action: action if step != 5 else 0 * action,
        lambda step, action: action if step != 6 else 0 * action,
        lambda step, action: action if step > 8 else 0.2 * action,
        lambda step, action: action * np.float32(min(1, 0.02 / max(float(np.abs(action[:3]).max()), 1e-9))),
    ],
    ids=["held in step 5", "held in step 6", "slow at first", "at most 2 cm"],
)
def test_a_step_that_a_gate_held_or_shortened_is_no_obstacle(gate: Callable[[int, np.ndarray], np.ndarray]) -> None:
    agent = make_agent()
    frames = drive(agent, lifted(), [3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0], 40, gate=gate)
    closing = int((frames[:, 0, 3] > 0.2).argmax())
    assert frames[closing, 0, 2] < 0.5, "it closes in the air"
    assert frames[-1][1, 2] > 0.5


@pytest.mark.parametrize(
    ("read", "heights", "means"),
    [
        ([0.02], [0.3], [0.0]),
        ([0.12], [0.3], [0.2]),
        ([0.45], [0.3], [0.45]),
        ([0.03, 0.24, 0.02], [0.2, 0.3, 0.2], [0.2, 0.2, 0.0]),  # hidden behind the object on the table
        ([0.40, 0.50, 0.55], [0.2, 0.3, 0.2], [0.45, 0.45, 0.0]),  # come down: it is set down
        ([0.40, 0.50, 0.30], [0.2, 0.3, 0.3], [0.45, 0.45, 0.0]),
        ([0.40, 0.50, 0.45], [0.2, 0.3, 0.3], [0.45, 0.45, 0.45]),
        ([0.02, 0.03, 0.01], [0.2, 0.3, 0.2], [0.0, 0.0, 0.0]),
    ],
)
def test_what_read_closednesses_mean(read: list[float], heights: list[float], means: list[float]) -> None:
    assert understood(read, heights) == pytest.approx(means)


def test_a_gripper_read_from_images_alone_fetches_carries_and_sets_down() -> None:
    """Nothing was recorded with the images but the hand's closedness, 0, which is wrong; it is read, and read low."""
    low = 0.15
    images = (
        picture([3.0, 1.0, 0.0, 0.02], [3.0, 1.0, 0.0]),
        picture([1.0, 2.0, 1.0, low], [1.0, 2.0, 1.0]),
        picture([1.0, 2.0, 0.0, low], [1.0, 2.0, 0.0]),
    )
    for image in images:
        image["state"][6] = 0.0
    agent = make_agent(read_gripper=True)
    frames = drive(agent, Goal(images, (8, 10, 8)), [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 40)
    np.testing.assert_allclose(frames[-1][1, :3], [1.0, 2.0, 0.0], atol=0.4)
    assert frames[-1][0, 3] == 0.0 and frames[:, 1, 2].max() > 0.5
    recorded = drive(make_agent(), Goal(images, (8, 10, 8)), [0.0, 0.0, 2.0, 0.0], [3.0, 1.0, 0.0], 40)
    assert recorded[-1][1, 0] == 3.0


def test_fingers_closed_further_than_was_read_are_right() -> None:
    state, frame = torch.tensor([[[0.0] * 6 + [0.3]]]), torch.zeros(1, 1, 2, 4)
    for wanted, gap, enough in ((0.2, 0.1, 0.0), (0.5, 0.2, 0.2), (0.05, 0.25, 0.25)):
        goal = LatentGoal(frame[:, 0], torch.tensor([[0.0] * 6 + [wanted]]))
        for closed_enough, expected in ((False, gap), (True, enough)):
            objective = AlignedL1(HandReading(), goal_gripper=True, closed_enough=closed_enough)  # type: ignore[arg-type]
            assert float(objective.gaps(frame, state, goal)[1]) == pytest.approx(expected)


def test_a_place_of_the_hand_is_gone_to_straight() -> None:
    """From 20 cm above, 1 cm sideways counts for 1 cm, not for 0.25 mm; the picture counts for nothing."""
    objective = AlignedL1(HandReading(), weight=6.0)  # type: ignore[arg-type]
    frame = torch.zeros(1, 2, 4)
    there = HandReading()(frame)
    goal = LatentGoal(frame + 5.0, hand=there)
    high = torch.zeros(1, 2, 1, 2, 4)
    high[..., 0, 2] = 2.0
    high[:, 1, :, 0, 0] = 0.1
    costs = objective(Rollout(high, torch.zeros(1, 2, 1, 7)), goal)[0]
    torch.testing.assert_close(costs, torch.tensor([6 * 0.20, 6 * 0.21]))
    pictured = objective(Rollout(high, torch.zeros(1, 2, 1, 7)), LatentGoal(frame))[0]
    length = torch.tensor([0.2, (0.2**2 + 0.01**2) ** 0.5])
    torch.testing.assert_close(pictured, 6 * length + torch.tensor([2.0, 2.1]) / 8)


def test_what_it_needs_and_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="needs the aligned objective and the sub-goal schedule 'arrival'"):
        VerticalAgent(OneObject(), make_planner("cem"), FinalL1(), "left", torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"height must be above 0, got 0\.0"):
        VerticalConfig(height=0.0)
    with pytest.raises(ValueError, match="retries 0, got 5 and -1"):
        VerticalConfig(retries=-1)
    assert make_agent().depths == []
    with pytest.raises(ValueError, match="needs a goal first"):
        make_agent().act(goal_at([0.0] * 4).observations[0])
