"""Checks the layers: includes, imports, links, and the size and names of files.

A layer includes only what is below it; LAYERS is the one table of them.
Usage: check_layers.py [ROOT]
"""

from __future__ import annotations

import ast
import dataclasses
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cxx_functions import functions_of

# From the lowest up. Layers of one row are neighbours: neither may include the other.
LAYERS = (
    ("base",),
    ("platform",),
    ("device",),
    ("memory", "kernels"),
    ("codec",),
    ("store", "io"),
    ("scheduler",),
    ("engine",),
    ("bindings",),
    ("python",),
)
RANK = {layer: rank for rank, row in enumerate(LAYERS) for layer in row}

# System and third-party headers that belong to some layers; tests and benchmarks may use
# any but those that belong to none.
OWNED_HEADERS = {
    r"(torch|ATen|c10|caffe2)/": (),
    r"(cuda|cuda_runtime\w*|nvrtc|cufile)\.h": ("platform", "kernels"),
    r"liburing.*|linux/io_uring\.h": ("platform",),
    r"(dlfcn|fcntl|unistd|sys/(file|mman|stat|statvfs|uio))\.h|sys/syscall\.h": ("platform",),
    r"nlohmann/": ("store",),
    r"(nanobind/.*|Python\.h)": ("bindings",),
}

# Python outside the package that stands above it, as a user does.
MAY_IMPORT_TORCH = ("python/tensorstream/", "tests/python/", "examples/", "benchmarks/")
MAY_USE_PRIVATE_HEADERS = ("csrc/", "bindings/", "tests/cpp/", "benchmarks/")

MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 60
# "path" or "path:function" -> why it may be longer. An entry that no longer applies is an error.
LONGER_FOR_A_REASON: dict[str, str] = {}

BANNED_WORDS = frozenset(
    "util utils helper helpers common misc impl manager wrapper wrappers core new old v2".split()
)

CXX = (".h", ".cpp", ".cu")
SOURCES = (*CXX, ".py")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
LAYER_NOTE = re.compile(r"\bLayer: (\w+)\.")
PRIVATE_NOTE = re.compile(r"\bPrivate to (\w+)\.")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One broken rule."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


class Tree:
    """The files of a tree, and which layer each belongs to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted(listed_files(root))
        self._known = set(self.paths)
        self._text: dict[str, str] = {}

    def text(self, path: str) -> str:
        if path not in self._text:
            self._text[path] = (self.root / path).read_text(encoding="utf-8")
        return self._text[path]

    def first_comment(self, path: str) -> str:
        lines = self.text(path).splitlines()
        comment = []
        for line in lines:
            if not line.startswith("//"):
                break
            comment.append(line.removeprefix("//").strip())
        return " ".join(comment)

    def layer(self, path: str) -> str | None:
        """The layer of a file; None for what belongs to no layer of the product."""
        parts = PurePosixPath(path).parts
        match parts:
            case ("include", "tensorstream", _):
                found = LAYER_NOTE.search(self.first_comment(path))
                return found.group(1) if found else None
            case ("csrc", layer, _, *_) | ("tests", "cpp", layer, _, *_):
                return layer
            case ("bindings" | "benchmarks", *_):
                return "bindings"
            case ("python", "tensorstream", *_):
                return "python"
        return None

    def resolve(self, path: str, included: str) -> str | None:
        """The file that a quoted include of `path` means, or None."""
        beside = PurePosixPath(path).parent
        folders = (beside, "include", "csrc", *(("tests/cpp",) if is_test(path) else ()))
        for folder in folders:
            candidate = posixpath.normpath(PurePosixPath(folder) / included)
            if candidate in self._known:
                return candidate
        return None


def is_test(path: str) -> bool:
    return path.startswith("tests/")


def listed_files(root: Path) -> list[str]:
    """Tracked and new files where git knows them; every file elsewhere."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        names = [name for name in listing.stdout.split("\0") if name]
        return [name for name in names if (root / name).is_file()]
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def check_known_layer(tree: Tree, path: str) -> Iterator[Finding]:
    layer = tree.layer(path)
    public = path.startswith("include/")
    if layer in RANK or not (public or path.startswith("csrc/")):
        return
    if public and layer is None:
        yield Finding(path, 1, "no-layer", "its first comment must say 'Layer: x.'")
        return
    yield Finding(path, 1, "unknown-layer", f"'{layer}' is not in the table of layers")


def check_quoted_include(tree: Tree, path: str, line: int, included: str) -> Iterator[Finding]:
    target = tree.resolve(path, included)
    if target is None:
        yield Finding(path, line, "no-such-header", f'"{included}" is in no layer')
        return
    own, other = tree.layer(path), tree.layer(target)
    if own in RANK and other in RANK and own != other:
        if RANK[other] > RANK[own]:
            yield Finding(path, line, "upward", f"{own} includes {target} of {other} above it")
        elif RANK[other] == RANK[own]:
            yield Finding(path, line, "sideways", f"{own} includes {target} of {other} beside it")
    if target.startswith("csrc/"):
        yield from check_private(tree, path, line, target)


def check_private(tree: Tree, path: str, line: int, target: str) -> Iterator[Finding]:
    """Headers under csrc/ are for the library and its tests; those that say so, for one layer."""
    if not path.startswith(MAY_USE_PRIVATE_HEADERS):
        yield Finding(path, line, "private", f"{target} is not public: include/tensorstream is")
        return
    owner = PRIVATE_NOTE.search(tree.first_comment(target))
    if owner and tree.layer(path) != owner.group(1):
        yield Finding(path, line, "private", f"{target} is private to {owner.group(1)}")


def check_system_include(tree: Tree, path: str, line: int, included: str) -> Iterator[Finding]:
    for pattern, owners in OWNED_HEADERS.items():
        if not re.match(pattern, included) or tree.layer(path) in owners:
            continue
        if path.startswith(("tests/", "benchmarks/")) and owners:
            continue
        allowed = " and ".join(owners) or "nobody"
        yield Finding(path, line, "owned-header", f"<{included}> is for {allowed}")


def check_includes(tree: Tree, path: str) -> Iterator[Finding]:
    text = tree.text(path)
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(1 if match.group(1) else 2)) + 1
        if match.group(1):
            yield from check_quoted_include(tree, path, line, match.group(1))
        else:
            yield from check_system_include(tree, path, line, match.group(2))


def imported_modules(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module


def check_imports(tree: Tree, path: str) -> Iterator[Finding]:
    if path.startswith(MAY_IMPORT_TORCH):
        return
    for line, module in imported_modules(ast.parse(tree.text(path), path)):
        if module.split(".")[0] == "torch":
            yield Finding(path, line, "torch", "only python/tensorstream imports torch")


def check_links(tree: Tree, path: str) -> Iterator[Finding]:
    """A CMake target of a layer links only the targets of layers below it."""
    own = tree.layer(path)
    if own not in RANK:
        return
    for number, text in enumerate(tree.text(path).splitlines(), 1):
        for other in re.findall(r"\bts_([a-z]+)\b(?!\s*\()", text):
            if other in RANK and other != own and RANK[other] >= RANK[own]:
                yield Finding(
                    path, number, "link", f"{own} links ts_{other}, which is not below it"
                )


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of each function; docstrings are not counted."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        documentation = 0
        if ast.get_docstring(node) is not None:
            documentation = (first.end_lineno or first.lineno) - first.lineno + 1
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - documentation
        yield node.name, node.lineno, length


def long_parts(tree: Tree, path: str) -> Iterator[tuple[str, Finding]]:
    """What is longer than it should be, each under its key in LONGER_FOR_A_REASON."""
    text = tree.text(path)
    lines = len(text.splitlines())
    if lines > MOST_LINES_OF_A_FILE:
        said = f"{lines} lines, more than {MOST_LINES_OF_A_FILE}"
        yield path, Finding(path, 1, "long-file", said)
    functions = python_functions(text) if path.endswith(".py") else functions_of(text)
    for name, line, length in functions:
        if length > MOST_LINES_OF_A_FUNCTION:
            said = f"{name}: {length} lines, more than {MOST_LINES_OF_A_FUNCTION}"
            yield f"{path}:{name}", Finding(path, line, "long-function", said)


def check_sizes(tree: Tree) -> tuple[list[Finding], list[Finding]]:
    """Findings, and those that are allowed for a reason."""
    findings, allowed, used = [], [], set()
    for path in tree.paths:
        if not path.endswith(SOURCES):
            continue
        for key, finding in long_parts(tree, path):
            if key in LONGER_FOR_A_REASON:
                used.add(key)
                reason = f"{finding.text} (allowed: {LONGER_FOR_A_REASON[key]})"
                allowed.append(dataclasses.replace(finding, text=reason))
            else:
                findings.append(finding)
    for key in LONGER_FOR_A_REASON.keys() - used:
        findings.append(Finding(key, 1, "stale-allowance", "is not too long: drop its entry"))
    return findings, allowed


def check_names(path: str) -> Iterator[Finding]:
    parts = [PurePosixPath(part).stem for part in PurePosixPath(path).parts]
    for part in parts:
        for word in BANNED_WORDS.intersection(part.lower().split("_")):
            yield Finding(path, 1, "name", f"'{word}' says nothing: name what the file is about")


def check_file(tree: Tree, path: str) -> Iterator[Finding]:
    if path.endswith((*SOURCES, ".pyi")):
        yield from check_names(path)
        yield from check_known_layer(tree, path)
    if path.endswith(CXX):
        yield from check_includes(tree, path)
    elif path.endswith(".py"):
        yield from check_imports(tree, path)
    elif path.startswith("csrc/") and path.endswith("CMakeLists.txt"):
        yield from check_links(tree, path)


def check(root: Path) -> tuple[list[Finding], list[Finding]]:
    """Findings in the tree at `root`, and those that are allowed for a reason."""
    tree = Tree(root)
    findings = [finding for path in tree.paths for finding in check_file(tree, path)]
    long, allowed = check_sizes(tree)
    return findings + long, allowed


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    findings, allowed = check(root)
    for finding in allowed:
        print(f"warning: {finding}")
    for finding in findings:
        print(finding)
    print(f"layer check: {len(findings)} findings, {len(allowed)} allowed for a reason")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
