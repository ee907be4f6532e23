"""One self-contained HTML file of a run: markup, style, scripts and data in it."""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from maw_gym.errors import InputError
from maw_gym.files import written_whole
from maw_gym.tables.task import RetrievalTask
from runners.report_page import QUERIES
from runners.report_page.payload import run_payload

NAME: Final = "report.html"
LARGEST: Final = 10_000_000  # bytes
SCRIPTS: Final = ("base.js", "charts.js", "overview.js", "attention.js", "explorer.js")


def write_report_page(
    run_folder: Path, task: RetrievalTask | None = None, queries: int = QUERIES
) -> Path:
    """Write `report.html` into the folder of a finished run."""
    page = rendered(run_payload(run_folder, task, queries))
    path = run_folder / NAME
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="ascii")
    return path


def rendered(payload: dict[str, Any]) -> str:
    """The page that shows `payload`, in ASCII."""
    assets = files("runners.report_page") / "assets"

    def read(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    style = read("style.css")
    script = "\n".join(['"use strict";', *map(read, SCRIPTS)])
    page = read("template.html")
    parts = {
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data_block(payload),
    }
    for name, content in parts.items():
        before, after = page.split(f"[[{name}]]")
        page = before + content + after
    if len(page) > LARGEST:
        raise InputError(f"the page would have {len(page)} bytes, more than {LARGEST}")
    return page


def data_block(payload: Any) -> str:
    """JSON that holds neither `<`, `>` nor `&`, and nothing outside ASCII."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(content: str) -> str:
    """What a content security policy calls an inline block by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
