"""What every planner shares: its common settings, the evaluation of candidates, the statistics, the interface.

Legend: B episodes, S candidate plans, H steps, P planned action dimensions (3 or 4, 5 with yaw), N patches, D channels.
A planner is pure: all randomness comes from the generator passed to `plan`, and nothing is kept between calls; what
the next call may reuse travels in a `WarmStart`.

NaN and infinite energies count as +inf: such a candidate is never chosen, and `Statistics.nonfinite` counts them.
An episode without a finite candidate is lost (`Plan.lost`): it holds still, and the others of the batch get their
plans. Where all are lost, `PlanningError` is raised: nothing is ever planned on NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from armworld.planners.noise import Shape
from armworld.planners.objectives import LatentGoal, Objective
from armworld.planners.plans import GRIPPER, ActionSpace, Iteration, Plan, PlanningError, Statistics, WarmStart

if TYPE_CHECKING:
    from armworld.worldmodel.model import WorldModel


def lowest(plans: Tensor, cost: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` candidates of lowest cost, best first: [B,S,H,P], [B,S] -> [B,K,H,P], [B,K].

    Candidates of infinite cost are replaced by the best one, so that statistics over elites stay finite.
    """
    cost, index = cost.topk(min(count, cost.shape[1]), largest=False, sorted=True)
    plans = plans.gather(1, index[..., None, None].expand(-1, -1, *plans.shape[2:]))
    finite = cost.isfinite()
    return torch.where(finite[..., None, None], plans, plans[:, :1]), torch.where(finite, cost, cost[:, :1])


# The energy's own memory per feature: the imagined features, their difference to the goal and its absolute value.
# What the model needs inside a rollout is the model's to bound.
FLOATS_PER_FEATURE = 3


@dataclass(frozen=True)
class PlannerConfig:
    """What every planner is told.

    Attributes:
        horizon: Actions H per plan.
        repeat: Steps that each of them is kept up for in imagination; 1 plans every step by itself. With horizon 1, a
            few repeats look as far ahead as a long horizon, and the search stays as small as one step's.
        space: Planned dimensions and bounds.
        hold_candidate: Holding still is always among the candidates.
        hold_margin: Hold unless a plan lowers holding's energy by more than this fraction.
        chunk: Candidates (over all episodes) per call of the model; None derives it from `memory_mb`.
        memory_mb: Memory for imagined features and their energies in one call of the model, in MiB.
        warm_start: Use the warm start given, if any.
        record: Keep every candidate in the statistics, for pictures.
    """

    horizon: int = 1
    repeat: int = 1
    space: ActionSpace = field(default_factory=ActionSpace)
    hold_candidate: bool = True
    hold_margin: float = 0.0
    warm_start: bool = True
    chunk: int | None = None
    memory_mb: float = 512.0
    record: bool = False

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {self.repeat}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 candidate or None, got {self.chunk}")
        if not 0 <= self.hold_margin < 1:
            raise ValueError(f"hold_margin must lie in [0, 1), got {self.hold_margin}")

    @property
    def steps(self) -> int:
        """Imagined steps per plan."""
        return self.horizon * self.repeat


class Search:
    """One planning problem: evaluates candidates through model and objective, remembers the best, keeps statistics."""

    def __init__(
        self,
        model: WorldModel,
        objective: Objective,
        z: Tensor,
        state: Tensor,
        goal: LatentGoal,
        config: PlannerConfig,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        if z.ndim != 4 or state.shape != (*z.shape[:2], 7) or goal.z.shape != (z.shape[0], *z.shape[2:]):
            raise ValueError(
                "planning needs z [B,T,N,D], state [B,T,7] and goal.z [B,N,D]; "
                f"got {tuple(z.shape)}, {tuple(state.shape)} and {tuple(goal.z.shape)}"
            )
        self.model, self.objective, self.config, self.space = model, objective, config, config.space
        self.z, self.state = _usable(z), _usable(state)
        self.goal = replace(goal, z=_usable(goal.z), start=self.z[:, -1] if goal.start is None else _usable(goal.start))
        self.batch = z.shape[0]
        self.best = z.new_zeros(self.batch, config.horizon, len(self.space.columns))
        self.best_cost = z.new_full((self.batch,), torch.inf)
        self.hold_cost: Tensor | None = None
        self.stopped_early = False
        self._should_stop = should_stop
        self._iterations: list[Iteration] = []
        self._evaluated = self._nonfinite = 0

    def shape(self, samples: int) -> Shape:
        """[B, samples, H, P]: the shape of that many candidates."""
        return (self.batch, samples, self.best.shape[1], self.best.shape[2])

    def out_of_time(self) -> bool:
        """Whether the time budget has run out; planners ask before every iteration but the first."""
        if self._should_stop is not None and self._should_stop():
            self.stopped_early = True
        return self.stopped_early

    def anchors(self, start: Tensor, elites: Tensor | None) -> tuple[Tensor, Tensor]:
        """Evaluate what is always tried: hold still, the warm start [B,H,P], old elites [B,K,H,P], as configured.

        Returns them [B,A,H,P] with their costs [B,A]; A may be 0. They need no second evaluation: the model is
        deterministic, and the search remembers the best.
        """
        plans = [torch.zeros_like(start)[:, None]] if self.config.hold_candidate else []
        if bool(start.any()):
            plans.append(start[:, None])
        if elites is not None and elites.shape[1]:
            plans.append(elites)
        if not plans:
            return start[:, None][:, :0], start[:, :0, 0]
        fixed = torch.cat(plans, 1)
        none = ~start.flatten(1).any(1) if bool(start.any()) and not self.config.hold_candidate else None
        cost = self.evaluate(fixed, none)
        if self.config.hold_candidate:
            self.hold_cost = cost[:, 0]
        return fixed, cost

    def evaluate(self, plans: Tensor, without_first: Tensor | None = None) -> Tensor:
        """Costs [B, S] of plans [B, S, H, P]; +inf where the energy is not finite. Counts as one iteration.

        Args:
            without_first: bool [B]: episodes whose first plan only fills the batch, and is none of their candidates.
        """
        with torch.no_grad():
            chunks = plans.split(self._chunk(plans), dim=1)
            cost = torch.cat([self._energy(chunk) for chunk in chunks], 1)
        return self.note(plans, cost, without_first)

    def energy_with_gradient(self, plans: Tensor) -> Tensor:
        """Raw energies [B, S] of plans [B, S, H, P], differentiable with respect to the plans; nothing is noted."""
        with torch.enable_grad():
            cost = self._energy(plans)
        if not cost.requires_grad:
            raise ValueError(
                f"{type(self.model).__name__}.rollout carries no gradient to the actions (a simulator, or no_grad); "
                "use a planner without gradients: cem, icem, mppi, random_shooting"
            )
        return cost

    def note(self, plans: Tensor, cost: Tensor, without_first: Tensor | None = None) -> Tensor:
        """Book evaluated plans: best so far, statistics. Returns the costs as `evaluate` does."""
        plans, cost = plans.detach(), cost.detach()
        finite = cost.isfinite()
        cost = torch.where(finite, cost, torch.inf)
        nonfinite = int((~finite).sum())
        if without_first is not None:
            cost[:, 0] = cost[:, 0].masked_fill(without_first, torch.inf)
        low, index = cost.min(1)
        better = low < self.best_cost
        chosen = plans[torch.arange(self.batch, device=plans.device), index]
        self.best = torch.where(better[:, None, None], chosen, self.best)
        self.best_cost = torch.where(better, low, self.best_cost)
        self._evaluated += cost.numel()
        self._nonfinite += nonfinite
        record = self.config.record
        self._iterations.append(
            Iteration(
                samples=cost.shape[1],
                best=_finite_mean(low),
                mean=_finite_mean(cost),
                best_so_far=_finite_mean(self.best_cost),
                nonfinite=nonfinite,
                actions=self.space.expand(plans).cpu() if record else None,
                cost=cost.cpu() if record else None,
            )
        )
        return cost

    def finish(self, plans: Tensor, cost: Tensor, elites: Tensor | None = None) -> Plan:
        """The result: plans [B,H,P] with cost [B], or holding still where that is as good but for `hold_margin`.

        Where `cost` is not finite, the best plan seen takes its place; where there is none, holding still at infinite
        cost. A PlanningError where that is so in every episode.
        """
        lost = ~self.best_cost.isfinite()
        if bool(lost.all()):
            raise PlanningError(
                f"no finite energy among {self._evaluated // self.batch} candidates: "
                "the world model or the objective returned NaN or infinity"
            )
        finite = cost.isfinite()
        plans = torch.where(finite[:, None, None], plans, self.best)
        cost = torch.where(finite, cost, self.best_cost)
        if self.hold_cost is not None:
            hold = cost >= self.hold_cost * (1 - self.config.hold_margin)
            plans = torch.where(hold[:, None, None], torch.zeros_like(plans), plans)
            cost = torch.where(hold, self.hold_cost, cost)
        hold = (plans == 0).flatten(1).all(1)
        statistics = Statistics(
            tuple(self._iterations), self._evaluated, self._nonfinite, self.hold_cost, self.stopped_early
        )
        kept = None if elites is None else self._steps(elites)
        return Plan(self._steps(plans), cost, hold, lost, statistics, kept)

    def _steps(self, plans: Tensor) -> Tensor:
        """Actions of every step [..., H * repeat, 7] of plans [..., H, P]."""
        actions = self.space.expand(plans).repeat_interleave(self.config.repeat, -2)
        return self.space.within_stroke(actions, self.state[:, -1, GRIPPER])

    def _energy(self, plans: Tensor) -> Tensor:
        rollout = self.model.rollout(self.z, self.state, self._steps(plans))
        cost = self.objective(rollout, self.goal)
        if cost.shape != plans.shape[:2]:
            raise ValueError(f"the objective must return [B, S] = {tuple(plans.shape[:2])}, got {tuple(cost.shape)}")
        return cost

    def _chunk(self, plans: Tensor) -> int:
        """Candidates per episode in one call of the model."""
        if self.config.chunk is not None:
            return max(1, self.config.chunk // self.batch)
        frame_bytes = self.z[0, 0].numel() * self.z.element_size()
        candidate_bytes = FLOATS_PER_FEATURE * frame_bytes * self.config.steps
        return max(1, int(self.config.memory_mb * 2**20) // (candidate_bytes * self.batch))


Config = TypeVar("Config", bound=PlannerConfig)


class Planner(ABC, Generic[Config]):
    """Base of all planners: prepares the search, runs the algorithm's `optimise`."""

    config: Config

    def plan(
        self,
        model: WorldModel,
        objective: Objective,
        z: Tensor,
        state: Tensor,
        goal: LatentGoal,
        *,
        generator: torch.Generator,
        warm_start: WarmStart | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Plan:
        """Plan for B episodes at once.

        Args:
            model: The world model that imagines.
            objective: Energy of an imagined future.
            z: Features of the present (and past) frames [B, T, N, D].
            state: Robot states of those frames [B, T, 7].
            goal: Goal features [B, N, D] and, if the objective asks for it, goal state [B, 7].
            generator: Source of all randomness.
            warm_start: Guess from the previous call (see `shift`).
            should_stop: Asked between iterations; True returns the best found so far.

        Raises:
            PlanningError: No candidate has a finite energy, in any episode.
            ValueError: Shapes that do not fit.
        """
        search = Search(model, objective, z, state, goal, self.config, should_stop)
        start, elites = search.best, None
        if warm_start is not None and self.config.warm_start:
            start = self._fit(warm_start.actions, search.best)
            if warm_start.elites is not None:
                repeated = warm_start.elites[:, :, :: self.config.repeat].to(search.best)
                elites = self.config.space.clip(self.config.space.compress(repeated))
        with torch.no_grad():
            return self.optimise(search, generator, start, elites)

    @abstractmethod
    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """The algorithm. `start` is [B, H, P] (zeros without a warm start), `elites` [B, K, H, P] or None."""

    def _fit(self, actions: Tensor, like: Tensor) -> Tensor:
        expected = (like.shape[0], self.config.steps, 7)
        if actions.shape != expected:
            raise ValueError(f"warm start must be [B, H * repeat, 7] = {expected}, got {tuple(actions.shape)}")
        return self.config.space.clip(self.config.space.compress(actions[:, :: self.config.repeat].to(like)))


def _finite_mean(x: Tensor) -> float:
    """Mean over the finite entries; infinity where there is none."""
    finite = x.isfinite()
    return float(x[finite].mean()) if bool(finite.any()) else float("inf")


def _usable(x: Tensor) -> Tensor:
    """`x` as a tensor that autograd accepts (features may come from inference mode)."""
    return x.clone() if x.is_inference() else x.detach()
