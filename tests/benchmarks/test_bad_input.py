"""Wrong usage of the command: one line that names the value and what is allowed, exit code 2, and nothing written."""

from __future__ import annotations

import sys

import pytest
import typer

BAD = """[[suite]]\nproblems = ["gaussian-1d"]\nreplicates = "many"\n"""
GAUSSIAN = ("-p", "gaussian-1d", "-e", "iwae")
WRONG = [
    (("rnu",), "'rnu'"),
    (("--wrong",), "--wrong"),
    (("list", "nonsense"), "cannot list 'nonsense'; allowed: estimators, problems"),
    (("list", "estimator"), "did you mean 'estimators'?"),
    (("list", "--plugin", "none.py"), "no plug-in file 'none.py'"),
    (("list", "--plugin", "suite.toml"), "'suite.toml' is not a Python file"),
    (("list", "--plugin", "broken.py"), "broken.py does not run: SyntaxError"),
    *(
        ((verb, *words, "--plugin", "cites.py"), "cites.py: Cites: citations is to be a tuple of texts, not 5")
        for verb, *words in (("list",), ("run", "-p", "gaussian-1d"), ("check", "iwae"), ("cite", "iwae"))
    ),
    (("check", "cites.py:Cites"), "cites.py: Cites: citations is to be"),
    (("list", "--plugin", "refuses.py"), "never fit"),
    (("run", "none.toml"), "cannot read none.toml: No such file"),
    (("run", "."), "cannot read .: Is a directory"),
    (("run", "suite.toml"), "suite.toml: suite.0.replicates: Input should be a valid integer"),
    (("run", "broken.toml"), "broken.toml is not TOML: "),
    (("run", "deep.toml"), "deep.toml is not TOML: "),
    (("run", "--plugin", "leaves.py", "-p", "gaussian-1d", "-e", "Leaves"), "Leaves cannot be made: SystemExit"),
    (("run", "-p", "gausian-1d"), "no problem 'gausian-1d'; did you mean 'gaussian-1d'?"),
    (("run", "-p", "gaussian-1d[loc"), "cannot read 'gaussian-1d[loc'"),
    (("run", "-p", "gaussian-1d[loc=x]"), "gaussian-1d[loc] takes a finite number, not 'x'"),
    (("run", "-p", "gaussian-1d", "-e", "iwea"), "no estimator 'iwea'; did you mean 'iwae'?"),
    (("run", *GAUSSIAN, "-K", "0"), "--num-samples must be at least 1, not 0"),
    (("run", *GAUSSIAN, "-K", "1,many"), "--num-samples takes whole numbers such as 1,8,64, not '1,many'"),
    (("run", "-p", "gaussian-1d", "-e", "leave-one-out", "-K", "1"), "leave-one-out needs num_samples >= 2, not 1"),
    (("run", *GAUSSIAN, "-R", "many"), "(given: many)"),
    (("run", *GAUSSIAN, "--seeds", "0"), "(given: 0)"),
    (("run", *GAUSSIAN, "--timeout=0"), "(given: 0)"),
    *((("run", *GAUSSIAN, "--timeout", each), f"1000000000 (given: {each})") for each in ("nan", "inf")),
    *((("run", *GAUSSIAN, "--memory", each), f"1073741824 (given: {each})") for each in ("nan", "1e300")),
    (("status", "results", "--watch", "--every", "inf"), "1000000"),
    (("run", *GAUSSIAN, "-R", "1"), "or equal to 2 (given: 1)\n"),
    (("run", *GAUSSIAN, "--dtype", "float16"), "'float32' or 'float64'; did you mean 'float64'? (given: 'float16')"),
    (("run", *GAUSSIAN, "--matmul-precision", "hihg"), "did you mean 'high'? (given: 'hihg')"),
    (("run", *GAUSSIAN, "-K", "1" + "0" * 30), "--num-samples must be at most 100000000, not 1e+30"),
    (("check", "iwae", "-K", "1" + "0" * 30), "--num-samples must be at most 100000000, not 1e+30"),
    *((("run", *GAUSSIAN, "-K", K), "--num-samples takes whole numbers such as 1,8,64, not ") for K in ("٣", "1_0")),
    (("run", "-p", "linear-gaussian[dim=1_0]", "-e", "iwae"), "takes a whole number, not '1_0'"),
    (("run", *GAUSSIAN, "--device", "cpu:7"), "no device 'cpu:7': the processor is one, cpu"),
    *(
        (("run", *GAUSSIAN, *words, *dry), part)
        for dry in ((), ("--dry-run",))
        for words, part in (
            (("--executor", "nonsense"), "no executor 'nonsense'; allowed: local, dask, module:factory"),
            (("--executor", "os:system"), "--executor os:system: TypeError: missing a required argument: 'command'"),
            (("--executor", "os:no"), "--executor os:no: AttributeError"),
            (("--executor-arg", "x=1"), "the local executor takes no --executor-arg, not 'x'"),
        )
    ),
    (("run", *GAUSSIAN, "--executor", "os:getcwd"), "gives a str, which is no concurrent.futures.Executor"),
    (("run", *GAUSSIAN, "--device", "quatsch"), "no device 'quatsch'"),
    (("run", *GAUSSIAN, "--device", "xpu:9"), "no device 'xpu:9' on this machine; there is: "),
    (("run", *GAUSSIAN, "--plugin", "none.py"), "none.py"),
    (("status",), "folder"),
    (("status", "none"), "none is no run folder"),
    (("status", "."), ". is no run folder (no manifest.json)"),
    (("status", "damaged"), "manifest.json: unreadable"),
    (("report",), "folders"),
    (("report", "none"), "none is no run folder"),
    (("export", "none"), "none is no run folder"),
    (("export", "damaged"), "manifest.json: unreadable"),
    (("export", ".", "--format", "cvs"), "no format 'cvs'; did you mean 'csv'?"),
    (("cite", "iwea"), "no estimator or problem 'iwea'; did you mean 'iwae'?"),
    (("cite", "iwae[x=1]"), "iwae has no parameter 'x'; allowed: num_samples"),
    (("cite", "gaussian-1d[scale=much]"), "gaussian-1d[scale] takes a finite number, not 'much'"),
    (("train", "large.toml"), "large.toml is no configuration: it has more than 16777216 bytes"),
    (("train", "-K", "100000000", "--set", "data.batch=4000"), "no memory for this: "),
    (("check",), "source"),
    (("check", "iwea"), "no estimator 'iwea'; did you mean 'iwae'?"),
    (("check", "none.py:X"), "no plug-in file 'none.py'"),
    (("check", "broken.py:X"), "broken.py does not run: SyntaxError"),
    (("check", "iwae", "-K", "0"), "--num-samples must be at least 1, not 0"),
    (("check", "leave-one-out", "-K", "1"), "leave-one-out needs num_samples >= 2, not 1"),
    (("check", "iwae", "-p", "nonsense"), "no problem 'nonsense'"),
    (("check", "iwae", "--target", ""), "cannot read '': write name or name[parameter=value,...]"),
    (("check", "iwae", "--target", "elbow"), "no target 'elbow'; did you mean 'elbo'?"),
    (("check", "iwae", "--max-draws", "1"), "(given: 1)"),
    (("reference",), "problem"),
    (("reference", "nonsense"), "no problem 'nonsense'"),
    (("reference", "gaussian-1d", "--target", "elbow"), "no target 'elbow'"),
    (("reference", "gaussian-1d", "-K", "0"), "--num-samples must be at least 1, not 0"),
    (("reference", "gaussian-1d", "-K", "two"), "two"),
    (("reference", "banana", "--target", "tvo[setting=2]"), "does not know tvo exactly; it knows: elbo"),
    (
        ("reference", "banana", "--target", "renyi[setting=0.5]", "-K", "3"),
        "does not know renyi-3(0.5) exactly: K = 2 is the largest ",
    ),
    (
        ("reference", "gaussian-1d[scale=1.9]", "--target", "f_divergence[setting=chi-square]"),
        "does not know f_divergence(chi-square) exactly: its mean does not exist",
    ),
    (("reference", "gaussian-1d[scale=1e300]", "--json"), "elbo is not finite"),
    (("reference", "gaussian-1d[x=1e200]", "--target", "iwae", "-K", "4"), "iwae-4 cannot be computed"),
    (("reference", "linear-gaussian[noise_scale=1e-200]"), "linear-gaussian"),
]


LEAVES = """
import estimators

class Leaves(estimators.IWAE):
    @property
    def targets(self):
        raise SystemExit(0)
"""
REFUSES = """
import estimators

class Refuses(estimators.IWAE):
    def __post_init__(self):
        raise estimators.Refusal("never fit")
"""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (typer.Abort(), 130, "gradest: stopped\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "gradest: no memory for this: "),
        (MemoryError("no room"), 2, "gradest: no room\n"),
    ],
    ids=["stopped", "torch's memory", "Python's"],
)
def test_what_ends_a_verb_from_within_is_one_line(gradest, monkeypatch, raised, code, said):
    def ended(*arguments):
        raise raised

    monkeypatch.setattr("benchmarks.registry.Registry.__init__", ended)
    found, out, err = gradest("list")
    assert (found, out, err.count("\n")) == (code, "", 1) and err.startswith(said)


@pytest.mark.parametrize(("arguments", "part"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_bad_input_gets_one_line_and_writes_nothing(gradest, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # of a plug-in, which Python writes beside it, as of any module
    (tmp_path / "suite.toml").write_text(BAD)
    (tmp_path / "broken.toml").write_text("[[suite]\n")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 5000 + "]" * 5000)
    with open(tmp_path / "large.toml", "wb") as stream:
        stream.truncate(2**24 + 1)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text(LEAVES)
    (tmp_path / "cites.py").write_text("import estimators\n\nclass Cites(estimators.IWAE):\n    citations = 5\n")
    (tmp_path / "refuses.py").write_text(REFUSES)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text('{"schema')
    before = sorted(tmp_path.rglob("*"))
    code, out, err = gradest(*arguments)
    assert (code, out) == (2, "")
    assert part in err and err.startswith("gradest: ") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
