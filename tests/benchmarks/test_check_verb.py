"""``gradest check`` of rules that hold for one number of samples alone."""

from __future__ import annotations

import pytest

ONE = ("-p", "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]")


@pytest.mark.parametrize(("target", "weights"), [("iwae", "w**len(w), None, w"), ("elbo", "1 / 2, None, 1 / 2")])
def test_two_numbers_of_samples_are_tried(gradest, tmp_path, target, weights):
    path = tmp_path / "two.py"
    path.write_text(f"def two(log_w):\n    w = log_w.softmax(0)\n    return {weights}\n")
    code, out, _ = gradest("check", f"{path}:two", *ONE, "--target", target)
    with_two, _, with_three = out.partition(", K = 3")
    assert code == 1 and "PASS" in with_two and "BIASED" in with_three
    assert gradest("check", f"{path}:two", *ONE, "--target", target, "-K", 2)[0] == 0
