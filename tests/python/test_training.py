"""Training through streamed weights: losses, gradients and steps are the plain ones."""

from __future__ import annotations

import copy
import os
import unittest.mock
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from accelerate.state import AcceleratorState
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, save, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import SHAPES, Block, token_ids
from tensorstream import _native
from tensorstream.orchestrator import orchestrator_of
from tensorstream.weight import Weight

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
# Fine cuts end inside blocks, coarse ones are whole blocks.
CUTS = {"fine": 1.0, "coarse": 2.2}


def _blocks(count: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(*(Block() for _ in range(count)))


def _offloaded(plain: nn.Module, cut: str) -> nn.Module:
    model = copy.deepcopy(plain)
    budget = int(smallest_budget(model) * CUTS[cut])
    ts.offload(model, ram_budget=budget, self_check=True)
    assert hooks_of(model)
    return model


def _gradients(model: nn.Module, run: Callable[[nn.Module, torch.Tensor], None]) -> list[Any]:
    """Of the input and of every weight."""
    model.zero_grad()
    x = X.clone().requires_grad_()
    run(model, x)
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


def _selective(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation == torch.ops.aten.addmm.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _each(model: nn.Module, x: torch.Tensor, **options: Any) -> None:
    for block in model:
        x = checkpoint(block, x, **options)
    x.square().sum().backward()


def _plainly(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().sum().backward()


def _nested(model: nn.Module, x: torch.Tensor) -> None:
    def half(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(model[:2], x, use_reentrant=False).tanh()

    x = checkpoint(half, x, use_reentrant=False)
    checkpoint(model[2:], x, use_reentrant=False).sum().backward()


def _twice(model: nn.Module, x: torch.Tensor) -> None:
    y = checkpoint(model, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    gradient.square().sum().backward()


def _kept(model: nn.Module, x: torch.Tensor) -> None:
    y = checkpoint(model, x, use_reentrant=False).square().sum()
    y.backward(retain_graph=True)
    y.backward()


def _on_cpu(model: nn.Module, x: torch.Tensor) -> None:
    with save_on_cpu():
        y = model(x)
    y.square().sum().backward()


def _selected(model: nn.Module, x: torch.Tensor) -> None:
    contexts = partial(create_selective_checkpoint_contexts, _selective)
    _each(model, x, use_reentrant=False, context_fn=contexts)


WAYS: dict[str, Callable[[nn.Module, torch.Tensor], None]] = {
    "reentrant": partial(_each, use_reentrant=True),
    "not reentrant": partial(_each, use_reentrant=False),
    "selective": _selected,
    "nested": _nested,
    "gradients of gradients": _twice,
    "a graph that is kept": _kept,
    "activations on the CPU": _on_cpu,
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_where_activations_are_not_kept(way: str, cut: str) -> None:
    plain = _blocks()
    model = _offloaded(plain, cut)
    for _ in range(2):
        assert_same(_gradients(model, WAYS[way]), _gradients(plain, WAYS[way]))
    with torch.no_grad():
        assert_same(model(X), plain(X), "a forward after it")


@pytest.mark.parametrize("way", ["reentrant", "not reentrant", "nested"])
def test_gradients_where_activations_are_not_kept_beside_a_gpu(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPU without a GPU: weights that backward reads come from pinned host memory."""
    use_fake_gpu(monkeypatch, homes=True)
    plain = _blocks()
    model = copy.deepcopy(plain)
    ts.offload(model, ram_budget=smallest_budget(model) + (1 << 20))  # places are aligned there
    assert hooks_of(model)
    for _ in range(2):
        assert_same(_gradients(model, WAYS[way]), _gradients(plain, WAYS[way]))


@pytest.mark.parametrize("way", ["plain", "not reentrant"])
def test_backward_takes_weights_from_where_they_are_loaded(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a GPU each group crosses the link once on the way there and once on the way back at most."""
    use_fake_gpu(monkeypatch, homes=True)
    plain = _blocks(6)
    model = copy.deepcopy(plain)
    ts.offload(model, ram_budget=smallest_budget(model) + (1 << 19), compression="none")
    run = WAYS.get(way, _plainly)
    expected = _gradients(plain, run)
    assert_same(_gradients(model, run), expected)
    monkeypatch.setattr(Weight, "read", lambda weight: pytest.fail(f"{weight.name} was read apart"))
    engine = orchestrator_of(model).engine
    groups = sum(place == _native.Placement.STREAMED for place in engine.plan.placements)
    assert groups > 2
    for _ in range(2):
        before = engine.statistics()
        assert_same(_gradients(model, run), expected)
        after = engine.statistics()
        late = 1  # of the step before, counted in this one
        assert 0 < after.loads - before.loads <= 2 * groups + late
        assert after.surprises == before.surprises


def test_backward_within_a_forward_whose_weights_have_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has no place then is read from its source."""
    use_fake_gpu(monkeypatch, homes=True)
    plain = _blocks(6)
    model = copy.deepcopy(plain)
    ts.offload(model, ram_budget=smallest_budget(model) + (1 << 19), compression="none")
    read: list[str] = []
    reads = Weight.read
    monkeypatch.setattr(Weight, "read", lambda weight: (read.append(weight.name), reads(weight))[1])
    seen: dict[nn.Module, list[torch.Tensor]] = {model: [], plain: []}
    for each in (model, plain):
        x = X.clone().requires_grad_()
        y = each[1](x).square().sum()

        def use(*_: Any, y: torch.Tensor = y, x: torch.Tensor = x, each: Any = each) -> None:
            seen[each] += torch.autograd.grad(y, x)

        handle = each[4].down.register_forward_pre_hook(use)
        seen[each].append(each[4](X))
        handle.remove()
    assert read, "the block that ran left it a place"
    assert_same(seen[model], seen[plain])


@pytest.mark.parametrize("cut", CUTS)
def test_hooks_for_saved_tensors_get_every_activation(cut: str) -> None:
    """And no weights: those are read from their source."""
    plain = _blocks()
    weights = {parameter.shape for parameter in plain.parameters() if parameter.ndim == 2}
    seen: list[list[tuple[torch.Tensor, torch.Size]]] = []
    for each in (_offloaded(plain, cut), plain):
        packed: list[tuple[torch.Tensor, torch.Size]] = []

        def pack(tensor: torch.Tensor, packed: Any = packed) -> int:
            packed.append((tensor.clone(), tensor.shape))
            return len(packed) - 1

        def unpack(position: int, packed: Any = packed) -> torch.Tensor:
            return packed[position][0]

        with saved_tensors_hooks(pack, unpack):
            y = each(X.clone().requires_grad_())
        y.sum().backward()
        seen.append([saved for saved in packed if saved[1] not in weights])
    assert len(seen[0]) == len(seen[1]) > 4
    assert_same([saved[0] for saved in seen[0]], [saved[0] for saved in seen[1]])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_block_keeps_no_activations(reentrant: bool) -> None:
    """What checkpointing is for: each block runs again in backward, and holds nothing until then."""
    counted: list[tuple[int, int]] = []
    plain = _blocks()
    for each in (_offloaded(plain, "coarse"), plain):
        runs: list[int] = []
        kept: list[Any] = []
        handle = each[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        inside = each[0].down.register_forward_pre_hook(
            lambda module, args, kept=kept: kept.append(args[0].untyped_storage()._weak_ref())
        )
        y = checkpoint(each[0], X.clone().requires_grad_(), use_reentrant=reentrant)
        alive = sum(not torch.UntypedStorage._expired(reference) for reference in kept)
        y.sum().backward()
        counted.append((len(runs), alive))
        handle.remove(), inside.remove()
        for reference in kept:
            torch.UntypedStorage._free_weak_ref(reference)
    assert counted[0] == counted[1] == (2, 0)


class Calling(nn.Module):
    """Runs a block that is not its own inside its forward: the two may share a place."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.up = nn.Linear(256, 256)
        self.block = [block]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = checkpoint(self.block[0], torch.relu(self.up(x)), use_reentrant=False)
        return F.linear(y.exp(), self.up.weight).tanh()


class Crossing(nn.Module):
    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.callers = nn.ModuleList(Calling(block) for block in blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for caller in self.callers:
            x = caller(x)
        return x


@pytest.mark.parametrize("room", [1.0, 1.7, 3.0])
def test_weights_that_have_a_place_in_the_recomputation_alone(room: float) -> None:
    """In the forward the caller's lease takes it, and they are read on demand."""
    plain, model = Crossing(_blocks()), Crossing(_blocks())
    ts.offload(model, ram_budget=int(smallest_budget(model) * room), self_check=True)

    def run(crossing: nn.Module, x: torch.Tensor) -> None:
        crossing(x).sum().backward()

    for _ in range(2):
        assert_same(_gradients(model, run), _gradients(plain, run))


def _llama(*, tied: bool = False) -> Any:
    model = SHAPES["llama"].make(3)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return model


def _adapted(model: Any) -> Any:
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return peft.get_peft_model(model, config)


def _batch(step: int) -> dict[str, torch.Tensor]:
    """Prompts and completions of unlike lengths: padding and prompts count for no loss."""
    lengths = (11, 7 + step % 3)
    rows = [token_ids(length, seed=10 * step + i)[0] for i, length in enumerate(lengths)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _fine_tune(model: Any, steps: int = 4) -> list[Any]:
    """As supervised fine-tuning is written by hand; losses, and gradients of each step."""
    seen: list[Any] = []
    optimizer = torch.optim.AdamW(_trained(model), lr=1e-3)
    schedule = tf.get_linear_schedule_with_warmup(optimizer, 1, steps)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # of dropout
        for step in range(steps):
            for part in range(2):  # gradients of two batches are added up
                loss = model(**_batch(2 * step + part)).loss / 2
                loss.backward()
                seen.append(loss.detach())
            seen.append([parameter.grad.clone() for parameter in _trained(model)])
            seen.append(nn.utils.clip_grad_norm_(_trained(model), 1.0))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return seen


CHECKPOINTING: dict[str, dict[str, Any] | None] = {
    "no": None,
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
}


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("order", ["offloaded first", "adapted first", "from files"])
def test_adapters_are_fine_tuned(order: str, checkpointing: str, tmp_path: Path) -> None:
    plain = _adapted(_llama())
    if order == "from files":
        folder = save(_llama(), tmp_path)
        budget = smallest_budget(folder)
        model = _adapted(ts.from_pretrained(folder, ram_budget=budget, self_check=True))
    elif order == "offloaded first":
        model = _adapted(offload_tightly(_llama(), self_check=True))
    else:
        model = offload_tightly(_adapted(_llama()), self_check=True)
    options = CHECKPOINTING[checkpointing]
    for each in (model, plain):
        if options is not None:
            each.enable_input_require_grads()
            each.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert_same(_fine_tune(model), _fine_tune(plain))
    assert ts.stats(model).streamed_bytes > 0
    for each in (model, plain):
        each.eval().merge_adapter()
    with torch.no_grad():
        ids = token_ids()
        assert_same(model(ids).logits, plain(ids).logits, "trained and merged")


@pytest.mark.parametrize("tied", [False, True])
def test_streamed_weights_are_trained(tied: bool) -> None:
    """All of them: a step writes to each, which owns its memory from then on."""
    plain = _llama(tied=tied)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    assert_same(_fine_tune(model, 3), _fine_tune(plain, 3))
    assert_same(list(model.parameters()), list(plain.parameters()), "the weights")
    ts.restore(model)
    assert_same(_fine_tune(model, 2), _fine_tune(plain, 2), "restored, and trained on")


def test_a_preference_loss_has_its_reference_without_the_adapter() -> None:
    """Four forwards of one model under one loss, two of them without adapter and gradient."""

    def likelihood(model: Any, ids: torch.Tensor) -> torch.Tensor:
        scores = model(ids).logits[:, :-1].log_softmax(-1)
        return scores.gather(-1, ids[:, 1:, None]).sum()

    plain = _adapted(_llama()).eval()
    model = _adapted(offload_tightly(_llama(), self_check=True)).eval()
    losses = []
    for each in (model, plain):
        optimizer = torch.optim.SGD(_trained(each), lr=0.1)
        for step in range(3):
            chosen, rejected = token_ids(9, seed=step), token_ids(8, seed=50 + step)
            with torch.no_grad(), each.disable_adapter():
                reference = likelihood(each, chosen) - likelihood(each, rejected)
            margin = likelihood(each, chosen) - likelihood(each, rejected) - reference
            loss = -F.logsigmoid(0.1 * margin)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    assert_same(losses[:3], losses[3:])
    assert_same(_trained(model), _trained(plain))


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = token_ids(9, seed=index)[0]
        return {"input_ids": ids, "labels": ids.clone()}


def _by_trainer(model: Any, folder: Path, **options: Any) -> list[dict[str, float]]:
    arguments = tf.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = tf.Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    wanted = ("loss", "grad_norm", "eval_loss")
    return [
        {name: value for name, value in entry.items() if name in wanted}
        for entry in trainer.state.log_history
    ]


def _trained_alike(trains: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """An offloaded model and the plain one, trained by the Trainer with the same steps and weights."""
    plain = _llama()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    ours, theirs = (model, plain) if trains == "all weights" else (_adapted(model), _adapted(plain))
    logs = [
        _by_trainer(each, folder / name, **options)
        for each, name in ((ours, "ours"), (theirs, "theirs"))
    ]
    assert logs[0] == logs[1]
    assert sum("loss" in entry for entry in logs[0]) == 4
    assert_same(list(ours.parameters()), list(theirs.parameters()))
    assert hooks_of(model), "the trainer undid the offload"
    return ours, theirs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trains", ["an adapter", "all weights"])
def test_the_trainer_of_transformers(trains: str, checkpointing: bool, tmp_path: Path) -> None:
    options = {"gradient_checkpointing": checkpointing, "load_best_model_at_end": True}
    ours, theirs = _trained_alike(trains, tmp_path, **options)
    with torch.no_grad():
        assert_same(ours(token_ids()).logits, theirs(token_ids()).logits)


@pytest.fixture
def accelerates_own_settings() -> Iterator[None]:
    """What the Trainer tells accelerate of compiling goes with the test: variables, and its state."""
    with unittest.mock.patch.dict(os.environ):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


# Where a graph ends inside a forward the compiler looks at `grad` of what enters the next one.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.usefixtures("accelerates_own_settings")
@pytest.mark.parametrize("trains", ["an adapter", "all weights"])
def test_the_trainer_of_transformers_compiles(trains: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    _trained_alike(trains, tmp_path, **options)
    torch._dynamo.reset()


def test_the_trainer_saves_what_it_trained(tmp_path: Path) -> None:
    model = offload_tightly(_llama())
    _by_trainer(model, tmp_path)
    loaded = tf.LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert_same(list(loaded.parameters()), list(model.parameters()))
