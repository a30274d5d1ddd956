"""A hook of mkdocs: the code of the tutorial is run when the site is built, and its pictures are what that code has drawn."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = Path(__file__).with_name("tutorial.md")


def code(page: Path) -> str:
    """All Python of a page, as one program."""
    return "\n\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8")))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(code(PAGE), str(PAGE), "exec"), {"__name__": "tutorial"})
        for picture in sorted(Path(folder).glob("*.svg")):
            files.append(File.generated(config, picture.name, content=picture.read_text(encoding="utf-8")))
    return files
