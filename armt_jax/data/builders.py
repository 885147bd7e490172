"""The corpora as tensorflow-datasets builders. They write array_record, and need no TensorFlow.

    builder = Enwik8(path="/data/enwik8", data_dir="/data/tfds")
    builder.download_and_prepare()
    records = builder.as_data_source(split="train")     # {"text": bytes, "document": int}

Records keep the order of the text. A document may have several records, each of about a MiB at most; the texts of all records, joined, are
the split, byte for byte.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from armt_jax.data.sources import SPLITS, Source, locate

# Keys are sorted as integers of 128 bits, in a thousand buckets by their first digits: spread over the range, no bucket is large.
_KEYS = 1 << 127


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing is published about text that lies here; looking for it leaves an empty folder behind in the temporary one."""


class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A corpus. The folder it is prepared in depends on its contents, so changed files are never mistaken for prepared ones."""

    VERSION = tfds.core.Version("1.0.0")
    homepage = ""
    about = ""

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        splits: Sequence[str] = SPLITS,
        data_dir: str | Path | None = None,
        source: Source | None = None,
    ):
        """
        Args:
            path: where the files of the corpus are; None fetches them into data_dir/downloads.
            splits: those to prepare.
            data_dir: where prepared data goes; None: tensorflow-datasets' own folder.
            source: the corpus, where it is located already.
        """
        root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        self.source = source or locate(self.name, path, splits, root / "downloads")
        super().__init__(data_dir=str(root / self.source.fingerprint[:16]), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"{self.about} {self.source.note}".strip(),
            homepage=self.homepage,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "document": np.int64}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self.source.spans}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        done, total = 0, self.source.num_bytes(split)
        for piece in self.source.pieces(split):
            yield done * _KEYS // total, {"text": piece.text, "document": piece.document}
            done += len(piece.text)


class WikiText103(TextBuilder, skip_registration=True):
    name = "wikitext103"
    homepage = "https://wikitext.smerity.com"
    about = "WikiText-103, tokenised into words with <unk>: 103 million words of good and featured English Wikipedia articles."


class WikiText2(TextBuilder, skip_registration=True):
    name = "wikitext2"
    homepage = "https://wikitext.smerity.com"
    about = "WikiText-2, tokenised into words with <unk>: 2 million words of good and featured English Wikipedia articles."


class Enwik8(TextBuilder, skip_registration=True):
    name = "enwik8"
    homepage = "https://mattmahoney.net/dc/textdata.html"
    about = "enwik8: the first 100 MB of the English Wikipedia dump of 2006-03-03, as XML; 90 MB / 5 MB / 5 MB."


class PG19(TextBuilder, skip_registration=True):
    name = "pg19"
    homepage = "https://github.com/google-deepmind/pg19"
    about = "PG-19: books published before 1919; one document a book."


class TextFolder(TextBuilder, skip_registration=True):
    name = "text"
    about = "A folder of text files, a folder or a file a split, one document a file."


BUILDERS: dict[str, type[TextBuilder]] = {kind.name: kind for kind in (WikiText103, WikiText2, Enwik8, PG19, TextFolder)}


def prepare(source: Source, data_dir: str | Path) -> TextBuilder:
    """The prepared builder of a located corpus; the work is done once a content."""
    builder = BUILDERS[source.name](source=source, data_dir=data_dir)
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def records(builder: TextBuilder, split: str) -> Iterator[tuple[int, bytes]]:
    """(document, text) of every record of a split, in order."""
    source = builder.as_data_source(split=split)
    for i in range(len(source)):
        record = source[i]
        yield int(record["document"]), record["text"]
