"""Chromium over its own pipe: no driver, no server, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """One tab, spoken to in the DevTools protocol; what the console and the network say is kept."""

    def __init__(self, binary: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # browser's input, browser's output
        self.write, self.read = ours[1], theirs[0]
        command = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", command, binary, *options, "about:blank"],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.number, self.pending, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self(f"{domain}.enable")
        self("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            piece = os.read(self.read, 2**16)
            assert piece, "the browser has gone"
            self.pending += piece
        line, _, self.pending = self.pending.partition(b"\0")
        return json.loads(line)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def open(self, path: Path, width: int = 1440, scheme: str = "light") -> None:
        """A file, at a width, in a colour scheme."""
        self.events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=path.as_uri())
        self.wait("document.readyState == 'complete' && location.protocol == 'file:'")

    def complaints(self) -> list[str]:
        """What the console said, and every request but for the file itself."""
        said = [each["params"] for each in self.events]
        found = [str(p["args"]) for p in said if p.get("type") in ("error", "warning", "assert") and "args" in p]
        found += [str(p["exceptionDetails"]) for p in said if "exceptionDetails" in p]
        found += [p["entry"]["text"] for p in said if "entry" in p]
        asked = [p["request"]["url"] for p in said if "request" in p]
        return found + [url for url in asked if not url.startswith(("file:", "data:"))]

    def close(self) -> None:
        self.session = ""
        self("Browser.close")
        self.process.wait(timeout=20)
        os.close(self.write)
        os.close(self.read)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    known = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = os.environ.get("CHROMIUM") or next((name for name in known if shutil.which(name)), None)
    assert binary, f"none of {', '.join(known)} is on the path; CHROMIUM=... names another"
    opened = Browser(str(shutil.which(binary) or binary), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
