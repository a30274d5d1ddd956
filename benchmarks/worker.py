"""What a worker process does: it measures one cell after another, and answers for the state that they leave behind.

Estimators are other people's code. A worker has a session, a memory limit and a pair of pipe ends of its own; it says what
an estimator changed that was not its to change, and whether it is fit for another cell (:func:`serve`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import safetensors.numpy
import torch

from . import quiet, records
from .files import write_bytes
from .measure import run_cell, run_together
from .outside import NO_MEMORY, one_line, told
from .privacy import private
from .references.loop import LoopEstimator
from .registry import Registry
from .schema import Cell, Record
from .state import global_state, kept

REASON, TRACEBACK = 2_000, 20_000
"""Characters of a reason and of a traceback that a record keeps."""
OF_DISK = re.compile(r"\w*Error: \[Errno (\d+)\] (.*)")
KEPT = re.compile(r"^(\S*[/\\])?measure\.py:\d+ in keep:", re.MULTILINE)
"""A line of a traceback from where moments are written: an estimator may have a method of that name, too."""
OF_PROCESS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
"""What the operating system says of a process that holds too much; disks have no part in that."""
_PID = 0
_PIPE: Connection | None = None
_MEMORY: int | None = None
_SPENT = False


def serve(pipe: Connection, settings: dict[str, Any]) -> None:
    """The life of a worker: take a task, do it, tell what came of it, until the pipe closes.

    Answers are lines of JSON, so nothing that an estimator does to this process is unpickled by the parent, and nothing that
    it sends keeps the parent waiting: ``value``; or ``disk``, what the operating system had against writing; or ``error``,
    what else went wrong; and with each of them ``spent``, whether this process had better do nothing more.
    """
    global _PIPE
    _PIPE = pipe
    start(**settings)
    _say(pipe, {})
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: dict[str, Any] = {"value": function(*arguments)}
        except BaseException as problem:
            of_disk = isinstance(problem, OSError) and problem.errno not in OF_PROCESS
            answer = {"disk": str(problem)} if of_disk else {"error": text(told(problem), REASON)}
        finally:
            if os.getpid() != _PID:
                os._exit(0)
        answer["spent"] = _SPENT or "value" not in answer
        try:
            _say(pipe, answer)
        except OSError:
            return  # whoever asked is gone


def _say(pipe: Connection, answer: dict[str, Any]) -> None:
    line = json.dumps(answer).encode() + b"\n"
    while line:
        line = line[os.write(pipe.fileno(), line) :]


def start(locks: str, memory: int | None, environment: Mapping[str, str], parent: int | None) -> None:
    """Make this process a worker.

    Its own session: a signal meant for the parent's terminal group ends with the parent, and at a deadline the whole group
    can be killed. It dies with its parent, and so does what it forks. What an estimator prints goes to standard error:
    standard output belongs to the command. One thread each: the tensors of a batch are small, and threads that wait for
    one another cost more than they give (measured: ten times slower softmax on two threads of a busy machine).
    """
    global _PID, _MEMORY
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # killed, it would take what it holds back with it
    _PID, _MEMORY = os.getpid(), memory
    die_with_parent(parent)
    close_what_is_for_children()
    os.register_at_fork(after_in_child=_in_child)
    torch.set_num_threads(1)
    quiet.between(locks)
    keep_freed_memory()
    if memory is not None:
        # Of the data segment and private mappings that can be written to, so that neither shared libraries nor the
        # address space that a graphics driver reserves count.
        with suppress(ValueError, OSError):  # a lower limit is set from outside
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def die_with_parent(parent: int | None) -> None:
    """Ask the kernel, where it offers that, to kill this process with its parent, and to be told of orphans below it.

    Elsewhere a thread looks after it once a second.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        pr_set_pdeathsig, pr_set_child_subreaper = 1, 36  # sys/prctl.h
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        libc.prctl(pr_set_child_subreaper, 1, 0, 0, 0)
        if parent is not None and not psutil.pid_exists(parent):
            os._exit(1)
    elif parent is not None:

        def watch() -> None:
            while psutil.pid_exists(parent):
                threading.Event().wait(1)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def close_what_is_for_children() -> None:
    """The pipes that multiprocessing hands on for the sake of a worker's own workers, of which there are none.

    Whoever wrote into them by accident would end the process that all workers are forked from.
    """
    for keeper, name in ((forkserver._forkserver, "_forkserver_alive_fd"), (resource_tracker._resource_tracker, "_fd")):
        number = getattr(keeper, name, None)
        if isinstance(number, int):
            with suppress(OSError):
                os.close(number)
            setattr(keeper, name, None)


def _in_child() -> None:
    """In a process that an estimator forked: no lock, no pipe to the parent, no longer life than the worker's."""
    quiet.after_fork()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if _PIPE is not None:
        with suppress(OSError):
            _PIPE.close()


def keep_freed_memory() -> None:
    """Where the C library is glibc, let this process keep large blocks of memory that it frees.

    By default they go back to the system at once, and each batch of replicates pays for fresh pages again (measured: a
    third fewer gradients per second on one thread).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 32 * 2**20)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def prepare(folder: str, cell: dict[str, Any], plugins: tuple[str, ...], threads: int) -> None:
    """Train what has to be trained, once, and write its curve and its pictures into the run."""
    with kept():
        problem = Registry(plugins).problem(cell["problem"], cell["dtype"], cell["device"])
    torch.set_num_threads(threads)
    try:
        problem.prepare()
    finally:
        torch.set_num_threads(1)
    training = problem.training_record()
    if training is not None:
        records.write(Path(folder) / "training" / f"{training.id}.json", training)
        place = Path(folder) / "pictures" / f"{training.id}.safetensors"
        arrays = None if place.exists() else problem.pictures()
        if arrays:
            write_bytes(place, safetensors.numpy.save(arrays))


def ceilings(dtype: str, device: str) -> dict[str, float]:
    """What this machine can do at most, measured while the other workers wait."""
    from .ceilings import facts

    with quiet.alone():
        return facts(dtype, device)


def work(folder: str, cell: dict[str, Any], plugins: tuple[str, ...]) -> dict[str, Any]:
    """Measure a cell, write its record, and return it.

    Raises:
        OSError: if the record cannot be written.
    """
    global _SPENT
    identity = Cell.model_validate(cell)
    quiet.known_as(identity.id)
    inputs = _inputs(identity, plugins)
    before, digest = global_state(), inputs()
    try:
        found = run_cell(cell, plugins, folder)
    except BaseException as problem:  # SystemExit, an exception that cannot be printed, text that is no Unicode
        found = Record(id=identity.id, cell=identity, status="error", reason=text(told(problem), REASON)).model_dump(
            mode="json"
        )
    finally:
        # A child that an estimator forked comes back here too; there is one record, and one to write it.
        if os.getpid() != _PID and _PID:
            os._exit(0)
    wrong = [f"it changed {what}" for what, value in global_state().items() if value != before[what]]
    wrong += ["it changed the parameters or the data that it was given"] * (inputs() != digest)
    wrong += ["it left a process running"] * end_children()
    _SPENT = bool(wrong) or found["status"] == "error" or threading.active_count() > 1
    if found["status"] == "error" and KEPT.search(found["traceback"]) and (said := OF_DISK.match(found["reason"])):
        raise _unwritten(OSError(int(said[1]), said[2]), wrong)
    if wrong and found["status"] in ("ok", "nonfinite"):
        found |= {"status": "error", "reason": "; ".join(wrong), "blocks": [], "cost": {}}
    elif found["status"] == "error" and _MEMORY is not None and NO_MEMORY.search(found["reason"]):
        found["reason"] = f"{found['reason'][:REASON]}; a worker may take {_MEMORY / 2**30:.3g} GiB (--memory)"
    lengths = {"reason": 2 * REASON, "traceback": TRACEBACK}
    found |= {name: text(private(found[name][: 4 * length]), length) for name, length in lengths.items()}
    found["reason"] = one_line(found["reason"])
    record = Record.model_validate(found)
    try:
        records.write_cell(Path(folder), record)
    except OSError as problem:
        raise _unwritten(problem, wrong) from problem
    return record.model_dump(mode="json")


def _unwritten(problem: OSError, wrong: list[str]) -> Exception:
    """What is to be said of a record that could not be written: it is the disk, unless the estimator changed what it may."""
    return RuntimeError("; ".join(wrong)) if wrong else problem


def work_together(folder: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure cells that share draws, write their records, and return them; none is written unless all is well with all.

    Raises:
        NotWell: if one of them fails, or anything was changed: they are to be measured one by one then.
        OSError: if a record cannot be written.
    """
    global _SPENT
    _SPENT = True  # unless all goes well
    identities = [Cell.model_validate(cell) for cell in cells]
    quiet.known_as(identities[0].id)
    inputs = _inputs(identities[0], ())
    before, digest = global_state(), inputs()
    found = run_together(cells, (), folder)
    if wrong := next((each for each in found if each["status"] == "error"), None):
        raise NotWell(wrong["reason"])
    if global_state() != before or inputs() != digest or end_children():
        raise NotWell("something was changed that was not theirs")
    for each in found:
        records.write_cell(Path(folder), Record.model_validate(each))
    _SPENT = threading.active_count() > 1
    return found


class NotWell(RuntimeError):
    """Cells that were measured together and had better not have been."""


def text(given: str, length: int) -> str:
    """What a record can hold of a text: at most so many characters, all of them Unicode."""
    return given[:length].encode("utf-8", "replace").decode()


def _inputs(cell: Cell, plugins: tuple[str, ...]) -> Callable[[], str]:
    """A function that digests what an estimator is handed: parameters and data of the problem, which later cells share.

    Plug-ins and other libraries are loaded here for the first time, and change nothing by that.
    """
    try:
        with kept():
            registry = Registry(plugins)
            problem = registry.problem(cell.problem, cell.dtype, cell.device)
            _ = problem.parameters
            estimator = registry.estimator(cell.estimator, cell.num_samples)
            if isinstance(estimator, LoopEstimator):
                estimator.load()
    except Exception:
        return lambda: ""  # the cell meets it again, and says so

    def digest() -> str:
        whole = hashlib.sha256()
        leaves = torch.utils._pytree.tree_leaves((problem.data, problem.parameters))
        for leaf in (each for each in leaves if isinstance(each, torch.Tensor)):
            whole.update(str((leaf.shape, leaf.dtype)).encode())
            whole.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    return digest


def end_children() -> bool:
    """Kill whatever this process, or one of its children, has started and left running; whether there was any."""
    if sys.platform == "linux":  # psutil looks at every process of the machine
        with suppress(OSError):
            if not any(path.read_text().strip() for path in Path("/proc/self/task").glob("*/children")):
                return False
    found, children = False, psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            found = found or child.status() != psutil.STATUS_ZOMBIE
            child.kill()
    psutil.wait_procs(children, timeout=5)
    return found
