"""The gates of `./run lint` on the code's shape, on small made-up trees, and on ours."""

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


def test_our_code_is_in_shape() -> None:
    assert complaints_of_ours() == []


def complaints_of_ours() -> list[str]:
    return shape.measured(shape.ROOT, shape.LONGER)[1]


def test_short_documented_functions_are_fine_and_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\n' + function("one", 4) + function("two", 8))
    numbers, wrong = shape.measured(root, {})
    assert wrong == []
    assert numbers[0] == "gateway, plugins: 2 functions, median 6 lines (at most 9), p95 8 (at most 40)"


@pytest.mark.parametrize(
    ("lengths", "is_fine"), [([9, 9, 9], True), ([10, 10, 10], False), ([3] * 8 + [41] * 2, False)]
)
def test_long_functions_are_named(tmp_path: Path, lengths: list[int], is_fine: bool) -> None:
    root = tree(tmp_path, a='"""A."""\n' + "".join(function(f"f{n}", lines) for n, lines in enumerate(lengths)))
    found = complaints(root)
    assert (found == []) is is_fine
    assert all("functions are too long; the longest: gateway/a.py:" in each for each in found)


def test_a_long_file_is_named_unless_excepted_and_an_exception_must_be_one(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\n' + "x = 1\n" * 500, b='"""B."""\n')
    assert complaints(root) == [
        "gateway/a.py: 501 lines, more than 500: it tells more than one story, give each a file"
    ]
    assert shape.measured(root, {"gateway/a.py": "one story"})[1] == []
    assert "no longer an exception" in shape.measured(root, {"gateway/a.py": "", "gateway/b.py": ""})[1][0]


def test_a_ring_of_imports_counts_where_it_is_hidden_in_a_function(tmp_path: Path) -> None:
    root = tree(tmp_path, a='"""A."""\nimport gateway.b\n', b='"""B."""\ndef _later():\n    import gateway.a\n')
    assert "import cycle gateway.a → gateway.b → gateway.a" in complaints(root)[0]


def silent(text: str) -> list[str]:
    return [each.partition(" ")[2] for each in shape.undocumented({"m.py": ast.parse(text)})]


def test_whatever_is_public_says_what_it_promises() -> None:
    assert silent("x = 1") == ["the module says nothing of itself"]
    assert silent('"""M."""\ndef f(): pass\ndef _g(): pass\n') == ["f says nothing of itself"]
    assert silent('"""M."""\nclass A:\n    """A."""\n    def m(self): pass\n    def _n(self): pass\n') == [
        "A.m says nothing of itself"
    ]


def test_a_method_may_leave_the_saying_to_the_class_it_comes_from() -> None:
    base = '"""M."""\nclass A:\n    """A."""\n    def m(self):\n        """What it promises."""\n'
    assert silent(base + 'class B(A[int]):\n    """B."""\n    def m(self): pass\n') == []
    assert silent(base + 'class B:\n    """B."""\n    def m(self): pass\n') == ["B.m says nothing of itself"]
