"""WikiText-103 with ARMT: an associative matrix in every layer.

    python train.py --config=configs/wikitext103_armt.py[:RECIPE] --config.data.path=DIR

RECIPE: gpu (the default), cpu, 150, 50 or 128x8. Everything is in configs/wikitext103.py: sizes, hardware, times, published figures.
"""

import pathlib
import runpy

_get_config = runpy.run_path(str(pathlib.Path(__file__).with_name("wikitext103.py")))["get_config"]


def get_config(recipe: str = "gpu"):
    return _get_config(f"armt-{recipe}")
