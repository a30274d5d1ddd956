"""The numbers that a page holds as a file: of every cell, or where these are too many, their means over seeds."""

from __future__ import annotations

import gzip
from typing import NamedTuple

import pandas as pd

from .plates import ROWS, data_uri
from .statistics import SERIES
from .tables import COLUMNS, to_csv

MEANS = [
    *[*SERIES, "num_samples", "seeds", "replicates", "target", "target_num_samples", "unbiased", "dimensions"],
    *["mean_norm", "reference_norm", "reference_standard_error", "bias_norm", "bias_low", "bias_high", "bias_z"],
    *["verdict", "verdicts", "worst_direction", "detectable_bias", "variance", "variance_low", "variance_high"],
    *["variance_exists", "exact_variance", "snr", "snr_low", "snr_high", "snr_floor", "snr_slope_theory", "mse"],
    *["skewness", "kurtosis", "tail_index", "tail_index_low", "tail_index_high", "median_of_means", "cosine"],
    *["seconds_per_gradient", "seconds_low", "seconds_high", "gradients_per_second", "evaluations_per_gradient"],
    *["flops_per_gradient", "bytes_moved_per_gradient", "peak_bytes", "work_normalised_variance", "work_low"],
    *["work_high", "rank_group", "tail_ratio"],
]
"""Columns of the means: what :func:`reports.statistics.over_seeds` makes of all seeds, none that are of one seed alone."""


class Numbers(NamedTuple):
    """A gzipped CSV as an address that holds it, and what one of its rows is."""

    address: str
    rows: str


def numbers(table: pd.DataFrame, means: pd.DataFrame) -> Numbers:
    """The numbers of a page, to seven digits.

    Arguments:
        table: a row per cell and block, as :func:`reports.tables.frame` gives it.
        means: its means over seeds, as :func:`reports.labels.labelled` gives them.
    """
    if len(table) <= ROWS:
        return Numbers(_address(table[COLUMNS]), "a row per cell and block")
    rows = f"as means over the seeds of finished cells, because {len(table):,} rows, one per cell and block, are too many for a page"
    return Numbers(_address(means[MEANS]), rows)


def _address(table: pd.DataFrame) -> str:
    # Without the time of compression: the same numbers give the same page.
    return data_uri(gzip.compress(to_csv(table, "%.7g").encode(), mtime=0), "application/gzip")
