"""Where NVIDIA's libraries are looked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tensorstream.nvidia_packages import compiler_folders, cufile_folders


@pytest.mark.parametrize(
    ("folders", "name"),
    [(compiler_folders, "cu13/lib"), (cufile_folders, "cu13/lib"), (cufile_folders, "cufile/lib")],
)
def test_folders_of_installed_packages_are_found(
    folders: Callable[[], list[str]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nvidia" / name
    folder.mkdir(parents=True)
    assert str(folder) not in folders()
    monkeypatch.syspath_prepend(tmp_path)
    assert str(folder) in folders()
    assert all(Path(found).is_dir() for found in folders())
