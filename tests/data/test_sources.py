"""Which files a corpus is made of: found or fetched, told from other files, split; and what is said when they are not there."""

import hashlib
import http.client
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from armt_jax.data import CorpusConfig, DataError, download, sources
from armt_jax.data.download import download_and_unzip
from armt_jax.data.sources import ENWIK8_START, PUBLISHED, Archive, locate

ARTICLES = b" \n = First = \n \n text one . \n \n \n = Second = \n \n text two . \n"
GENUINE = ENWIK8_START + b"".join(b"  <page>\nnumber %d\n  </page>\n" % i for i in range(100))


def write_wikitext(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_bytes(ARTICLES)


# -- the published files ---------------------------------------------------------------------------------------------------


def test_wikitext_that_is_not_the_published_one_is_told(tmp_path, monkeypatch):
    write_wikitext(tmp_path)
    note = locate("wikitext103", tmp_path).note
    assert note.startswith("not the published file: ") and all(f"wiki.{part}.tokens" in note for part in ("train", "valid", "test"))
    # Of one file the SHA-1 is known.
    known = {"train": hashlib.sha1(ARTICLES).hexdigest(), "validation": hashlib.sha256(ARTICLES).hexdigest(), "test": "0" * 64}
    monkeypatch.setitem(PUBLISHED, "wikitext103", known)
    assert locate("wikitext103", tmp_path, ("train", "validation")).note == ""
    note = locate("wikitext103", tmp_path).note
    assert note == f"not the published file: {tmp_path / 'wiki.test.tokens'} (it is 'validation' of wikitext103)"
    (tmp_path / "wiki.train.tokens").write_bytes(ARTICLES + b"\n")
    assert locate("wikitext103", tmp_path, ("train",)).note == f"not the published file: {tmp_path / 'wiki.train.tokens'}"


def test_the_published_wikitext_is_known(real_data, tmp_path):
    assert locate("wikitext103", real_data / "wikitext-103", ("validation", "test")).note == ""
    assert locate("wikitext2", real_data / "wikitext-2").note == ""
    (tmp_path / "wiki.train.tokens").write_bytes((real_data / "wikitext-2" / "wiki.train.tokens").read_bytes())
    assert locate("wikitext103", tmp_path, ("train",)).note.endswith("wiki.train.tokens (it is 'train' of wikitext2)")


def test_enwik8_prefix_is_split_in_proportion_and_says_so(tmp_path, monkeypatch):
    data = GENUINE[:1024]
    (tmp_path / "enwik8.first1024").write_bytes(data)
    config = CorpusConfig("enwik8", str(tmp_path), cache_dir=str(tmp_path / "cache"))
    cache = config.open()
    assert [cache.split(s).counts.tokens for s in ("train", "validation", "test")] == [921, 51, 52]
    assert bytes(cache.split("validation").ids_N) == data[921:972]
    assert "prefix of enwik8 (by its first 59 bytes): the first 1,024 of 100,000,000 bytes, split 90/5/5" in cache.report()
    monkeypatch.setattr(sources, "ENWIK8_BYTES", 1024)
    assert "not the published file" in locate("enwik8", tmp_path).note
    monkeypatch.setattr(sources, "ENWIK8_SHA256", hashlib.sha256(data).hexdigest())
    assert locate("enwik8", tmp_path).note == ""
    monkeypatch.setattr(sources, "ENWIK8_BYTES", 1000)
    with pytest.raises(DataError, match="has 1,024 bytes, more than the 1,000 of enwik8"):
        locate("enwik8", tmp_path)


def test_what_is_no_prefix_of_enwik8_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ENWIK8_PREFIX", (1000, hashlib.sha256(GENUINE[:1000]).hexdigest()))

    def note(data):
        (tmp_path / "enwik8").write_bytes(data)
        return locate("enwik8", tmp_path).note

    assert note(GENUINE[:1000]).startswith("prefix of enwik8 (checked up to byte 1,000): the first 1,000 of")
    assert note(GENUINE[:2000]).startswith("prefix of enwik8 (checked up to byte 1,000): the first 2,000 of")
    assert note(GENUINE[:40]).startswith("prefix of enwik8 (by its first 40 bytes): ")
    changed = bytearray(GENUINE[:1500])
    changed[900] ^= 1
    assert note(changed).startswith(f"not the published file: the first 1,000 bytes of {tmp_path / 'enwik8'} are not those of enwik8;")
    assert note(b"x" + GENUINE).startswith(f"not the published file: {tmp_path / 'enwik8'} does not begin as enwik8 does; split 90/5/5")


def test_the_published_beginning_of_enwik8_is_known(real_data):
    assert locate("enwik8", real_data / "enwik8").note.startswith("prefix of enwik8 (checked up to byte 4,150,000): ")


# -- folders of text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("train/a.txt", "train.txt"), ("validation/a.txt", "valid/b.txt"), ("valid.txt", "validation.txt"), ("valid/a.txt", "validation.txt")],
)
def test_two_places_of_one_split_are_refused(tmp_path, first, second):
    for file in ("train/x.txt", first, second):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("text")
    with pytest.raises(DataError, match="all hold text of the split .*: keep one of them") as e:
        locate("text", tmp_path, ("train", "validation"))
    for file in (first, second):
        place = tmp_path / (Path(file).parent if "/" in file else file)
        assert str(place) in str(e.value)


def test_files_that_are_not_read_are_told(tmp_path):
    for file in ("train/a.txt", "train/b.md", "train/more/c.txt", "train/.hidden", "test.txt", "test/d.TEXT", "README.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("text")
    source = locate("text", tmp_path, ("train", "test"))
    assert [span.path.name for split in ("train", "test") for span in source.spans[split]] == ["a.txt", "test.txt"]
    assert source.note == f"files that are not read (only *.txt is, and no subfolder): 3, the first is {tmp_path / 'train' / 'b.md'}"
    fingerprint = source.fingerprint
    for file in ("train/b.md", "train/more/c.txt", "test/d.TEXT"):
        (tmp_path / file).unlink()
    source = locate("text", tmp_path, ("train", "test"))
    assert (source.note, source.fingerprint) == ("", fingerprint)


def test_a_prepared_corpus_says_what_is_true_of_the_files_now(make_corpus, tmp_path):
    from armt_jax.data import corpus

    config = make_corpus(train="text")
    assert config.open().data.note == ""
    (tmp_path / "text" / "train" / "more.md").write_text("text")
    corpus._open.cache_clear()
    sources.located.cache_clear()
    assert "NOTE: files that are not read" in config.open().report()


# -- downloads -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    """A zip file like the published ones."""
    write_wikitext(tmp_path / "wikitext-2")
    file = tmp_path / "wikitext-2-v1.zip"
    members = tuple(f"wikitext-2/wiki.{part}.tokens" for part in ("train", "valid", "test"))
    with zipfile.ZipFile(file, "w") as zipped:
        for member in members:
            zipped.write(tmp_path / member, member)
    return Archive((file.as_uri(),), hashlib.sha256(file.read_bytes()).hexdigest(), members)


def test_download_is_checked_and_mirrors_are_tried(tmp_path, monkeypatch, archive):
    urls = ((tmp_path / "gone.zip").as_uri(), *archive.urls)
    monkeypatch.setitem(sources.ARCHIVES, "wikitext2", Archive(urls, "0" * 64, archive.members))
    with pytest.raises(DataError) as e:
        locate("wikitext2", None, download_dir=tmp_path / "got")
    for part in (archive.sha256, "0" * 64, "gone.zip", "set data.path", "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens"):
        assert part in str(e.value)
    assert not list((tmp_path / "got").rglob("*.tokens"))
    monkeypatch.setitem(sources.ARCHIVES, "wikitext2", Archive(urls, archive.sha256, archive.members))
    source = locate("wikitext2", None, download_dir=tmp_path / "got")
    assert source.fingerprint == locate("wikitext2", tmp_path / "wikitext-2").fingerprint
    assert "not the published file" in source.note
    (tmp_path / "wikitext-2-v1.zip").unlink()
    assert locate("wikitext2", None, download_dir=tmp_path / "got").fingerprint == source.fingerprint


def test_the_next_mirror_is_tried_when_an_answer_breaks_off(tmp_path, monkeypatch, archive):
    fetch, failures = download._fetch, iter([http.client.IncompleteRead(b"", 9), http.client.BadStatusLine("?"), TimeoutError("slow")])

    def broken(url, target):
        if url.startswith("bad"):
            raise next(failures)
        return fetch(url, target)

    monkeypatch.setattr(download, "_fetch", broken)
    download_and_unzip(("bad1", "bad2", "bad3", *archive.urls), archive.sha256, archive.members, tmp_path / "got")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens"]


def test_what_another_process_has_fetched_meanwhile_is_not_fetched_again(tmp_path, monkeypatch):
    locked = []

    @contextmanager
    def late(root):
        locked.append(root)
        write_wikitext(tmp_path / "got" / "wikitext2")  # the other one was done as we got the lock
        yield

    monkeypatch.setattr(sources, "one_at_a_time", late)
    monkeypatch.setattr(sources, "download_and_unzip", lambda *args: pytest.fail("fetched again"))
    assert locate("wikitext2", None, download_dir=tmp_path / "got").num_bytes("train") == len(ARTICLES)
    assert locked == [tmp_path / "got" / "wikitext2"]


def test_downloads_of_equal_process_numbers_do_not_meet(tmp_path, monkeypatch, archive):
    fetch, got = download._fetch, tmp_path / "got"

    def twice(url, target):
        found = fetch(url, target)
        monkeypatch.setattr(download, "_fetch", fetch)
        download_and_unzip(archive.urls, archive.sha256, archive.members, got)  # begins and ends while the other is on its way
        assert target.is_file()
        return found

    monkeypatch.setattr(download, "_fetch", twice)
    download_and_unzip(archive.urls, archive.sha256, archive.members, got)
    assert sorted(path.name for path in got.iterdir()) == ["wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens"]
    assert (got / "wiki.test.tokens").read_bytes() == ARTICLES


# -- missing files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikitext103", r"wiki.train.tokens, .*wiki.valid.tokens, .*wiki.test.tokens: missing. wikitext103 wants a folder with"),
        ("wikitext2", r"smerity.com/wikitext-2-v1.zip"),
        ("enwik8", r"holds 0 files that could be enwik8.*enwik8 wants the file enwik8 of 100,000,000 bytes, or a prefix"),
        ("pg19", r"train/\*.txt, .*gsutil -m cp -r gs://deepmind-gutenberg/train"),
        ("text", r"text wants a folder with train/\*.txt \(or train.txt\) and validation/\*.txt"),
        ("wikitext-103", r"corpus 'wikitext-103' is unknown: did you mean 'wikitext103'"),
    ],
)
def test_missing_files_are_named(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        locate(name, tmp_path)


def test_missing_places_and_splits(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist. enwik8 wants the file"):
        locate("enwik8", tmp_path / "nowhere")
    with pytest.raises(DataError, match="data.path is not set. pg19 wants a folder"):
        locate("pg19", None, download_dir=tmp_path)
    with pytest.raises(DataError, match="split 'valid' is unknown"):
        locate("text", tmp_path, ("valid",))
    write_wikitext(tmp_path)
    (tmp_path / "wiki.valid.tokens").unlink()
    with pytest.raises(DataError, match=r"/wiki.valid.tokens: missing.*To use only some of the splits, name them in data.splits"):
        locate("wikitext2", tmp_path)
    assert set(locate("wikitext2", tmp_path, ("test", "train")).spans) == {"train", "test"}


def test_empty_files_are_refused(tmp_path, make_corpus):
    config = make_corpus(train=["text", ""], test="x")
    with pytest.raises(DataError, match="train/0001.txt is empty: it must hold text"):
        config.open()
