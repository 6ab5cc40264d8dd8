"""Train the reinforcement-learning reference on Reach and score it with the runner that scores every method.

python examples/train_sac.py --out runs/sac --steps 20000
armworld plan --agent sac --model runs/sac/model --episodes 100 --out runs/sac/plan
"""

from __future__ import annotations

import tyro

from armworld.baselines.rl import SACConfig, train_sac


def main() -> None:
    folder = train_sac(tyro.cli(SACConfig, description=__doc__))
    print(f"actor: {folder}")


if __name__ == "__main__":
    main()
