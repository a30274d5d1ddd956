"""Configurations of any kind give a list of cells or one line, and never a traceback."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import cli, records
from benchmarks.schema import Cell, Manifest, Record, canonical_json

NAMES = ["gaussian-1d", "linear-gaussian", "rainforth", "gaussian-*", "*", "!*", "nope", "gaussian-1d[loc=1]", ""]
ESTIMATORS = ["iwae", "dreg", "sumo", "miwae[groups=2]", "leave-one-out", "!iwae", "iw?e", "iwae[x=1]", "[", "iwae["]
numbers = st.one_of(
    st.integers(-3, 9), st.integers(), st.floats(), st.sampled_from([0, 1, 2, 10**9, 2**63, 10**40, 1e308])
)
text = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*NAMES, *ESTIMATORS, "cpu", "cuda", "cuda:9", "meta", "float32", "float16", "\x00", "a\nb"]),
    st.builds(
        "{}[{}={}]".format,
        st.sampled_from(NAMES[:3] + ESTIMATORS[:3]),
        st.sampled_from(["loc", "scale", "x", "dim", "points", "cap", "tail", "num_samples"]),
        st.one_of(numbers, st.text(max_size=5)),
    ),
)
anything = st.recursive(
    st.one_of(numbers, text, st.booleans(), st.none()),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.text(max_size=8), below, max_size=3)),
    max_leaves=6,
)
plausible = {
    "problems": st.lists(st.sampled_from(NAMES), max_size=2),
    "estimators": st.lists(st.sampled_from(ESTIMATORS), max_size=2),
    "num_samples": st.lists(st.integers(-1, 9), max_size=3),
    "replicates": st.integers(-1, 1000),
    "seeds": st.integers(-1, 3),
    "dtype": st.sampled_from(["float32", "float64", "float16"]),
    "device": st.sampled_from(["cpu", "cuda", "cuda:7", "nope"]),
}
suite = st.fixed_dictionaries(
    {"problems": st.one_of(plausible["problems"], anything)},
    optional={name: st.one_of(each, each, anything) for name, each in plausible.items() if name != "problems"}
    | {"surplus": anything},
)
config = st.one_of(st.fixed_dictionaries({"suite": st.lists(suite, max_size=2)}), st.dictionaries(text, anything))


def toml(value):
    """A value as TOML, such as it has; what it has no spelling for comes out as something wrong, which will do."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if not isinstance(value, float) else repr(value)


documents = st.one_of(
    st.builds(lambda found: "\n".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in found.items()), config),
    st.text(max_size=200),
    st.builds("[[suite]]\n{}".format, st.text(max_size=100)),
).map(lambda found: found.encode("utf-8", "surrogatepass"))
files = st.one_of(documents, st.binary(max_size=200))


def run(*words, monkeypatch, capsys):
    """Exit code, standard output and error of the command."""
    monkeypatch.setattr(sys, "argv", ["gradest", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def in_one_line(code, out, err):
    if code == 0:
        assert out.splitlines()[-1].endswith("cells; nothing was run")
        return
    assert code == 2 and not out
    assert err.startswith("gradest: ") and err.endswith("\n") and len(err.splitlines()) == 1, err


def check_configuration(content, path, monkeypatch, capsys):
    path.write_bytes(content)
    in_one_line(*run("run", str(path), "--dry-run", monkeypatch=monkeypatch, capsys=capsys))


def options(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check_all(examples, path, monkeypatch, capsys):
    codes = set()

    @options(examples)
    @given(content=files)
    def each(content):
        path.write_bytes(content)
        ended = run("run", str(path), "--dry-run", monkeypatch=monkeypatch, capsys=capsys)
        in_one_line(*ended)
        codes.add(ended[0])

    each()
    assert codes == {0, 2}  # else nothing would be shown


def test_configurations(tmp_path, monkeypatch, capsys):
    check_all(200, tmp_path / "suite.toml", monkeypatch, capsys)


@pytest.mark.long
def test_many_configurations(tmp_path, monkeypatch, capsys):
    check_all(50_000, tmp_path / "suite.toml", monkeypatch, capsys)


option = st.sampled_from(
    [
        *["-p", "-e", "-K", "-R", "--seeds", "--device", "--dtype", "--jobs", "--timeout", "--memory", "--executor"],
        *["--executor-arg", "--shard", "--plugin", "--verify-cells", "--fresh", "--verify", "--no-such"],
    ]
)
words = st.lists(st.one_of(option, text, st.builds(str, numbers)), max_size=6).map(
    lambda found: [word.replace("\x00", "") for word in found]
)


@options(200)
@given(given_words=words)
def test_command_lines(given_words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("run", "--dry-run", *given_words, monkeypatch=monkeypatch, capsys=capsys)
    if code == 0 and "--help" in given_words:
        return
    in_one_line(code, out, err)


CELL = Cell(problem="p", estimator="e", num_samples=1, replicates=2, seed=0)
RECORD = Record(id=CELL.id, cell=CELL, status="ok").model_dump(mode="json")


MANIFEST = Manifest(name="m", command="c", started="s").model_dump(mode="json")


def spoilt(changes, body=RECORD):
    """A record with some of its fields replaced, under a checksum that fits where there can be one."""
    body = {**body, **changes}
    try:
        return json.dumps({**body, "checksum": records._checksum(canonical_json(body))}).encode()
    except ValueError:
        return json.dumps(body).encode()


stored = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda value: json.dumps(value).encode(), anything),
    st.builds(spoilt, st.dictionaries(st.sampled_from([*RECORD, "surplus"]), anything, max_size=2)),
)


def check_records(examples, folder):
    """What is read is a record of that cell, or is named among the unreadable; by the index as in full."""
    (folder / "cells").mkdir()
    believed = set()

    @options(examples)
    @given(content=stored)
    def each(content):
        (folder / "cells" / f"{CELL.id}.json").write_bytes(content)
        found, unreadable = records.read_cells(folder)
        assert len(found) + len(unreadable) == 1 and all(record.id == CELL.id for record in found.values())
        short = records.summary(folder)
        assert short.unreadable == unreadable
        assert short.cells == {id: (record.status, record.seconds) for id, record in found.items()}
        believed.add(len(found))

    each()
    assert believed == {0, 1}  # else nothing would be shown


def test_records(tmp_path):
    check_records(500, tmp_path)


@pytest.mark.long
def test_many_records(tmp_path):
    check_records(50_000, tmp_path)


manifests = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda value: json.dumps(value).encode(), anything),
    st.builds(
        lambda changes: spoilt(changes, MANIFEST), st.dictionaries(st.sampled_from([*MANIFEST, "surplus"]), anything)
    ),
)


def check_manifests(examples, folder, monkeypatch, capsys):
    """``gradest status`` of a folder with any manifest: numbers, or one line and exit 2."""
    codes = set()

    @options(examples)
    @given(content=manifests)
    def each(content):
        (folder / "manifest.json").write_bytes(content)
        code, out, err = run("status", str(folder), monkeypatch=monkeypatch, capsys=capsys)
        assert code in (0, 2) and (code == 0) == out.startswith("ok 0")
        assert code == 0 or (not out and err.startswith("gradest: ") and len(err.splitlines()) == 1), err
        codes.add(code)

    each()
    assert codes == {0, 2}


def test_manifests(tmp_path, monkeypatch, capsys):
    check_manifests(200, tmp_path, monkeypatch, capsys)


@pytest.mark.long
def test_many_manifests(tmp_path, monkeypatch, capsys):
    check_manifests(50_000, tmp_path, monkeypatch, capsys)
