"""The memory that the simulated robot's processes share."""

from pathlib import Path
from typing import Any

import numpy as np

from armworld.real.sim_block import SharedBlock


class Overtaken:
    """The pictures of a block, whose first copy is overtaken: one frame is finished, the next half written."""

    def __init__(self, block: SharedBlock) -> None:
        self.block, self.pixels, self.copies = block, block._pixels, 0

    def __getitem__(self, index: Any) -> Any:
        self.index = index
        return self

    def __setitem__(self, index: Any, image: np.ndarray) -> None:
        self.pixels[index] = image

    def copy(self) -> np.ndarray:
        self.copies += 1
        if self.copies == 1:
            self.block.write_frame(0, np.full((16, 16, 3), 2, np.uint8), 2.0)
            self.pixels[self.index][:8] = 3  # of frame 3, whose number comes once it is whole
        return self.pixels[self.index].copy()


def test_a_frame_that_is_overtaken_while_it_is_copied_is_read_again(tmp_path: Path) -> None:
    block: Any = SharedBlock.create(tmp_path / "block", ("left",), (16, 16))
    block.write_frame(0, np.full((16, 16, 3), 1, np.uint8), 1.0)
    block._pixels = Overtaken(block)
    number, time_s, image = block.read_frame(0)
    assert (number, time_s) == (2, 2.0) and (image == 2).all()


def test_a_frame_keeps_its_own_time_while_the_next_is_written(tmp_path: Path) -> None:
    block: Any = SharedBlock.create(tmp_path / "block", ("left",), (16, 16))
    block.write_frame(0, np.full((16, 16, 3), 1, np.uint8), 1.0)
    before = float(block._frames[0, 0])
    block.write_frame(0, np.full((16, 16, 3), 2, np.uint8), 2.0)
    block._frames[0, 0] = before  # the number comes last
    number, time_s, image = block.read_frame(0)
    assert (number, time_s) == (1, 1.0) and (image == 1).all()
