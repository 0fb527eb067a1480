"""scripts/check_docs.py finds names that are gone, and believes those that exist."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_docs


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "csrc/io").mkdir(parents=True)
    (tmp_path / "csrc/io/reader.h").touch()
    (tmp_path / "docs/adr").mkdir(parents=True)
    (tmp_path / "Makefile").write_text("test: build\nbuild:\n")
    (tmp_path / "CMakePresets.json").write_text('{"configurePresets": [{"name": "dev"}]}')
    for name in check_docs.REQUIRED:
        (tmp_path / name).write_text("# Title\n")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "`csrc/io/reader.h`, `csrc/<layer>/*.h`, `csrc/{io,io/reader.h}`, `reader.h`, `csrc/`",
        "`make test`, `make`, `cmake --preset dev`",
        "```sh\nmake build test\nbuild/dev/x.h\n```",
        "[a](docs/adr) [b](https://example.org/x.md) [c](#part)",
        "to make things: csrc/io/gone.h is not code",
        "`float32/bf16`, `and/or`",
    ],
)
def test_what_exists_is_believed(tree, text):
    (tree / "README.md").write_text(text)
    assert check_docs.check(tree) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\n\n`csrc/io/gone.h`", "README.md:3: no file 'csrc/io/gone.h'"),
        ("`csrc/{io,store}/`", "README.md:1: no file 'csrc/store/'"),
        ("`gone.cpp`", "README.md:1: no file 'gone.cpp'"),
        ("`make gone`", "README.md:1: no make target 'gone'"),
        ("```\nmake test gone\n```", "README.md:1: no make target 'gone'"),
        ("`cmake --preset gone`", "README.md:1: no CMake preset 'gone'"),
        ("[a](docs/gone.md)", "README.md:1: the link to 'docs/gone.md' leads nowhere"),
    ],
)
def test_what_is_gone_is_found(tree, text, problem):
    (tree / "README.md").write_text(text)
    assert check_docs.check(tree) == [problem]


def test_a_missing_document_is_found(tree):
    (tree / "ARCHITECTURE.md").unlink()
    assert check_docs.check(tree) == ["ARCHITECTURE.md: is missing"]
