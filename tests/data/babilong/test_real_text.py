"""Real books, tokenizers and stories."""

import numpy as np
import pytest

from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import BabilongSamples, BackgroundConfig, StoryFiles, StorySource

STORY = Story(
    "qa1", ("Mary moved to the bathroom.", "John went to the hallway.", "Mary went to the garden."), "Where is Mary?", "garden", (2,)
)


class OneStory(StorySource):
    def fingerprint(self, task, split):
        return "one"

    def count(self, task, split, compat):
        return 1

    def story(self, task, split, index, seed, compat):
        return STORY


@pytest.mark.parametrize(("tokenizer", "file"), [("gpt2", "gpt2-bpe"), ("sentencepiece", "sentencepiece/pg19train_bpe_4000.model")])
def test_a_sample_of_real_text(real_data, tmp_path, tokenizer, file):
    config = BackgroundConfig(
        str(real_data / "books" / "test"), tokenizer=tokenizer, tokenizer_path=str(real_data / file), cache_dir=str(tmp_path)
    )
    background = config.open()
    assert all(background.split(split).num_sentences > 1000 for split in ("train", "validation", "test"))
    for index in range(5):
        sample = BabilongSamples("qa1", "train", 4096, config, OneStory()).sample(index)
        assert len(sample.context()) + len(sample.question_ids) == 4096
        text = background.codec.tokenizer.decode(sample.context())
        places = [text.index(fact) for fact in STORY.facts]
        assert places == sorted(places)
        assert all(place <= 1 or text[place - 2] in ".!?\"'”’)]_…:;-" or text[place - 2].isalnum() for place in places)
        # The ids are those of the running text; the cut end may have more than one spelling.
        again = background.codec.tokenizer.encode(text)
        assert np.array_equal(again[:4000], sample.context()[:4000]) or background.codec.tokenizer.unknown_id in sample.context()
        assert np.array_equal(np.concatenate(list(sample.chunks(333))), sample.context())


def test_real_stories(real_data, tmp_path):
    pytest.importorskip("armt_jax.data.babi.files")
    config = BackgroundConfig(
        str(real_data / "books" / "test"), tokenizer="gpt2", tokenizer_path=str(real_data / "gpt2-bpe"), cache_dir=str(tmp_path)
    )
    stories = StoryFiles(str(real_data / "babi" / "en-10k"))
    for number in range(1, 21):
        samples = BabilongSamples(f"qa{number}", "test", 16_384, config, stories)
        assert samples.count == 1000
        for index in (0, 500, 999):
            sample = samples.sample(index)
            assert config.open().codec.decode_answer(sample.answer_ids) == sample.story.answer
            assert sample.length == len(sample.context()) + len(sample.question_ids) == 16_384
    assert BabilongSamples("qa1", "test", 1000, config, stories, compat="published").count == 999
    assert {split: stories.count("qa1", split, "default") for split in ("train", "validation")} == {"train": 9000, "validation": 1000}
