"""BABILong as a tensorflow-datasets builder. It writes array_record, and needs no TensorFlow.

    builder = Babilong(samples={"train": train, "test": test}, counts={"train": 5000}, data_dir="/data/tfds")
    builder.download_and_prepare()
    records = builder.as_data_source(split="test")      # {"context": int32 ids, "question": ..., "answer": ..., ...}

For lengths that a record can hold; longer samples are read as streams from `BabilongSamples`, which gives the same ids. The folder that
it is prepared in depends on all that the samples depend on. An interrupted build leaves a folder under another name, which is never read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from armt_jax.data.babilong.mixing import Sample
from armt_jax.data.babilong.samples import BabilongSamples
from armt_jax.data.errors import DataError

LONGEST = 1 << 24

# Keys are sorted as integers of 128 bits, in a thousand buckets by their first digits: spread over the range, no bucket is large.
_KEYS = 1 << 127


class Babilong(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Samples of one task at one length, a split each."""

    name = "babilong"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        samples: Mapping[str, BabilongSamples],
        counts: Mapping[str, int] | None = None,
        data_dir: str | Path | None = None,
    ):
        """
        Args:
            samples: of each split to prepare.
            counts: how many of each split; all there are (an epoch, in training) where a split is not named.
            data_dir: where prepared data goes; None: tensorflow-datasets' own folder.

        Raises:
            DataError: a split of another name, samples without end and without a count, more than there are, or longer than LONGEST.
        """
        self.samples = dict(samples)
        self.counts = {split: _count(split, held, (counts or {}).get(split)) for split, held in self.samples.items()}
        if unknown := set(counts or {}) - set(samples):
            raise DataError(
                f"counts names split {sorted(unknown)[0]!r}, of which samples has none: it has {', '.join(samples) or 'no split'}"
            )
        root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        super().__init__(data_dir=str(root / self.fingerprint[:16]), file_format="array_record")

    @property
    def fingerprint(self) -> str:
        """Of everything that the records depend on."""
        depends = {}
        for split, held in self.samples.items():
            fields = {f.name: getattr(held, f.name) for f in dataclasses.fields(held) if f.name not in ("background", "stories")}
            depends[split] = [fields, held.fingerprint, self.counts[split]]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def _info(self) -> tfds.core.DatasetInfo:
        ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        features = {
            "context": ids, "question": ids, "answer": ids, "fact_positions": ids,
            "facts": tfds.features.Text(), "question_text": tfds.features.Text(), "answer_text": tfds.features.Text(),
            "task": tfds.features.Text(), "index": np.int64,
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            description="BABILong: facts of bAbI among the sentences of books, and a question about them. "
            "context, question, answer: ids, the end token with the answer. fact_positions: of each fact's first id in context. "
            "facts: one a line.",
            homepage="https://github.com/booydar/babilong",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self.samples}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(self.counts[split]):
            yield i * _KEYS // self.counts[split], record(self.samples[split].sample(i))


def record(sample: Sample) -> dict[str, Any]:
    """A sample, whole, as the builder writes it."""
    return {
        "context": sample.context(),
        "question": sample.question_ids,
        "answer": sample.answer_ids,
        "fact_positions": sample.fact_positions_F.astype(np.int32),
        "facts": "\n".join(sample.story.facts),
        "question_text": sample.story.question,
        "answer_text": sample.story.answer,
        "task": sample.story.task,
        "index": sample.index,
    }


def prepare(builder: Babilong) -> Babilong:
    """The builder, prepared; the work is done once."""
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def _count(split: str, samples: BabilongSamples, wanted: int | None) -> int:
    if samples.split != split:
        raise DataError(f"samples[{split!r}] are of split {samples.split!r}: give each under its own name")
    if samples.length > LONGEST:
        raise DataError(
            f"length={samples.length} is too much for records, which are held whole (up to {LONGEST}): read such samples as streams"
        )
    if wanted is None and samples.count is None:
        raise DataError(f"stories of split {split!r} are generated without end: say in counts how many samples are wanted")
    if wanted is not None and (wanted < 1 or (split != "train" and samples.count is not None and wanted > samples.count)):
        raise DataError(f"counts[{split!r}]={wanted} must be from 1 to the {samples.count} samples of the split")
    return samples.count if wanted is None else wanted
