"""The wording of code and documentation, as numbers: five groups of words per 1,000 words, each within a budget.

The groups are habits that make sentences hard to read: pronouns for people in place of a component's name, verbs of
speech in place of what a component does, and denials in place of a statement. These words also have proper uses, so the
budgets are not zero. A budget may be lowered, never raised.

    .venv/bin/python tests/test_wording.py [PATH...]     lists every hit with file and line
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

GROUPS: Mapping[str, re.Pattern[str]] = {
    "who": re.compile(r"\b(who|whoever|whose|whom)\b", re.IGNORECASE),
    "nobody": re.compile(r"\b(nobody|somebody|anybody|everybody)\b", re.IGNORECASE),
    "told": re.compile(r"\b(told|tells?|heard|hears?|said|says?)\b", re.IGNORECASE),
    "is no": re.compile(r"\b(is|are|was|be|as) (no|none|nothing|nobody)\b", re.IGNORECASE),
    "what is": re.compile(r"(?:^|[.;:,] )what (is|was|it|a|an|the|has|comes|came)\b", re.IGNORECASE | re.MULTILINE),
}
# Hits per 1,000 words.
CODE_BUDGET: Mapping[str, float] = {"who": 0.5, "nobody": 0.3, "told": 1.0, "is no": 0.7, "what is": 0.5}
DOCS_BUDGET: Mapping[str, float] = {group: 2 * budget for group, budget in CODE_BUDGET.items()}

_WORD = re.compile(r"[A-Za-z']+")
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)

Text = tuple[str, int, str]  # path, line, text


def code_texts(paths: Iterable[Path]) -> Iterator[Text]:
    """Docstrings, comments and every string of more than one word, from Python files."""
    for path in paths:
        source, name = path.read_text(), str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield name, node.lineno, node.value
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield name, token.start[0], token.string.lstrip("#: ")


def names_of_tests(paths: Iterable[Path]) -> Iterator[Text]:
    """The names of test functions, as words."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield str(path.relative_to(ROOT)), node.lineno, node.name.removeprefix("test_").replace("_", " ")


def page_texts(paths: Iterable[Path]) -> Iterator[Text]:
    """The prose of Markdown pages, without generated parts (their words are counted in the code) and code blocks."""
    for path in paths:
        text = _FENCE.sub(_blank, _GENERATED.sub(_blank, path.read_text()))
        for number, line in enumerate(text.splitlines(), 1):
            yield str(path.relative_to(ROOT)), number, line


def _blank(found: re.Match[str]) -> str:
    return "\n" * found.group().count("\n")


def hits(texts: Iterable[Text]) -> tuple[int, list[tuple[str, str]]]:
    """The number of words, and each hit as (group, `PATH:LINE: words around it`)."""
    words, found = 0, []
    for path, line, text in texts:
        words += len(_WORD.findall(text))
        for group, pattern in GROUPS.items():
            for match in pattern.finditer(text):
                at = line + text.count("\n", 0, match.start())
                around = " ".join(text[max(0, match.start() - 30) : match.end() + 30].split())
                found.append((group, f"{path}:{at}: {around}"))
    return words, found


def over_budget(texts: Iterable[Text], budget: Mapping[str, float]) -> list[str]:
    """One complaint for each group above its budget, with the first hits."""
    words, found = hits(texts)
    counts = Counter(group for group, _ in found)
    return [
        f"{group}: {1000 * counts[group] / words:.2f} per 1,000 words, budget {budget[group]}; "
        + "; ".join(where for each, where in found if each == group)[:2000]
        for group in GROUPS
        if 1000 * counts[group] > budget[group] * words
    ]


CODE = sorted(path for folder in ("gateway", "plugins") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").glob("*.md"), *ROOT.glob("*.md"), ROOT / "bench" / "README.md"]
)


@pytest.mark.parametrize("folder", ["gateway", "plugins"])
def test_wording_of_code_is_within_budget(folder: str) -> None:
    assert over_budget(code_texts(p for p in CODE if p.is_relative_to(ROOT / folder)), CODE_BUDGET) == []


def test_wording_of_tests_and_benchmarks_is_within_budget() -> None:
    this = Path(__file__).resolve()  # it quotes the words
    assert over_budget(code_texts(path for path in TESTS if path != this), DOCS_BUDGET) == []
    assert over_budget(names_of_tests(TESTS), DOCS_BUDGET) == []


def test_wording_of_pages_is_within_budget() -> None:
    assert over_budget(page_texts(PAGES), DOCS_BUDGET) == []


def test_each_group_is_counted_in_docstrings_comments_and_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "a.py"
    file.write_text(
        '"""Serves a client. What is late is dropped."""\n# nobody waits here\nraise ValueError(f"{1} is no name")\n'
        "def f():\n    '''The client whose body\n    is told so.'''\n"
    )
    words, found = hits(code_texts([file]))
    assert words > 15
    assert sorted((group, where.partition(": ")[0]) for group, where in found) == [
        ("is no", "a.py:3"),
        ("nobody", "a.py:2"),
        ("told", "a.py:6"),
        ("what is", "a.py:1"),
        ("who", "a.py:5"),
    ]


def test_generated_parts_and_code_blocks_of_pages_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text("<!-- generated: x -->\nnobody\n<!-- end -->\n```\nwho\n```\nNobody knows.\n")
    assert hits(page_texts([page]))[1] == [("nobody", "a.md:7: Nobody knows.")]


def main(arguments: list[str]) -> None:
    """Print every hit below the paths given, or in the whole tree."""
    given = [Path(argument).resolve() for argument in arguments]
    paths = [p for p in (*CODE, *TESTS, *PAGES) if not given or any(p.is_relative_to(g) for g in given)]
    code, pages = [p for p in paths if p.suffix == ".py"], [p for p in paths if p.suffix == ".md"]
    words, found = hits([*code_texts(code), *page_texts(pages)])
    counts = Counter(group for group, _ in found)
    print(*(f"{where}  [{group}]" for group, where in sorted(found, key=lambda hit: hit[1])), sep="\n")
    print(f"{words} words; per 1,000:", *(f"{group} {1000 * counts[group] / max(words, 1):.2f}" for group in GROUPS))


if __name__ == "__main__":
    main(sys.argv[1:])
