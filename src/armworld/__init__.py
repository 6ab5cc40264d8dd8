"""armworld: planning with action-conditioned video world models on Franka arms.

The architecture is the folder list: `envs`, `worldmodel`, `planners`, `baselines`, `datasets`, `evaluation`,
`sim_assets`, `real`. Importing `armworld` is cheap; each folder is imported where it is used.
"""

__version__ = "0.1.0"
