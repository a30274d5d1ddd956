"""Nothing in a results folder is run, nothing is unpickled, and records tell nothing of who made them, or where."""

from __future__ import annotations

import ast
import getpass
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.privacy import private

ROOT = Path(__file__).parents[2]
PACKAGES = ("estimators", "benchmarks", "reports")

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "__import__",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "os.system",
    "os.popen",
}
CODE_BY_NAME = {
    "registry.py": "plug-ins that the user names",
    "problems/pyro_problem.py": "programs of Pyro that the user names",
    "compiling.py": "tqdm, which is torch's",
    "problems/rich_guides.py": "zuko, where a flow is asked for",
    "elsewhere.py": "executors that the user names",
}
"""The files that import by name, and what."""


def dangers(source: str) -> list[str]:
    """What of a program could run, or unpickle, what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if name in FORBIDDEN_CALLS or keywords.get("shell") == "True" or keywords.get("weights_only") == "False":
                found.append(name)
            if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                found.append(name)
            if name == "compile" or keywords.get("allow_pickle") == "True":
                found.append(name)
    return found


def imports_by_name(source: str) -> bool:
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return bool(calls & {"importlib.import_module", "import_module", "importlib.util.spec_from_file_location"})


def programs():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "speed" not in path.parts and "templates" not in path.parts:
                yield path.relative_to(ROOT / package), path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "planted",
    [
        *["import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "eval('1')", "exec(x)"],
        *["np.load('x')", "np.load('x', allow_pickle=True)", "subprocess.run('x', shell=True)", "import dill as d"],
        *["torch.load(f, weights_only=False)", "compile(text, 'x', 'exec')", "np.save(f, x, allow_pickle=True)"],
    ],
)
def test_what_is_forbidden_would_be_seen(planted):
    assert dangers(planted)


def test_nothing_is_unpickled_and_no_text_becomes_code():
    sources = list(programs())
    assert len(sources) > 100
    assert {str(path): found for path, text in sources if (found := dangers(text))} == {}


def test_code_is_imported_by_name_where_a_user_names_it_and_nowhere_else():
    found = {str(path) for path, text in programs() if imports_by_name(text)}
    assert found == CODE_BY_NAME.keys()


COMMAND = "import sys; from benchmarks.cli import main; main()"


def gradest(*words, cwd, **environment):
    """The command as it is installed: its own folder comes first among those that modules are looked for in, not ``cwd``."""
    line = [sys.executable, "-P", "-c", COMMAND, *map(str, words)]
    variables = {**os.environ, **environment}
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=variables)


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.long
def test_nothing_in_a_results_folder_is_run(tmp_path):
    """Modules by the names of those that are imported, start-up files, and pickles by the names of moments, in every folder."""
    run, mark = tmp_path / "run", tmp_path / "sprung"
    asked = ["run", "-p", "gaussian-1d", "-e", "iwae", "-K", "2,3", "-R", "100", "-j", "1", "-o", "."]
    run.mkdir()
    assert gradest(*asked, cwd=run).returncode == 0
    trap = f"open({str(mark)!r}, 'w').close()\n"
    first = sorted((run / "moments").iterdir())[0]
    for folder in (run, run / "cells", run / "moments"):
        for name in ("json", "torch", "numpy", "sitecustomize", "usercustomize", "conftest", "benchmarks", "reports"):
            (folder / f"{name}.py").write_text(trap)
        (folder / "__init__.py").write_text(trap)
        (folder / "trap.pth").write_text(f"import sys; {trap}")
    for name in ("x.safetensors", "x.pkl", "x.pt", "x.npy"):
        (run / "moments" / name).write_bytes(pickle.dumps(Trap(mark)))
    first.write_bytes(pickle.dumps(Trap(mark)))
    shutil.copy(run / "moments" / "x.pkl", run / "cells" / "x.json")
    (run / "training").mkdir()
    shutil.copy(run / "moments" / "x.pkl", run / "training" / "x.json")
    for words in (["status", "."], ["report", "."], ["export", "."], asked, [*asked, "--fresh"], [*asked, "--verify"]):
        done = gradest(*words, cwd=run)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2, 3), done.stderr
    assert not mark.exists()
    # They would spring: where modules of the working folder are imported, and where a pickle is read.
    subprocess.run([sys.executable, "-c", "import json"], cwd=run, env={"PATH": os.environ["PATH"]})
    assert mark.exists()
    mark.unlink()
    pickle.loads((run / "moments" / "x.pkl").read_bytes()).close()
    assert mark.exists()


TELLTALE = """
import os, socket
from pathlib import Path
from estimators import Estimator, Target, Weights

class Telltale(Estimator):
    needs = frozenset({"reparameterizable"})

    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def weights(self, log_w):
        raise RuntimeError(f"{os.environ['PLANTED_TOKEN']} {Path.home()}/x {socket.gethostname()} {__file__}")
"""


def test_records_and_reports_tell_nothing_of_their_maker(tmp_path):
    """Home, user, host and a variable's value are planted, and an estimator that quotes them all."""
    home = tmp_path / "home" / "jane-planted"
    home.mkdir(parents=True)
    (home / "telltale.py").write_text(TELLTALE)
    secret = "planted-token-8c1f"
    variables = {
        **{"HOME": str(home), "USER": "jane-planted", "LOGNAME": "jane-planted", "USERNAME": "jane-planted"},
        **{"PLANTED_TOKEN": secret, "XDG_CACHE_HOME": str(home / "cache"), "MPLCONFIGDIR": str(home / "mpl")},
    }
    out = home / "results" / "run"
    words = ["run", "--plugin", home / "telltale.py", "-p", "gaussian-1d", "-e", "Telltale", "-e", "iwae", "-K", "2"]
    done = gradest(*words, "-R", "100", "-j", "1", "--allow-failures", "-o", out, cwd=home, **variables)
    assert done.returncode == 0, done.stderr
    assert gradest("report", out, cwd=home, **variables).returncode == 0
    texts = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"manifest.json", "environment.json", "report.html", ".index"} <= {path.name for path in texts}
    told = [json.loads(text)["reason"] for path, text in texts.items() if path.parent.name == "cells"]
    # It did try: the place of each is there, and not what was in it.
    assert [reason for reason in told if "RuntimeError: $PLANTED_TOKEN ~/x $HOSTNAME ~/telltale.py" in reason], told
    for planted in (secret, "jane-planted", str(home), str(tmp_path)):
        assert [str(path) for path, text in texts.items() if planted.encode() in text] == []
    host, user = socket.gethostname(), getpass.getuser()
    if len(host) > 3:  # else it is found in many a word
        assert [str(path) for path, text in texts.items() if host.encode() in text] == []
    assert [str(path) for path, text in texts.items() if f"/{user}/".encode() in text] == []


def test_what_is_private(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setenv("HOME", "/staff/jane")
    monkeypatch.setenv("USER", "jane")
    monkeypatch.setenv("LOGNAME", "jane")
    monkeypatch.setenv("API_KEY", "s3cr3t-value")
    monkeypatch.setenv("SHORT", "iwae")
    monkeypatch.setenv("LONG", "ghp_0123456789abcdef")
    monkeypatch.setenv("LINES", "-----BEGIN KEY-----\nMIIE\n-----END KEY-----")
    monkeypatch.setenv("LONG_PATH", "/srv/libraries/torch")
    for text, expected in (
        ("/staff/jane/run", "~/run"),
        ("/staff/janet/run", "/staff/janet/run"),
        ("/scratch/jane/run", "/scratch/$USER/run"),
        ("jane", "jane"),
        ("on node7: s3cr3t-value", "on $HOSTNAME: $API_KEY"),
        ("node77 iwae", "node77 iwae"),
        ("idghp_0123456789abcdefx", "id$LONGx"),
        (f"{KeyError(os.environ['LINES'])!r}", "KeyError('$LINES')"),
        ("/srv/libraries/torchvision, /srv/libraries/torch/x", "/srv/libraries/torchvision, $LONG_PATH/x"),
        ("address=tcp://10.0.0.7:8786", "address=tcp://$HOST:8786"),
        ("tcp://node7:1", "tcp://$HOSTNAME:1"),
    ):
        assert private(text) == expected
