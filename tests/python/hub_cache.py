"""A Hugging Face cache as downloads leave it: blobs, and snapshots of links to them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def add_to_cache(cache: Path, name: str, folder: Path, *, commit: str, ref: str = "main") -> Path:
    """Puts the files of `folder` into `cache` as a revision of the model `name`; gives its snapshot."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "blobs").mkdir(parents=True, exist_ok=True)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / ref).write_text(commit)
    snapshot = model / "snapshots" / commit
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        content = path.read_bytes()
        blob = model / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(
            Path(*[".."] * len(link.relative_to(model).parts[1:]), blob.relative_to(model))
        )
    return snapshot
