"""Image files: what is read is what was written, and what is missing or broken is said in one line."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest
import torch
from scipy.io import savemat

from benchmarks import data as digits_data
from benchmarks import images
from benchmarks.data import DataError
from benchmarks.specs import SpecError


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv(digits_data.CACHE_VARIABLE, str(tmp_path / "cache"))


def idx(pixels, magic=b"\x00\x00\x08\x03"):
    """An IDX file, byte by byte."""
    return magic + b"".join(int(n).to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Seven training images of which each is a shade of its own, packed; three for the test, not packed."""
    train = np.arange(7, dtype=np.uint8)[:, None, None] * np.full((1, 28, 28), 36, np.uint8)
    train[0, 0, 1] = 255  # the second pixel of the first row
    test = np.stack([np.zeros((28, 28)), np.full((28, 28), 255), np.tile([0, 255], (28, 14))]).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(train)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(test))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read(folder, name):
    found = images.load(name, folder=folder)
    assert found.train.shape == (7, 784) and found.train.dtype == torch.float32 and found.side == 28
    assert found.train[0, :3].tolist() == [0, 1, 0]
    torch.testing.assert_close(found.train[1:, 0], torch.arange(1, 7) * 36 / 255)
    assert found.held_out.sum(1).tolist() == [0, 784, 392]


def test_binarisation_is_dynamic_or_fixed(folder):
    dynamic, fixed = images.load("mnist", folder=folder), images.load("mnist", folder=folder, binarisation="fixed")
    assert not ((dynamic.train == 0) | (dynamic.train == 1)).all()
    assert ((fixed.train == 0) | (fixed.train == 1)).all()
    # the mean of 6 * 784 pixels is the mean shade within 4.5 standard errors of at most 1/2 each
    assert abs(float(fixed.train[1:].mean() - dynamic.train[1:].mean())) < 4.5 * 0.5 / (6 * 784) ** 0.5
    assert torch.equal(fixed.train, images.load("mnist", folder=folder, binarisation="fixed").train)
    with pytest.raises(SpecError, match="dynamic"):
        images.load("mnist", folder=folder, binarisation="dinamic")


def test_digits_are_those_that_the_suite_measures_on():
    found = images.load("digits")
    assert found.train.shape == (4000, 784) and found.held_out.shape == (1000, 784)
    from benchmarks.problems.digits import _held_out

    assert torch.equal(found.held_out, _held_out())


def test_chardata_is_turned_upright(tmp_path):
    rng = np.random.default_rng(0)
    upright = rng.random((5, 28, 28)).astype(np.float32)
    stored = upright.transpose(0, 2, 1).reshape(5, 784).T  # columns of the picture first, images in columns
    savemat(tmp_path / "chardata.mat", {"data": stored, "testdata": (stored[:, :2] > 0.5).astype(float)})
    found = images.load("omniglot", folder=tmp_path)
    np.testing.assert_array_equal(found.train.numpy(), upright.reshape(5, 784))
    np.testing.assert_array_equal(found.held_out.numpy(), upright[:2].reshape(2, 784) > 0.5)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "omniglot"])
def test_a_missing_file_is_named_with_its_folder_and_its_address(tmp_path, name):
    with pytest.raises(DataError) as found:
        images.load(name, folder=tmp_path / "empty")
    text = str(found.value)
    assert next(iter(images.SOURCES[name].files)) in text and str(tmp_path / "empty") in text
    assert images.SOURCES[name].address in text and "--data-dir" in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no IDX file"),
        (b"\x00\x00\x08\x01" + bytes(20), "no IDX file"),  # the labels' magic number
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "cut short"),
        (idx(np.zeros((2, 28, 28), np.uint8)) + b"0", "too long"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)))[:30], "cannot read"),
    ],
    ids=["empty", "labels", "cut short", "too long", "half a gzip file"],
)
def test_what_is_no_whole_idx_file_is_refused(folder, content, said):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=said):
        images.load("mnist", folder=folder)


def test_download_goes_to_the_cache_and_checks_the_sum(monkeypatch, folder, tmp_path):
    """pooch is asked for the known address with the known sum; here it is given a folder instead of a network."""
    import pooch

    asked = {}

    def retrieve(url, known_hash, fname, path):
        asked[fname] = (url, known_hash)
        source = next(p for p in (folder / fname, folder / fname.removesuffix(".gz")) if p.exists())
        if hashlib.md5(source.read_bytes()).hexdigest() != known_hash.removeprefix("md5:"):
            raise ValueError("another file")
        return str(source)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match="cannot download"):
        images.load("mnist")
    known = {
        name: hashlib.md5(next(p for p in (folder / name, folder / name[:-3]) if p.exists()).read_bytes()).hexdigest()
        for name in images.SOURCES["mnist"].files
    }
    source = images.Source(known, images.SOURCES["mnist"].address, images.read_idx_pair)
    monkeypatch.setitem(images.SOURCES, "mnist", source)
    assert images.load("mnist").train.shape == (7, 784)
    assert asked["train-images-idx3-ubyte.gz"][0] == source.address + "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match="no train-images"):
        images.load("mnist", download=False)
