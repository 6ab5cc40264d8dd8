"""The live page: what the cameras see, the goal, the imagined distance, and a stop button. Loopback unless asked.

The button asks the loop to stop; it is no safety function. A request that names another host is refused, so that no
web page elsewhere reads the cameras through a visitor's browser.
"""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from armworld.evaluation.files import plain

PAGE = """<!doctype html><meta charset="utf-8"><title>armworld deploy</title>
<style>body{font:16px system-ui;margin:1.5rem;background:#111;color:#eee}img{width:320px;image-rendering:pixelated;
margin-right:1rem}button{font-size:2rem;background:#c00;color:#fff;border:0;padding:.5rem 2rem;border-radius:.5rem}
td{padding:0 1rem 0 0}.hold{background:#900}#lost{color:#f66}
figure{display:inline-block;margin:0}svg{background:#222}</style>
<h1>armworld deploy <small id="mode"></small></h1>
<p><button id="stop">STOP</button> <span id="said"></span> <b id="lost"></b>
<br><small>This button asks the program to stop. The hardware stop is the one by the robot.</small></p>
<div id="views"></div><table id="facts"></table>
<p id="curves"></p>
<svg id="curve" width="640" height="120" viewBox="0 0 640 120"><polyline fill="none" stroke="#6cf"/></svg>
<script>
const views=document.getElementById('views'),shown={},values=[];
function show(name){if(!shown[name]){const f=document.createElement('figure');
f.innerHTML='<figcaption></figcaption><img>';
f.firstChild.textContent=name;views.append(f);shown[name]=f.lastChild}shown[name].src='/image/'+name+'?'+Date.now()}
document.getElementById('stop').onclick=async()=>{const r=await fetch('/stop',{method:'POST'});
document.getElementById('said').textContent=r.ok?'stopping':'failed'};
async function tick(){try{const s=await(await fetch('/status')).json();
document.getElementById('lost').textContent='';
document.getElementById('mode').textContent=s.live?'LIVE':'dry run';s.images.forEach(show);
const t=document.getElementById('facts');t.textContent='';
for(const[k,v]of Object.entries(s.facts)){const r=t.insertRow();
if(v==='hold')r.className='hold';r.insertCell().textContent=k;r.insertCell().textContent=v}
if(s.distance!==null&&s.step!==values.at(-1)?.[0])values.push([s.step,s.distance]);
const top=Math.max(...values.map(v=>v[1]),1e-9),n=Math.max(values.length-1,1);document.querySelector('polyline')
.setAttribute('points',values.map((v,i)=>`${640*i/n},${115-110*v[1]/top}`).join(' '));
document.getElementById('curves').textContent=values.length?
`Imagined distance to the goal shown, steps ${values[0][0]} to `+
`${values.at(-1)[0]}: now ${values.at(-1)[1].toFixed(4)}, top of the picture ${top.toFixed(4)}`:''}catch(e){
document.getElementById('lost').textContent='no answer: the loop has ended, or hangs'}setTimeout(tick,250)}
tick()</script>"""


LAST_PORT = 65535


def check_address(host: str, port: int) -> None:
    """Raise ValueError where no page can be served at that address, as long as the robot does not wait for it."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ValueError(f"no page can be served at --page-host {host} --page-port {port}: {error}") from error


class LivePage:
    """Serves the page from a thread. `publish` is called by the loop, `on_stop` by the button.

    `goal_images` has the pictures of each sub-goal; the one that the agent plans for is shown.
    """

    def __init__(
        self,
        on_stop: Callable[[str], None],
        live: bool,
        goal_images: Sequence[Mapping[str, np.ndarray]],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._lock = threading.Lock()
        self._goals = [{f"goal {name}": image for name, image in images.items()} for images in goal_images]
        self._images = dict(self._goals[0])
        self._status: dict[str, Any] = {"live": live, "step": -1, "distance": None, "facts": {}}
        self._server = ThreadingHTTPServer((host, port), _handler(self, on_stop, host))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/"

    def publish(self, row: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
        """Show a step of the loop."""
        agent = row["agent"]
        facts = {"step": row["step"], "verdict": row["verdict"], "state": _short(row["state"])}
        facts |= {"reasons": "; ".join(text for _, text in row["reasons"]), "proposed": _short(row["proposed"])}
        facts |= {f"{name} s": round(value, 3) for name, value in row["latency"].items()}
        facts |= {name: round(agent[name], 4) for name in ("energy", "cost", "subgoal") if name in agent}
        goal = self._goals[min(int(agent.get("image", 0)), len(self._goals) - 1)]
        with self._lock:
            self._images |= goal | dict(images)
            self._status |= {"step": row["step"], "distance": agent.get("energy"), "facts": facts}

    def status(self) -> dict[str, Any]:
        with self._lock:
            return plain(self._status | {"images": sorted(self._images)})

    def picture(self, name: str) -> bytes | None:
        """A PNG of a camera's newest frame or of the goal."""
        with self._lock:
            image = self._images.get(name)
        if image is None:
            return None
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png", compress_level=1)
        return buffer.getvalue()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _short(values: Any) -> str:
    return "" if values is None else np.array2string(np.asarray(values, float), precision=3, suppress_small=True)


def _handler(page: LivePage, on_stop: Callable[[str], None], host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, content: bytes, kind: str, code: int = 200) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def _ours(self) -> bool:
            """The request names the host that we listen on."""
            named = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            return host not in ("127.0.0.1", "localhost") or named in ("127.0.0.1", "localhost")

        def do_GET(self) -> None:
            from urllib.parse import unquote

            path = unquote(self.path.split("?")[0])
            if not self._ours():
                return self._answer(b"wrong host", "text/plain", 403)
            if path == "/":
                return self._answer(PAGE.encode(), "text/html; charset=utf-8")
            if path == "/status":
                return self._answer(json.dumps(page.status()).encode(), "application/json")
            picture = page.picture(path.removeprefix("/image/")) if path.startswith("/image/") else None
            if picture is None:
                return self._answer(b"not here", "text/plain", 404)
            return self._answer(picture, "image/png")

        def do_POST(self) -> None:
            if self.path != "/stop":
                return self._answer(b"not here", "text/plain", 404)
            on_stop("stop button")
            return self._answer(b"stopping", "text/plain")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: the terminal belongs to the loop."""

    return Handler
