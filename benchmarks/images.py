"""Sets of grey images: the digits that come with this suite, and MNIST, Fashion-MNIST and OMNIGLOT from their own files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import data as digits_data
from .data import DataError, binarize, cache_folder
from .specs import SpecError, nearest
from .streams import generator

BINARISATIONS = ("dynamic", "fixed")
IMAGES_MAGIC = 2051
"""Of an IDX file of unsigned bytes in three dimensions."""


class Images(NamedTuple):
    """``train``: grey in [0, 1], ``(n, pixels)``, or zeros and ones where binarised for good; ``held_out``: zeros and ones.

    ``side``: height and width in pixels.
    """

    train: Tensor
    held_out: Tensor
    side: int


@dataclass(frozen=True)
class Source:
    """Where a data set's files come from. ``files`` maps a name to an MD5 sum, or to an empty text where none is published."""

    files: dict[str, str]
    address: str
    read: Callable[[list[Path]], tuple[np.ndarray, np.ndarray]]


def load(
    name: str, *, folder: Path | None = None, binarisation: str = "dynamic", device: str = "cpu", download: bool = True
) -> Images:
    """A data set, its held-out part binarised once and for all.

    Arguments:
        name: ``digits``, or a key of :data:`SOURCES`.
        folder: where the files are; without it they are downloaded to the cache folder, if pooch is installed.
        binarisation: ``dynamic``, grey images that the training binarises afresh at every step; ``fixed``, binarised here,
            the same for every seed. The fixed sets of other papers are other draws than this one.

    Raises:
        SpecError: for an unknown name.
        DataError: for a file that is missing or is not what it should be.

    References:
        Burda, Grosse & Salakhutdinov (2016), section 5 and appendix D, for both binarisations.
    """
    if binarisation not in BINARISATIONS:
        raise SpecError(f"no binarisation {binarisation!r}; {nearest(binarisation, BINARISATIONS)}")
    if name == "digits":
        train, held_out = digits_data.split()
    elif name in SOURCES:
        source = SOURCES[name]
        train, held_out = source.read(paths(name, folder, download))
    else:
        raise SpecError(f"no data set {name!r}; {nearest(name, NAMES)}")
    # Of digits the same numbers as the problem digits-vae is measured on.
    identity = ("digits", "held-out") if name == "digits" else ("images", name, "held-out")
    binary = binarize(torch.from_numpy(held_out), generator("cpu", *identity))
    grey = torch.from_numpy(train)
    if binarisation == "fixed":
        grey = binarize(grey, generator("cpu", "images", name, "fixed"))
    return Images(grey.to(device), binary.to(device), round(grey.shape[1] ** 0.5))


def paths(name: str, folder: Path | None, download: bool = True) -> list[Path]:
    """The files of a data set, packed or not, in the order of :data:`SOURCES`.

    Raises:
        DataError: one line that says which file is missing, where it was looked for, and how to get it.
    """
    source = SOURCES[name]
    where = folder if folder is not None else cache_folder() / "images" / name
    found = []
    for file, checksum in source.files.items():
        candidates = [where / file, where / file.removesuffix(".gz")]
        path = next((each for each in candidates if each.is_file()), None)
        if path is None and folder is None and download and checksum:
            path = fetch(source.address + file, checksum, where / file)
        if path is None:
            looked = " or ".join(dict.fromkeys(each.name for each in candidates))
            how = f"it is at {source.address}{file}"
            raise DataError(f"{name}: no {looked} in {where}; {how}; give its folder by --data-dir")
        found.append(path)
    return found


def fetch(address: str, checksum: str, path: Path) -> Path | None:
    """Download a file whose MD5 sum is known, or ``None`` where pooch is not installed.

    Raises:
        DataError: where it cannot be had, or is another file.
    """
    try:
        import pooch
    except ImportError:
        return None
    try:
        return Path(pooch.retrieve(address, f"md5:{checksum}", fname=path.name, path=path.parent))
    except (OSError, ValueError) as problem:
        raise DataError(
            f"cannot download {address} ({type(problem).__name__}); put it into {path.parent}, or give its folder by --data-dir"
        ) from problem


def read_idx(path: Path) -> np.ndarray:
    """Images ``(n, height * width)`` uint8 of an IDX file, gzip-packed or not.

    Raises:
        DataError: for anything but a whole IDX file of images.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"cannot read {path}: {problem}") from problem
    if len(content) < 16 or int.from_bytes(content[:4], "big") != IMAGES_MAGIC:
        raise DataError(f"{path} is no IDX file of images (its first four bytes are not {IMAGES_MAGIC})")
    count, height, width = (int.from_bytes(content[at : at + 4], "big") for at in (4, 8, 12))
    if len(content) - 16 != count * height * width:
        raise DataError(f"{path} is cut short or too long: {len(content) - 16} bytes for {count} x {height} x {width}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height * width)


def read_idx_pair(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images of two IDX files, float32 in [0, 1]."""
    train, test = (read_idx(path).astype(np.float32) / np.float32(255) for path in files)
    return train, test


def read_chardata(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Burda's split of OMNIGLOT: 24,345 and 8,070 images of 28x28, float32 in [0, 1]; stored column by column.

    Raises:
        DataError: for a file without ``data`` and ``testdata`` of 784 pixels.
    """
    from scipy.io import loadmat

    (path,) = files
    try:
        content = loadmat(path, variable_names=["data", "testdata"])
        parts = [np.asarray(content[key], np.float32).T for key in ("data", "testdata")]
    except Exception as problem:  # scipy's reader fails in many ways
        raise DataError(f"cannot read {path} as Burda's chardata.mat: {type(problem).__name__}") from problem
    if any(part.ndim != 2 or part.shape[1] != 784 for part in parts):
        raise DataError(f"{path} is not Burda's chardata.mat: images of {parts[0].shape[-1]} pixels, not 784")
    upright = [part.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784).clip(0, 1) for part in parts]
    return np.ascontiguousarray(upright[0]), np.ascontiguousarray(upright[1])


SOURCES: dict[str, Source] = {
    "mnist": Source(
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        },
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        read_idx_pair,
    ),
    "fashion-mnist": Source(
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        },
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        read_idx_pair,
    ),
    "omniglot": Source(
        {"chardata.mat": ""}, "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/", read_chardata
    ),
}
NAMES = ("digits", *SOURCES)
