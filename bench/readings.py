"""How the code reads, as numbers: density, comprehensions, names, comments.

    python -m bench.readings [FOLDER...]

Readings, not an aim: they show where to look. Measured over the files of the product, tests and
benches left out. Code lines are lines with a token that is neither a comment nor part of a
docstring.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = (
    "app.py",
    "config.py",
    "errors.py",
    "frames.py",
    "archive",
    "keyframes",
    "memory",
    "models",
    "streaming",
    "ui",
)
LONG_FUNCTION_LINES = 60
MAX_COLUMNS = 100
LAYOUT_TOKENS = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# (what, how it is wanted, limit)
TARGETS = {
    "tokens a code line": ("<=", 8.5),
    "comprehensions per 1,000 lines": ("<=", 25.0),
    "star-unpacks per 1,000 lines": ("<=", 5.0),
    "functions of one word, %": ("<=", 35.0),
    "comments per 1,000 lines": (">=", 80.0),
    f"lines over {MAX_COLUMNS} columns, %": ("<=", 0.5),
    f"functions over {LONG_FUNCTION_LINES} lines": ("<=", 0.0),
}


@dataclass
class Counts:
    """Sums over files."""

    lines: int = 0
    code_lines: int = 0
    tokens: int = 0
    comments: int = 0
    comprehensions: int = 0
    star_unpacks: int = 0
    functions: int = 0
    one_word_functions: int = 0
    long_lines: int = 0
    long_functions: int = 0

    def readings(self) -> dict[str, float]:
        """The numbers that `TARGETS` has limits for."""
        per_1000 = 1000 / max(self.code_lines, 1)
        return {
            "tokens a code line": self.tokens / max(self.code_lines, 1),
            "comprehensions per 1,000 lines": self.comprehensions * per_1000,
            "star-unpacks per 1,000 lines": self.star_unpacks * per_1000,
            "functions of one word, %": 100 * self.one_word_functions / max(self.functions, 1),
            "comments per 1,000 lines": self.comments * per_1000,
            f"lines over {MAX_COLUMNS} columns, %": 100 * self.long_lines / max(self.lines, 1),
            f"functions over {LONG_FUNCTION_LINES} lines": self.long_functions,
        }


def count(source: str, counts: Counts) -> None:
    """Adds one file."""
    lines = source.splitlines()
    counts.lines += len(lines)
    counts.long_lines += sum(len(line) > MAX_COLUMNS for line in lines)
    tree = ast.parse(source)
    docstring_lines = set(_docstring_lines(tree))
    code_lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            counts.comments += 1
        if token.type in LAYOUT_TOKENS or token.start[0] in docstring_lines:
            continue
        counts.tokens += 1
        code_lines.add(token.start[0])
    counts.code_lines += len(code_lines)
    for node in ast.walk(tree):
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.star_unpacks += _is_star_unpack(node)
        if isinstance(node, FUNCTIONS):
            _count_function(node, counts)


def _count_function(node: ast.FunctionDef | ast.AsyncFunctionDef, counts: Counts) -> None:
    name = node.name.strip("_")
    is_special = node.name.startswith("__")
    counts.functions += not is_special
    counts.one_word_functions += not is_special and "_" not in name
    assert node.end_lineno is not None
    counts.long_functions += node.end_lineno - node.lineno >= LONG_FUNCTION_LINES


def _is_star_unpack(node: ast.AST) -> bool:
    """A starred item of a list, tuple, set or assignment; arguments of a call do not count."""
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
    return any(isinstance(item, ast.Starred) for item in items)


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            yield from range(docstring.lineno, docstring.end_lineno + 1)


def measure(paths: Iterable[Path]) -> Counts:
    """The sums over files and folders."""
    counts = Counts()
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            count(file.read_text(encoding="utf-8"), counts)
    return counts


def main(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; none: the product.")
    ] = None,
) -> None:
    """Print how the code reads."""
    counts = measure(folders or [ROOT / name for name in PRODUCT])
    print(f"{counts.code_lines:,} code lines, {counts.functions:,} functions")
    for name, value in counts.readings().items():
        sign, limit = TARGETS[name]
        is_met = value <= limit if sign == "<=" else value >= limit
        print(f"{name:<34} {value:7.1f}   wanted {sign} {limit:g}{'' if is_met else '   missed'}")


if __name__ == "__main__":
    typer.run(main)
