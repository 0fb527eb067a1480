"""Where the functions of a C++ source begin and how long they are, by its braces alone.

Reads formatted sources without a compiler; macros that open or close a brace would mislead it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

TOKEN = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | R"([^()\\ ]*)\(.*?\)\1"
      | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+' """,
    re.DOTALL | re.VERBOSE,
)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
# Digit separators look like character literals.
SEPARATOR = re.compile(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])")
SCOPE = re.compile(r"(\b(namespace|class|struct|union|enum)\b[^()=]*|\bextern\s*)$")
NAME = re.compile(r"([~\w:]+|operator\s*\S+?)\s*\(")
# The formatter gives a requires clause lines of its own.
REQUIRES = re.compile(r"\brequires\b[^\n]*\n")


def without_comments(text: str) -> str:
    """The source with comments, literals and directives blanked, its lines kept."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    text = SEPARATOR.sub("_", text)
    return DIRECTIVE.sub(blank, TOKEN.sub(blank, text))


def is_scope(head: str) -> bool:
    """Whether the text before a brace opens a namespace or a type, not a function or a value."""
    without_attributes = re.sub(r"\b(alignas|TS_\w+|requires)\s*\([^()]*\)", "", head)
    without_templates = re.sub(r"template\s*<[^{}]*>\s*(?=class|struct)", "", without_attributes)
    return SCOPE.search(without_templates.strip()) is not None


def name_of(head: str) -> str | None:
    """The function that the text before a brace declares; None for a value or an initialiser."""
    complete = head.count("(") == head.count(")")
    if complete and head.rstrip().endswith("="):
        return None
    found = NAME.search(REQUIRES.sub("", head))
    return found.group(1) if found else None


def functions_of(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length in lines of each function that is not inside another one."""
    source = without_comments(text)
    open_scopes: list[bool] = []
    head_start = 0
    for match in re.finditer(r"[{};]", source):
        inside_function = not all(open_scopes)
        if match.group() == "{":
            head = source[head_start : match.start()]
            open_scopes.append(not inside_function and is_scope(head))
            if all(open_scopes):
                head_start = match.end()
            continue
        if match.group() == "}" and open_scopes:
            open_scopes.pop()
        if not all(open_scopes):
            continue
        if match.group() == "}" and inside_function:
            # The braces of an initialiser or a default argument: the head goes on to the body.
            if re.match(r"\s*[,{)]", source[match.end() :]):
                continue
            yield from declared(source, head_start, match.start())
        head_start = match.end()


def declared(source: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """The function whose declaration begins after `start` and whose last brace is at `end`."""
    whole = source[start:end]
    name = name_of(whole[: whole.index("{")])
    if name is None:
        return
    first = source.count("\n", 0, start + len(whole) - len(whole.lstrip())) + 1
    yield name, first, source.count("\n", 0, end) + 2 - first
