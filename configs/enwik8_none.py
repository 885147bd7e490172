"""enwik8 with no memory: every segment on its own.

    python train.py --config=configs/enwik8_none.py[:SIZE] --config.data.path=DIR

SIZE: cpu (the default), gpu or published. Everything is in configs/enwik8.py: sizes, hardware, times, published figures.
"""

import pathlib
import runpy

_get_config = runpy.run_path(str(pathlib.Path(__file__).with_name("enwik8.py")))["get_config"]


def get_config(size: str = "cpu"):
    return _get_config(f"none-{size}")
