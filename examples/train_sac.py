"""Train the reinforcement-learning reference on Reach or Grasp, and score it with the runner that scores every method.

python examples/train_sac.py --out runs/sac --steps 20000
armworld plan --agent sac --model runs/sac/model --episodes 100 --out runs/sac/plan

python examples/train_sac.py --task grasp --out runs/sac_grasp --steps 100000
armworld plan --agent sac --model runs/sac_grasp/model --task grasp --episodes 100 --out runs/sac_grasp/plan
"""

from __future__ import annotations

import tyro

from armworld.baselines.rl import SACConfig, train_sac


def main() -> None:
    folder = train_sac(tyro.cli(SACConfig, description=__doc__))
    print(f"actor: {folder}")


if __name__ == "__main__":
    main()
