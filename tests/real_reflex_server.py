"""A simulated robot with motion-limit reflexes, for `test_real_reflex`: runs in an environment of franka-sim's own.

    PYTHON_OF_THAT_ENVIRONMENT real_reflex_server.py HOST MODEL.xml

serves a Franka at HOST. A line `reflex` on standard input makes the present or next motion break a limit (limits are
enforced, and the thresholds of joint discontinuity shrink to nothing); `ease` takes that back, as a busy machine that
loses commands breaks the true limits now and then. The process ends when its standard input closes.
"""

import os
import sys
import threading

from franka_sim import FrankaSimServer  # pyright: ignore[reportMissingImports]


def main() -> None:
    host, os.environ["FR3_MJCF"] = sys.argv[1:]
    server = FrankaSimServer(host=host, enable_gripper=False, enforce_motion_limits=False)

    def obey() -> None:
        for line in sys.stdin:
            server.enforce_motion_limits = line.strip() == "reflex"
            server.motion_limits.joint_discontinuity_scale = 1e-12 if server.enforce_motion_limits else 1.0
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    server.start()


if __name__ == "__main__":
    main()
