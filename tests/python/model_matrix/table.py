"""The rows as a document in docs/."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Sequence

import torch

from model_matrix import places
from model_matrix.sources import Source
from model_matrix.trial import Row

# The states of types that run plain. A process that ended or hung is one: who is to blame is not known.
RAN = ("identical", "all resident", "refused", "failed", "differs", "crashed", "late")

_TEXT = """# Model types of {package}

{subject},
run plain and offloaded {where}, three forwards, all outputs
compared as bytes. Written on {date} by `{command}` with torch {torch} and
TensorStream {tensorstream}.

Of {tried} types {built} are built and {ran} run plain. Of these {identical} are bit-identical offloaded
({share:.1f} %), and {wrong} give another number. "Streamed" is the share of the weights' bytes that each
pass after the first loaded; the rest is resident, read by rows, or of modules that this forward does not use.

## Types that run plain
| type | class | parameters | streamed | offloaded |
|---|---|---|---|---|
{rows}

## Types that do not
Plain, without TensorStream: `tests/python/model_matrix` knows no small configuration or no inputs for
them, a package is missing, {package} has no model for the type, or its model does not run there.

| type | class | what stands in the way |
|---|---|---|
{others}
"""


def document(source: Source, device: str) -> str:
    """The name of the document in docs/."""
    return source.document if device == "cpu" else source.document.replace(".md", "_gpu.md")


def markdown(source: Source, rows: Sequence[Row], device: str = "cpu") -> str:
    """The document."""
    ran = [row for row in rows if row.state in RAN]
    identical = sum(row.state == "identical" for row in ran)
    others = [row for row in rows if row.state not in RAN]
    return _TEXT.format(
        package=source.package,
        where=places.describe(device),
        command=f"make models SOURCE={source.package}"
        + ("" if device == "cpu" else f" DEVICE={device}"),
        subject=source.subject.format(version=importlib.metadata.version(source.package)),
        torch=torch.__version__.partition("+")[0],
        tensorstream=importlib.metadata.version("tensorstream"),
        date=datetime.datetime.now(datetime.timezone.utc).date(),
        tried=len(rows),
        built=sum(row.state != "not built" for row in rows),
        ran=len(ran),
        identical=identical,
        share=100 * identical / max(1, len(ran)),
        wrong=sum(row.state == "differs" for row in ran),
        rows="\n".join(_ran(row) for row in ran),
        others="\n".join(_other(row) for row in others),
    )


def _ran(row: Row) -> str:
    result = row.state if row.state == "identical" else f"{row.state}: {_cell(row.reason)}"
    millions = f"{row.parameters / 1e6:.2f} M"
    return f"| {row.model_type} | {row.model_class} | {millions} | {row.streamed:.0%} | {result} |"


def _other(row: Row) -> str:
    return f"| {row.model_type} | {row.model_class} | {row.state}: {_cell(row.reason)} |"


def _cell(text: str) -> str:
    """A text without what ends a cell, or looks like code to the check of documents."""
    return text.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")")[:160]
