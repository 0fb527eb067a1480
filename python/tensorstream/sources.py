"""Where the bytes of a model's weights are: in files as they stand, or in RAM."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping

import torch

from tensorstream import _native
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.fixed import FixedTensor, StoredNames, fixed_tensors
from tensorstream.hub import check_same_file, named_weights, open_checkpoint
from tensorstream.packed import StoredPlace
from tensorstream.walk import FoundWeight, Walk

logger = logging.getLogger("tensorstream")


@dataclasses.dataclass
class Sources:
    """Readers for the engine, and which weights RAM owns.

    Attributes:
        readers: By the source ids that the tree's extents name.
        in_ram: The values that host RAM owns, by the tree's tensor ids.
        about: How files are read that are, for people.
        plain_files: Source ids by the paths of files that are read as they are.
        packed_files: Source ids by the paths of files that are packed.
        device_bytes: What reading takes of the device's memory, beside the weights' places.
        fixed: Where a checkpoint has the bytes of what is not streamed, by the tensors' ids.
        in_checkpoint: Whether a checkpoint was given for the model.
    """

    readers: list[_native.Reader] = dataclasses.field(default_factory=list)
    in_ram: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    about: str = ""
    plain_files: dict[str, int] = dataclasses.field(default_factory=dict)
    packed_files: dict[str, int] = dataclasses.field(default_factory=dict)
    device_bytes: int = 0
    fixed: dict[int, list[StoredPlace]] = dataclasses.field(default_factory=dict)
    in_checkpoint: bool = False

    def largest_file(self) -> str | None:
        """The path of the largest file that is read; None where there is none."""
        sizes = {path: os.path.getsize(path) for path in (*self.plain_files, *self.packed_files)}
        return max(sizes, key=sizes.__getitem__, default=None)

    def open_anew(self, backend: _native.FileBackend, device: _native.Device) -> None:
        """Has all files read in another way, or none, for a model on `device`.

        Raises:
            UnsupportedError: Files cannot be read so, here or at all.
            IoError: A file cannot be opened.
        """
        opener = _native.FileOpener(backend, device)
        opened = {source: opener.open(path) for path, source in self.plain_files.items()}
        for path, source in self.packed_files.items():
            opened[source] = opener.open_packed(path)
        for source, reader in opened.items():
            check_same_file(self.readers[source].is_of_file_of(reader), reader)
        for source, reader in opened.items():
            self.readers[source] = reader
        self.note(opener)

    def note(self, opener: _native.FileOpener) -> None:
        """Has what is said of the files be what `opener` says, which reads them."""
        self.about = opener.about
        self.device_bytes = opener.device_memory_bytes

    def note_pinned(self, found: Walk) -> None:
        """Says in the tree which files the device copies from by itself."""
        found.tree.pinned_sources = [i for i, r in enumerate(self.readers) if r.is_pinned]

    def how_read(self) -> str:
        """How the files are read, for people."""
        pinned = sum(reader.is_pinned for reader in self.readers)
        if not pinned:
            return self.about
        return f"{self.about}; those in RAM ({pinned}) are copied from where they lie"

    def warn_of_no_gain(self) -> None:
        """Says where streaming to the CPU, which shares RAM with what it streams, saves nothing."""
        if self.in_ram:
            logger.warning(
                "%d weights are in RAM already: streaming them to the CPU saves no memory. Save the "
                "model and load it with tensorstream.from_pretrained to stream it from disk",
                len(self.in_ram),
            )


class _Files:
    """Readers of files, one a path."""

    def __init__(self, sources: Sources, opener: _native.FileOpener) -> None:
        self.sources = sources
        self._opener = opener
        sources.note(opener)
        self._ids: dict[str, int] = {}

    def source(self, path: str, *, packed: bool = False) -> int:
        if path in self._ids:
            return self._ids[path]
        opened = self._opener.open_packed(path) if packed else self._opener.open(path)
        self._ids[path] = source = len(self.sources.readers)
        self.sources.readers.append(opened)
        (self.sources.packed_files if packed else self.sources.plain_files)[path] = source
        return source

    def source_of(self, checkpoint: _native.Checkpoint, file: int) -> int:
        """The source that is a checkpoint's file of that number, as it was when its header was read.

        Raises:
            IoError: It has been replaced, or written to, since.
        """
        source = self.source(checkpoint.files[file], packed=checkpoint.packed)
        reader = self.sources.readers[source]
        check_same_file(checkpoint.is_read_by(file, reader), reader)
        return source


def sources_of(
    found: Walk,
    opener: _native.FileOpener,
    checkpoint: str | None,
    stored: Mapping[int, StoredPlace],
) -> Sources:
    """Binds every weight in the tree to its bytes: in `checkpoint`, or where they are now."""
    if checkpoint is not None:
        return _sources_in_checkpoint(found, checkpoint, opener)
    return _find_sources(found, opener, stored)


def _find_sources(
    found: Walk, opener: _native.FileOpener, stored: Mapping[int, StoredPlace]
) -> Sources:
    """Finds the bytes of every weight where they are now and binds them in the tree.

    Where the bytes of parameters are that have none in memory is in `stored`, by their ids. Memory that is
    an unmodified part of a file (as safetensors and transformers map it) has that file as its source; other
    memory becomes the source itself, kept alive by the engine.
    """
    sources = Sources(fixed={parameter: [place] for parameter, place in stored.items()})
    files = _Files(sources, opener)
    for weight in found.weights:
        parameter = weight.parameter
        place = stored.get(id(parameter))
        if place is not None:
            source = files.source(place.reader.name, packed=True)
            check_same_file(
                place.reader.is_of_file_of(sources.readers[source]), sources.readers[source]
            )
            _add_packed_extent(found, weight, sources, source, place)
            continue
        if parameter.device.type == "meta":
            raise ConfigError(
                f"'{weight.names[0]}' is on the meta device and has no bytes; give checkpoint=, the "
                "safetensors file or folder that has them"
            )
        address, size_bytes = parameter.data_ptr(), parameter.nbytes
        backing = _native.find_file_backing(address, size_bytes)
        if backing is not None:
            source = files.source(backing.path)
            reader = sources.readers[source]
            check_same_file(backing.is_read_by(reader), reader)
            found.tree.add_extent(weight.tensor, source, backing.offset_bytes, size_bytes)
        else:
            value = parameter.detach()
            found.tree.add_extent(weight.tensor, len(sources.readers), 0, size_bytes)
            reader = _native.create_memory_reader(
                f"memory of '{weight.names[0]}'", address, size_bytes, value
            )
            sources.readers.append(reader)
            sources.in_ram[weight.tensor] = value
            found.tree.note_in_ram(weight.tensor)
    return sources


def _sources_in_checkpoint(found: Walk, path: str, opener: _native.FileOpener) -> Sources:
    """Binds every weight to the tensor of the checkpoint at `path` that holds it.

    Of a pipeline `path` is the folder in which each part has a folder of its name.

    Raises:
        ConfigError: The checkpoint does not match the model.
        FormatError: A file breaks its format.
    """
    sources = Sources(in_checkpoint=True)
    files = _Files(sources, opener)
    fixed = fixed_tensors(found)
    bound: set[int] = set()
    for part in found.parts:
        prefix = f"{part}."
        weights = [w for w in found.weights if any(name.startswith(prefix) for name in w.names)]
        weights = [weight for weight in weights if weight.tensor not in bound]
        bound.update(weight.tensor for weight in weights)
        below = os.path.join(path, part)
        if weights or os.path.isdir(below):
            names = _bind(found, weights, prefix, below, files)
            _place_fixed(sources, fixed, prefix, names, files)
    if not found.parts:
        names = _bind(found, found.weights, "", path, files)
        _place_fixed(sources, fixed, "", names, files)
    return sources


def _place_fixed(
    sources: Sources, fixed: list[FixedTensor], prefix: str, names: StoredNames, files: _Files
) -> None:
    """Notes where a checkpoint has the bytes of tensors that are not streamed, under names with `prefix`.

    Raises:
        ConfigError: It has one of another shape or type.
    """
    checkpoint = names.checkpoint
    for one in fixed:
        own = [name.removeprefix(prefix) for name in one.names if name.startswith(prefix)]
        for stored in names.find(own):
            if not one.is_held_by(stored):
                continue
            source = files.source_of(checkpoint, stored.file)
            reader = sources.readers[source]
            place = StoredPlace(reader, stored.offset_bytes, stored.size_bytes)
            sources.fixed.setdefault(id(one.tensor), []).append(place)


def _bind(
    found: Walk, weights: list[FoundWeight], prefix: str, path: str, files: _Files
) -> StoredNames:
    """Binds weights whose names begin with `prefix` to the checkpoint at `path`, which leaves it out."""
    checkpoint = open_checkpoint(path, "", None, named_weights(path, {}))
    names = StoredNames(checkpoint)
    wanted = [
        _native.wanted_tensor(
            [name.removeprefix(prefix) for name in weight.names if name.startswith(prefix)],
            str(weight.parameter.dtype).removeprefix("torch."),
            list(weight.parameter.shape),
        )
        for weight in weights
    ]
    for weight, stored in zip(weights, checkpoint.match(wanted), strict=True):
        if not weight.parameter.is_contiguous():
            raise UnsupportedError(
                f"'{weight.names[0]}' is not contiguous; a checkpoint's tensors are"
            )
        source = files.source_of(checkpoint, stored.file)
        if checkpoint.packed:
            _add_packed_extent(found, weight, files.sources, source, stored)
        else:
            found.tree.add_extent(weight.tensor, source, stored.offset_bytes, stored.size_bytes)
        names.note([name.removeprefix(prefix) for name in weight.names], stored.name)
    return names


def _add_packed_extent(
    found: Walk,
    weight: FoundWeight,
    sources: Sources,
    source: int,
    place: StoredPlace | _native.CheckpointTensor,
) -> None:
    """Binds a weight to its bytes in a packed file, and says what they take there."""
    found.tree.add_extent(weight.tensor, source, place.offset_bytes, place.size_bytes)
    taken = sources.readers[source].frame_bytes(place.offset_bytes, place.size_bytes)
    found.tree.note_frames(weight.tensor, taken)


def note_weights_in_ram(found: Walk) -> None:
    """Says in the tree which weights are in RAM, for plans of models that are not bound to sources."""
    for weight in found.weights:
        parameter = weight.parameter
        if parameter.device.type == "meta":
            continue
        if _native.find_file_backing(parameter.data_ptr(), parameter.nbytes) is None:
            found.tree.note_in_ram(weight.tensor)


def check_equal(found: Walk, engine: _native.Engine) -> None:
    """Raises ConfigError where a weight's bytes in memory are not those of its source."""
    for weight in found.weights:
        parameter = weight.parameter
        if parameter.device.type == "meta":
            continue
        if not engine.holds(weight.tensor, parameter.data_ptr(), parameter.nbytes):
            raise ConfigError(
                f"'{weight.names[0]}' of the model differs from the checkpoint's; offload the model "
                "without checkpoint=, or load it from that checkpoint"
            )
