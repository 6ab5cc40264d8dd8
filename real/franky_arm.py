"""A Franka arm (Panda, FR3) by franky-control, which runs libfranka's 1 kHz loop and its own trajectories in C++.

Targets are absolute flange poses in the base frame. franky's relative targets are in the end-effector frame and
start from a pose that lags, so they drift. The robot reports its end effector, whatever Desk has configured;
flange = O_T_EE · F_T_EE⁻¹ is DROID's pose, with any hand or none.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from armworld.pose import euler_to_matrix, matrix_to_euler
from armworld.real.limits import MAX_SPEED_M_S
from armworld.real.polling import Poller, call_with_timeout
from armworld.real.protocols import ARM_FEATURES, ArmReading, Context, DeviceError, DeviceLost, Feature, Reflex
from armworld.types import require

POLL_S = 0.02
CONNECT_S = 60.0  # a refused connection answers at once; this is for one that hangs
CLOSE_S = 1.0  # for the last motion's thread to end
ABANDONED: list[Any] = []  # connections that hang in C++: freeing them would crash this process
STOP_S = 0.6  # the smooth stop takes about 0.3 s from 250 mm/s; after this, libfranka's own stop


Priority = tuple[int, Any]  # a thread's scheduling policy and its parameter


def priority() -> Priority:
    """This thread's."""
    return os.sched_getscheduler(0), os.sched_getparam(0)


@contextlib.contextmanager
def at_priority(wanted: Priority | None) -> Iterator[None]:
    """Run at a priority, and go back to the present one whatever happened within.

    libfranka raises the thread that connects to real time (FIFO 99), and what that thread starts later inherits it:
    the planner's process would run before the control that it must not disturb. So a thread of its own connects, and
    only the 1 kHz control thread, started by a motion, is given what libfranka asked for.
    """
    before = priority()
    try:
        if wanted is not None:
            os.sched_setscheduler(0, *wanted)
        yield
    finally:
        os.sched_setscheduler(0, *before)


class FrankyArm(Context):
    """One arm at an FCI address.

    Args:
        host: The robot's FCI address.
        realtime: Demand a real-time kernel. Only a simulated robot may do without.
        max_speed: Cartesian speed limit that franky's trajectories keep, m/s; at most 0.25.
        acceleration: Share of the robot's own acceleration limit, in (0, 0.5].
        jerk: Share of its jerk limit, in (0, 0.5].
        torque_threshold_nm: Collision reflex threshold of every joint, Nm, set at connect.
        force_threshold_n: Collision reflex threshold of every Cartesian axis, N (Nm), set at connect.
    """

    def __init__(
        self,
        host: str,
        realtime: bool = True,
        max_speed: float = MAX_SPEED_M_S,
        acceleration: float = 0.2,
        jerk: float = 0.1,
        torque_threshold_nm: float = 20.0,
        force_threshold_n: float = 25.0,
    ) -> None:
        if not 0 < max_speed <= MAX_SPEED_M_S:
            raise ValueError(f"max_speed must lie in (0, {MAX_SPEED_M_S}] m/s, got {max_speed}")
        for name, share in (("acceleration", acceleration), ("jerk", jerk)):
            if not 0 < share <= 0.5:
                raise ValueError(f"{name} must lie in (0, 0.5], got {share}")
        for name, value in (("torque_threshold_nm", torque_threshold_nm), ("force_threshold_n", force_threshold_n)):
            if not 1 <= value <= 100:
                raise ValueError(f"{name} must lie in [1, 100], got {value}")
        self.host, self.realtime, self.max_speed = host, realtime, max_speed
        self.acceleration, self.jerk = acceleration, jerk
        self.thresholds = (torque_threshold_nm, force_threshold_n)
        self._franky: Any = None
        self._robot: Any = None
        self._poller: Poller[ArmReading] | None = None
        self._lock = threading.Lock()
        self._raised: Priority | None = None  # the control thread's; None without a real-time kernel
        self._clock = (-1.0, 0.0)  # the robot's time, and ours when it last advanced

    @property
    def features(self) -> Mapping[str, Feature]:
        return ARM_FEATURES

    @property
    def connected(self) -> bool:
        return self._poller is not None and self._poller.running

    def connect(self) -> None:
        """Connect, set collision thresholds and speed limits, begin to read."""
        franky = require("franky", "real")
        try:
            call_with_timeout(lambda: self._reach(franky), CONNECT_S, "connecting")
        except DeviceError as error:
            raise DeviceLost(
                f"no Franka at {self.host}: {error}. Is FCI activated in Desk, are the brakes open, is the "
                f"cable in the control box's port and this computer in its subnet?"
            ) from error
        self._franky = franky
        self._clock = (-1.0, 0.0)
        self._poller = Poller(f"arm {self.host}", self._poll, POLL_S)
        self._poller.start()

    def _reach(self, franky: Any) -> None:
        """In a thread of its own, which libfranka raises to real time and which ends here (see `at_priority`)."""
        mode = franky.RealtimeConfig.Enforce if self.realtime else franky.RealtimeConfig.Ignore
        factor = franky.RelativeDynamicsFactor(1.0, self.acceleration, self.jerk)
        robot = franky.Robot(self.host, relative_dynamics_factor=factor, realtime_config=mode)
        robot.set_collision_behavior(*self.thresholds)
        robot.translation_velocity_limit.set(self.max_speed)
        self._raised = priority() if self.realtime else None
        self._robot = robot

    def close(self) -> None:
        robot = self._robot
        if robot is None:
            return
        with contextlib.suppress(DeviceError):  # a lost arm has stopped by itself
            self.stop()
        if self._poller is not None:
            self._poller.stop()
        self._poller = self._robot = None
        try:
            call_with_timeout(lambda: robot.join_motion(CLOSE_S), 2 * CLOSE_S, f"the last motion of {self.host}")
        except DeviceError:
            if robot.is_in_control:  # its C++ thread still uses what the destructor would take away
                ABANDONED.append(robot)

    def read(self) -> ArmReading:
        if self._poller is None:
            raise DeviceLost(f"the arm at {self.host} is not connected; call connect() first")
        return self._poller.latest()

    def command(self, pose: np.ndarray) -> np.ndarray:
        pose = np.asarray(pose, float)
        if pose.shape != (6,) or not np.isfinite(pose).all():
            raise ValueError(f"a target pose must be six finite numbers, got {pose}")
        reading = self.read()
        if reading.error is not None:
            raise Reflex(reading.error)
        franky, robot = self._franky, self._robot
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = euler_to_matrix(pose[3:]), pose[:3]
        with self._lock:
            try:
                robot.poll_motion()  # raises what ended the motion before this one
                to_flange = robot.state.F_T_EE.inverse
                motion = franky.CartesianMotion(
                    franky.Affine(matrix), franky.ReferenceType.Absolute, ee_frame=to_flange
                )
                with at_priority(self._raised):
                    robot.move(motion, asynchronous=True)
            except franky.NetworkException as error:
                raise DeviceLost(f"the arm at {self.host} is gone: {error}") from error
            except (franky.ControlException, franky.CommandException) as error:
                raise Reflex(f"the robot ended the motion: {error}") from error
            except (franky.Exception, RuntimeError) as error:
                raise DeviceError(f"the robot refused the motion: {error}") from error
        return pose

    def stop(self) -> None:
        """Brake smoothly; if that has not ended within 0.6 s, by libfranka's own stop."""
        robot, franky = self._robot, self._franky
        if robot is None or not robot.is_in_control:
            return
        try:
            robot.move(franky.CartesianStopMotion(), asynchronous=True)
        except (franky.Exception, RuntimeError):
            self._preempt()
            return
        end = time.monotonic() + STOP_S
        while robot.is_in_control:
            if time.monotonic() > end:
                self._preempt()
                return
            time.sleep(0.005)

    def _preempt(self) -> None:
        """libfranka's own stop. The motion's "preempted" error is ours, and not left for the next command."""
        robot, what = self._robot, f"stop of the arm at {self.host}"
        call_with_timeout(robot.stop, 1.0, what)
        with contextlib.suppress(DeviceError):
            call_with_timeout(lambda: robot.join_motion(0.5), 1.0, what)

    def recover(self) -> None:
        robot = self._robot
        if robot is None or not self.connected:
            raise DeviceLost(f"the arm at {self.host} is gone; only a new connection works")
        with self._lock:
            with contextlib.suppress(self._franky.Exception, RuntimeError):  # what we recover from
                robot.poll_motion()
            if not robot.recover_from_errors():
                raise DeviceError("the robot did not clear its errors: look at Desk, free the arm, try again")

    def _poll(self) -> ArmReading:
        robot, franky = self._robot, self._franky
        with self._lock:
            try:
                state = robot.state
                moving = robot.is_in_control
            except (franky.NetworkException, RuntimeError) as error:
                raise DeviceLost(f"the arm at {self.host} is gone: {error}") from error
            except franky.Exception as error:
                raise DeviceError(str(error)) from error
        robot_s, now = state.time.to_sec(), time.monotonic()
        if not math.isclose(robot_s, self._clock[0], abs_tol=1e-9):
            self._clock = (robot_s, now)
        flange = (state.O_T_EE * state.F_T_EE.inverse).matrix
        return ArmReading(
            pose=np.concatenate([flange[:3, 3], matrix_to_euler(flange[:3, :3])]),
            joints=np.array(state.q),
            velocities=np.array(state.dq),
            time_s=self._clock[1],
            moving=moving,
            error=self._error(state),
            clock_s=robot_s,
        )

    def _error(self, state: Any) -> str | None:
        modes = self._franky.RobotMode
        if state.robot_mode == modes.Reflex:
            return f"reflex: {state.current_errors}"
        if state.robot_mode == modes.UserStopped:
            return "the enabling device or the user stop is engaged"
        if state.robot_mode == modes.Guiding:
            return "the arm is being guided by hand"
        return None
