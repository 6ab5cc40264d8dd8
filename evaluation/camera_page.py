"""The page of a camera sweep: the answer, the sky, heat maps, curves, and every view as a thumbnail."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armworld.evaluation.camera_picture import curves_figure, final_cm, heat_figure, sky_figure, wins
from armworld.evaluation.camera_verdict import correction_of, good_views, is_rig
from armworld.evaluation.files import write_bytes
from armworld.evaluation.picture import figure_png
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.statistics import signed
from armworld.evaluation.views import label

STYLE = """<style>
.answer{border-left:5px solid var(--good);background:var(--soft);padding:12px 16px;font-size:17px;margin:0 0 12px}
.views{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:12px}
.views figure{border:1px solid var(--line);border-top:6px solid var(--tone);border-radius:6px;overflow:hidden}
.views img{display:block;width:100%}
.views figcaption{padding:6px 8px;color:var(--ink);font-size:12.5px;line-height:1.45}
.views b{font-size:13px}.views small{color:var(--muted)}
</style>"""
TONES = {"good": "#15803d", "fair": "#f4b740", "poor": "#b42318"}
HEAD = ("camera", "azimuth", "elevation", "distance", "success", "Wilson 95 %", "cm: median", "turn", "±", "contrast")


def write_page(out: Path, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """sweep.png and index.html in `out`; `pictures`: JPEG of each view by its name."""
    rows, varying = record["views"], record["varying"]
    what = f"{record['agent']} on {record['task']} · {record['object']} · {record['lab']}"
    model = f"model {record['model']}, " if record["model"] else ""
    page = Page(
        "From where may I look?",
        f"{what}; {model}camera {record['camera']}, {len(rows)} places, {len(record['seeds'])} episodes at each.",
    )
    page.raw(STYLE).raw(f'<p class="answer">{html.escape(record["verdict"][0])}</p>')
    for line in record["verdict"][1:]:
        page.text(line)
    sky = figure_png(sky_figure(rows))
    page.heading("The sky over the table")
    page.text(
        "Seen from above: the angle is where the camera stands; the rings are its elevation, steeper ones further in. "
        "In the middle the robot, its arm pointing to the front; the lab's own camera has a dark ring."
    )
    page.picture(sky, "success, final distance and turn of the axes over the camera's direction")
    if len(varying) >= 2:
        page.heading("As a map").picture(figure_png(heat_figure(rows, *varying[:2])), "heat maps over two axes")
    if varying:
        page.heading("Along each axis")
        page.picture(figure_png(curves_figure(rows, varying)), "success and turn of the axes against each offset")
    page.heading("The views").raw(gallery(rows, varying, pictures))
    page.heading("Numbers").table(*_table(rows, varying))
    if (again := correction_of(rows)) is not None:
        page.heading(again.capitalize()).table(*_corrected(rows, varying, again))
    provenance(page, record)
    write_bytes(out / "sweep.png", sky)
    page.write(out / "index.html")


def gallery(rows: Sequence[Mapping[str, Any]], varying: list[str], pictures: Mapping[str, bytes]) -> str:
    """Thumbnails with success, final distance and turn, marked by how much of the rig's success they keep."""
    good = {row["name"] for row in good_views(rows)}
    figures = []
    for row in sorted(rows, key=_order):
        tone = "good" if row["name"] in good else "fair" if row["success_rate"] > 0 else "poor"
        source = base64.b64encode(pictures[row["name"]]).decode()
        name = "the lab's own" if is_rig(row) else html.escape(label(dict(row), varying))
        cm, turn = final_cm(row), row["turn"]
        told = [f"{cm:.1f} cm" if cm is not None else "", f"axes {signed(turn['yaw_deg'])}°" if turn else ""]
        figures.append(
            f'<figure style="--tone:{TONES[tone]}"><img alt="view {name}" src="data:image/jpeg;base64,{source}">'
            f"<figcaption><b>{wins(row)}</b> {' · '.join(part for part in told if part)}<br><small>{name}</small>"
            "</figcaption></figure>"
        )
    return f'<div class="views">{"".join(figures)}</div>'


def _order(row: Mapping[str, Any]) -> tuple[float, ...]:
    """By distance, field of view and look-at point, then from above downwards, then by azimuth."""
    own = row["offsets"]
    return (own["distance"], own["fov"], own["look_x"], own["look_y"], own["look_z"], -own["elevation"], own["azimuth"])


def _table(rows: Sequence[Mapping[str, Any]], varying: list[str]) -> tuple[Sequence[str], list[list[str]]]:
    body = []
    for row in rows:
        place, turn, cm = row["placement"], row["turn"], final_cm(row)
        low, high = row["wilson_95"]
        body.append(
            [
                "rig" if is_rig(row) else label(dict(row), varying),
                f"{place['azimuth']:.0f}",
                f"{place['elevation']:.0f}",
                f"{place['distance']:.2f}",
                wins(row),
                f"{100 * low:.0f}–{100 * high:.0f} %",
                "–" if cm is None else f"{cm:.1f}",
                *(
                    ("–", "–", "–")
                    if turn is None
                    else (signed(turn["yaw_deg"], 1), f"{turn['spread_deg']:.1f}", f"{turn['contrast']:.2f}")
                ),
            ]
        )
    return HEAD, body


def _corrected(
    rows: Sequence[Mapping[str, Any]], varying: list[str], again: str
) -> tuple[Sequence[str], list[list[str]]]:
    body = []
    for row in (row for row in rows if "corrected" in row):
        part = row["corrected"]
        test, before, after = part["against_plain"], final_cm(row), final_cm(part)
        body.append(
            [
                "rig" if is_rig(row) else label(dict(row), varying),
                wins(row),
                wins(part),
                "–" if before is None else f"{before:.1f}",
                "–" if after is None else f"{after:.1f}",
                f"{test['p_value']:.3f}",
            ]
        )
    return ("camera", "success", again, "cm: median", f"{again}, cm", "McNemar p"), body
