"""enwik8 with RMT: recurrent memory tokens.

    python train.py --config=configs/enwik8_rmt.py[:SIZE] --config.data.path=DIR

SIZE: cpu (the default), gpu or published. Everything is in configs/enwik8.py: sizes, hardware, times, published figures.
"""

import pathlib
import runpy

_get_config = runpy.run_path(str(pathlib.Path(__file__).with_name("enwik8.py")))["get_config"]


def get_config(size: str = "cpu"):
    return _get_config(f"rmt-{size}")
