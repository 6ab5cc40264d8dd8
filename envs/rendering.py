"""Offscreen rendering: the choice of an OpenGL backend, and one reusable renderer per compiled model.

The backend is tried in the order EGL, OSMesa, window system, each in a process of its own, because a failed
attempt leaves OpenGL's Python binding unusable in the process that made it. `MUJOCO_GL`, where set, is obeyed.
Frames are byte-identical from one call, process and backend (EGL, OSMesa) to the next.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import mujoco
import numpy as np

# With one renderer per process, llvmpipe's worker threads only contend: 12-14 ms per frame against 22 (measured).
os.environ.setdefault("LP_NUM_THREADS", "0")

# backend -> (module of its GLContext, environment it needs, Debian packages that provide it)
BACKENDS = {
    "egl": ("mujoco.egl", {"PYOPENGL_PLATFORM": "egl"}, "libegl1 libgl1-mesa-dri libopengl0"),
    "osmesa": ("mujoco.osmesa", {"PYOPENGL_PLATFORM": "osmesa"}, "libosmesa6"),
    "glfw": ("mujoco.glfw", {}, "libgl1 libglfw3, and a display"),
}
PROBE_SECONDS = 180  # a second or two on a free core, minutes on a very busy one
_chosen: str | None = None


class RenderingUnavailable(RuntimeError):
    """No OpenGL backend works on this machine; the message names the Debian packages that provide one."""


def _probe(backend: str) -> str | None:
    """Make a context of `backend` in a fresh process; None if that worked, otherwise the last line of its error."""
    module, environment, _ = BACKENDS[backend]
    code = f"from {module} import GLContext; c = GLContext(16, 16); c.make_current(); c.free()"
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    clean.update(environment)
    if backend == "glfw" and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & clean.keys():
        return "neither DISPLAY nor WAYLAND_DISPLAY is set"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it crashed"])[-1]


def choose_backend() -> str:
    """The OpenGL backend of this process: "egl", "osmesa" or "glfw".

    Raises:
        ValueError: `MUJOCO_GL` names an unknown backend.
        RenderingUnavailable: None works.
    """
    global _chosen
    if _chosen is not None:
        return _chosen
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked:
        if asked not in BACKENDS:
            raise ValueError(f"MUJOCO_GL={asked!r} is not a rendering backend; valid: {', '.join(BACKENDS)}")
        _chosen = asked
        return _chosen
    failures = {}
    for backend in BACKENDS:
        failures[backend] = _probe(backend)
        if failures[backend] is None:
            # Exported, so that child processes need not probe again.
            os.environ.update({"MUJOCO_GL": backend, **BACKENDS[backend][1]})
            _chosen = backend
            return backend
    raise RenderingUnavailable(
        "no OpenGL backend works here. On Debian or Ubuntu: apt-get install "
        f"{BACKENDS['egl'][2]}  (EGL), or {BACKENDS['osmesa'][2]} (OSMesa). Tried: "
        + "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    )


class Renderer:
    """Draws cameras of one compiled model at any size up to `max_size`, with one context for all of them.

    No multisampling and no shadows unless asked: they multiply a frame's cost on a CPU (facts: 14 -> 26 -> 129 ms).

    Args:
        model: The compiled scene. Its textures and meshes are uploaded once, here.
        max_size: (height, width) of the largest frame, pixels.
        shadows: Draw shadows of the lights that cast them.
        groups: Which of the six geom groups to draw; here, 3 is collision shapes, 4 sites, 5 parked objects.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        max_size: tuple[int, int] = (256, 256),
        shadows: bool = False,
        groups: tuple[int, ...] = (1, 1, 1, 0, 0, 0),
    ):
        backend = choose_backend()
        try:
            context = importlib.import_module(BACKENDS[backend][0]).GLContext
            self._gl: Any = context(max_size[1], max_size[0])
        except Exception as error:
            raise RenderingUnavailable(
                f"the OpenGL backend {backend!r} does not start ({error}); "
                f"Debian packages that provide it: {BACKENDS[backend][2]}"
            ) from error
        self._gl.make_current()
        self._model = model
        model.vis.global_.offheight, model.vis.global_.offwidth = max_size
        model.vis.quality.offsamples = 0
        self.max_size = max_size
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        _open.add(self)
        _close_all_at_exit()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = groups
        self._option.sitegroup[:] = 0
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(self, data: mujoco.MjData, camera: str, height: int, width: int) -> np.ndarray:
        """The frame of a named camera, uint8 [height, width, 3] RGB, of `data` as its kinematics stand.

        Raises:
            ValueError: Unknown camera, or a frame larger than `max_size`.
        """
        if height > self.max_size[0] or width > self.max_size[1]:
            raise ValueError(f"frame {height}x{width} exceeds this renderer's {self.max_size[0]}x{self.max_size[1]}")
        self._camera.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self._camera.fixedcamid < 0:
            names = ", ".join(self._model.camera(i).name for i in range(self._model.ncam))
            raise ValueError(f"unknown camera {camera!r}; this scene has: {names}")
        self._gl.make_current()
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(viewport, self._scene, self._context)
        frame = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(frame, None, viewport, self._context)
        return np.ascontiguousarray(frame[::-1])  # OpenGL's rows run upwards

    def upload(self, textures: Iterable[int] = (), meshes: Iterable[int] = ()) -> None:
        """Send textures and meshes (ids) to the GPU again after the model's arrays were written to."""
        self._gl.make_current()
        for texture in textures:
            mujoco.mjr_uploadTexture(self._model, self._context, texture)
        for mesh in meshes:
            mujoco.mjr_uploadMesh(self._model, self._context, mesh)

    def close(self) -> None:
        """Free the OpenGL context. Safe to call twice; also done when the object or the process ends."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:  # `sys` may be gone by then
        if not finalizing() and getattr(self, "_gl", None) is not None:
            self.close()


_open: weakref.WeakSet[Renderer] = weakref.WeakSet()


@functools.cache
def _close_all_at_exit() -> None:
    """Called after the first context exists, so that this runs before the backend's own clean-up at exit.

    Another library that shares the display (dm_control) may have ended it before: then nothing is left to free.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_open):
        with contextlib.suppress(Exception):
            renderer.close()
