"""The bounds of tests/shape.py, on small trees made for the test and on our tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shape


def tree(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        path = tmp_path / "gateway" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def complaints(root: Path) -> list[str]:
    return shape.measured(root, {})[1]


def function(name: str, lines: int) -> str:
    return f'def {name}():\n    """It is."""\n' + "    x = 1\n" * (lines - 2)


def test_our_code_is_within_the_bounds() -> None:
    assert complaints_of_ours() == []


def complaints_of_ours() -> list[str]:
    return shape.measured(shape.ROOT, shape.LONGER)[1]


def test_short_functions_pass_and_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\n' + function("one", 4) + function("two", 8))
    numbers, wrong = shape.measured(root, {})
    assert wrong == []
    assert numbers[0] == "gateway, plugins: 2 functions, median 6 lines (at most 12), p95 8 (at most 40)"


@pytest.mark.parametrize(
    ("lengths", "is_fine"), [([9, 9, 9], True), ([13, 13, 13], False), ([3] * 8 + [41] * 2, False)]
)
def test_long_functions_are_listed(tmp_path: Path, lengths: list[int], is_fine: bool) -> None:
    root = tree(tmp_path, a='"""A."""\n' + "".join(function(f"f{n}", lines) for n, lines in enumerate(lengths)))
    found = complaints(root)
    assert (found == []) is is_fine
    assert all("functions are too long; the longest ones: gateway/a.py:" in each for each in found)


def test_a_long_file_is_listed_unless_excepted_and_a_stale_exception_is_listed(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\n' + "x = 1\n" * 450, b='"""B."""\n')
    assert complaints(root) == ["gateway/a.py: 451 lines, more than 450: split it by subject"]
    assert shape.measured(root, {"gateway/a.py": "one story"})[1] == []
    assert "no longer exceeds the limit" in shape.measured(root, {"gateway/a.py": "", "gateway/b.py": ""})[1][0]


def test_an_import_inside_a_function_counts_for_cycles(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\nimport gateway.b\n', b='"""B."""\ndef _later():\n    import gateway.a\n')
    assert "import cycle gateway.a → gateway.b → gateway.a" in complaints(root)[0]


def undocumented(text: str, path: str = "gateway/m.py") -> list[str]:
    return [each.partition(" ")[2] for each in shape.undocumented({path: ast.parse(text)})]


def test_modules_and_public_classes_need_a_docstring() -> None:
    assert undocumented("x = 1") == ["the module has no docstring"]
    assert undocumented('"""M."""\nclass A: pass\nclass _B: pass\n') == ["A has no docstring"]
    assert undocumented('"""M."""\ndef f(): pass\nclass A:\n    """A."""\n    def m(self): pass\n') == []


def test_public_functions_and_methods_need_a_docstring_in_the_plugin_api() -> None:
    text = '"""M."""\ndef f(): pass\ndef _g(): pass\n'
    text += 'class A:\n    """A."""\n    def m(self): pass\n    def _n(self): pass\n'
    assert undocumented(text, "gateway/plugin/task.py") == ["f has no docstring", "A.m has no docstring"]
