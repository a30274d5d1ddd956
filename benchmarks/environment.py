"""What a run ran on: versions, processor, threads. No host name, no user name, no path, no environment variable."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil
import torch

from . import __version__

PACKAGES = ("torch", "numpy", "scipy", "pyro-ppl", "pandas", "seaborn", "arviz-stats")


def describe(workers: int) -> dict[str, str | int]:
    """A flat dictionary of what may change a number or a second."""
    facts: dict[str, str | int] = {
        "gradest": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "logical cores": psutil.cpu_count() or 1,
        "memory (GiB)": round(psutil.virtual_memory().total / 2**30),
        "workers": workers,
        "torch threads per worker": 1,
        "accelerator": _accelerator(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _accelerator() -> str:
    if not torch.accelerator.is_available():
        return "none"
    kind = torch.accelerator.current_accelerator()
    return str(torch.get_device_module(kind).get_device_name())


def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether it has uncommitted changes; ``None`` elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return head, None if changes is None else bool(changes)
