"""Random models out of a seed, whose blocks use weights in many ways, and their plain twins."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from conftest import same_bytes, tensors_of
from model_shapes import SHAPES
from model_shapes import Block as Residual

LIBRARY_MODELS = ("llama", "qwen3", "gpt2", "bert", "t5")


class Raw(nn.Module):
    """Uses parameters of its own as views, and a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.randn(width, width + 3) / width)
        self.parts = nn.ParameterDict({"a": nn.Parameter(torch.randn(width, width) / width)})
        self.register_buffer("fixed", torch.randn(width, width) / width, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x @ self.wide[:, : x.shape[-1]].t() + x @ self.parts["a"] + x @ self.fixed


class Tied(nn.Module):
    """Two layers of one weight, which is also used outside their forwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))) + F.linear(x, self.first.weight.t())


class Recursive(nn.Module):
    """Calls itself, or one of two branches, as the input says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin, self.inner = nn.Linear(width, width), Residual(width)
        self.other = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        x = torch.tanh(self.lin(x))
        branch = self.inner if float(x.detach().sum()) > 0 else self.other
        return branch(x) + self(x, depth - 1) if depth else branch(x)


class Convolution(nn.Module):
    """Has statistics that a training forward writes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)


class Gathers(nn.Module):
    """Rows of a table that the input names, and a module that returns its weight."""

    class Gives(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, width) / width)

        def forward(self) -> torch.Tensor:
            return self.weight[:, :]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows, self.gives = nn.Embedding(300, width), self.Gives(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x.detach().abs().sum(-1) * 10).long() % 300
        return x + self.rows(ids) + F.linear(x, self.gives())


class Writes(nn.Module):
    """Writes to its weight and to a buffer in each training forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.lin.weight.mul_(0.999)
                self.mean.lerp_(self.lin.weight.detach(), 0.1)
        return x + self.lin(x) + x @ self.mean


class Normed(nn.Module):
    """A parametrized weight, and a recurrent layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.rnn = nn.GRU(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.lin(self.rnn(x)[0])


class Encoder(nn.TransformerEncoderLayer):
    """Torch's own layer, which gives all its weights to one function."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 4, 2 * width, batch_first=True)


KINDS = (Residual, Raw, Tied, Recursive, Convolution, Gathers, Writes, Normed, Encoder)


class Net(nn.Module):
    """Blocks of random kinds, perhaps behind a table that is also its head."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.width, self.recomputes = draw.choice((64, 128, 256)), False
        self.blocks = nn.ModuleList(draw.choice(KINDS)(self.width) for _ in range(3))
        if draw.random() < 0.3:
            self.blocks.append(self.blocks[0])
        self.table = nn.Embedding(512, self.width) if draw.random() < 0.5 else None
        self.head = nn.Linear(self.width, 512 if self.table else 17, bias=False)
        if self.table is not None:
            self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.table is None else self.table(x)
        for block in self.blocks:
            recomputes = self.recomputes and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recomputes else block(x)
        return self.head(x)

    def inputs(self, draw: random.Random) -> dict[str, torch.Tensor]:
        seeded = torch.Generator().manual_seed(draw.randrange(1 << 30))
        shape = (draw.choice((1, 2)), draw.choice((2, 5)))
        if self.table is not None:
            return {"x": torch.randint(0, 512, shape, generator=seeded)}
        return {"x": torch.randn(*shape, self.width, generator=seeded)}


class Difference(AssertionError):
    """The streamed model did what its plain twin does not."""


class Skip(Exception):
    """A use that does not apply, or that is refused with an error that says so."""


class Planned(Exception):
    """A forward was to fail here."""


@dataclasses.dataclass
class Twins:
    """A streamed model and its plain twin, and what was done with them."""

    streamed: Any
    plain: Any
    folder: Path
    shape: str | None
    on_host: bool
    offloaded: bool = False
    changed: bool = False  # a file of the model: what reads it is refused
    file: Path | None = None
    held: list[tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(default_factory=list)
    log: list[str] = dataclasses.field(default_factory=list)
    files: int = 0

    def note(self, what: str) -> None:
        self.log.append(f"    {what}")

    def inputs(self, draw: random.Random) -> dict[str, torch.Tensor]:
        if self.shape is None:
            return self.plain.inputs(draw)
        return SHAPES[self.shape].inputs()

    def new_folder(self) -> Path:
        self.files += 1
        made = self.folder / f"files{self.files}"
        made.mkdir()
        return made

    def both(self, use: Callable[[Any], Any]) -> None:
        """Runs `use` on both and compares what it gives; what is refused is done to neither."""
        try:
            streamed = use(self.streamed)
        except ts.TensorStreamError as error:
            self.note(f"{type(error).__name__}: {str(error)[:100]}")
            if self.changed and isinstance(error, ts.IoError):
                raise Skip from error
            raise
        compare(streamed, use(self.plain), "what it gave")

    def check(self, draw: random.Random) -> None:
        """Two forwards, the second of what was loaded ahead, and the values of all tensors."""
        inputs = self.inputs(draw)
        for _ in range(2):
            with torch.no_grad():
                self.both(lambda model: seeded_call(model, inputs))
        self.both(lambda model: [*model.parameters(), *model.buffers()])
        self.both(lambda model: [each.grad for each in model.parameters() if each.grad is not None])


def make_twins(seed: int, folder: Path, *, on_host: bool) -> Twins:
    draw = random.Random(f"model {seed}")
    shape = draw.choice(LIBRARY_MODELS) if draw.random() < 0.3 else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(draw) if shape is None else SHAPES[shape].make(2)
    model.eval()
    return Twins(model, copy.deepcopy(model), folder, shape, on_host)


def compare(streamed: Any, plain: Any, what: str) -> None:
    """Checks that both hold the same tensors, bit for bit, in the same order."""
    left, right = tensors_of(streamed), tensors_of(plain)
    if len(left) != len(right):
        raise Difference(f"{what}: {len(left)} tensors where the plain model has {len(right)}")
    for position, (one, other) in enumerate(zip(left, right, strict=True)):
        if not same_bytes(one, other):
            raise Difference(f"{what}: tensor {position} of {len(left)}, {tuple(one.shape)}")


def seeded_call(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    torch.manual_seed(0)
    return model(**inputs)


WRITES: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "in place": lambda p, x: p.mul_(1.01),
    "a part": lambda p, x: p[0].fill_(0.02),
    "through data": lambda p, x: p.data.copy_(x),
    "of data": lambda p, x: setattr(p, "data", x.clone()),
    "a view": lambda p, x: p.detach().view(-1)[::2].mul_(0.5),
    "to NumPy": lambda p, x: p.detach().view(torch.uint8).numpy().fill(0),
    "of itself": lambda p, x: p.copy_(p.flip(0)),
    "foreach": lambda p, x: torch._foreach_mul_([p], 0.99),
    "by init": lambda p, x: nn.init.constant_(p, 0.01),
}
READS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda p: p.sum(),
    "row": lambda p: p[0],
    "list": lambda p: torch.tensor(p.flatten().tolist()[:3]),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    "cast": lambda p: p.to(torch.float64),
    "repr": lambda p: torch.tensor([ord(letter) for letter in repr(p)]),
    "cat": lambda p: torch.cat([p, p.data]),
    "bytes": lambda p: p.detach().view(torch.uint8),
}


def some_parameter(twins: Twins, draw: random.Random) -> Callable[[Any], nn.Parameter]:
    name = draw.choice([name for name, _ in twins.plain.named_parameters()])
    twins.note(name)
    return lambda model: dict(model.named_parameters())[name]


@contextlib.contextmanager
def bfloat16_without_gradients() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


class Interrupt:
    """Ctrl-C when Python has run so many lines."""

    def __init__(self, lines: int) -> None:
        self.lines = lines

    def trace(self, *_: Any) -> Any:
        self.lines -= 1
        if self.lines == 0:
            signal.raise_signal(signal.SIGINT)
        return self.trace if self.lines > 0 else None
