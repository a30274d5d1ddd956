"""Damage to a run folder, and whatever keeps a run from writing to it: told clearly, the rest intact, made good on resume."""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks import index, plan, records, runner
from benchmarks.registry import Registry
from benchmarks.schema import STATUSES, Record

HOSTILE = Path(__file__).with_name("hostile.py")
ASKED = ["run", "-p", "gaussian-1d", "-e", "iwae", "-e", "dreg", "-K", "2,3", "-R", "100", "-j", "2", "-o"]
KNOWN = {"manifest.json", "environment.json", "cells", "moments", ".index"}


@pytest.fixture(scope="module")
def cells():
    changes = {"problems": ["gaussian-1d"], "estimators": ["iwae", "dreg"], "num_samples": [2, 3], "replicates": 100}
    return plan.cells(plan.configure(None, changes), Registry())[0]


def go_on(folder, cells):
    """What ``gradest run`` does in a folder; how many cells were measured."""
    runner.open_run(folder, cells, command="", settings={}, bibliography={}, workers=2)
    return runner.run(folder, runner.pending(folder, cells)[0], workers=2).counts.total()


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    """A run of four cells that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert go_on(folder, cells) == 4
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_damaged_records_are_named_and_measured_again(folder, whole, cells, same):
    paths = sorted((folder / "cells").glob("*.json"))
    paths[0].write_bytes(paths[0].read_bytes()[:-50])
    flip(paths[1], paths[1].read_bytes().index(b'"seconds"') + 2)
    paths[2].write_bytes(b"")
    damaged = {path.name for path in paths[:3]}
    assert records.read_cells(folder)[1].keys() == damaged
    left, done, told = runner.pending(folder, cells)
    assert ({f"{cell.id}.json" for cell in left}, done, len(told)) == (damaged, 1, 3)
    before = paths[3].read_bytes()
    assert go_on(folder, cells) == 3
    assert same(whole, folder) == 4 and paths[3].read_bytes() == before


def test_a_link_to_nowhere_hides_no_other_record(folder, cells):
    places = [folder / "cells" / f"{letter * 20}.json" for letter in "ab"]
    places[0].symlink_to("nowhere")
    places[1].symlink_to(places[1].name)  # in a circle
    known = records.summary(folder)
    assert len(known.cells) == 4 and known.unreadable == records.read_cells(folder)[1]
    assert known.unreadable.keys() == {place.name for place in places}
    assert runner.pending(folder, cells)[:2] == ([], 4)


def test_the_index_hides_no_damage(folder, cells):
    """A bit is flipped in place, and the times of the file are put back: inode, size and modification time are the same."""
    known = records.summary(folder)
    assert len(known.cells) == 4 and not known.unreadable
    path = sorted((folder / "cells").glob("*.json"))[0]
    before = path.stat()
    flip(path, random.Random(0).randrange(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    marks = [(each.st_ino, each.st_size, each.st_mtime_ns) for each in (before, after)]
    assert marks[0] == marks[1]
    assert records.summary(folder).unreadable.keys() == {path.name}
    assert len(runner.pending(folder, cells)[0]) == 1


@pytest.mark.parametrize("damage", ["absent", "empty", "torn", "flipped", "of another folder", "noise"])
def test_a_damaged_index_changes_nothing(folder, whole, damage):
    index = folder / ".index"
    expected = records.summary(whole)
    assert records.summary(folder) == expected
    content = index.read_bytes()
    if damage == "absent":
        index.unlink()
    else:
        changed = {
            **{"empty": b"", "torn": content[: len(content) // 2], "flipped": content.replace(b" ok ", b" error ")},
            **{"of another folder": (whole / ".index").read_bytes(), "noise": bytes(range(256)) * 40},
        }
        index.write_bytes(changed[damage])
    assert records.summary(folder) == expected
    assert records.summary(folder) == expected  # and once more, by the index that was made good


def test_an_index_that_is_a_link_is_not_written_through(folder, whole):
    theirs = folder.parent / "theirs"
    theirs.write_text("precious\n")
    (folder / ".index").unlink()
    (folder / ".index").symlink_to(theirs)
    assert records.summary(folder) == records.summary(whole)
    assert theirs.read_text() == "precious\n"


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e308, -1.0])
def test_seconds_that_no_cell_takes_are_not_believed(gradest, folder, whole, seconds):
    """Of lines that fit their sums, and of records that fit their checksums."""
    known = index.entries(folder, STATUSES)
    index.note(folder, [entry._replace(seconds=seconds) for entry in known.values()])
    assert records.summary(folder) == records.summary(whole)
    if math.isfinite(seconds):
        for id, record in records.read_cells(folder)[0].items():
            records.write(folder / "cells" / f"{id}.json", record.model_copy(update={"seconds": seconds}))
        assert len(records.summary(folder).unreadable) == 4
        told = gradest("status", folder, "--json")
        assert (told.returncode, json.loads(told.stdout)["left"]) == (0, 4), told.stderr


def test_the_index_spares_reading(folder, monkeypatch):
    expected = records.summary(folder)

    def refuse(*arguments):
        raise AssertionError("a record was read")

    monkeypatch.setattr(records, "_read_cell", refuse)
    assert records.summary(folder) == expected


def test_a_moved_or_copied_folder_goes_on(folder, cells, whole, same, tmp_path):
    sorted((folder / "cells").glob("*.json"))[0].unlink()
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert go_on(moved, cells) == 1
    copied = shutil.copytree(moved, tmp_path / "copied")
    assert go_on(copied, cells) == 0
    assert same(whole, copied) == 4


def test_clocks_do_not_matter(folder, cells):
    for number, path in enumerate(sorted((folder / "cells").glob("*.json"))):
        os.utime(path, (10**9 * (number % 2) * 3, 10**9 * (number % 2) * 3))  # 1970, and 2065
    assert runner.pending(folder, cells)[:2] == ([], 4)


def test_a_failure_does_not_take_the_place_of_a_result(folder, stored):
    for record in stored(folder).values():
        failure = Record(id=record.id, cell=record.cell, status="killed")
        records.write_cell(folder, failure)
        assert stored(folder)[record.id] == record
        records.write(folder / "cells" / f"{record.id}.json", failure)
        records.write_cell(folder, record.model_copy(update={"status": "error"}))
        assert stored(folder)[record.id].status == "error"


def test_two_runs_in_one_folder(gradest, whole, same, tmp_path):
    both = [gradest.start(*ASKED, tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    # They did meet: together they measured more cells than there are, or each of them some.
    measured = [int(out.split()[0]) for out, _ in printed]
    assert sum(measured) >= 4 and all("Traceback" not in err for _, err in printed)
    assert same(whole, tmp_path) == 4
    assert {each.name for each in tmp_path.iterdir()} == KNOWN
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_may_only_be_read(gradest, whole):
    """The superuser may write anywhere, so that right is dropped first."""
    place = Path(tempfile.mkdtemp())
    try:
        folder = shutil.copytree(whole, place / "run")
        sorted((folder / "cells").glob("*.json"))[0].unlink()
        for each in [place, *place.rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        done = gradest(*ASKED, folder, preexec_fn=give_up_rights)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("gradest: cannot write ") and done.stderr.count("\n") == 1, done.stderr
        assert f"nothing may be written in {folder}" in done.stderr
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        for each in [place, *place.rglob("*")]:
            each.chmod(0o755)
        shutil.rmtree(place)


def give_up_rights():
    """Of capabilities, those by which the superuser writes and reads where nobody may."""
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    if os.geteuid() == 0:
        for right in (cap_dac_override, cap_dac_read_search):
            assert ctypes.CDLL(None).prctl(pr_capbset_drop, right, 0, 0, 0) == 0


def test_records_that_cannot_be_read_are_set_aside_and_measured_again(gradest, folder, whole, same):
    """One that nobody may read, one that is a folder, one a pipe that nobody writes to, one of a tebibyte of nothing."""
    paths = sorted((folder / "cells").glob("*.json"))
    paths[0].chmod(0)
    for path, make in ((paths[1], Path.mkdir), (paths[2], os.mkfifo), (paths[3], Path.touch)):
        path.unlink()
        make(path)
    os.truncate(paths[3], 2**40)
    said = gradest("status", folder, preexec_fn=give_up_rights)
    assert said.returncode == 0 and said.stdout.startswith("ok 0 ") and "unreadable 4" in said.stdout, said
    assert "PermissionError" in said.stdout and "IsADirectoryError" in said.stdout  # the faults were there
    done = gradest(*ASKED, folder, preexec_fn=give_up_rights)
    assert done.returncode == 0 and done.stdout.startswith("4 cells measured, 0 failed"), done.stderr
    assert all(f"set aside, measured again: {path.name}: unreadable" in done.stderr for path in paths)
    assert same(whole, folder) == 4


def test_pipes_and_huge_files_are_named_and_not_waited_for(gradest, folder, tmp_path):
    """In the place of everything but manifest and records, which are above; and a name that a terminal would obey."""
    pipes = [".index", "environment.json", "training/x.json", "study/iwae.json", "pictures/pipe.safetensors"]
    for name in pipes:
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
    (folder / "pictures" / "huge.safetensors").touch()
    os.truncate(folder / "pictures" / "huge.safetensors", 2**40)
    (folder / "cells" / "\x1b[31m.json").write_text("{")
    (folder / "cells" / "a\nb.json").write_text("{")
    said = gradest("status", folder)
    assert said.stdout.startswith("ok 4 ") and "unreadable: ?[31m.json: " in said.stdout and "\x1b" not in said.stdout
    assert "unreadable: a b.json: " in said.stdout
    done = gradest("report", folder, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in html for name in [*pipes[1:], "pictures/huge.safetensors"])


FULL = """
import sys
from benchmarks import runner
from benchmarks.cli import main
runner.LEAST_FREE_BYTES = 0  # the disk has room when the run begins
main()
"""


def fill_up(script, prefix, fault, whole, same, tmp_path):
    """Two runs, the second with room again: what the first left, it kept; what it could not write, it told."""
    done = subprocess.run(
        [*prefix, "sh", "-c", script], capture_output=True, text=True, env={**os.environ, "FULL": FULL}
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this process may not mount a file system, so no disk was filled: {done.stderr.strip()}")
    assert "first: 3\n" in done.stdout and "second: 0\n" in done.stdout, done
    assert fault in done.stderr
    assert "Traceback" not in done.stderr and "run the same command again" in done.stderr
    found, unreadable = records.read_cells(tmp_path / "kept")
    assert not unreadable and len(found) < 4
    assert {record.status for record in found.values()} <= {"ok"}
    assert same(whole, tmp_path / "resumed") == 4


def asked(folder):
    return " ".join([sys.executable, "-c", '"$FULL"', *ASKED, str(folder)])


def test_a_disk_that_fills_up(whole, same, tmp_path):
    """A file system with room for the manifest and a record or two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command, pages = asked(disk / "run"), 10  # of 4 KiB
    script = f"""
        mount -t tmpfs -o size={pages * 4096} none {disk} || exit 77
        {command}; echo "first: $?"; cp -r {disk}/run {tmp_path}/kept
        mount -o remount,size=10m {disk}
        {command}; echo "second: $?"; cp -r {disk}/run {tmp_path}/resumed
    """
    prefix = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    fill_up(script, prefix, "No space left", whole, same, tmp_path)


def test_files_that_may_not_grow(whole, same, tmp_path):
    """A limit on the size of files, as quotas are: the call that fails on a full disk fails."""
    command, size = asked(tmp_path / "run"), max(path.stat().st_size for path in whole.glob("*.json"))
    script = f"""
        (ulimit -f {size // 512 + 1}; {command}); echo "first: $?"; cp -r {tmp_path}/run {tmp_path}/kept
        {command}; echo "second: $?"; cp -r {tmp_path}/run {tmp_path}/resumed
    """
    fill_up(script, [], "File too large", whole, same, tmp_path)


def interrupt(process, times=1, number=signal.SIGINT):
    """As a terminal does: to the whole foreground group."""
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.3)


HANGING = ["--plugin", HOSTILE, "-e", "Last", "-e", "Hangs"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_stops_cleanly(gradest, workers_of, until, stored, tmp_path, number):
    process = gradest.start(*ASKED, tmp_path, *HANGING, start_new_session=True)
    # One of the workers is in an endless sleep, so the run cannot end by itself.
    until(lambda: len(list(tmp_path.glob("cells/*.json"))) >= 3)
    below = workers_of(process)
    assert below and process.poll() is None
    interrupt(process, number=number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("gradest: stopped; finished cells are kept, run the same command again")
    assert "Traceback" not in err
    assert not any(each.is_running() and each.status() != "zombie" for each in below)
    assert len(stored(tmp_path)) >= 3 and {record.status for record in stored(tmp_path).values()} == {"ok"}


IMPORTING = """
import sys, time
from benchmarks.cli import main

class Slow:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("it begins", flush=True)
            time.sleep(600)

sys.meta_path.insert(0, Slow)
main()
"""


@pytest.mark.parametrize("words", [[*ASKED, "OUT"], ["list"], ["check", "iwae"]], ids=lambda words: words[0])
def test_an_interrupt_while_torch_is_imported_says_so(words, tmp_path):
    """One line, also of the process that forks workers, which imports torch at the same time and is interrupted with it."""
    command = [sys.executable, "-c", IMPORTING, *[word.replace("OUT", str(tmp_path / "out")) for word in words]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout.readline() == "it begins\n"
        time.sleep(0.3)
        interrupt(process)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "gradest: stopped\n")
    assert not (tmp_path / "out").exists()


STUCK = """
import time
from benchmarks import local
from benchmarks.cli import main
local.Local.shutdown = lambda *arguments, **options: time.sleep(600)
main()
"""


def test_the_second_interrupt_stops_at_once(workers_of, until, stored, tmp_path):
    """What is to be done on the first takes for ever."""
    command = [sys.executable, "-c", STUCK, *map(str, [*ASKED, tmp_path, *HANGING])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(list(tmp_path.glob("cells/*.json"))) >= 3)
    below = workers_of(process)
    interrupt(process)
    time.sleep(0.5)
    assert below and process.poll() is None  # in the middle of cleaning up
    interrupt(process)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("gradest: stopped at once")
    until(lambda: not any(each.is_running() and each.status() != "zombie" for each in below))
    assert len(stored(tmp_path)) >= 3
