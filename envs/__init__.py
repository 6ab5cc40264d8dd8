"""Gymnasium environments of armworld. Importing this package registers the ids; nothing heavy is imported."""

from gymnasium.envs.registration import register

IDS = {
    "armworld/Reach-v0": "reach",
    "armworld/Grasp-v0": "grasp",
    "armworld/ReachWithObject-v0": "reach_with_object",
    "armworld/PickPlace-v0": "pick_place",
}

for _id, _task in IDS.items():
    register(id=_id, entry_point="armworld.envs.base:ArmEnv", kwargs={"task": _task})
