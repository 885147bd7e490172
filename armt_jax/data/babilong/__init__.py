"""BABILong: facts of bAbI hidden in the text of books, at any length, and answers scored.

background = BackgroundConfig("/data/books", tokenizer="sentencepiece")     # trained on the books; or "gpt2", with tokenizer_path
samples = BabilongSamples("qa1", "test", 10_000_000, background, StoryFiles("/data/babi/en-10k"))
sample = samples.sample(0)
for chunk in sample.chunks(4096):       # or sample.context(), whole
    ...
score("qa1", sample.story.question, sample.story.answer, output)
"""

from armt_jax.data.babilong.background import Background, BackgroundConfig
from armt_jax.data.babilong.batches import BabilongBatches
from armt_jax.data.babilong.mixing import Sample
from armt_jax.data.babilong.samples import BabilongSamples
from armt_jax.data.babilong.scoring import Scores, score
from armt_jax.data.babilong.stories import GeneratedStories, StoryFiles, StorySource
from armt_jax.data.babilong.tokens import Codec

__all__ = [
    "BabilongBatches",
    "BabilongSamples",
    "Background",
    "BackgroundConfig",
    "Codec",
    "GeneratedStories",
    "Sample",
    "Scores",
    "StoryFiles",
    "StorySource",
    "score",
]
