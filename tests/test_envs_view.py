"""`armworld view`: the page and its buttons, over HTTP and, where it is installed, in headless Chromium."""

import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from armworld.envs import view
from armworld.envs.view import AXES, Stage, ViewConfig, ViewServer, jog

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PRESSES = """<script>addEventListener("load", async () => {
  await look(); const before = await look();
  await post("/jog?axis=x&sign=1"); document.getElementById("jog_grip_plus").click();
  let after = await look(); while (after.step < 2) after = await look();
  const images = [...document.images];
  for (const image of images) while (!image.naturalWidth) await new Promise(go => setTimeout(go, 50));
  document.title = `moved ${(after.state[0] - before.state[0]).toFixed(3)} step ${after.step} ` +
    `images ${images.length} buttons ${document.querySelectorAll("button").length}`;
})</script>"""


def fetch(address: str, method: str = "GET", **headers: str) -> bytes:
    request = urllib.request.Request(address, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A page that is served until the tests end; its environment lives in the serving thread, as OpenGL asks."""
    ready, stop, found = threading.Event(), threading.Event(), []

    def serve() -> None:
        stage = Stage(ViewConfig(image_size=48))
        server = ViewServer(stage)
        found.append(server.address)
        ready.set()
        while not stop.is_set():
            server.serve(0.3)
        server.close()
        stage.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(180)
    yield found[0]
    stop.set()
    thread.join()


def test_the_buttons_move_the_arm_and_reset_it(address: str) -> None:
    before = json.loads(fetch(address + "status"))
    assert fetch(address + "image/left").startswith(b"\x89PNG")
    assert fetch(address + "image/goal%201%20left").startswith(b"\x89PNG")
    first = fetch(address + "image/left")
    fetch(address + "jog?axis=y&sign=-1", "POST")
    after = json.loads(fetch(address + "status"))
    moved = np.subtract(after["state"], before["state"])
    assert moved[1] == pytest.approx(-0.0375, abs=2e-3) and abs(moved[0]) < 2e-3
    assert after["step"] == before["step"] + 1 and fetch(address + "image/left") != first
    fetch(address + "reset", "POST")
    again = json.loads(fetch(address + "status"))
    assert (again["seed"], again["step"]) == (before["seed"] + 1, 0) and again["state"] != before["state"]


def test_the_experts_button_solves_the_episode(address: str) -> None:
    fetch(address + "reset", "POST")
    fetch(address + "jog?axis=z&sign=1", "POST")  # it goes on from wherever the arm is
    for _ in range(9):
        fetch(address + "expert", "POST")
    told = json.loads(fetch(address + "status"))
    assert told["success"] and told["distance_m"] < 0.01 and told["step"] == 10


def test_the_page_refuses_strangers_and_nonsense(address: str) -> None:
    before = fetch(address + "status")
    for path, method, headers, code in (
        ("status", "GET", {"Host": "evil.example"}, 403),
        ("reset", "POST", {"Origin": "http://evil.example"}, 403),
        ("jog?axis=w&sign=1", "POST", {}, 400),
        ("jog?axis=x&sign=9", "POST", {}, 400),
        ("image/none", "GET", {}, 404),
        ("other", "POST", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetch(address + path, method, **headers)
        assert caught.value.code == code, path
    assert fetch(address + "status") == before


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_drives_the_arm(address: str, tmp_path, monkeypatch) -> None:
    assert BROWSER is not None
    monkeypatch.setattr(view, "PAGE", view.PAGE + PRESSES)
    fetch(address + "reset", "POST")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--timeout=60000", "--virtual-time-budget=60000"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    told = re.search(r"<title>moved (\S+) step (\d+) images (\d+) buttons (\d+)</title>", done.stdout)
    assert told, re.findall(r"<title>.*?</title>", done.stdout)
    assert float(told[1]) == pytest.approx(0.0375, abs=3e-3)
    assert [int(n) for n in told.groups()[1:]] == [2, 6, 2 + 2 * len(AXES)]


def test_jog_moves_one_axis_by_half_of_the_bound() -> None:
    assert jog("z", 1).tolist() == [0, 0, 0.0375, 0, 0, 0, 0] and jog("grip", -1)[6] == -1
    with pytest.raises(ValueError, match="x, y, z"):
        jog("up", 1)


def test_a_window_needs_a_display(monkeypatch) -> None:
    monkeypatch.setattr(view, "has_display", lambda: False)
    with pytest.raises(ValueError, match="--window page"):
        view.view(ViewConfig(window="window"))
    with pytest.raises(ValueError, match="armworld/Grasp-v0"):
        view.view(ViewConfig(env="armworld/Grab-v0", window="page"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"port": 65536}, "port must be at least 0 and at most 65535, got 65536"),
        ({"image_size": 0}, "image_size must be at least 16 and at most 1280, got 0"),
        ({"seconds": float("nan")}, "seconds must be at least 0, got nan"),
    ],
)
def test_bad_numbers_are_named_before_anything_is_opened(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ViewConfig(**changes)


def test_a_port_in_use_is_named(monkeypatch) -> None:
    monkeypatch.setattr(view, "Stage", lambda config: SimpleNamespace(close=lambda: None))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"no page at port {port} .*: give another --port; 0 takes any"):
            view.view(ViewConfig(window="page", port=port))
