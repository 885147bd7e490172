"""Text for language modelling: corpora, tokenizers, caches of ids, and the streams of batches read from them.

A corpus (`CorpusConfig`) is tokenised once, into a `TokenCache`; `ContiguousStreams` and `Windows` make batches of it.
"""

from armt_jax.data.cache import SplitCounts, TokenCache, check_fingerprint
from armt_jax.data.corpus import CorpusConfig
from armt_jax.data.errors import DataError
from armt_jax.data.metrics import text_metrics
from armt_jax.data.streams import ContiguousStreams
from armt_jax.data.text import TextSource
from armt_jax.data.windows import Windows

__all__ = [
    "STREAMS",
    "ContiguousStreams",
    "CorpusConfig",
    "DataError",
    "SplitCounts",
    "TextSource",
    "TokenCache",
    "Windows",
    "check_fingerprint",
    "text_metrics",
]

STREAMS: dict[str, type[TextSource]] = {kind.name: kind for kind in (ContiguousStreams, Windows)}
