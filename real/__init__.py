"""The same agents on a physical Franka arm, and a simulated one that speaks the robot's own protocol.

`protocols` names the devices, `gate` stands between any agent and any arm, `deploy` runs an episode.
Backends are imported where they are used; this package imports neither robosuite nor the trainers.
"""
