"""Estimators that misbehave, each in one way; as a plug-in file, for the tests beside it."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from estimators import Estimator, Target, Weights


class Right(Estimator):
    """Nothing is wrong with it, but that it talks."""

    needs = frozenset({"reparameterizable"})

    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def weights(self, log_w):
        self.mischief(log_w)
        return Weights(1 / self.num_samples, None, 1 / self.num_samples)

    def mischief(self, log_w):
        print("an estimator that talks")


class Raises(Right):
    def mischief(self, log_w):
        raise RuntimeError("on purpose")


class RaisesHalfACharacter(Right):
    def mischief(self, log_w):
        raise RuntimeError("\ud800" * 10_000)


class RaisesWhatCannotBeShown(Right):
    def mischief(self, log_w):
        class Mute(Exception):
            def __str__(self):
                raise ValueError("no text")

        raise Mute


class RaisesTwoLines(Right):
    """By its name; and its text would ring."""

    def mischief(self, log_w):
        raise type("Two\nLines", (Exception,), {})("on\a purpose")


class SaysThatTheDiskIsFull(Right):
    def mischief(self, log_w):
        raise OSError(28, "No space left on device")


class Interrupts(Right):
    def mischief(self, log_w):
        raise KeyboardInterrupt


class Leaves(Right):
    def mischief(self, log_w):
        sys.exit(3)


class LeavesAtOnce(Right):
    def mischief(self, log_w):
        os._exit(0)  # not even an exit code tells


class KillsItself(Right):
    def mischief(self, log_w):
        os.kill(os.getpid(), 9)


class ClosesAllFiles(Right):
    def mischief(self, log_w):
        os.closerange(3, 256)


class Hangs(Right):
    def mischief(self, log_w):
        time.sleep(600)


class Allocates(Right):
    def mischief(self, log_w):
        held = []
        while True:
            held.append(torch.ones(2**24))


class AllocatesLists(Right):
    def mischief(self, log_w):
        held = []
        while True:
            held.append(bytearray(2**26))


class NotANumber(Right):
    def weights(self, log_w):
        return Weights(log_w.masked_fill(log_w > log_w.mean(0), torch.nan), None, 1.0)


class Infinite(Right):
    def weights(self, log_w):
        return Weights(torch.full_like(log_w, torch.inf), None, 1.0)


class Enormous(Right):
    """Each estimate is a number, and its square is none."""

    def weights(self, log_w):
        return Weights(torch.full_like(log_w, 1e200), None, 1.0)


class OfAnotherType(Right):
    def weights(self, log_w):
        return Weights(torch.ones_like(log_w).to(torch.complex64), None, 1.0)


class Misshapen(Right):
    def weights(self, log_w):
        return Weights(torch.ones(7, dtype=log_w.dtype), None, 1.0)


class GivesText(Right):
    def weights(self, log_w):
        return "weights"


class SetsDtype(Right):
    def mischief(self, log_w):
        torch.set_default_dtype(torch.float16)


class SeedsTorch(Right):
    def mischief(self, log_w):
        torch.manual_seed(1)


class SeedsOthers(Right):
    def mischief(self, log_w):
        np.random.seed(1)
        random.seed(2)


class FlushesDenormals(Right):
    def mischief(self, log_w):
        assert torch.set_flush_denormal(True)


class TakesThreads(Right):
    def mischief(self, log_w):
        torch.set_num_threads(2)


class ChangesFolder(Right):
    def mischief(self, log_w):
        os.chdir("/")


class SetsVariables(Right):
    def mischief(self, log_w):
        os.environ["GRADEST_CACHE"] = "/nowhere"


class ChangesParameters(Right):
    def gradient(self, model, parameters, noise):
        for block in parameters.values():
            for leaf in block.values():
                leaf.add_(1)
        return super().gradient(model, parameters, noise)


class ChangesData(Right):
    def gradient(self, model, parameters, noise):
        model.data.mul_(2)
        return super().gradient(model, parameters, noise)


class ChangesNoise(Right):
    def gradient(self, model, parameters, noise):
        noise.zero_()
        return super().gradient(model, parameters, noise)


class PatchesTorch(Right):
    """Nothing of this can be seen from outside; whoever comes next is not to meet it."""

    def mischief(self, log_w):
        torch.logsumexp = torch.Tensor.logsumexp = torch.Tensor.softmax = None


class Forks(Right):
    """Both processes go on as if they were the only one."""

    forked = False

    def mischief(self, log_w):
        if not Forks.forked:
            Forks.forked = True
            os.fork()


class ForksASleeper(Forks):
    def mischief(self, log_w):
        if not Forks.forked:
            Forks.forked = True
            if os.fork() == 0:
                time.sleep(600)


class ForksAndExits(Right):
    def mischief(self, log_w):
        if os.fork() == 0:
            sys.exit(3)
        os.wait()


class StartsADaemon(Forks):
    def mischief(self, log_w):
        if not Forks.forked:
            Forks.forked = True
            subprocess.Popen(["sleep", "600"], start_new_session=True)


class DefiesSigterm(Right):
    """And stops itself, so that no handler of its own could be of use."""

    def mischief(self, log_w):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGSTOP)


class StartsADaemonAndDies(Right):
    """Of which nobody hears any more."""

    def mischief(self, log_w):
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os._exit(7)


class StartsAnUnknownDaemonAndDies(Right):
    """And leaves it nothing by which it could be known."""

    def mischief(self, log_w):
        subprocess.Popen(["sleep", unknown(os.environ["GRADEST_TEST"])], start_new_session=True, env={})
        os._exit(7)


def unknown(mark):
    """So many seconds as nobody else sleeps."""
    return str(10**6 + zlib.crc32(mark.encode()))


class OpensTooMany(Right):
    """Nothing can be opened any more, which is not the disk's fault."""

    held = []

    def mischief(self, log_w):
        with suppress(OSError):
            while True:
                self.held.append(os.open("/dev/null", os.O_RDONLY))


class WritesToAllFiles(Right):
    """Among them that by which its worker answers: less than an answer, and nothing after it for a while."""

    def mischief(self, log_w):
        for number in range(3, 64):
            with suppress(OSError):
                os.set_blocking(number, False)
                os.write(number, b"\xff" * 100)
                os.set_blocking(number, True)
        time.sleep(0.3)


class PatchesJson(Right):
    """Neither its record nor its worker's answer says anything."""

    def mischief(self, log_w):
        json.dumps = lambda *arguments, **options: "{}"


class StopsTheNursery(Right):
    """The process that all workers are forked from does nothing any more, and says nothing."""

    def mischief(self, log_w):
        os.kill(os.getppid(), signal.SIGSTOP)


class StopsTheNurseryAndDies(Right):
    """With the one who would tell its exit code stopped, nobody would learn it."""

    def mischief(self, log_w):
        os.kill(os.getppid(), signal.SIGSTOP)
        os._exit(7)


class Crashes(Right):
    def mischief(self, log_w):
        ctypes.string_at(0)


class Recurses(Right):
    def mischief(self, log_w):
        self.mischief(log_w)


class RaisesMuch(Right):
    def mischief(self, log_w):
        raise RuntimeError("x" * 10_000_000)


class RaisesNoException(Right):
    def mischief(self, log_w):
        class Other(BaseException):
            def __str__(self):
                raise KeyboardInterrupt

        raise Other


class ClosesStandardOutput(Right):
    def mischief(self, log_w):
        sys.stdout.close()
        os.close(1)


class StartsAThread(Right):
    def mischief(self, log_w):
        threading.Thread(target=time.sleep, args=(600,)).start()


class LimitsFiles(Right):
    """Nothing can be written any more, which is not the disk's fault."""

    def mischief(self, log_w):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


class HidesFiles(Right):
    def mischief(self, log_w):
        os.umask(0o777)


class SetsAnAlarm(Right):
    def mischief(self, log_w):
        signal.alarm(600)


class KillsTheNursery(Right):
    """The process that all workers are forked from, and that they die with."""

    def mischief(self, log_w):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # on a busy machine it would be done before that is dead


class TakesAWhile(Right):
    """Nothing is wrong with it; it is there when others do harm."""

    taken = False

    def mischief(self, log_w):
        if not TakesAWhile.taken:
            TakesAWhile.taken = True
            time.sleep(1)


class Spoils(Right):
    """Writes into the records of others, takes some away, and leaves a pipe that nobody writes to."""

    def mischief(self, log_w):
        cells = Path(os.environ["GRADEST_TEST"]) / "cells"
        pipe = cells / f"{'f' * 20}.json"
        if pipe.exists():
            return  # once is enough, and to write into it would be to wait for ever
        paths = sorted(cells.glob("*.json"))
        for path in paths[::2]:
            path.write_text("{}")
        for path in paths[1::2]:
            path.unlink()
        os.mkfifo(pipe)


class Last(Right):
    pass
