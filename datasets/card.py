"""The dataset card: `README.md` for people, `card.json` for programs, `index.csv` for the public V-JEPA 2 loader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from armworld.datasets.droid import find_episodes
from armworld.datasets.episode import EpisodeError
from armworld.datasets.files import check_own_folder, clear_partial, exclusive, write_json, write_text
from armworld.datasets.trajectory import read_metadata
from armworld.evaluation.files import commit, plain, read_json

LICENCE = "Apache-2.0"
EXTRAS = {
    "collected": "`simulation/` in each `trajectory.h5` restores the simulator, so images can be rendered again.",
    "imported": "`original/` in each `trajectory.h5` holds what the source recorded besides, where there was more.",
}
CARD_VERSION = 1
CARD_KEYS = ("config", "commit", "licence", "seeds", "rates", "counts")


@contextmanager
def dataset_folder(root: Path, config: Mapping[str, Any], licence: str = LICENCE) -> Iterator[None]:
    """Hold `root` for the one writer of a dataset; nothing is touched where something else is there.

    An error before the first episode leaves no card behind.

    Args:
        root, config, licence: As in `start_card`.

    Raises:
        ValueError: As `start_card`, or another process writes there now.
    """
    check_card(root, config)  # before the lock, which is a file too
    with exclusive(root):
        clear_partial(root)
        start_card(root, config, licence)
        try:
            yield
        except BaseException:
            if not _has_episodes(root):
                (root / "card.json").unlink(missing_ok=True)
            raise


def start_card(root: Path, config: Mapping[str, Any], licence: str = LICENCE) -> None:
    """Write a card without counts, or check that the one there belongs to the same configuration.

    Args:
        root: The dataset folder.
        config: What determines an episode's content beside its seed, JSON-able.
        licence: Of the data: our own, or that of what is imported.

    Raises:
        ValueError: As `check_card`.
    """
    check_card(root, config)
    if not _has_episodes(root) or not (root / "card.json").exists():
        about = {"version": CARD_VERSION, "licence": licence, "commit": commit(), "config": plain(config)}
        write_json(root / "card.json", about)


def check_card(root: Path, config: Mapping[str, Any]) -> None:
    """Whether a dataset of this configuration may be begun or gone on with in `root`; nothing is written.

    A card without any episode binds nobody: its dataset never began.

    Raises:
        ValueError: `root` is a file, holds something that is no dataset or a dataset made with another configuration,
            or its path cannot be written into `index.csv`.
    """
    index_text([root])
    check_own_folder(root, "card.json", "dataset")
    if not (root / "card.json").exists() or not _has_episodes(root):
        return
    before, config = read_card(root)["config"], plain(config)
    names = set(before) | set(config)
    different = sorted(k for k in names if _stated(before.get(k)) != _stated(config.get(k)))
    if different:
        changes = "; ".join(f"{key}: {before.get(key)!r} there, {config.get(key)!r} asked for" for key in different[:4])
        changes += f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise ValueError(f"{root} holds a collection with another configuration ({changes}); choose another folder")


def read_card(root: Path) -> dict[str, Any]:
    """A dataset's card.

    Raises:
        ValueError: It is missing, broken or states no configuration.
    """
    card = read_json(root / "card.json")
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise ValueError(f"{root / 'card.json'} is no dataset's card: an object with the key config is expected")
    return card


def _has_episodes(root: Path) -> bool:
    try:
        return bool(find_episodes(root))
    except EpisodeError:
        return False


def _stated(value: Any) -> Any:
    """A mapping without its zeros: a share of 0 is the same as a behaviour that did not exist yet."""
    return {name: share for name, share in value.items() if share != 0} if isinstance(value, dict) else value


def finish_card(root: Path) -> dict[str, Any]:
    """Count the episodes, then write the card, its README and the index; answers the card."""
    card = read_card(root)
    folders = find_episodes(root)
    metadata = [read_metadata(folder) for folder in folders]
    rows = sum(item["trajectory_length"] for item in metadata)
    extras = [item.get("simulation", {}) for item in metadata]
    known, busy = any("contact_rows" in extra for extra in extras), sum(e.get("contact_rows", 0) for e in extras)
    card |= {
        "seeds": [min(item["seed"] for item in metadata), max(item["seed"] for item in metadata)],
        "rates": {key: metadata[0][key] for key in ("control_hz", "frame_hz", "video_header_fps", "step_seconds")},
        "counts": {
            "episodes": len(folders),
            "frames": rows,
            "successes": sum(item["success"] for item in metadata),
            "labs": Counter(item["lab"] for item in metadata),
            "behaviours": Counter(extra.get("behaviour", "unknown") for extra in extras),
            "cameras": Counter(name for item in metadata for name in item["cameras"]),
        },
        "contact_share": round(busy / rows, 4) if known else None,
        "contact_shares": _contact_by_behaviour(metadata) if known else {},
    }
    card = plain(card)
    write_json(root / "card.json", card)
    write_text(root / "README.md", _readme(card))
    write_text(root / "index.csv", index_text(folders))
    return card


def _contact_by_behaviour(metadata: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Behaviour -> share of its frames with a finger on an object or an object moving."""
    busy, rows = Counter(), Counter()
    for item in metadata:
        extra = item.get("simulation", {})
        behaviour = extra.get("behaviour", "unknown")
        busy[behaviour] += extra.get("contact_rows", 0)
        rows[behaviour] += item["trajectory_length"]
    return {behaviour: round(busy[behaviour] / rows[behaviour], 4) for behaviour in sorted(rows)}


def index_text(folders: Iterable[Path]) -> str:
    """The public loader's index: one absolute episode folder per line, space-delimited, no header.

    Raises:
        ValueError: A path holds a space, which that format cannot express.
    """
    lines = [str(folder.resolve()) for folder in folders]
    spaced = next((line for line in lines if any(c.isspace() for c in line)), None)
    if spaced:
        raise ValueError(f"the V-JEPA 2 index cannot hold a path with spaces: {spaced!r}; move the dataset")
    return "".join(f"{line}\n" for line in lines)


def _readme(card: Mapping[str, Any]) -> str:
    counts, rates, config = card["counts"], card["rates"], card["config"]
    behaviours = ", ".join(f"{name} {count}" for name, count in sorted(counts["behaviours"].items()))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in sorted(card["contact_shares"].items()))
    imported = config.get("task") == "import"
    contact = (
        "Contact with objects was not recorded."
        if card["contact_share"] is None
        else f"A finger touches an object or an object moves in {100 * card['contact_share']:.1f} % of the frames "
        f"({shares})."
    )
    numbers = f"{'Numbers' if imported else 'Seeds'} {card['seeds'][0]} to {card['seeds'][1]}"
    return f"""# Interaction data {"imported" if imported else "collected"} by armworld

{counts["episodes"]} episodes, {counts["frames"]} frames per camera ({", ".join(sorted(counts["cameras"]))}), in
DROID's raw layout: `<lab>/success|failure/<date>/<time>/`. Row i of `trajectory.h5` belongs to frame i.

- Rates: control {rates["control_hz"]:g} Hz, frames {rates["frame_hz"]:g} Hz, video header
  {rates["video_header_fps"]:g} fps; one step is {rates["step_seconds"]:g} s.
- States: panda_link8, m and rad (extrinsic xyz), base frame; closedness 0 open to 1 closed.
- Behaviours: {behaviours}. {contact}
  {counts["successes"]} episodes end solved.
- {numbers}, task {config.get("task")}, begun at commit {card["commit"]}.
- {EXTRAS["imported" if imported else "collected"]}
- `index.csv` is the public V-JEPA 2 loader's index; `card.json` says all of this to programs.

Licence: {card["licence"]}.
"""
