"""Pages opened in headless Chromium, where it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import write_bytes
from armworld.evaluation.picture import figure_png, suite_figure, summary_figure
from armworld.evaluation.report import Page
from armworld.evaluation.video import write_mp4

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  const video = document.querySelector("video"), image = document.querySelector("img");
  const tell = () => document.title =
    `image ${image.naturalWidth} video ${video.videoWidth} error ${video.error ? video.error.code : 0} ` +
    `wide ${document.documentElement.scrollWidth > innerWidth}`;
  video.readyState ? tell() : (video.onloadedmetadata = video.onerror = tell);
})</script>"""


def episodes(wins: int, n: int = 5) -> list[EpisodeResult]:
    curve = tuple(np.linspace(0.3, 0.02, 6).tolist())
    return [
        EpisodeResult(i, i < wins, curve[-1], 5, 0.1, 0.1, "success" if i < wins else "missed", curve) for i in range(n)
    ]


def test_pictures_survive_empty_and_failed_methods() -> None:
    nothing = EpisodeResult(1, False, None, 0, 0.0, 0.0, "environment_failed: x")
    assert figure_png(summary_figure({"cem": episodes(3), "hold": [nothing]}), dpi=40)[:4] == b"\x89PNG"
    assert figure_png(suite_figure({"a · b · c": {"cem": episodes(2)}}, {"a · b · c": None}), dpi=40)[:4] == b"\x89PNG"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_picture_and_video(tmp_path: Path) -> None:
    assert BROWSER is not None
    png = figure_png(summary_figure({"cem": episodes(3), "hold": episodes(0)}), dpi=50)
    write_bytes(tmp_path / "a.png", png)
    frames = [np.full((64, 96, 3), 20 * i, np.uint8) for i in range(8)]
    write_mp4(tmp_path / "a.mp4", frames, 4)
    page = Page("title", "lead").picture(png, "alt").videos([(tmp_path / "a.mp4", "seed 1", True)], tmp_path)
    page.table(["a"], [["1"]]).raw(PROBE).write(tmp_path / "index.html")
    profile, address = f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "index.html").as_uri()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=900,900"]
    done = subprocess.run(
        [BROWSER, *options, profile, "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = re.search(r"<title>(.*?)</title>", done.stdout)
    assert told and re.fullmatch(r"image [1-9]\d* video 96 error 0 wide false", told[1]), told and told[1]
