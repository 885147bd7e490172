"""WikiText-2 with no memory: every segment on its own.

    python train.py --config=configs/wikitext2_none.py --config.data.path=DIR

Everything is in configs/wikitext2.py: sizes, hardware, times, published figures.
"""

import pathlib
import runpy

_get_config = runpy.run_path(str(pathlib.Path(__file__).with_name("wikitext2.py")))["get_config"]


def get_config(size: str = "cpu"):
    return _get_config(f"none-{size}")
