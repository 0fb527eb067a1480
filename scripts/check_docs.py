"""Checks that every path, make target and CMake preset that the documents name exists.

Looked at are the code spans, fenced blocks and links of the documents at the root and in docs/.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REQUIRED = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
CODE = re.compile(r"```[^\n]*\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
MAKE = re.compile(r"(?:^|[;&`]|\$ )\s*make((?: +[a-z][\w-]*)+)", re.MULTILINE)
PRESET = re.compile(r"--preset[ =](\w+)")
PATH = re.compile(r"(?<![\w/.~$-])(?:[\w.*<>{},-]+/)*[\w.*<>{},-]+/?(?![\w/])")
SOURCE_SUFFIXES = (".cpp", ".h", ".cu", ".md", ".py", ".sh", ".toml", ".cmake", ".yaml")
# Made on a user's machine by what the documents describe.
GENERATED = ("build", "dist", ".venv", ".demo")


def expand(name: str) -> Iterator[str]:
    """The names that braces stand for; <placeholders> become *."""
    pieces = re.split(r"\{([^}]*)\}", re.sub(r"<[^>]*>", "*", name))
    choices = [piece.split(",") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    for parts in itertools.product(*choices):
        yield "".join(parts)


class Documents:
    """The documents of one tree and what they may name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        makefile = (root / "Makefile").read_text(encoding="utf-8")
        self.targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
        presets = json.loads((root / "CMakePresets.json").read_text(encoding="utf-8"))
        self.presets = {preset["name"] for preset in presets["configurePresets"]}
        # Not the folders that git ignores: they are deep, and no document names what is in them.
        self.tops = {p.name for p in root.iterdir() if p.name not in (".git", *GENERATED)}

    def paths(self) -> list[Path]:
        found = [self.root / name for name in REQUIRED if (self.root / name).is_file()]
        return found + sorted((self.root / "docs").rglob("*.md"))

    def exists(self, document: Path, name: str) -> bool:
        pattern = name.rstrip("/").removeprefix("./")
        for folder in (self.root, document.parent):
            if any(folder.glob(pattern)):
                return True
        # A file by its name alone, as prose has it.
        if "/" in pattern:
            return False
        return any(any((self.root / top).rglob(pattern)) for top in self.tops)

    def looks_like_path(self, name: str) -> bool:
        top = name.split("/", maxsplit=1)[0]
        if top in GENERATED or name.startswith("*"):
            return False
        return ("/" in name and top in self.tops) or name.endswith(SOURCE_SUFFIXES)

    def missing_paths(self, document: Path, code: str) -> Iterator[str]:
        for match in PATH.finditer(code):
            name = match.group().rstrip(".,")
            if not self.looks_like_path(name):
                continue
            for one in expand(name):
                if not self.exists(document, one):
                    yield f"no file '{one}'"

    def missing(self, document: Path) -> Iterator[tuple[int, str]]:
        text = document.read_text(encoding="utf-8")
        for match in CODE.finditer(text):
            code = match.group(1) or match.group(2)
            line = text.count("\n", 0, match.start()) + 1
            for words in MAKE.findall(code):
                for target in words.split():
                    if target not in self.targets:
                        yield line, f"no make target '{target}'"
            for preset in PRESET.findall(code):
                if preset not in self.presets:
                    yield line, f"no CMake preset '{preset}'"
            for problem in self.missing_paths(document, code):
                yield line, problem
        for match in LINK.finditer(text):
            if not (document.parent / match.group(1)).exists():
                line = text.count("\n", 0, match.start()) + 1
                yield line, f"the link to '{match.group(1)}' leads nowhere"


def check(root: Path) -> list[str]:
    documents = Documents(root)
    problems = [f"{name}: is missing" for name in REQUIRED if not (root / name).is_file()]
    for document in documents.paths():
        name = document.relative_to(root)
        problems += [f"{name}:{line}: {text}" for line, text in documents.missing(document)]
    return problems


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    problems = check(root)
    for problem in problems:
        print(problem)
    print(f"document check: {len(problems)} findings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
