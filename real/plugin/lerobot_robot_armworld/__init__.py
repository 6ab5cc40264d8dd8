"""Importing this registers armworld's Franka arm with LeRobot as robot type "armworld"."""

from armworld.real.lerobot_robot import as_plugin

ArmworldRobotConfig, ArmworldRobot = as_plugin(__name__)
