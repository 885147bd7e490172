"""The tensorflow-datasets builder: the same samples as records, whole or not there."""

import subprocess
import sys

import numpy as np
import pytest

from armt_jax.data.babilong import BabilongSamples
from armt_jax.data.babilong.builders import Babilong, prepare
from armt_jax.data.errors import DataError


@pytest.fixture
def splits(background, stories):
    return {split: BabilongSamples("qa1", split, 600, background, stories) for split in ("train", "validation", "test")}


def test_records_are_the_samples_in_order(splits, tmp_path):
    builder = prepare(Babilong(samples=splits, counts={"train": 45, "test": 7}, data_dir=tmp_path / "tfds"))
    for split, count in (("train", 45), ("validation", 20), ("test", 7)):
        records = builder.as_data_source(split=split)
        assert len(records) == count
        for i in range(count):
            found, sample = records[i], splits[split].sample(i)
            assert found["index"] == i and found["context"].dtype == np.int32
            assert np.array_equal(found["context"], sample.context())
            assert np.array_equal(found["question"], sample.question_ids)
            assert np.array_equal(found["answer"], sample.answer_ids)
            assert np.array_equal(found["fact_positions"], sample.fact_positions_F)
            assert found["facts"].decode() == "\n".join(sample.story.facts)
            assert (found["question_text"].decode(), found["answer_text"].decode()) == (sample.story.question, sample.story.answer)
    assert prepare(Babilong(samples=splits, counts={"train": 45, "test": 7}, data_dir=tmp_path / "tfds")).data_path == builder.data_path


def test_another_setting_is_another_folder(splits, background, stories, tmp_path):
    test = splits["test"]
    builders = [
        Babilong(samples={"test": samples}, counts=counts, data_dir=tmp_path)
        for samples, counts in (
            (test, None), (test, {"test": 5}), (BabilongSamples("qa1", "test", 601, background, stories), None),
            (BabilongSamples("qa1", "test", 600, background, stories, seed=1), None),
            (BabilongSamples("qa1", "test", 600, background, stories, compat="published"), None),
            (BabilongSamples("qa1", "test", 600, background, stories, facts_within=300), None),
        )
    ]  # fmt: skip
    assert len({builder.data_path for builder in builders}) == len(builders)


def test_an_interrupted_build_is_never_taken_for_whole(splits, tmp_path, monkeypatch):
    whole = BabilongSamples.sample

    def interrupted(self, index):
        if index == 11:
            raise KeyboardInterrupt
        return whole(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(BabilongSamples, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(Babilong(samples=splits, data_dir=tmp_path / "tfds"))
    builder = Babilong(samples=splits, data_dir=tmp_path / "tfds")
    with pytest.raises(Exception, match="has not been generated yet"):
        builder.as_data_source(split="test")
    assert len(prepare(builder).as_data_source(split="test")) == 20


def test_bad_arguments(splits, background, stories, endless_stories, tmp_path):
    def build(samples, counts=None):
        return Babilong(samples=samples, counts=counts, data_dir=tmp_path)

    with pytest.raises(DataError, match=r"samples\['test'\] are of split 'train': give each under its own name"):
        build({"test": splits["train"]})
    with pytest.raises(DataError, match=r"counts\['test'\]=21 must be from 1 to the 20 samples of the split"):
        build(splits, {"test": 21})
    with pytest.raises(DataError, match="counts names split 'test', of which"):
        build({"train": splits["train"]}, {"test": 1})
    endless = BabilongSamples("qa1", "train", 600, background, endless_stories)
    with pytest.raises(DataError, match="generated without end: say in counts how many"):
        build({"train": endless})
    assert build({"train": endless}, {"train": 3}).counts == {"train": 3}
    with pytest.raises(DataError, match="length=50000000 is too much for records"):
        build({"test": BabilongSamples("qa1", "test", 50_000_000, background, stories)})


def test_importing_needs_no_tensorflow_and_no_tfds():
    code = "import sys, armt_jax.data.babilong; assert not {'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command(background, tmp_path, monkeypatch, capsys):
    from armt_jax.data.babilong import __main__ as command

    pytest.importorskip("armt_jax.data.babi.files")
    (tmp_path / "babi").mkdir()
    story = "1 Mary moved to the office.\n2 John went to the garden.\n3 Where is Mary? \toffice\t1\n"
    (tmp_path / "babi" / "qa1_single-supporting-fact_test.txt").write_text(story * 9)
    flags = [
        f"--background={background.path}", "--tokenizer=bytes", f"--stories={tmp_path}/babi", "--tasks=qa1", "--lengths=300,600",
        f"--data_dir={tmp_path}/out", f"--cache_dir={background.cache_dir}",
    ]  # fmt: skip
    command.main(flags)
    said = capsys.readouterr().out.splitlines()
    built = [line for line in said if line.startswith("qa1 ")]
    assert [line.split()[:4] for line in built] == [["qa1", "300", "test:", "9"], ["qa1", "600", "test:", "9"]]
    for wrong, message in (
        ("--lengths=4k", "must be numbers of tokens"), ("--lengths=60", "2 facts have 51 tokens, and length 60 has room for 45"),
        ("--count=10", "must be from 1 to the 9 samples"), (f"--background={tmp_path}/no", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            command.main([*flags, wrong])
