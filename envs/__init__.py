"""Gymnasium environments of armworld. Importing this package registers the ids; nothing heavy is imported."""

from gymnasium.envs.registration import register

IDS = {
    "armworld/Reach-v0": "reach",
}

for _id, _task in IDS.items():
    register(id=_id, entry_point="armworld.envs.base:ArmEnv", kwargs={"task": _task})
