from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from threading import Thread

import pytest
from pydantic import ValidationError

from benchmarks import index, records
from benchmarks.records import RecordError
from benchmarks.schema import SCHEMA_VERSION, BlockResult, Cell, Cost, Manifest, Record, canonical_json

SETTINGS = {
    "problem": "gaussian-1d[loc=0.5]", "estimator": "iwae", "num_samples": 4, "replicates": 100, "seed": 1,
    "dtype": "float32", "device": "cuda:0", "compiled": True, "matmul_precision": "high",
    "versions": {"problem": "1", "estimator": "2"},
}  # fmt: skip


@pytest.fixture
def record():
    cell = Cell(**SETTINGS)
    block = BlockResult(
        block="phi", target="iwae", target_num_samples=4, unbiased=True, dimensions=2, replicates=100, verdict="PASS",
        mean_norm=0.1, variance=1e-300, bias_interval=(0.0, 1 / 3), quantiles={"0.5": 2.5e-7},
    )  # fmt: skip
    cost = Cost(evaluations_per_gradient=4, seconds_interval=(1e-5, 2e-5), peak_bytes=2**60)
    reason = "not ASCII: θ “\u2028” \x00"
    return Record(id=cell.id, cell=cell, status="ok", reason=reason, blocks=[block], cost=cost, seconds=0.25)


@pytest.fixture
def stored(tmp_path, record):
    path = tmp_path / "run" / "cells" / f"{record.id}.json"
    records.write(path, record)
    return path


def rewrite(path, **changes):
    """Other content under a checksum that fits it."""
    body = {**json.loads(path.read_text()), **changes}
    body.pop("checksum")
    path.write_text(json.dumps({**body, "checksum": records._checksum(canonical_json(body))}))


def test_round_trip(stored, record):
    assert records.read(stored, Record) == record
    assert records.read_cells(stored.parents[1]) == ({record.id: record}, {})


@pytest.mark.parametrize("part", ["seed", "dimensions", "peak_bytes"])
def test_numbers_that_no_table_holds_are_not_believed(stored, record, part):
    """An export, a comparison and a history ended in a traceback over them."""
    changed = record.model_dump(mode="json")
    place = {"seed": changed["cell"], "dimensions": changed["blocks"][0], "peak_bytes": changed["cost"]}[part]
    place[part] = 2**63
    rewrite(stored, **changed)
    with pytest.raises(RecordError, match="1 fields do not fit the schema"):
        records.read(stored, Record)


def test_a_version_is_told_in_short(stored):
    rewrite(stored, schema_version="4" * 10**6)
    with pytest.raises(RecordError) as told:
        records.read(stored, Record)
    assert len(str(told.value)) < 400


def test_every_changed_byte_is_noticed(stored, record):
    content = stored.read_bytes()
    rng = random.Random(0)
    # Bytes that only lay the text out, or spell the same content in another way, may change.
    harmless = 0
    places = rng.sample(range(len(content)), 400)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        stored.write_bytes(changed)
        try:
            assert records.read(stored, Record) == record
            harmless += 1
        except RecordError as problem:
            assert str(problem).startswith(stored.name)
    assert harmless < 0.05 * len(places)


def test_every_truncation_is_noticed(stored):
    content = stored.read_bytes()
    for length in [*range(0, len(content) - 2, 37), len(content) - 2]:
        stored.write_bytes(content[:length])
        with pytest.raises(RecordError, match="unreadable"):
            records.read(stored, Record)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 100_000, b'{"schema_version": 5}', b"\xff\xfe", b"1" * 9999]
)
def test_what_is_no_record_is_told(stored, content):
    stored.write_bytes(content)
    with pytest.raises(RecordError):
        records.read(stored, Record)


def test_a_record_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecordError, match=r"x\.json: unreadable \(FileNotFoundError\)"):
        records.read(tmp_path / "x.json", Record)


@pytest.mark.parametrize("version", [0, 1, None, "2"])
def test_unknown_schema_versions_are_refused(stored, version):
    rewrite(stored, schema_version=version)
    with pytest.raises(RecordError, match=f"schema version {version!r}, this gradest reads {SCHEMA_VERSION}"):
        records.read(stored, Record)


@pytest.mark.parametrize("changes", [{"status": "fine"}, {"surplus": 1}, {"seconds": "soon"}, {"cell": None}])
def test_fields_that_do_not_fit_are_refused(stored, changes):
    rewrite(stored, **changes)
    with pytest.raises(RecordError, match="fields do not fit the schema"):
        records.read(stored, Record)


def test_a_number_that_is_none_is_refused(stored, record):
    for text in ("NaN", "1e999"):
        stored.write_text(stored.read_text().replace('"seconds": 0.25', f'"seconds": {text}'))
        with pytest.raises(RecordError):
            records.read(stored, Record)
        records.write(stored, record)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Record(id=record.id, cell=record.cell, status="ok", seconds=wrong)


def test_records_under_a_wrong_name_or_of_another_cell_are_not_believed(stored, record):
    stored.rename(stored.with_name("0123.json"))
    other = record.model_copy(update={"cell": record.cell.model_copy(update={"seed": 2})})
    records.write(stored, other)
    assert record.cell.id != other.cell.id and other.id == stored.stem
    believed, unreadable = records.read_cells(stored.parents[1])
    assert believed == {} and set(unreadable) == {"0123.json", stored.name}
    assert all("holds the record of another cell" in reason for reason in unreadable.values())


def test_what_was_checked_is_not_checked_again(stored, record, monkeypatch):
    """Nor in a folder that was copied, where files have other marks."""
    copied = shutil.copytree(stored.parents[1], stored.parents[2] / "copied")

    def refuse(*arguments):
        raise AssertionError("a checksum was computed")

    monkeypatch.setattr(records, "_checksum", refuse)
    for folder in (stored.parents[1], copied):
        assert records.read_cells(folder) == ({record.id: record}, {})
        assert records.summary(folder) == ({record.id: ("ok", 0.25)}, {})


def test_an_index_is_believed_of_the_same_bytes_alone(stored):
    """A digit decays where the marks of the file say nothing of it."""
    run, content = stored.parents[1], stored.read_bytes()
    stored.write_bytes(content.replace(b'"seconds": 0.25', b'"seconds": 0.35'))
    line = (run / ".index").read_text().split()
    entry = index.Entry(stored.name, index.marks(stored.stat()), line[2], line[3], float(line[4]))
    index.note(run, [entry])
    believed, unreadable = records.read_cells(run)
    assert believed == {} and unreadable == {stored.name: f"{stored.name}: the checksum does not match the content"}


def test_lines_of_another_index_do_not_count(stored, record):
    """Those of before records had digests there; and those whose own sum does not fit."""
    file = stored.parents[1] / ".index"
    name, marks, digest, *rest = file.read_text().split()
    for text in (f"{name} {marks} error 1.0 01234567", " ".join([name, marks, digest[::-1], *rest])):
        file.write_text(f"{text}\n")
        assert index.entries(stored.parents[1], {"ok", "error"}) == {}
        assert records.summary(stored.parents[1]).cells == {record.id: ("ok", 0.25)}


def test_what_cannot_be_written_leaves_the_old_file(stored, record):
    before = stored.read_bytes()
    wrong = Manifest(name="x", command="x", started="x", settings={"x": float("nan")})
    with pytest.raises(ValueError, match="Out of range"):
        records.write(stored, wrong)
    with pytest.raises(UnicodeEncodeError):
        records.write_text(stored, "half of it \ud800")
    assert stored.read_bytes() == before
    assert [each.name for each in stored.parent.iterdir()] == [stored.name]


def test_what_a_killed_writer_leaves_is_overlooked(stored, record):
    (stored.parent / f".{stored.name}.0a1b.tmp").write_text('{"half')
    assert records.read_cells(stored.parents[1]) == ({record.id: record}, {})


def test_files_get_the_usual_permissions(stored):
    mask = os.umask(0)
    os.umask(mask)
    assert stored.stat().st_mode & 0o777 == 0o666 & ~mask


def test_writers_at_once_do_no_harm(stored, record):
    def write():
        for _ in range(20):
            records.write(stored, record)

    writers = [Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert records.read(stored, Record) == record
    assert [each.name for each in stored.parent.iterdir()] == [stored.name]


def test_the_id_does_not_depend_on_any_order():
    reverse = dict(reversed(SETTINGS.items())) | {"versions": {"estimator": "2", "problem": "1"}}
    assert list(reverse) != list(SETTINGS)
    assert Cell(**reverse).id == Cell(**SETTINGS).id == "ad890ff0c9fdf21f8ae6"  # on every machine


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("problem", ['p[x="seed":null]', '"seed":null,"seed":', "θ\n\\"])
def test_the_id_is_the_hash_of_the_canonical_settings(problem, seed):
    cell = Cell(
        **{**SETTINGS, "problem": problem, "seed": seed, "versions": {"seed": "null", "estimator": '"seed":null'}}
    )
    whole = hashlib.sha256(canonical_json(cell.model_dump()).encode())
    assert cell.id == whole.hexdigest()[:20]


def test_the_id_depends_on_every_field():
    other = {
        "problem": "gaussian-1d[loc=0.6]", "estimator": "dreg", "num_samples": 5, "replicates": 101, "seed": 2,
        "dtype": "float64", "device": "cpu", "compiled": False, "matmul_precision": "medium",
        "versions": {"problem": "1", "estimator": "3"},
    }  # fmt: skip
    assert set(other) == set(Cell.model_fields)
    ids = {Cell(**SETTINGS).id} | {Cell(**{**SETTINGS, name: value}).id for name, value in other.items()}
    assert len(ids) == len(other) + 1


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"replicates": 1}, {"seed": -1}, {"surplus": 1}])
def test_cells_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        Cell(**{**SETTINGS, **wrong})


def test_records_import_no_torch():
    code = "import sys, benchmarks.records; sys.exit('torch' in sys.modules or 'estimators' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
