"""Files of tensors from elsewhere may claim anything: what does not fit is refused before memory is taken for it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import tensors
from benchmarks.data import DataError
from benchmarks.tensors import Kind, look, save

LEAVES = {"a/b": torch.arange(6.0).reshape(2, 3), "c": torch.tensor([1, 2, 3]), "none": torch.zeros(0, 4)}
KINDS = {name: Kind.of(leaf) for name, leaf in LEAVES.items()}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "x.safetensors", LEAVES, "text \u2028")
    return tmp_path / "x.safetensors"


def parts(path):
    """Head as a dictionary, and the bytes behind it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path, head, body):
    text = (head if isinstance(head, str) else json.dumps(head)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_what_was_stored_comes_back(path):
    head = look(path)
    assert (head.kinds, head.text) == (KINDS, "text \u2028")
    head.require(KINDS)
    assert all(torch.equal(leaf, LEAVES[name]) for name, leaf in head.read().items())
    assert safetensors.torch.load(path.read_bytes()).keys() == LEAVES.keys()  # for others to read as well


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("c", {"shape": [2**40]}),
        ("c", {"shape": [2**62, 2**62]}),
        ("c", {"shape": [-3]}),
        ("c", {"shape": [3.0]}),
        ("c", {"shape": [True, 3]}),
        ("c", {"shape": [1] * 100}),
        ("c", {"shape": [0]}),
        ("c", {"dtype": "F32"}),
        ("c", {"dtype": "complex"}),
        ("c", {"data_offsets": [24, 48]}),
        ("c", {"data_offsets": [0, 2**60]}),
        ("c", {"data_offsets": [-24, 0]}),
        ("c", {"data_offsets": "ab"}),
        ("a/b", {"data_offsets": [0, 0]}),
        ("__metadata__", {"text": "another"}),
        ("__metadata__", {"checksum": "0" * 64}),
    ],
)
def test_a_head_that_lies_is_refused(path, name, changes):
    head, body = parts(path)
    head[name] |= changes
    put(path, head, body)
    with pytest.raises(DataError) as caught:
        look(path).read()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "head", ["{}", "[]", "null", "{", "[" * 100_000, '{"__metadata__": 3}', '{"__metadata__": {}}']
)
def test_a_head_that_is_none_is_refused(path, head):
    put(path, head, b"")
    with pytest.raises(DataError, match="no file of tensors"):
        look(path)


def test_every_shortened_file_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            look(path).read()
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="altered"):
        look(path)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_seen(path, place, bit):
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        with pytest.raises(DataError):
            look(path).read()
    finally:
        path.write_bytes(whole)


def test_other_tensors_than_those_asked_for_are_refused_by_name(path):
    for changed, words in (
        ({"c": Kind(torch.int64, (4,))}, r"'c' is int64 \[3\], and should be int64 \[4\]"),
        ({"c": Kind(torch.int32, (3,))}, r"'c' is int64 \[3\], and should be int32 \[3\]"),
        ({"d": Kind(torch.int64, (1,))}, r"'d' is absent, and should be int64 \[1\]"),
    ):
        with pytest.raises(DataError, match=words):
            look(path).require(KINDS | changed)
    with pytest.raises(DataError, match=r"'none' is float32 \[0, 4\], and should be absent"):
        look(path).require({name: kind for name, kind in KINDS.items() if name != "none"})


HUGE = """
import sys
import torch
from pathlib import Path
from benchmarks.data import DataError
from benchmarks.tensors import Kind, look
import resource
resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
try:
    look(Path(sys.argv[1])).require({"a": Kind(torch.uint8, (4,))})
except DataError as problem:
    print("refused:", problem)
"""


def test_a_huge_file_is_refused_unread(tmp_path):
    """A file of a tebibyte that takes no room on the disk, as its head says: to read it would be the end of the process."""
    path = tmp_path / "huge.safetensors"
    claim = {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}
    put(path, {"__metadata__": {"text": "", "checksum": ""}, "a": claim}, b"")
    os.truncate(path, path.stat().st_size + 2**40)
    done = subprocess.run([sys.executable, "-c", HUGE, path], capture_output=True, text=True)
    assert (
        done.stdout.startswith("refused: ") and "'a' is uint8 [1099511627776], and should be uint8 [4]" in done.stdout
    )
    with pytest.raises((MemoryError, DataError, OSError)):  # it would have been
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**36, limit[1]))
        try:
            look(path).read()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)


def test_the_longest_head_is_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((tensors.LONGEST_HEAD + 1).to_bytes(8, "little"))
    os.truncate(path, 2**30)
    with pytest.raises(DataError, match="no file of tensors"):
        look(path)
