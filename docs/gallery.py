"""A hook of mkdocs: the pages of estimators and problems are written from the code whenever the site is built."""

from __future__ import annotations

import html
import inspect
import re
import sys
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import problems
from benchmarks.bias_matrix import COLUMNS, NUM_SAMPLES, PROBLEMS, UNBIASED, Entry, row
from benchmarks.cost import count
from benchmarks.references import numpyro_losses
from benchmarks.references.loop import LoopEstimator
from benchmarks.references.pyro_losses import LOSSES
from benchmarks.specs import settings_of
from estimators import BLOCKS, NEEDS, REGISTRY, Estimator

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs gives each hook the name of its file, and no package
import thumbnails

# torch's own, as in the tests: its first forward-mode derivative in a process goes through torch.jit.script
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^(Arguments|Warning|References|Example|Returns|Raises):$")
TARGETS = {
    "elbo": "the ELBO",
    "iwae": r"\(\mathcal{L}_K\), the bound of \(K\) samples",
    "log_marginal": r"\(\log p(x)\)",
    "forward_kl": r"\(-\mathrm{KL}(p(z \mid x) \,\|\, q)\)",
    "renyi": r"the Rényi bound of \(K\) samples",
    "ciwae": r"\(\beta\) ELBO \(+ (1 - \beta) \mathcal{L}_K\)",
    "jackknife": r"the jackknifed bound of \(K\) samples",
    "f_divergence": r"\(E_q F(\log w)\)",
    "tvo": "the thermodynamic variational objective, the left Riemann sum",
    "tvo_upper": "the right Riemann sum of the thermodynamic integral, the EUBO for one interval",
    "relaxed_elbo": "the ELBO with relaxed latents",
    "sleep": r"\(E_{p(x)} E_{p(z \mid x)} \log q(z \mid x)\)",
}
MATRIX = {
    "elbo": "ELBO",
    "iwae": r"\(\mathcal{L}_K\)",
    "log_marginal": r"\(\log p(x)\)",
    "forward_kl": "forward KL",
}
FAMILIES = {
    "elbo": "The evidence lower bound",
    "multi-sample": "Bounds of several samples",
    "debiasing": "Towards log p(x)",
    "wake-sleep": "Wake-sleep",
    "divergences": "Other divergences",
    "discrete": "Discrete latents, without relaxing them",
    "subset": "Sums over chosen states of a discrete latent",
    "relaxations": "Relaxed discrete latents",
    "noise": "Noise schemes around any of them",
}
NOTATION = r"""
Notation: \(w_k = p(x, z_k) / q(z_k \mid x)\) and \(\tilde w\) their normalisation over the \(K\) samples; \(h_k\) the
score, the gradient of \(\log q_\phi(z_k)\) with \(z_k\) held; \(P_k\) the path derivative of \(\log w_k\) with the
density of \(q\) held; \(t_k\) the gradient of \(\log p_\theta(x, z_k)\) in \(\theta\);
\(\mathcal{L}_K = E \log K^{-1} \sum_k w_k\). All gradients point uphill.
""".strip()


OUT_OF_SCOPE = """
## Left out, and why

- **Tensor Monte Carlo** (Aitchison, 2019), **filtering objectives** (FIVO, AESMC, VSMC) and **hierarchical implicit
  bounds** (IWHVI): their weights are not a list of K log-weights of one joint latent, but sums over a factor graph, over time
  or over auxiliary draws. They need an engine of their own.
- **MMD and energy distances**: other targets than bounds of log p(x); nothing here to hold them against.
- **Local reparameterisation and Flipout**: of weights of Bayesian networks, not of latents of data points.
- **ARSM and CARMS**, the categorical relatives of ARM and DisARM: the Bernoulli ones refuse categorical guides, for which
  `rebar`, `relax`, `local-expectation` and the sums over chosen states stand.
- **VIMCO-star** (Daudel, 2026): its constant could not be checked against the paper. `renyi-score` has the same family of
  control variates, and `ovis` what it tends to at alpha = 0.
- **Coupled-chain gradients and Markovian score climbing**: replicates depend on one another, and the tests here rest on
  independent ones.
""".strip()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File  # late: what only reads the pages need not have it

    found = thumbnails.measured()
    for name, text in (("estimators.md", estimators_page(found)), ("problems.md", problems_page())):
        files.append(File.generated(config, name, content=text))
    for picture in thumbnails.pictures(config, found):
        files.append(picture)
    return files


def estimators_page(found: dict[str, Any]) -> str:
    """One section for each registered estimator, by family, and Pyro's losses. ``found`` is what thumbnails show."""
    parts = [
        "# Estimators",
        NOTATION,
    ]
    families: dict[str, list[type[Estimator]]] = {}
    for kind in REGISTRY.values():
        families.setdefault(kind.family, []).append(kind)
    for family, kinds in families.items():
        sections = (_estimator(kind, thumbnails.caption(kind.name, found)) for kind in kinds)
        parts += [f"## {FAMILIES.get(family, family)}", *sections]
    parts += [bias_matrix()]
    parts += [
        "## Pyro's, beside ours",
        "Measured by the same engine on the same problems: objects under test, not authorities.",
        *(_estimator(kind) for kind in LOSSES),
        "## NumPyro's, beside ours",
        "There where the extra `numpyro` is installed: "
        + ", ".join(f"`{kind.name}`" for kind in numpyro_losses.LOSSES)
        + ".",
        *(_estimator(kind) for kind in numpyro_losses.LOSSES if numpyro_losses.installed()),
        OUT_OF_SCOPE,
    ]
    return "\n\n".join(parts) + "\n"


def bias_matrix() -> str:
    """Every estimator against every target, computed exactly while the page is built."""
    header = " | ".join(f"\\(\\{block}\\): {MATRIX[column.name]}" for block in BLOCKS for column in COLUMNS)
    lines = [f"| estimator | {header} |", "|---" * (1 + len(BLOCKS) * len(COLUMNS)) + "|"]
    left_out = []
    for name in REGISTRY:
        found = row(name)
        if found is None:
            left_out.append(f"`{name}`")
            continue
        cells = [_cell(found.entries[block, column.name]) for block in BLOCKS for column in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n\n".join(
        [
            "## What is unbiased for what",
            "The distance of each estimator's exact expectation from the exact gradient of each target, as a part of that "
            f"gradient, at K = {NUM_SAMPLES} (or the least K allowed) on `{PROBLEMS[0].spec}`, and on `{PROBLEMS[1].spec}` "
            "for those that need discrete latents. **0**: unbiased there, and declared so. By quadrature or enumeration over "
            "all noise, so no number here has a standard error. An empty field: the target has no gradient in that block.",
            "\n".join(lines),
            f"Not here, because their noise is their own or too much to sum over: {', '.join(left_out)}. Their own tests "
            "and `gradest check` speak for them.",
        ]
    )


def _cell(entry: Entry) -> str:
    if entry.bias is None:
        return ""
    if entry.bias < UNBIASED:
        return "**0**" if entry.declared == "unbiased" else "0"
    return f"{entry.bias:.2g}" + (" (declared)" if entry.declared == "biased" else "")


def _cost(estimator: Estimator) -> str:
    """Evaluations of log p(x, z) for one gradient, counted on a small problem."""
    for kind in problems.REGISTRY.values():
        if kind.wants_settings or "vae" in kind.name:
            continue
        problem = kind()
        if estimator.refuses(problem) is None:
            if isinstance(estimator, LoopEstimator):
                each = estimator.evaluations(problem, problem.parameters) / max(1, len(problem.data))
                return f"{each:.3g} evaluations of log p(x, z) for each data point (`{kind.name}`)"
            counted = count(estimator, problem, problem.parameters, torch.Generator().manual_seed(0))
            evaluations = counted.evaluations_per_gradient / max(1, len(problem.data))
            mean = "on average " if estimator.random_cost else ""
            return f"{mean}{evaluations:.3g} evaluations of log p(x, z) for each data point (`{kind.name}`)"
    return "not counted"


def problems_page() -> str:
    """One section for each registered problem."""
    parts = [
        "# Problems",
        "Parameters go in brackets, `name[parameter=value,...]`. Where a target is not known exactly, the reference is "
        "a long run, and its standard error enters every verdict.",
    ]
    for name, kind in problems.REGISTRY.items():
        prose = _sections(kind)
        exact = ", ".join(f"`{target}`" for target in kind.exact_targets) or "none"
        rows = [f"| `{field.name}` | {field.type} | `{field.default}` |" for field in settings_of(kind).values()]
        parts += [
            f"## `{name}`",
            f"*{_text(kind.summary)}*",
            *prose["text"],
            _labelled("Arguments", prose),
            f"**Exact targets:** {exact}.",
            "**It meets:** " + (", ".join(f"`{need}`" for need in sorted(kind.offers)) or "no special need") + ".",
            "| parameter | type | default |\n|---|---|---|\n" + "\n".join(rows) if rows else "",
            _references(prose, kind.citations),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _estimator(kind: type[Estimator], picture: str = "") -> str:
    prose = _sections(kind)
    estimator = kind(num_samples=8 if kind.usual_num_samples() > 1 else 1)
    rows = []
    for block in BLOCKS:
        target = estimator.targets[block]
        claim = "" if target is None else "unbiased" if target.unbiased else "**biased**"
        rows.append(f"| \\(\\{block}\\) | {'nothing' if target is None else TARGETS[target.name]} | {claim} |")
    needs = [f"{NEEDS.get(need, need)} (`{need}`)" for need in sorted(kind.needs)]
    if kind.min_num_samples > 1:
        needs.append(f"K >= {kind.min_num_samples}")
    warning = textwrap.indent(_text(prose.get("Warning", "")), "    ")
    parts = [
        f"### `{kind.name}`",
        *prose["text"],
        "| block | estimates the gradient of | |\n|---|---|---|\n" + "\n".join(rows),
        f"**Needs:** {'; '.join(needs) or 'nothing but the value of log p(x, z)'}.",
        f"**Cost of one gradient at K = {estimator.num_samples}:** {_cost(estimator)}.",
        "" if estimator.variance_exists else "**Its variance does not exist** unless it is capped.",
        picture,
        _labelled("Arguments", prose),
        f'!!! warning "Pitfalls"\n\n{warning}' if warning else "",
        "" if "Example" not in prose else "```pycon\n" + prose["Example"] + "\n```",
        _references(prose, kind.citations),
    ]
    return "\n\n".join(part for part in parts if part)


def _sections(kind: type) -> dict[str, Any]:
    """A docstring apart: under ``text`` its paragraphs, formulas marked; and each named section."""
    found: dict[str, list[str]] = {"text": []}
    current = "text"
    for line in (inspect.cleandoc(kind.__doc__ or "")).splitlines():
        header = SECTION.match(line)
        if header:
            current = header[1]
            found[current] = []
        elif current != "text" and line and not line.startswith(" "):
            current = "text"  # prose that follows a section
            found["text"] += ["", line]
        else:
            found[current].append(line)
    paragraphs = [part for part in "\n".join(found.pop("text")).split("\n\n") if part.strip()]
    sections: dict[str, Any] = {name: textwrap.dedent("\n".join(lines)).strip() for name, lines in found.items()}
    return {"text": [_paragraph(part) for part in paragraphs], **sections}


def _paragraph(text: str) -> str:
    if text.lstrip().startswith(".. math::"):
        formula = " ".join(text.replace(".. math::", "").split())
        return f"\\[ {formula} \\]"
    return _text(text)


def _text(text: str) -> str:
    """Prose of a docstring as Markdown: roles and double backticks become code, markup characters stay themselves."""
    pieces = re.split(r"(:\w+:`[^`]+`|``[^`]+``|`[^`]+`)", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = "`" + piece.strip("`").split("`")[-1].lstrip("~") + "`"
        else:
            pieces[i] = re.sub(r"([*_])", r"\\\1", html.escape(piece.replace("\\|", "|"), quote=False))
    return "".join(pieces)


def _labelled(name: str, prose: dict[str, Any]) -> str:
    """Arguments as a list, one item for each ``name: meaning``."""
    if name not in prose:
        return ""
    joined = re.sub(r"\n +", " ", prose[name])
    single = re.sub(r"\. (?=\w+: )", ".\n", joined)  # several on one line
    items = [re.sub(r"^(\w+(?:, \w+)*): ", r"`\1`: ", line) for line in single.splitlines()]
    return f"**{name}**\n\n" + "\n".join(f"- {_text(item)}" for item in items)


def _references(prose: dict[str, Any], citations: tuple[str, ...]) -> str:
    """The docstring's references, and their BibTeX folded away."""
    stated = f"**References:** {_text(' '.join(prose['References'].split()))}" if "References" in prose else ""
    entries = [bibliography()[key] for key in citations]
    if not entries:
        return stated
    body = textwrap.indent("```bibtex\n" + "\n\n".join(entries) + "\n```", "    ")
    return (stated + "\n\n" if stated else "") + f'??? quote "BibTeX"\n\n{body}'


def bibliography() -> dict[str, str]:
    """BibTeX entries by key."""
    text = (ROOT / "estimators" / "references.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{([^,]+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)}
