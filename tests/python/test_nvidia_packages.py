"""Where the compiler of kernels is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorstream.kernel_compiler import compiler_folders


def test_folders_of_installed_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nvidia/cu13/lib"
    folder.mkdir(parents=True)
    assert str(folder) not in compiler_folders()
    monkeypatch.syspath_prepend(tmp_path)
    assert str(folder) in compiler_folders()
    assert all(Path(found).is_dir() for found in compiler_folders())
