import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.telemetry import jsonl


def test_scalars_of_every_library_become_numbers():
    row = {"a": np.float32(0.5), "b": jnp.bfloat16(2), "c": np.int64(3), "d": jnp.asarray(4), "e": np.bool_(True)}
    assert json.loads(jsonl.encode_line(row)) == {"a": 0.5, "b": 2.0, "c": 3, "d": 4, "e": True}


def test_nan_and_infinities_become_null_at_any_depth():
    row = {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": np.float32(-math.inf)}}
    assert json.loads(jsonl.encode_line(row)) == {"a": None, "b": [None, 1.0], "c": {"d": None}}


@pytest.mark.parametrize(("value", "found"), [(np.ones(3), r"shape \(3,\)"), (object(), "type object")])
def test_other_values_are_refused_by_name(value, found):
    with pytest.raises(ValueError, match=f"'loss' has {found}"):
        jsonl.encode_line({"loss": value})


@pytest.mark.parametrize("half", ['{"n": 3, "lo', '{"n"', "\x00\x00\x00", '{"n": 3}\x00', '{"n": "caf\udcc3'])
def test_half_written_end_is_dropped_on_reading_and_cut_off_on_appending(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(('{"n": 1}\n{"n": 2}\n' + half).encode(errors="surrogateescape"))
    assert jsonl.read_lines(path) == [{"n": 1}, {"n": 2}]
    jsonl.append_line({"n": 4}, path)
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 4}\n'


def test_whole_last_row_without_newline_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}')
    jsonl.append_line({"n": 2}, path)
    assert jsonl.read_lines(path) == [{"n": 1}, {"n": 2}]


def test_append_creates_file_and_folder(tmp_path):
    path = tmp_path / "a" / "rows.jsonl"
    jsonl.append_line({"n": 1}, path)
    assert path.read_text() == '{"n": 1}\n'


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        jsonl.read_lines(path)


def test_failed_replacement_keeps_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.replace_lines(path, [{"n": 1}])
    with pytest.raises(ValueError):
        jsonl.replace_lines(path, [{"n": 2}, {"n": object()}])
    assert jsonl.read_lines(path) == [{"n": 1}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"cannot write {path} .*No space left.* start the same command again"):
        jsonl.append_line({"a": 1}, path)
