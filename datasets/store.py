"""Frames or features of a whole dataset, packed: a few memory-mapped files instead of thousands of videos.

A store is a folder: `plan.json` (key, episodes, shards), `states.npy`, `extrinsics.npy` with one row
per frame, and `shard-*.npy` [rows, ...] of whole episodes. `packing.py` builds it; this reads it, without any lock.
`plan.json` names what was cached and how; a reader that expects something else gets an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from armworld.evaluation.files import plain, read_json

VERSION = 1
PRELOAD_SHARE = 0.4  # of physical memory, for all processes of a training together

Share = slice | np.ndarray  # what of a drawn batch is needed: a slice of it, or int64 numbers within it
WHOLE = slice(None)


class Windows(NamedTuple):
    """B clips of T consecutive steps: items [B, T, ...], states float32 [B, T, 7], extrinsics float32 [B, T, 6]."""

    items: np.ndarray
    states: np.ndarray
    extrinsics: np.ndarray


def physical_memory() -> int:
    """Bytes of memory of this machine, or what its container may use of them."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bound = Path("/sys/fs/cgroup/memory.max")
    text = bound.read_text().strip() if bound.is_file() else "max"
    return installed if text == "max" else min(installed, int(text))


def check_key(out: Path, key: Mapping[str, Any]) -> None:
    """ValueError where the store in `out`, if there is one, caches something else than `key` says."""
    if not (out / "key.json").exists():
        return
    there = read_json(out / "key.json")
    different = sorted(name for name in {*there, *key} if there.get(name) != key.get(name))
    if different:
        changes = "; ".join(f"{n}: {there.get(n)!r} there, {key.get(n)!r} asked for" for n in different)
        raise ValueError(f"{out} caches something else ({changes}); choose another folder or delete it")


class Store:
    """Reader of a packed store; rows are frames, numbered through all episodes.

    Attributes:
        key: What was cached.
        names: Episode folders.
        offsets: int64 [E + 1]; episode e's rows are `offsets[e]` to `offsets[e + 1]`.
        states: float32 [F, 7].
        extrinsics: float32 [F, 6].
        step_seconds: Time between consecutive rows of an episode.

    Raises:
        ValueError: The store is missing, unfinished, damaged, of another version or of another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / "plan.json").exists():
            raise ValueError(f"{folder}: no finished cache here (plan.json is missing); build it again to go on")
        plan = read_json(self.folder / "plan.json")
        if plan.get("version") != VERSION:
            raise ValueError(f"{folder}: cache version {plan.get('version')}, this code reads {VERSION}; delete it")
        self.key: dict[str, Any] = plan["key"]
        if key is not None:
            check_key(self.folder, plain({**self.key, **key}))
        self.step_seconds = float(plan["step_seconds"])
        self.names = [name for name, _ in plan["episodes"]]
        self.offsets = np.concatenate([[0], np.cumsum([rows for _, rows in plan["episodes"]])]).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum([rows for _, rows in plan["shards"]])]).astype(np.int64)
        self._shards = [_open_shard(self.folder / name, rows) for name, rows in plan["shards"]]
        self.states, self.extrinsics = (self._rows(name) for name in ("states", "extrinsics"))

    def _rows(self, name: str) -> np.ndarray:
        return np.asarray(_open_shard(self.folder / f"{name}.npy", int(self.offsets[-1])))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one frame's value."""
        return self._shards[0].shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(shard.nbytes for shard in self._shards)

    def preload(self, share: float = PRELOAD_SHARE) -> Store:
        """Read all values into memory, as one array; answers the store itself.

        Where they would take more than `share` of physical memory they stay memory-mapped: what is drawn then comes
        from the disk, or from the system's own cache of it, which all processes share.
        """
        if self.nbytes <= share * physical_memory():
            self._join()
        return self

    def array(self) -> np.ndarray:
        """All values [F, ...]: memory-mapped where there is one shard, else read into memory."""
        if len(self._shards) > 1:
            self._join()
        return self._shards[0]

    def _join(self) -> None:
        self._shards = [np.concatenate([np.asarray(shard) for shard in self._shards])]
        self._starts = np.array([0, len(self)], np.int64)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Values [*rows.shape, ...] at any rows, in one fancy index per shard."""
        flat = np.asarray(rows, np.int64).ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise ValueError(f"rows must lie in 0 ... {len(self) - 1}, got {flat.min()} ... {flat.max()}")
        if len(self._shards) == 1:
            found = self._shards[0][flat]
        else:
            owner = np.searchsorted(self._starts, flat, "right") - 1
            found = np.empty((len(flat), *self.item_shape), self._shards[0].dtype)
            for shard in np.unique(owner):
                mine = owner == shard
                found[mine] = self._shards[shard][flat[mine] - self._starts[shard]]
        return found.reshape(*np.shape(rows), *self.item_shape)

    def content(self) -> str:
        """What data this is, wherever it lies: number of frames, and a hash of episodes' names, lengths and states."""
        digest = hashlib.sha256()
        for name, rows in zip(self.names, np.diff(self.offsets), strict=True):
            digest.update(f"{Path(name).name}|{rows}|".encode())
        digest.update(np.ascontiguousarray(self.states).tobytes())
        return f"{len(self)} frames, {digest.hexdigest()[:16]}"

    def views(self) -> str:
        """From where it was seen: a hash of the cameras' poses. Rerendered, an episode differs in it alone."""
        return hashlib.sha256(np.ascontiguousarray(self.extrinsics).tobytes()).hexdigest()[:16]

    def starts(self, frames: int, stride: int = 1, episodes: np.ndarray | None = None) -> np.ndarray:
        """First rows, int64 [n], of all windows of `frames` rows `stride` apart that stay in one episode."""
        span = (frames - 1) * stride
        chosen = np.arange(len(self.names)) if episodes is None else np.asarray(episodes)
        found = [np.arange(self.offsets[e], self.offsets[e + 1] - span) for e in chosen]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def windows(self, starts: np.ndarray, frames: int, stride: int = 1) -> Windows:
        """Clips of `frames` rows, `stride` apart, from the given first rows (see `starts`)."""
        rows = np.asarray(starts, np.int64)[:, None] + stride * np.arange(frames)
        return Windows(self.gather(rows), self.states[rows], self.extrinsics[rows])

    def split(self, held_out: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers for training and for validation, drawn once per `seed`; see `split_recordings`."""
        train, kept_out = split_recordings([self], held_out, np.random.default_rng(seed))
        return train[0], kept_out[0]


def split_recordings(
    stores: Sequence[Store],
    held_out: float,
    generator: np.random.Generator,
    chosen: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Episode numbers per store, for training and for validation.

    Whole recordings are drawn, at least one for each side: one that was rendered again, into a folder of its own, is on
    the same side as its source.

    Args:
        stores: Any number.
        held_out: Share of the recordings for validation.
        generator: Draws them.
        chosen: Episode numbers per store to split; None for all.

    Raises:
        ValueError: Fewer than two recordings, or a share outside of (0, 1).
    """
    numbers = [np.arange(len(store.names)) for store in stores] if chosen is None else chosen
    names = [[recording_of(store.names[n]) for n in own] for store, own in zip(stores, numbers, strict=True)]
    recordings = list(dict.fromkeys(name for own in names for name in own))
    count = len(recordings)
    if count < 2 or not 0 < held_out < 1:
        raise ValueError(f"a split needs >= 2 recordings and a share in (0, 1), got {count} and {held_out}")
    drawn = generator.permutation(count)[: min(count - 1, max(1, round(held_out * count)))]
    kept_out = {recordings[i] for i in drawn}
    sides = [np.array([name in kept_out for name in own], bool) for own in names]
    train, validation = zip(*((own[~side], own[side]) for own, side in zip(numbers, sides, strict=True)), strict=True)
    return list(train), list(validation)


def recording_of(episode: str | Path) -> str:
    """What an episode's folder shares with those of the same recording rendered again: date and name."""
    return "/".join(Path(episode).parts[-2:])


def _open_shard(path: Path, rows: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged or missing ({error}); delete the cache's plan.json and build again"
        ) from error
    if len(array) != rows:
        raise ValueError(f"{path}: {len(array)} rows, expected {rows}; delete this file and build again")
    return array
