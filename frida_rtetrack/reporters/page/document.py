"""Puts the page together: one HTML file with its style, its script and its contents in it, that asks for nothing else.

What a program called itself is hostile input: it is in the file as JSON only, in which no tag can end, and the script
shows it as text only. The policy in the file's head lets nothing run but that script, and nothing be loaded at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import BinaryIO

from frida_rtetrack.reporters.page.contents import Page, contents

SCRIPTS = ("model.js", "timeline.js", "flame.js", "tables.js", "page.js")
_IN_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write(page: Page, file: BinaryIO) -> None:
    """Writes the HTML file."""
    style = _part("page.css")
    script = '"use strict";\n(() => {\n' + "".join(map(_part, SCRIPTS)) + "})();\n"
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    parts = {"POLICY": policy, "STYLE": style, "CONTENTS": _json(page), "SCRIPT": script}
    html = _part("page.html")
    for name, part in parts.items():
        before, mark, after = html.partition(f"@{name}@")
        assert mark
        file.write((before + part).encode())
        html = after
    file.write(html.encode())


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


def _hash(part: str) -> str:
    """As CSP names what is inline (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}"


def _json(page: Page) -> str:
    return json.dumps(contents(page), separators=(",", ":")).translate(_IN_JSON)
