"""What a camera sweep says, in sentences: where one may look from, and how the axes turn with the azimuth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armworld.evaluation.probing import spearman
from armworld.evaluation.statistics import signed

KEPT = 0.8  # of the rig's success: still a place to look from
DEAF = 0.05  # contrast below which a fitted turn means nothing
STEADY_DEG = 8.0  # axes that turn less than this over all cameras do not follow them

CORRECTED = {"turn": "axes put right", "adapt": "adapted by the moves"}  # what the second run was given

Rows = Sequence[Mapping[str, Any]]


def is_rig(row: Mapping[str, Any]) -> bool:
    """Whether the camera is the lab's own."""
    return row["name"] == "rig"


def rig_of(rows: Rows) -> Mapping[str, Any]:
    """The lab's own camera, which every sweep holds."""
    return next(row for row in rows if is_rig(row))


def correction_of(rows: Rows) -> str | None:
    """What the episodes' second run was given, in words; None where there was none."""
    given = next((row["corrected"].get("by", "turn") for row in rows if "corrected" in row), None)
    return None if given is None else CORRECTED[given]


def corrected_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The cameras with what their second run came to in place of the first."""
    return [{**row, "turn": None, **row["corrected"]} for row in rows if "corrected" in row]


def good_views(rows: Rows, key: str | None = None) -> list[Mapping[str, Any]]:
    """The cameras that keep `KEPT` of the rig's success; none where the rig has none. `key`: corrected or None."""
    bound = KEPT * rig_of(rows)["success_rate"]
    return [row for row in rows if bound > 0 and (row[key] if key else row)["success_rate"] >= bound]


def verdict(rows: Rows, varying: Sequence[str]) -> list[str]:
    """The sentences, most important first."""
    lines = [_where(rows, varying)]
    if rows[0].get("turn"):
        lines.append(_axes(rows))
    if any("corrected" in row for row in rows):
        lines.append(_corrected(rows))
    return lines


def _where(rows: Rows, varying: Sequence[str]) -> str:
    rig, good = rig_of(rows), good_views(rows)
    wins = f"{sum(e['success'] for e in rig['episodes'])}/{len(rig['episodes'])}"
    if not good:
        return f"From nowhere: the lab's own camera succeeds in {wins}, so no other place can be judged by it."
    if len(rows) == 1:
        return f"The lab's own camera succeeds in {wins}; no other camera was tried."
    others = [row for row in good if not is_rig(row)]
    if not others:
        return (
            f"Look from the trained view only: it succeeds in {wins}, and none of the {len(rows) - 1} other cameras "
            f"keeps {100 * KEPT:.0f} % of that."
        )
    text = f"{len(others)} of {len(rows) - 1} other cameras keep at least {100 * KEPT:.0f} % of the rig's {wins}"
    ring = [row for row in rows if all(row["offsets"][a] == rig["offsets"][a] for a in varying if a != "azimuth")]
    if "azimuth" in varying and len(ring) > 2:
        low, high = _interval(ring, good)
        text += f"; at the rig's height and distance, azimuths from {signed(low)}° to {signed(high)}° of it"
    return f"You may look from there: {text}."


def _interval(ring: Rows, good: Rows) -> tuple[float, float]:
    """The unbroken range of azimuth offsets around 0 whose cameras are good."""
    names = {row["name"] for row in good}
    told = sorted((row["offsets"]["azimuth"], row["name"] in names) for row in ring)
    azimuths, fine = [a for a, _ in told], [ok for _, ok in told]
    centre = azimuths.index(0.0)
    low = high = centre
    while low > 0 and fine[low - 1]:
        low -= 1
    while high + 1 < len(fine) and fine[high + 1]:
        high += 1
    return azimuths[low], azimuths[high]


def axes_against_azimuth(rows: Rows) -> dict[str, Any] | None:
    """How the turn follows the azimuth: slope through the rig, rank correlation, monotone or not; None below 3."""
    points = sorted({(r["offsets"]["azimuth"], r["turn"]["yaw_deg"]) for r in rows if r["turn"] is not None})
    if len({a for a, _ in points}) < 3:
        return None
    azimuth, yaw = (np.array(part) for part in zip(*points, strict=True))
    yaw = azimuth + (yaw - azimuth + 180) % 360 - 180  # the turn nearest to the camera's own
    means = [yaw[azimuth == a].mean() for a in np.unique(azimuth)]
    return {
        "slope": float(np.polyfit(azimuth, yaw, 1)[0]),
        "spearman": spearman(azimuth, yaw),
        "monotone": bool(np.all(np.diff(means) > 0)),
        "worst_deg": float(np.abs(yaw).max()),
    }


def _axes(rows: Rows) -> str:
    told = axes_against_azimuth(rows)
    rig = rig_of(rows)["turn"]
    deaf = [row["name"] for row in rows if row["turn"]["contrast"] < DEAF]
    text = f"The model's axes are turned by {signed(rig['yaw_deg'], 1)}° in the rig's own view"
    if told and told["worst_deg"] <= STEADY_DEG:
        text += f" and by at most {told['worst_deg']:.1f}° in any: they do not turn with the camera"
    elif told:
        word = "monotonically" if told["monotone"] else "but not monotonically"
        text += (
            f" and turn with the camera, {told['slope']:+.2f}° per degree of azimuth, {word} "
            f"(rank correlation {told['spearman']:+.2f}, at most {told['worst_deg']:.0f}°)"
        )
    if deaf:
        where = f"{len(deaf)} of {len(rows)} cameras" if len(deaf) > 3 else ", ".join(deaf)
        text += f". At {where} it hardly responds to where actions point, so the angle there says nothing"
    lost = [row for row in rows if row["turn"]["energy"] > row["turn"]["copy_energy"]]
    if lost:
        text += (
            f". From {len(lost)} of {len(rows)} cameras it imagines worse than if it copied the frame, even with its "
            "axes put right: what it lacks there is the view, not the axes"
        )
    return text + "."


def _corrected(rows: Rows) -> str:
    rig = rig_of(rows)
    others = [row for row in rows if not is_rig(row) and "corrected" in row]
    how = correction_of(rows) or ""
    if not others:
        return f"Only the rig's own camera was run again, {how}."
    before, after = (
        float(np.mean([part["success_rate"] for part in parts]))
        for parts in ([row for row in others], [row["corrected"] for row in others])
    )
    gap = rig["success_rate"] - before
    share = f", {100 * (after - before) / gap:.0f} % of the gap to the rig's view" if gap > 0 else ""
    kept = sum(row["corrected"]["success_rate"] >= KEPT * rig["success_rate"] > 0 for row in others)
    return (
        f"{how.capitalize()}, success over the other cameras goes from {100 * before:.0f} to "
        f"{100 * after:.0f} %{share}; {kept} of {len(others)} then keep at least {100 * KEPT:.0f} % of the rig's."
    )
