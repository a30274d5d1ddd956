"""What a record tells nobody: the home folder, the user, the host, and values of environment variables.

An estimator's exception may quote any of them, and so may the command of a run.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

SHORTEST = 8
"""Characters from which a value of an environment variable is looked for; shorter ones are words like any other."""
UNLIKELY = 16
"""Characters from which a value is looked for within words too, if it is no path: nobody has them there by chance."""


def private(text: str) -> str:
    """The text with names of variables in place of what they hold, ``~`` for the home folder and ``$HOSTNAME`` for the host.

    The user's name counts as such where it is a part of a path, between slashes, and so do hosts in addresses with a port.

    Example:
        >>> os.environ["GRADEST_EXAMPLE"] = "correct horse"
        >>> private("no such key: correct horse, " + str(Path.home() / "x.py"))
        'no such key: $GRADEST_EXAMPLE, ~/x.py'
    """
    for secret, name in _secrets():
        if secret not in text:
            continue
        if len(secret) >= UNLIKELY and os.sep not in secret and name != "$HOSTNAME":
            text = text.replace(secret, name)
        else:
            # Whole words alone: a value may well be the beginning of another path.
            text = re.sub(rf"(?<![\w.-]){re.escape(secret)}(?![\w-])", name.replace("\\", r"\\"), text)
    text = re.sub(r"(?<=://)[^/\s:@$]+(?=:\d)", "$HOST", text)
    with suppress(OSError, KeyError, ImportError):
        text = re.sub(rf"(?<=/){re.escape(getpass.getuser())}(?=/)", "$USER", text)
    return text


def _secrets() -> list[tuple[str, str]]:
    """What must not be told and what is told instead, the longest first."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if len(value) >= SHORTEST:
            found.setdefault(value, f"${name}")
            found.setdefault(repr(value)[1:-1], f"${name}")  # as an exception of several lines is quoted
    with suppress(OSError):
        found[socket.gethostname()] = "$HOSTNAME"
    with suppress(RuntimeError):
        home = str(Path.home())
        if home != os.sep:
            found[home] = "~"
    found.pop("", None)
    return sorted(found.items(), key=lambda item: -len(item[0]))
