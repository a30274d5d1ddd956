"""What a study's trainings say when they are compared: tables, paired tests, and curves at equal cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from .study import Plan

PUBLISHED = """\
Published test NLL (nats; MNIST, 60,000 images, 3,280 epochs, batch 20, dynamic binarisation, L_5000):

| | k=1 | k=5 | k=50 |
|---|---|---|---|
| VAE, one layer (Burda et al. 2016) | 86.76 | 86.47 | 86.35 |
| IWAE, one layer (Burda et al. 2016) | 86.76 | 85.54 | 84.78 |
| active units, VAE / IWAE | 19 / 19 | 20 / 22 | 20 / 25 |

| | k=5 | k=15 | k=50 |
|---|---|---|---|
| ELBO (Luo et al. 2020) | 85.97 | 85.99 | 85.88 |
| IWAE (Luo et al. 2020) | 85.28 | 84.89 | 84.50 |
| SUMO (Luo et al. 2020), expected terms | 85.09 | 84.71 | 84.40 |
| IWAE (Shi & Cornish 2021) | 85.11 | 84.62 | |
| SUMO, q by IWAE (Shi & Cornish 2021) | 85.24 | 84.78 | |
| ML-RR, q by IWAE (Shi & Cornish 2021) | 85.06 | 84.64 | |

KL(q || posterior), MNIST binarised once (Arnal): VAE 5.30, 5.76, 5.90 and IWAE 5.30, 7.60, 12.87 at k = 1, 5, 50.
Luo et al. find SUMO ahead of IWAE; Shi & Cornish, at a fixed number of epochs and with q trained by IWAE, find it behind
on MNIST (ahead on OMNIGLOT), and ML-RR level with IWAE. Luo et al.'s rows are not shown to be of equal budget.
"""

PAIRS = (
    ("iwae-5", "elbo-5", "Burda et al.: the tighter bound trains the better model"),
    ("dreg-5", "elbo-5", "the tighter bound, with a gradient of phi that more samples do not drown in noise"),
    ("dreg-5", "stl-5", "the two bounds, both by their less noisy gradients"),
    ("dreg-5", "iwae-5", "the same bound, with less noise in phi"),
    ("stl-5", "elbo-5", "the same bound, with less noise in phi"),
    ("sumo", "iwae-6", "equal expected evaluations; Luo et al. find SUMO ahead"),
    ("sumo, q by iwae", "iwae-6", "equal expected evaluations; Shi & Cornish find it behind on MNIST"),
    ("ml-rr, q by iwae", "iwae-6", "equal expected evaluations; Shi & Cornish find them level on MNIST"),
)


def of(results: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """All that is said of a study."""
    whole = [each for each in results if each["failed"] is None]
    arms = [arm for arm in plan.arms if any(each["arm"] == arm for each in whole)]
    return {
        "plan": {name: getattr(plan, name) for name in ("seeds", "epochs", "images", "num_samples", "model", "data")},
        "rows": [_row(arm, [each for each in whole if each["arm"] == arm]) for arm in arms],
        "pairs": [found for pair in PAIRS if (found := compare(whole, *pair)) is not None],
        "equal_cost": {cost: _equal(whole, arms, cost) for cost in ("evaluations", "processor_seconds")},
        "curves": {arm: _curve([each for each in whole if each["arm"] == arm]) for arm in arms},
        "failed": [f"{each['arm']}, seed {each['seed']}: {each['failed']}" for each in results if each["failed"]],
    }


def _row(arm: str, some: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(values: list[float]) -> tuple[float, float | None]:
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None

    row: dict[str, Any] = {"arm": arm, "seeds": len(some), "targets": some[0]["targets"]}
    for name, source in (("log_p", "log_p_lower"), ("elbo", "elbo"), ("kl", "kl_posterior"), ("khat", "khat_median")):
        known = [each["likelihood"][source] for each in some if each["likelihood"][source] is not None]
        row[name], row[f"{name}_sd"] = spread(known) if known else (None, None)
    row["active_units"], _ = spread([float(sum(each["active_units"])) for each in some])
    row["evaluations"], _ = spread([each["points"][-1]["evaluations"] for each in some])
    row["processor_seconds"], _ = spread([each["points"][-1]["processor_seconds"] for each in some])
    return row


def compare(results: list[dict[str, Any]], first: str, second: str, why: str) -> dict[str, Any] | None:
    """Paired differences first - second over the seeds that both have, with one-sided p of t tests that they are above 0."""
    by = {(each["arm"], each["seed"]): each["likelihood"] for each in results}
    seeds = sorted({seed for _, seed in by if (first, seed) in by and (second, seed) in by})
    if len(seeds) < 2:
        return None
    found: dict[str, Any] = {"first": first, "second": second, "why": why, "seeds": len(seeds)}
    for name, source in (("log_p", "log_p_lower"), ("kl", "kl_posterior")):
        differences = np.array([by[first, seed][source] - by[second, seed][source] for seed in seeds])
        error = float(differences.std(ddof=1) / math.sqrt(len(seeds)))
        t = float(differences.mean() / error) if error > 0 else math.copysign(math.inf, differences.mean())
        found[name] = {
            "difference": float(differences.mean()),
            "standard_error": error,
            "each": differences.tolist(),
            "p_above": float(stats.t.sf(t, len(seeds) - 1)),
            "p_below": float(stats.t.cdf(t, len(seeds) - 1)),
        }
    return found


def _equal(results: list[dict[str, Any]], arms: list[str], cost: str) -> dict[str, Any]:
    """Held-out bounds where the cheapest training ends, read off each curve by linear interpolation."""
    level = min((each["points"][-1][cost] for each in results), default=0.0)
    at: dict[str, list[float]] = {arm: [] for arm in arms}
    for each in results:
        x, y = ([point[key] for point in each["points"]] for key in (cost, "heldout_bound"))
        at[each["arm"]].append(float(np.interp(level, x, y)))
    return {"level": level, "heldout_bound": {arm: _mean_error(values) for arm, values in at.items()}}


def _curve(some: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with standard errors, at each point of the curve."""
    curve: dict[str, Any] = {}
    for key in ("step", "evaluations", "processor_seconds", "seconds", "heldout_elbo", "heldout_bound"):
        values = np.array([[point[key] for point in each["points"]] for each in some], float)
        curve[key] = values.mean(0).tolist()
        if key.startswith("heldout") and len(some) > 1:
            curve[f"{key}_standard_error"] = (values.std(0, ddof=1) / math.sqrt(len(some))).tolist()
    return curve


def _mean_error(values: list[float]) -> list[float | None]:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return [float(np.mean(values)), error]


def markdown(found: dict[str, Any]) -> str:
    """The findings as a page of text."""
    plan = found["plan"]
    level = {cost: each["level"] for cost, each in found["equal_cost"].items()}
    lines = [
        f"# Study: {plan['data']}, {plan['epochs']} epochs, {plan['seeds']} paired seeds",
        "",
        f"Held-out NLL is -L_{plan['num_samples']} on {plan['images']} images, KL = L_{plan['num_samples']} - ELBO (an "
        "underestimate of KL(q || posterior)); +- is the standard deviation over seeds. The last two columns are held-out "
        f"-L_50 at {level['evaluations'] / 1e6:.2f} million evaluations and at {level['processor_seconds']:.1f} processor "
        "seconds of training, where the cheapest training ends, +- its standard error.",
        "",
        "| arm | NLL | KL | k-hat | active | evaluations (10^6) | seconds | at equal evaluations | at equal seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        same = [found["equal_cost"][cost]["heldout_bound"][row["arm"]] for cost in ("evaluations", "processor_seconds")]
        cells = [
            row["arm"],
            f"{-row['log_p']:.2f} +- {_number(row['log_p_sd'])}",
            f"{row['kl']:.2f} +- {_number(row['kl_sd'])}",
            _number(row["khat"]),
            f"{row['active_units']:.1f}",
            f"{row['evaluations'] / 1e6:.2f}",
            f"{row['processor_seconds']:.1f}",
            *(f"{-mean:.2f} +- {_number(error)}" for mean, error in same),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| paired difference | log p (nats) | one-sided p (above, below) | KL (nats) | p (above) | |",
        "|---|---|---|---|---|---|",
    ]
    for pair in found["pairs"]:
        log_p, kl = pair["log_p"], pair["kl"]
        lines.append(
            f"| {pair['first']} - {pair['second']} | {log_p['difference']:+.2f} +- {log_p['standard_error']:.2f} | "
            f"{log_p['p_above']:.2g}, {log_p['p_below']:.2g} | {kl['difference']:+.2f} +- {kl['standard_error']:.2f} | "
            f"{kl['p_above']:.2g} | {pair['why']} |"
        )
    lines += ["", *(f"failed: {line}" for line in found["failed"]), "", PUBLISHED]
    if plan["data"] == "digits":
        lines.append(
            f"Here: the digits of MNIST that come with the suite, 4,000 for training and not 60,000, {plan['epochs']} epochs "
            f"of batches of 100 at 0.003 falling, L_{plan['num_samples']}. Levels are not comparable with those above: a "
            "training set of a fifteenth overfits. What can be compared are signs.\n"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
