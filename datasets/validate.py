"""Check every episode of a dataset folder, name what is wrong, and set bad episodes aside on request."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from armworld.datasets.card import CARD_KEYS, finish_card, read_card
from armworld.datasets.checks import WIDEST_GRIPPER, Findings, Problem, check_episode
from armworld.datasets.droid import find_episodes
from armworld.datasets.files import TEMPORARY, clear_partial, exclusive, write_text

QUARANTINE = ".quarantine"


def validate(root: Path, repair: bool = False, decode: bool = True, strict: bool | None = None) -> list[Problem]:
    """Check all episodes below `root`; an empty answer means that nothing is wrong.

    Args:
        root: Dataset folder.
        repair: Move bad episodes to `.quarantine/` with a note of what is wrong (a rerun of the collection makes
            them again), delete what crashed writers left, and write the card and the index anew. The problems that
            were found are answered.
        decode: Decode every frame of every video.
        strict: Ask for all of our own layout; by default where the folder has a `card.json` of ours, so that real
            DROID folders pass with their known gaps.

    Raises:
        EpisodeError: `root` does not exist or holds no episode.
    """
    root = Path(root)
    folders = find_episodes(root)
    strict = (root / "card.json").exists() if strict is None else strict
    findings = [check_episode(folder, strict, decode) for folder in folders]
    _check_together(findings)
    problems = [problem for found in findings for problem in found.problems]
    problems += _check_root(root, len(folders), strict)
    if repair:
        _repair(root, findings)
    return problems


def _check_together(findings: Sequence[Findings]) -> None:
    """What shows only among episodes: a uuid used twice, grippers that are in metres throughout."""
    by_uuid: dict[str, list[Findings]] = defaultdict(list)
    for found in findings:
        if found.uuid:
            by_uuid[found.uuid].append(found)
    for uuid, same in by_uuid.items():
        for found in same[1:]:
            found.add(found.folder, "uuid", f"uuid {uuid} is also that of {same[0].folder}")
    spans = [found.closedness for found in findings if found.closedness]
    if spans and 0.02 < max(high for _, high in spans) <= WIDEST_GRIPPER and min(low for low, _ in spans) >= 0:
        for found in findings:
            if found.closedness and not any("metres?" in problem.message for problem in found.problems):
                message = (
                    f"gripper_position never exceeds {WIDEST_GRIPPER} in this dataset: metres? 0 ... 1 is expected"
                )
                found.add(found.folder / "trajectory.h5", "units", message)


def _check_root(root: Path, episodes: int, strict: bool) -> list[Problem]:
    """Leftovers of crashed writers, the card and the index."""
    problems = []
    for folder, names, files in os.walk(root):
        for name in [n for n in names + files if n.startswith(TEMPORARY)]:
            problems.append(Problem(Path(folder) / name, "unfinished", "left by an interrupted writer"))
        names[:] = [n for n in names if not n.startswith(".")]
    if not strict:
        return problems
    if not (root / "card.json").exists():
        return [*problems, Problem(root / "card.json", "card", "missing: nothing says how the episodes were made")]
    try:
        card = read_card(root)
    except ValueError as error:
        return [*problems, Problem(root / "card.json", "card", str(error).removeprefix(f"{root / 'card.json'} "))]
    absent = [key for key in CARD_KEYS if key not in card]
    if absent:
        problems.append(Problem(root / "card.json", "card", f"keys are missing: {', '.join(absent)}"))
    counted = card.get("counts", {}).get("episodes")
    if counted != episodes:
        problems.append(Problem(root / "card.json", "card", f"counts {counted} episodes, the folder has {episodes}"))
    for name in ("README.md", "index.csv"):
        if not (root / name).exists():
            problems.append(Problem(root / name, "card", "missing; run the collection again to write it"))
    if (root / "index.csv").exists():
        lines = (root / "index.csv").read_text().splitlines()
        gone = [line for line in lines if not Path(line.split(" ")[0]).is_dir()]
        if gone:
            message = f"{len(gone)} of {len(lines)} folders do not exist, as {gone[0]}: was the dataset moved?"
            problems.append(Problem(root / "index.csv", "index", message))
    return problems


def _repair(root: Path, findings: Sequence[Findings]) -> None:
    with exclusive(root):
        clear_partial(root)
        for found in findings:
            if found.problems:
                target = root / QUARANTINE / found.folder.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                number = 1
                while target.exists():  # a seed that was bad before
                    number += 1
                    target = target.with_name(f"{found.folder.name}-{number}")
                os.rename(found.folder, target)
                write_text(target / "problems.txt", "".join(f"{problem}\n" for problem in found.problems))
        if (root / "card.json").exists() and len(findings) > sum(bool(found.problems) for found in findings):
            finish_card(root)
