"""What README and the documentation show, run as it stands."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
CHECKS = re.findall(r"(?m)^gradest (check examples/\S+.*)$", PAGES["README.md"])
PARSED = {
    "training.md": "minutes to days of training; tests/benchmarks/test_trainer*.py train with the same verbs",
    "scale.md": "clusters; tests/faults/test_dask.py runs one on this machine",
}
"""Pages whose commands are parsed and not run, and why."""
NO_CODE = {
    ("README.md", "estimators/"): "a picture of folders",
    ("principles.md", "estimators/"): "a picture of folders",
    ("report.md", "manifest.json"): "a picture of a run folder",
    ("statistics.md", "pilot"): "formulas",
}
"""Blocks that are neither code nor commands, by their page and first word."""
SHELL = (
    "python -m pip install",
    "python -m nox",
    "python -m pip_audit",
    "pre-commit install",
    "dask ",
    "python examples/cluster_",
)
"""Lines that set up a machine: CI runs the first two of README's, the rest need a network or a cluster."""
QUICK = ("index.md", "my-estimator.md", "my-problem.md")
"""Pages whose Python takes seconds; the others' runs with the long tests."""


def commands(page: str) -> list[str]:
    """Every command line of a page's blocks, without ``gradest``."""
    blocks = re.findall(r"(?ms)^```(?:\w*)\n(.*?)^```", PAGES[page])
    lines = [line.split("- run: ")[-1].split("&&") for block in blocks for line in block.splitlines()]
    lines = [line.strip() for parts in lines for line in parts]
    return [line.removeprefix("gradest ") for line in lines if line.startswith("gradest ")]


def python(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", PAGES[page])


def test_every_block_of_the_documentation_is_run_or_named_here():
    """Python runs, commands run, one workflow is compared with its file; the rest is listed above, and no more than that."""
    seen = set()
    for page, text in PAGES.items():
        for kind, body in re.findall(r"(?ms)^```(\w*)\n(.*?)^```", text):
            lines = [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
            name = (page, lines[0].split()[0])
            if name in NO_CODE:
                seen.add(name)
            elif kind not in ("python", "yaml"):
                assert all(line.startswith(("gradest ", *SHELL)) for line in lines), (page, lines)
    assert seen == set(NO_CODE)


def gradest(arguments: str) -> int:
    return CliRunner().invoke(app, shlex.split(arguments)).exit_code


def test_the_three_checks_of_the_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [gradest(each) for each in CHECKS] == [0, 0, 1]


def test_my_estimator_in_a_report(tmp_path, monkeypatch):
    """The README's last two commands, at fewer replicates, into another folder."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "mine"
    run = re.search(r"(?m)^gradest (run --plugin .*) --out results/mine$", PAGES["README.md"])
    assert run is not None and "gradest report results/mine" in PAGES["README.md"]
    assert gradest(f"{run[1]} --replicates 200 --out {out}") == 0
    assert gradest(f"report {out}") == 0
    assert "Mine" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [name for name in PAGES if commands(name)])
def test_every_command_of_the_documentation_is_one(page):
    """It parses: the verb is there, and every option and value fits."""
    known = typer.main.get_command(app).commands
    for line in commands(page):
        verb, *words = shlex.split(line, comments=True)
        if verb.isupper() or "--install-completion" in line:
            continue
        known[verb].make_context(verb, words)


def test_every_verb_is_documented():
    text = "\n".join(PAGES.values())
    assert [verb for verb in typer.main.get_command(app).commands if f"gradest {verb}" not in text] == []


def prepare(folder: Path, page: str) -> None:
    """The files that a page takes for granted: the examples, and the code that it shows itself."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(ROOT / "examples" / "my_estimator.py", folder / "my_estimator.py")
    if page == "my-problem.md":
        (folder / "shifted.py").write_text(python(page)[0], encoding="utf-8")


@pytest.mark.parametrize("page", QUICK)
def test_the_python_of_the_documentation_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, block in enumerate(python(page)):
        file = tmp_path / f"page_{place}.py"
        file.write_text(block, encoding="utf-8")
        runpy.run_path(str(file), run_name=file.stem)


@pytest.mark.long
@pytest.mark.parametrize("page", [name for name in PAGES if python(name) and name not in QUICK])
def test_the_rest_of_the_python_runs(page, tmp_path, monkeypatch):
    """Tests among the blocks (those that take fixtures) are run by pytest."""
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(python(page))
    if "def test_" not in text:
        exec(compile(text, page, "exec", dont_inherit=True), {"__name__": "page"})
        if page == "tutorial.md":  # its commands are about what its code has measured
            assert [gradest(line) for line in commands(page)] == [0] * len(commands(page))
        return
    (tmp_path / "test_page.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.long
@pytest.mark.parametrize("page", [name for name in PAGES if name not in ("tutorial.md", *PARSED) and commands(name)])
def test_every_command_runs(page, tmp_path, monkeypatch):
    """In order, in one folder, at few replicates; only ``check`` of the planted mistake may find something."""
    prepare(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        verb = line.split()[0]
        if verb.isupper() or verb.startswith("-") or "results/baseline" in line:
            continue
        few = " --replicates 150" if verb == "run" else ""
        assert gradest(line + few) == (1 if "Mistaken" in line else 0), line


def test_the_workflow_is_the_documented_one():
    shown = re.search(r"(?ms)^```yaml\n(.*?)^```", PAGES["ci.md"])[1]
    assert (ROOT / "examples" / "gradest-workflow.yml").read_text(encoding="utf-8").endswith(shown)


def test_the_job_array_is_a_script_that_asks_for_shards(tmp_path):
    """Run by bash with a command in place of ours, as the third of four tasks: that is what would be begun."""
    told = tmp_path / "gradest"
    told.write_text('#!/bin/sh\necho "$@"\n')
    told.chmod(0o755)
    script = ROOT / "examples" / "job_array.sh"
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    done = subprocess.run(["bash", script, "suite.toml"], capture_output=True, text=True, env=variables)
    assert done.stdout == "run suite.toml --shard 3/4 -j 8 --out results/part-3\n", done.stderr
    words = [*done.stdout.split(), "--dry-run", "-p", "gaussian-1d", "-e", "iwae", "-R", "10"]
    words.remove("suite.toml")
    assert gradest(shlex.join(words)) == 0
    assert subprocess.run(["bash", script, "suite.toml"], capture_output=True, env={"PATH": "/bin"}).returncode != 0


class Made:
    """In place of a cluster: what was asked of it."""

    scheduler_address = "tcp://192.0.2.1:8786"

    def __init__(self, **asked):
        self.asked, self.adapted = asked, {}
        Made.last = self

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass

    def adapt(self, **limits):
        self.adapted = limits


def made_cluster_spec(name, image, **asked):
    """The part of dask-kubernetes' specification that is changed, as version 2026.3.0 makes it."""
    container = {"image": image, "args": asked["worker_command"], "env": asked["env"]}
    return {"spec": {"worker": {"replicas": asked["n_workers"], "spec": {"containers": [container]}}}}


@pytest.mark.parametrize(
    ("name", "words"), [("slurm", ["--cores", "4"]), ("kubernetes", ["--image", "gradest:1", "--claim", "results"])]
)
def test_clusters_are_made_and_their_address_told(name, words, tmp_path, monkeypatch):
    """The files are run whole; only the libraries that talk to SLURM and Kubernetes are stood in for."""
    slurm, operator, parent = (ModuleType(each) for each in ("dask_jobqueue", "operator", "dask_kubernetes"))
    slurm.SLURMCluster = operator.KubeCluster = Made
    operator.make_cluster_spec = made_cluster_spec
    for place, module in (
        *[("dask_jobqueue", slurm), ("dask_kubernetes", parent), ("dask_kubernetes.operator", operator)],
    ):
        monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.setattr(signal, "sigwait", lambda numbers: signal.SIGINT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"cluster_{name}.py", *words, "--workers", "7"])
    runpy.run_path(str(ROOT / "examples" / f"cluster_{name}.py"), run_name="__main__")
    assert (tmp_path / "cluster.txt").read_text() == Made.scheduler_address
    assert Made.last.adapted == {"minimum": 0, "maximum": 7}
    if name == "slurm":
        assert Made.last.asked["cores"] == Made.last.asked["processes"] == 4
    else:
        pod = Made.last.asked["custom_cluster_spec"]["spec"]["worker"]["spec"]
        assert pod["containers"][0]["args"][:2] == ["dask", "worker"] and "--nthreads" in pod["containers"][0]["args"]
        assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
