"""Every promise of the threat model names tests that exist."""

from __future__ import annotations

import ast
import re

from support.documents import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_promise_names_existing_tests() -> None:
    rows = [line for line in PAGE.partition("## Promises")[2].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text())
            found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in found, f"{file} has no {name}"
