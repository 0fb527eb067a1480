"""Checks a wheel of tensorstream: what it contains, what its extension links, what it exports.

Usage: check_wheel.py WHEEL...
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ALLOWED_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libc|libm|ld-linux[-\w]*)\.so\.\d+")
EXTENSION = re.compile(r"tensorstream/_native\.[^/]*so")
# Python's, and those that torch's allocator asks for by name: docs/adr/0008-a-ceiling-over-torch.md.
EXPORTED = {"PyInit__native", "ts_torch_alloc", "ts_torch_free"}
CONTENT = re.compile(r"(tensorstream|tensorstream-[^/]+\.dist-info)/.+")


def needed_libraries(library: Path) -> list[str]:
    text = subprocess.run(
        ["readelf", "--dynamic", "--wide", library], check=True, capture_output=True, text=True
    ).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text)


def exported_symbols(library: Path) -> list[str]:
    text = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", library], check=True, capture_output=True, text=True
    ).stdout
    # Num, Value, Size, Type, Bind, Vis, Ndx, Name: defined where Ndx is a section.
    rows = [line.split() for line in text.splitlines()]
    return [row[7] for row in rows if len(row) > 7 and row[5] == "DEFAULT" and row[6].isdigit()]


def check_extension(library: Path) -> list[str]:
    problems = [
        f"{library.name} needs {name}; only libstdc++, libgcc_s, libc and libm are allowed"
        for name in needed_libraries(library)
        if not ALLOWED_LIBRARIES.fullmatch(name)
    ]
    exported = exported_symbols(library)
    if set(exported) != EXPORTED:
        names = ", ".join(sorted(set(exported) ^ EXPORTED)[:5])
        problems.append(f"{library.name} exports other symbols than it is to: {names}")
    return problems


def check_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        problems = [f"holds {name}" for name in names if not CONTENT.fullmatch(name)]
        problems += [
            f"lacks {name}"
            for name in ("tensorstream/__init__.py", "tensorstream/py.typed")
            if name not in names
        ]
        extensions = [name for name in names if EXTENSION.fullmatch(name)]
        if len(extensions) != 1:
            return [*problems, f"holds {len(extensions)} extensions, not one"]
        problems += check_extension(Path(archive.extract(extensions[0], folder)))
    return problems


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    problems = [f"{wheel}: {text}" for wheel in arguments for text in check_wheel(Path(wheel))]
    print("\n".join(problems) or f"wheel check: {len(arguments)} passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
