"""The doctor's findings in words: a mark (good, weak, bad, open) and a sentence per examination; the conclusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armworld.evaluation.statistics import signed

OPEN = "open"  # the mark of what cannot be judged
# A linear probe that has learned from fewer frames reads a good model's features badly: the shipped default's position
# within 1.0 cm from 390 frames of motion, 1.5 from 300, 3 to 5 from 120; from 160 stills 1.9 cm, from 40 3.7.
JUDGED_FRAMES, JUDGED_STILLS = 250, 160


def judge(findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mark (good, weak, bad; open where there were too few frames to judge) and a sentence per examination.

    The conclusion is the last. The bounds are rules of thumb: a planner needs to tell 4 cm from 0, and chance is what
    an untrained model reaches.
    """
    probe, sense, axes = findings["probe"], findings["sensitivity"], findings["axes"]["imagined"]
    rank, latent, ahead, stills = (findings[key] for key in ("ranking", "latent_distance", "drift", "stills"))
    gain = 1 - sense["true_l1"] / max(sense["shuffled_l1"], 1e-12)
    reach = useful_steps(ahead["l1"], ahead["copy_l1"])
    turned = max(abs(axes["yaw_deg"]) / 10, abs(np.log(max(axes["gain"], 1e-6))) / 0.35)
    marks = [
        _unless_too_few(
            mark_of(-probe["position_error_m"], -0.015, -0.03),
            f"Seeing: a linear probe reads the flange's position from the features within "
            f"{100 * probe['position_error_m']:.1f} cm (guessing: {100 * probe['guessing_error_m']:.1f} cm).",
            probe["frames"],
            JUDGED_FRAMES,
            "--episodes or --steps",
        ),
        (
            mark_of(gain if sense["true_l1"] < sense["copy_l1"] else 0.0, 0.15, 0.04),
            f"Actions: the right action lowers the one-step error by {100 * gain:.0f} % against a wrong one "
            f"({sense['true_l1']:.3f} against {sense['shuffled_l1']:.3f}; copying the frame: {sense['copy_l1']:.3f}).",
        ),
        (
            mark_of(-turned, -1, -2.5),
            f"Axes: imagined motion is turned by {signed(axes['yaw_deg'])}° about the vertical and is "
            f"{axes['gain']:.2f} times as long as commanded ({axes['gain_z']:.2f} vertically).",
        ),
        (
            mark_of(rank["top_1"], 0.6, 0.25),
            f"Ranking: the action that led to an outcome is picked out of {rank['candidates']} in "
            f"{100 * rank['top_1']:.0f} % (chance {100 * rank['chance']:.0f} %).",
        ),
        _judge_cost(latent),
        (
            mark_of(reach, min(4, len(ahead["l1"])), 1),
            f"Horizon: imagining beats copying the first frame up to {reach * ahead['step_seconds']:g} of "
            f"{len(ahead['l1']) * ahead['step_seconds']:g} s; the hand read from it is then off by "
            f"{100 * ahead['position_error_m'][max(reach - 1, 0)]:.1f} cm.",
        ),
        *_judge_stills(stills),
    ]
    return [
        *marks,
        _conclusion(dict(zip(("seeing", "actions", "axes", "ranking", "cost", "horizon"), marks, strict=False))),
    ]


def useful_steps(better: Sequence[float], worse: Sequence[float]) -> int:
    """For how many steps the first error stays below the second, from the first one on."""
    below = np.asarray(better) < np.asarray(worse)
    return len(below) if below.all() else int(np.argmin(below))


def _judge_cost(latent: Mapping[str, Any]) -> tuple[str, str]:
    told = (
        f"Cost: latent and true distance correlate by {latent['spearman']:.2f}, and by "
        f"{latent['spearman_near']:.2f} within {100 * latent['near_m']:.0f} cm"
    )
    used = latent.get("aligned") or latent
    if used is not latent:
        told += f"; the aligned energy and true distance by {used['spearman']:.2f} and {used['spearman_near']:.2f}"
    return mark_of(used["spearman_near"], 0.7, 0.4), told + "."


def _judge_stills(stills: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The arm's state and the object, from single frames. Never bad: what a task needs of it differs.

    The model's own readout needs no stills to learn from, and is judged however few they are.
    """
    probe, own = stills["probe"], stills["readout"]
    told = f"State: with the hand turned, a probe reads {_errors(probe)}"
    best = probe if own is None else own
    if own is not None:
        told += f"; the own readout {_errors(own)}"
    read, guess = stills["object_error_m"], stills["object_guessing_m"]
    clear = best["yaw_rad"] < 0.1 and best["closedness"] < 0.15
    count = stills["frames"]
    seen = f"Object: a linear probe reads where it lies within {100 * read:.1f} cm (guessing: {100 * guess:.1f} cm)."
    return [
        _unless_too_few(
            "good" if clear else "weak", told + ".", count if own is None else JUDGED_STILLS, JUDGED_STILLS, "--stills"
        ),
        _unless_too_few("good" if read < 0.35 * guess else "weak", seen, count, JUDGED_STILLS, "--stills"),
    ]


def _unless_too_few(mark: str, told: str, frames: int, needed: int, option: str) -> tuple[str, str]:
    """The mark and its sentence, or that the probe had too few frames to judge by."""
    if frames >= needed:
        return mark, told
    return OPEN, f"{told} Too few to judge: {frames} frames, {needed} are needed; give more with {option}."


def _errors(errors: Mapping[str, float]) -> str:
    return (
        f"{100 * errors['position_m']:.1f} cm, {np.degrees(errors['yaw_rad']):.0f}° and "
        f"{errors['closedness']:.2f} of a stroke"
    )


def mark_of(value: float, good: float, weak: float) -> str:
    return "good" if value >= good else "weak" if value >= weak else "bad"


def _conclusion(marks: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    bad, weak, left = ([name for name, (mark, _) in marks.items() if mark == kind] for kind in ("bad", "weak", OPEN))
    if not bad:
        rest = f" Not judged: {', '.join(left)}." if left else ""
        if weak:
            return "weak", f"Planning may work; weakest: {', '.join(weak)}.{rest}"
        return (OPEN, f"Fit for planning, as far as it was judged.{rest}") if left else ("good", "Fit for planning.")
    blame = {
        "seeing": "the encoder does not show where the arm is: train it longer or on this view",
        "actions": "the predictor ignores actions: train it longer, or check the units of its data",
        "axes": "the predictor's axes are off: is the camera where it was in training?",
        "ranking": "the predictor cannot tell true outcomes apart: more or more varied data",
        "cost": "latent distance does not fall near the goal: another objective or layer",
        "horizon": "imagination drifts at once: plan one step, or train with longer rollouts",
    }
    return "bad", f"Planning will hardly work: {blame[bad[0]]}."
