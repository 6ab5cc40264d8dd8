"""Sub-goals that a world model chooses for itself: the cheapest chain of hops from the present frame to the goal.

Candidates are frames that the model imagines far ahead, or recorded ones (a bank). A hop from frame a to frame b costs
E(a, b)^power, where E is the very energy that the low level plans with. A chain of k stops costs

    E(now, c_1)^power + E(c_1, c_2)^power + ... + E(c_k, goal)^power.

The energy of the paper is a metric: with power 1 a detour never pays (triangle inequality). With power 2 short hops are
preferred, over which the energy can be trusted. But what looks similar need not be easy to reach: a cup does not move
by itself. Recorded episodes know that, so `choose_recorded` takes its stops from one, along which hops are free.

Legend: C candidates, A frames hopped from, S samples, H steps, P planned action dimensions, N patches, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from armworld.planners.objectives import LatentGoal, Objective
from armworld.planners.plans import GRIPPER, ActionSpace, PlanningError

if TYPE_CHECKING:
    from armworld.worldmodel.model import WorldModel

GOALS_AT_ONCE = 8  # hops are evaluated towards so many frames at a time: bounds the memory


@dataclass(frozen=True)
class Frames:
    """Frames as features.

    Attributes:
        z: Features [C, N, D].
        state: Robot states [C, 7] (m, rad, closedness; base frame).
        episode: Number of the recorded episode that each belongs to [C], its frames in order; None where there is none.
    """

    z: Tensor
    state: Tensor
    episode: Tensor | None = None

    def __post_init__(self) -> None:
        if self.z.ndim != 3 or tuple(self.state.shape) != (len(self.z), 7):
            raise ValueError(
                f"frames need z [C, N, D] and state [C, 7], got {list(self.z.shape)}, {list(self.state.shape)}"
            )

    def __len__(self) -> int:
        return len(self.z)

    def pick(self, index: Tensor | list[int]) -> Frames:
        """Those at `index`."""
        return Frames(self.z[index], self.state[index], None if self.episode is None else self.episode[index])

    def goal(self, index: int) -> LatentGoal:
        """One of them as a goal for one episode."""
        return LatentGoal(self.z[index : index + 1], self.state[index : index + 1])


@dataclass(frozen=True)
class Chain:
    """The stops chosen.

    Attributes:
        stops: Numbers of the candidates, in order; none where going straight is cheapest.
        hops: Energies of the hops, one more than stops.
        cost: Of the whole chain.
        direct_cost: Of going straight.
    """

    stops: tuple[int, ...]
    hops: tuple[float, ...]
    cost: float
    direct_cost: float


def imagined_frames(
    model: WorldModel,
    here: Frames,
    space: ActionSpace,
    generator: torch.Generator,
    samples: int,
    steps: int,
    stride: int,
) -> Frames:
    """Frames that the model imagines ahead of `here` (one frame): every `stride`-th of `steps`, of `samples` paths.

    A path is two legs of one uniform action each, kept up: to somewhere, and on to somewhere else. A gripper that is
    planned moves at the turn between the legs alone.
    """
    limits = torch.tensor(space.limits)
    draws = torch.rand(samples, 2, len(space.columns), generator=generator) * 2 - 1
    legs = space.expand(space.clip(draws * limits)).to(here.z)
    turn = steps // 2
    actions = torch.cat([legs[:, :1].expand(-1, turn, -1), legs[:, 1:].expand(-1, steps - turn, -1)], 1).clone()
    grip = actions[:, turn, GRIPPER].clone()
    actions[..., GRIPPER] = 0
    actions[:, turn, GRIPPER] = grip
    actions = space.within_stroke(actions[None], here.state[:, GRIPPER])
    with torch.no_grad():
        rollout = model.rollout(here.z[:, None], here.state[:, None], actions)
    seen = slice(stride - 1, None, stride)
    z, state = rollout.z[0, :, seen].flatten(0, 1), rollout.state[0, :, seen].flatten(0, 1)
    return Frames(z.to(here.z), state.to(here.state))


def hop_energies(objective: Objective, starts: Frames, ends: Frames, now: Tensor) -> Tensor:
    """E(a, c) of every start to every end, [A, C]; +inf where it is not finite.

    Args:
        objective: The low level's.
        starts, ends: A and C frames.
        now: Features [1, N, D] of the present frame, for objectives that weight what has to change.
    """
    from armworld.worldmodel.model import Rollout

    columns = []
    with torch.no_grad():
        for z, state in zip(ends.z.split(GOALS_AT_ONCE), ends.state.split(GOALS_AT_ONCE), strict=True):
            count = len(z)
            rollout = Rollout(
                starts.z[None, :, None].expand(count, -1, -1, -1, -1),
                starts.state[None, :, None].expand(count, -1, -1, -1),
            )
            goal = LatentGoal(z, state, now.expand(count, -1, -1))
            columns.append(objective(rollout, goal).T.float())
    energies = torch.cat(columns, 1)
    return torch.where(energies.isfinite(), energies, torch.inf)


def choose_chain(
    objective: Objective, now: Frames, goal: Frames, candidates: Frames, count: int, power: float, keep: int
) -> tuple[Chain, Frames]:
    """The cheapest chain of at most `count` stops from `now` to `goal` (one frame each), and the frames stopped at.

    Only the `keep` candidates that make the cheapest single stop are considered: hops between all of a large bank
    would take long.

    Raises:
        PlanningError: The energy from here to the goal is not finite.
    """
    direct = float(hop_energies(objective, now, goal, now.z)[0, 0])
    if direct == float("inf"):
        raise PlanningError("the energy from the present frame to the goal is not finite")
    if count == 0 or len(candidates) == 0:
        return Chain((), (direct,), direct**power, direct**power), candidates.pick([])
    first = hop_energies(objective, now, candidates, now.z)[0]
    last = hop_energies(objective, candidates, goal, now.z)[:, 0]
    kept = (first**power + last**power).topk(min(keep, len(candidates)), largest=False).indices
    first, last, near = first[kept], last[kept], candidates.pick(kept)
    between = hop_energies(objective, near, near, now.z) if count > 1 else first.new_zeros(len(kept), len(kept))
    path = cheapest_path(first**power, between**power, last**power, direct**power, count)
    hops = _hops(path, first, between, last, direct)
    chain = Chain(
        tuple(int(kept[i]) for i in path), hops, float(sum(hop**power for hop in hops)), direct**power
    )  # fmt: skip
    return chain, near.pick(path)


def choose_recorded(
    objective: Objective, now: Frames, goal: Frames, bank: Frames, count: int, power: float
) -> tuple[Chain, Frames]:
    """At most `count` stops along one episode of the bank: E(now, a)^power + E(b, goal)^power is least, a not after b.

    The stops lie evenly between a and b, b among them. Going straight is no option: no episode shows that it can be
    done.

    Raises:
        ValueError: The bank tells no episodes, or is empty.
    """
    if bank.episode is None or len(bank) == 0:
        raise ValueError("stops along recorded episodes need a bank of frames with their episodes' numbers")
    direct = float(hop_energies(objective, now, goal, now.z)[0, 0])
    if count == 0:
        return Chain((), (direct,), direct**power, direct**power), bank.pick([])
    first = hop_energies(objective, now, bank, now.z)[0] ** power
    last = hop_energies(objective, bank, goal, now.z)[:, 0] ** power
    ways = []
    for number in bank.episode.unique().tolist():
        rows = (bank.episode == number).nonzero()[:, 0]
        reached, begin = first[rows].cummin(0)  # the best frame to enter at, up to each frame
        end = int((reached + last[rows]).argmin())
        ways.append((float(reached[end] + last[rows][end]), rows[int(begin[end])], rows[end]))
    cost, start, stop = min(ways, key=lambda way: way[0])
    places = torch.linspace(float(start), float(stop), count + 1)[1:].round().long() if stop > start else stop[None]
    stops = list(dict.fromkeys(places.tolist()))
    hops = _hops(list(range(len(stops))), *_along(objective, now, goal, bank.pick(stops)), direct)
    return Chain(tuple(stops), hops, cost, direct**power), bank.pick(stops)


def _along(objective: Objective, now: Frames, goal: Frames, stops: Frames) -> tuple[Tensor, Tensor, Tensor]:
    """Energies from here to each stop, between stops, and from each to the goal."""
    return (
        hop_energies(objective, now, stops, now.z)[0],
        hop_energies(objective, stops, stops, now.z),
        hop_energies(objective, stops, goal, now.z)[:, 0],
    )


def cheapest_path(first: Tensor, between: Tensor, last: Tensor, direct: float, count: int) -> list[int]:
    """Stops of the cheapest path with at most `count` of them, by dynamic programming from the goal backwards.

    Args:
        first: Cost from here to each candidate [C].
        between: Cost from candidate to candidate [C, C].
        last: Cost from each candidate to the goal [C].
        direct: Cost without a stop.
        count: At least 1.
    """
    best, stops = direct, []
    onward, following = last, []  # cost to the goal with j more stops behind, and which one comes next
    for j in range(count):
        total = first + onward
        index = int(total.argmin())
        if float(total[index]) < best:
            best, stops = float(total[index]), [index]
            for step in reversed(range(j)):
                stops.append(int(following[step][stops[-1]]))
        if j + 1 < count:
            onward, choice = (between + onward).min(1)
            following.append(choice)
    return [stop for place, stop in enumerate(stops) if place == 0 or stop != stops[place - 1]]


def _hops(path: list[int], first: Tensor, between: Tensor, last: Tensor, direct: float) -> tuple[float, ...]:
    if not path:
        return (direct,)
    middle = [float(between[a, b]) for a, b in pairwise(path)]
    return (float(first[path[0]]), *middle, float(last[path[-1]]))
