"""Everything that can be run on a clone: ``nox --list`` shows it, ``nox -s NAME -- OPTIONS`` hands options on."""

from __future__ import annotations

import atexit
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.3.2"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

PINNED = ("--constraint", "constraints.txt")


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Tests fill the cores by processes; threads beside them only wait for one another."""


def spread(session: nox.Session) -> tuple[str, ...]:
    """A process of pytest for each usable core and one more, unless the options say how many.

    One more, since many tests wait for processes of their own. Each takes whole files, in the order in which they stand, so
    that what the tests of a file share is made once.
    """
    if any(option.startswith("-n") for option in session.posargs):
        return ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ("-n", str(cores + 1), "--dist", "loadfile", "--no-loadscope-reorder")


def install(session: nox.Session, *requirements: str) -> None:
    """Install with pip, at the versions that were tested together."""
    session.install(*PINNED, *requirements)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests of every commit: exact, statistical with fixed seeds, conformance, doctests."""
    install(session, "-e", ".[dev]")
    session.run("pytest", *spread(session), *session.posargs, env=ONE_THREAD)


@nox.session
def long(session: nox.Session) -> None:
    """The tests that take minutes."""
    install(session, "-e", ".[dev,dask]")
    session.run("pytest", "-m", "long", *spread(session), *session.posargs, env=ONE_THREAD)


@nox.session
def browser(session: nox.Session) -> None:
    """The report in a real browser, headless and without a network; says so where there is no Chromium."""
    known = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next((name for name in known if shutil.which(name)), None)
    if found is None:
        session.skip(f"no browser: none of {', '.join(known)} is on the path; CHROMIUM=... names another")
    install(session, "-e", ".[dev]")
    install(session, "--no-deps", "axe-playwright-python")  # for the axe-core in it, without Playwright
    session.run("pytest", "-m", "browser", *session.posargs, env={"CHROMIUM": found})


@nox.session
def numpyro(session: nox.Session) -> None:
    """The tests of NumPyro's losses beside ours; installs NumPyro and JAX."""
    install(session, "-e", ".[dev,numpyro]")
    session.run("pytest", "-m", "numpyro", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the default suite (or what the options say) and write its report; the report's path is the last line."""
    install(session, "-e", ".")
    out = _out(session.posargs)
    options = session.posargs if out else ["--out", "results/default", *session.posargs]
    folder = Path(out or "results/default")
    try:
        session.run("gradest", "run", *options)
    finally:
        # A run with failed cells exits 1, and its report is where the failures are shown.
        if (folder / "manifest.json").exists():
            session.run("gradest", "report", str(folder))
            atexit.register(print, (folder / "report.html").resolve(), flush=True)


def _out(options: list[str]) -> str | None:
    """The folder that ``--out DIR``, ``--out=DIR`` or ``-o DIR`` names."""
    for place, option in enumerate(options):
        if option in ("--out", "-o") and place + 1 < len(options):
            return options[place + 1]
        if option.startswith("--out="):
            return option.removeprefix("--out=")
    return None


@nox.session
def report(session: nox.Session) -> None:
    """Write the report of run folders: ``nox -s report -- results/default``."""
    install(session, "-e", ".")
    session.run("gradest", "report", *(session.posargs or ["results/default"]))


@nox.session
def speed(session: nox.Session) -> None:
    """Time the engine itself; the numbers go to results/speed.json."""
    install(session, "-e", ".[dev]")
    Path("results").mkdir(exist_ok=True)
    session.run(
        *("pytest", "benchmarks/speed", "--benchmark-enable", "--benchmark-only"),
        *("--benchmark-json", "results/speed.json", *session.posargs),
    )


@nox.session
def speed_jax(session: nox.Session) -> None:
    """Time the engine beside JAX; the numbers go to results/speed-jax.json."""
    install(session, "-e", ".[dev,numpyro]")
    Path("results").mkdir(exist_ok=True)
    session.run(
        *("pytest", "benchmarks/speed/test_beside_jax.py", "--benchmark-enable", "--benchmark-only"),
        *("--benchmark-json", "results/speed-jax.json", *session.posargs),
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, who may import whom, and whether what is imported is declared. Installs no torch."""
    install(session, "ruff", "import-linter", "deptry")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("deptry", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types on the estimators."""
    install(session, "mypy", "torch")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation to site/."""
    install(session, "-e", ".[docs]", "ruff")  # ruff lays out long signatures
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # the theme's word on a future mkdocs, which is no matter of this site
    session.run("mkdocs", "build", "--strict", *session.posargs, env=quiet)
