"""The Robotiq 2F-85 by its real driver, over a pseudo-terminal."""

import time

import pytest

pytest.importorskip("pyrobotiqgripper")

from armworld.real.fakes import PtyRobotiq, crc16
from armworld.real.grippers import Robotiq2F85
from armworld.real.protocols import DeviceError, DeviceLost, Gripper


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_checksum_of_the_manuals_example():
    # The gripper manual's activation request: 09 10 03 E8 00 03 06 00 00 00 00 00 00 with CRC 73 30.
    message = bytes.fromhex("091003E80003060000 00000000".replace(" ", ""))
    assert crc16(message) == 0x3073


def test_it_activates_moves_and_reads_closedness():
    with PtyRobotiq() as device, Robotiq2F85(device.port, activate=True) as gripper:
        assert isinstance(gripper, Gripper)
        assert gripper.command(0.8) == 0.8
        wait_for(lambda: abs(gripper.read().closedness - 0.8) < 0.01)
        reading = gripper.read()
        assert not reading.object_held and reading.error is None
        assert reading.width_m == pytest.approx(0.2 * 0.085, abs=1e-3)
        gripper.command(0.0)
        wait_for(lambda: gripper.read().closedness < 0.02)


def test_it_reports_an_object_and_keeps_its_target():
    with PtyRobotiq(object_at=120) as device, Robotiq2F85(device.port, activate=True) as gripper:
        gripper.command(1.0)
        wait_for(lambda: gripper.read().object_held)
        assert gripper.read().closedness == pytest.approx(120 / 255, abs=0.01)


def test_small_changes_of_the_target_are_not_sent():
    with PtyRobotiq() as device, Robotiq2F85(device.port, activate=True) as gripper:
        gripper.command(0.5)
        assert gripper.command(0.51) == 0.5


def test_an_inactive_gripper_is_not_activated_unasked():
    with PtyRobotiq() as device, pytest.raises(DeviceError, match="not activated"):
        Robotiq2F85(device.port).connect()


def test_a_fault_is_reported():
    with PtyRobotiq() as device, Robotiq2F85(device.port, activate=True) as gripper:
        device.fault = 0xE  # overcurrent
        wait_for(lambda: gripper.read().error is not None)
        assert "0xe" in str(gripper.read().error)


def test_an_unplugged_gripper_is_lost():
    device = PtyRobotiq()
    with Robotiq2F85(device.port, activate=True) as gripper:
        device.close()
        with pytest.raises(DeviceLost):
            wait_for(lambda: gripper.read() is None, 10.0)


def test_no_gripper_at_a_port_and_nonsense_settings():
    with pytest.raises(DeviceLost, match="no Robotiq gripper"):
        Robotiq2F85("/dev/no-such-port").connect()
    with pytest.raises(ValueError, match="speed"):
        Robotiq2F85("/dev/ttyUSB0", speed=300)
    with pytest.raises(DeviceLost, match="not connected"):
        Robotiq2F85("/dev/ttyUSB0").read()


def test_metres_and_millimetres_are_refused():
    with PtyRobotiq() as device, Robotiq2F85(device.port, activate=True) as gripper, pytest.raises(ValueError):
        gripper.command(85.0)
