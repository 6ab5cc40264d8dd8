"""Pages opened in headless Chromium, where it is installed."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402

from armworld.evaluation.camera_sweep import CameraSweep, camera_sweep  # noqa: E402
from armworld.evaluation.episodes import EpisodeResult  # noqa: E402
from armworld.evaluation.files import write_bytes  # noqa: E402
from armworld.evaluation.joining import ReportConfig, report  # noqa: E402
from armworld.evaluation.picture import figure_png, suite_figure, summary_figure  # noqa: E402
from armworld.evaluation.report import Page  # noqa: E402
from armworld.evaluation.video import write_mp4  # noqa: E402

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
    assert re.fullmatch(r"image [1-9]\d* video 96 error 0 wide false", opened(tmp_path / "index.html"))


def opened(page: Path) -> str:
    """The title that a page's script gives it in headless Chromium."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=900,900"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = re.search(r"<title>(.*?)</title>", done.stdout)
    assert told
    return told[1]


LOOK = """<script>addEventListener("load", () => {
  const images = [...document.querySelectorAll("img")], links = [...document.querySelectorAll("[src]")];
  document.title = `${images.filter(image => image.naturalWidth > 0).length} of ${images.length} pictures, ` +
    `${links.filter(link => !link.getAttribute("src").startsWith("data:")).length} from outside, ` +
    `wide ${document.documentElement.scrollWidth > innerWidth}`;
})</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_a_sweeps_page_and_a_report_of_two(tmp_path: Path) -> None:
    """Every picture is there and inside the file: sky, map, curves and thumbnails; the sky of each in the report."""
    for name in ("a", "b"):
        config = CameraSweep(
            out=tmp_path / name, task=fake.ID, agent="walk", episodes=1, azimuth="-40:40:3", elevation="0,20", moves=2
        )
        camera_sweep(config, Console(file=io.StringIO()))
    report(ReportConfig((tmp_path / "a", tmp_path / "b"), tmp_path / "c"), Console(file=io.StringIO()))
    for name, pictures in (("a", 3 + 6), ("c", 2)):
        page = tmp_path / name / "index.html"
        page.write_text(page.read_text().replace("</main>", LOOK + "</main>"))
        assert opened(page) == f"{pictures} of {pictures} pictures, 0 from outside, wide false"
