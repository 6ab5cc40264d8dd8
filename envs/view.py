"""`armworld view`: look at an environment and jog its arm; in MuJoCo's window, or on a page where there is no display.

The page needs nothing but a browser on this machine: the live cameras, the goal, the state, and buttons for a reset,
for one control step along each axis, and for one of the scripted expert's. It looks again every half second, so that
several pages on one environment agree. It is served on the loopback address, and requests that name another host are
refused, so that no web page elsewhere drives it through a visitor's browser.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import gymnasium
import numpy as np
from PIL import Image

import armworld.envs
from armworld.envs.cameras import IMAGE_SIZES
from armworld.envs.controller import ACTION_BOUND
from armworld.envs.experts import make_expert
from armworld.types import check_name, check_numbers

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "grip")
JOG = ACTION_BOUND * np.array([0.5] * 6 + [1.0])  # one press: half of the bound, and the gripper all the way
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class ViewConfig:
    """What to look at.

    Attributes:
        env: Environment id: armworld/Reach-v0, Grasp-v0, ReachWithObject-v0 or PickPlace-v0.
        object: The task's object.
        lab: lab1 or lab2.
        level: Variation: none, jitter or full.
        robot: robotiq_2f85 or franka_hand.
        seed: Of the first episode; every reset adds one.
        image_size: Pixels per side on the page.
        window: auto: MuJoCo's window where there is a display, else the page; window; page.
        port: Of the page; 0: any free one.
        seconds: Stop after this long; 0: until interrupted.
    """

    env: str = "armworld/Reach-v0"
    object: str = "cup"
    lab: str = "lab1"
    level: str = "none"
    robot: str = "robotiq_2f85"
    seed: int = 0
    image_size: int = 256
    window: Literal["auto", "window", "page"] = "auto"
    port: int = 8765
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_name("environment", self.env, armworld.envs.IDS)
        check_numbers(self, "image_size", least=IMAGE_SIZES[0], most=IMAGE_SIZES[1])
        check_numbers(self, "seed", "seconds", least=0)
        check_numbers(self, "port", least=0, most=65535)


class Stage:
    """One environment that several threads may look at and move; every call holds its lock."""

    def __init__(self, config: ViewConfig):
        self._env = gymnasium.make(
            config.env, object=config.object, lab=config.lab, level=config.level, robot=config.robot,
            cameras=("left", "right", "wrist"), image_size=config.image_size, max_steps=1_000_000,
            disable_env_checker=True,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._expert, self._observation = make_expert(self._env), {}
        self._seed = config.seed - 1
        self._pictures: dict[str, bytes] = {}
        self._status: dict[str, Any] = {}
        self.reset()

    @property
    def arm(self) -> Any:
        """The environment itself."""
        return self._env.unwrapped

    def reset(self) -> None:
        """The next seed's episode."""
        with self._lock:
            self._seed += 1
            observation, info = self._env.reset(seed=self._seed)
            goals = info["goal"].observations
            self._expert.reset(info["goal"])
            self._pictures = {
                f"goal {index + 1} {name}": _png(goal[name])
                for index, goal in enumerate(goals)
                for name in self.arm.cameras
            }
            self._show(observation, info, 0)

    def step(self, action: np.ndarray | None) -> None:
        """One control step; None: the scripted expert's, which goes on from wherever the arm is."""
        with self._lock:
            action = self._expert.act(self._observation) if action is None else action
            observation, _, _, _, info = self._env.step(action)
            self._show(observation, info, self._status["step"] + 1)

    def _show(self, observation: dict[str, np.ndarray], info: dict[str, Any], step: int) -> None:
        self._observation = observation
        self._pictures |= {name: _png(observation[name]) for name in self.arm.cameras}
        self._status = {
            "seed": self._seed,
            "step": step,
            "state": [round(float(v), 4) for v in info["reached_state"]],
            "distance_m": round(float(info["distance_m"]), 4),
            "solved": bool(info["solved"]),
            "success": bool(info["success"]),
            "images": sorted(self._pictures),
        }

    def status(self) -> dict[str, Any]:
        """State, distance and names of the pictures, ready for JSON."""
        with self._lock:
            return dict(self._status)

    def picture(self, name: str) -> bytes | None:
        """A camera's newest frame or a goal's, as PNG."""
        with self._lock:
            return self._pictures.get(name)

    def close(self) -> None:
        """Free the environment; in the thread that made it."""
        with self._lock:
            self._env.close()


def jog(axis: str, sign: int) -> np.ndarray:
    """The action [7] of one press. ValueError for an unknown axis or a sign that is not -1 or 1."""
    check_name("axis", axis, AXES)
    if sign not in (-1, 1):
        raise ValueError(f"a jog's sign is -1 or 1, got {sign}")
    action = np.zeros(7)
    action[AXES.index(axis)] = sign * JOG[AXES.index(axis)]
    return action


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


PAGE = """<!doctype html><meta charset="utf-8"><title>armworld view</title>
<style>body{font:16px system-ui;margin:1.5rem;background:#111;color:#eee}
figure{display:inline-block;margin:0 1rem 1rem 0}
img{width:256px;height:256px;display:block;background:#222}button{font:inherit;margin:.15rem;padding:.4rem .9rem}
td{padding-right:1rem}</style><h1>armworld view</h1><p id="jogs"><button id="reset">reset</button></p>
<div id="views"></div><table id="facts"></table><p id="said"></p><script>
const $=id=>document.getElementById(id),shown={};
async function post(path){const r=await fetch(path,{method:'POST'});
$('said').textContent=r.ok?'':await r.text();await look()}
function press(label,id,path){const b=$(id)||$('jogs').appendChild(document.createElement('button'));
b.id=id;b.textContent=label;b.onclick=()=>post(path)}
function show(name){if(!shown[name]){const f=document.createElement('figure'),c=document.createElement('figcaption');
c.textContent=name;shown[name]=new Image();f.append(c,shown[name]);$('views').append(f)}
shown[name].src='/image/'+encodeURIComponent(name)+'?'+Date.now()}
let seen='';async function look(){const text=await(await fetch('/status')).text(),s=JSON.parse(text);
if(text==seen)return s;seen=text;s.images.forEach(show);
const t=$('facts');t.textContent='';for(const[k,v]of Object.entries(s)){if(k=='images')continue;
const r=t.insertRow();r.insertCell().textContent=k;r.insertCell().textContent=v}return s}
press('reset','reset','/reset');press('expert','expert','/expert');
for(const a of AXES)for(const[l,s]of[['−',-1],['+',1]])
press(a+' '+l,'jog_'+a+(s>0?'_plus':'_minus'),`/jog?axis=${a}&sign=${s}`);
look();setInterval(()=>look().catch(()=>{}),500)</script>""".replace("AXES", json.dumps(AXES))


class ViewServer:
    """Serves the page. Requests are answered in the thread that calls `serve`: OpenGL's context lives there."""

    def __init__(self, stage: Stage, port: int = 0):
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(stage, self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._wanted: list[tuple[Callable[[], None], threading.Event]] = []
        self._guard = threading.Condition()
        self._stage = stage
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def ask(self, deed: Callable[[], None]) -> bool:
        """From a request's thread: have a step or a reset done by `serve`; False if that takes too long."""
        done = threading.Event()
        with self._guard:
            self._wanted.append((deed, done))
            self._guard.notify()
        return done.wait(60)

    def serve(self, seconds: float = 0.0) -> None:
        """Do what the page asks for, for so long; 0: until interrupted."""
        end = time.monotonic() + seconds if seconds else None
        while end is None or time.monotonic() < end:
            with self._guard:
                if not self._wanted:
                    self._guard.wait(0.2)
                wanted, self._wanted = self._wanted, []
            for deed, done in wanted:
                deed()
                done.set()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(stage: Stage, server: ViewServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, content: bytes, kind: str = "text/plain", code: int = 200) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def _foreign(self) -> bool:
            """Whether the request names another host or comes from another site's page; it is answered then."""
            named = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            origin = self.headers.get("Origin")
            foreign = named not in LOOPBACK or (origin is not None and urlsplit(origin).hostname not in LOOPBACK)
            if foreign:
                self._answer(b"wrong host", code=403)
            return foreign

        def do_GET(self) -> None:
            if self._foreign():
                return None
            path = unquote(urlsplit(self.path).path)
            if path == "/":
                return self._answer(PAGE.encode(), "text/html; charset=utf-8")
            if path == "/status":
                return self._answer(json.dumps(stage.status()).encode(), "application/json")
            picture = stage.picture(path.removeprefix("/image/")) if path.startswith("/image/") else None
            return self._answer(picture, "image/png") if picture else self._answer(b"not here", code=404)

        def do_POST(self) -> None:
            if self._foreign():
                return None
            try:
                deed = self._deed(urlsplit(self.path))
            except ValueError as error:
                return self._answer(str(error).encode(), code=400)
            if deed is None:
                return self._answer(b"not here", code=404)
            return self._answer(b"done") if server.ask(deed) else self._answer(b"the environment hangs", code=504)

        def _deed(self, url: SplitResult) -> Callable[[], None] | None:
            """What a request asks for; None: nothing we know. ValueError for a jog along no axis."""
            if url.path == "/reset":
                return stage.reset
            if url.path == "/expert":
                return partial(stage.step, None)
            if url.path != "/jog":
                return None
            asked = parse_qs(url.query)
            return partial(stage.step, jog(asked.get("axis", [""])[0], int(asked.get("sign", ["0"])[0])))

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: the terminal belongs to the program."""

    return Handler


def has_display() -> bool:
    """Whether a window can be opened here."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def open_window(stage: Stage, seconds: float) -> None:
    """MuJoCo's interactive window; the physics runs in real time, holding still, and can be pulled at by mouse."""
    import mujoco.viewer

    simulator = stage.arm.simulator
    end = time.monotonic() + seconds if seconds else None
    with mujoco.viewer.launch_passive(simulator.model, simulator.data) as window:
        while window.is_running() and (end is None or time.monotonic() < end):
            started = time.monotonic()
            with window.lock():
                simulator.step(np.zeros(7))
            window.sync()
            time.sleep(max(0.0, simulator.step_seconds - (time.monotonic() - started)))


def view(config: ViewConfig) -> None:
    """Show the environment until interrupted. ValueError for unknown names, or a window without a display."""
    if config.window == "window" and not has_display():
        raise ValueError("no display here: neither DISPLAY nor WAYLAND_DISPLAY is set; use --window page")
    stage = Stage(config)
    try:
        if config.window == "window" or (config.window == "auto" and has_display()):
            return open_window(stage, config.seconds)
        try:
            server = ViewServer(stage, config.port)
        except OSError as error:
            raise ValueError(f"no page at port {config.port} ({error}): give another --port; 0 takes any") from error
        print(f"armworld view: {server.address}  (Ctrl-C stops)", flush=True)
        try:
            server.serve(config.seconds)
        finally:
            server.close()
    finally:
        stage.close()
    return None
