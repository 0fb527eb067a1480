"""Memory that weights are given, or exchange, while somebody else has it too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from tensorstream.forms import copy_at

_SIZE = 128


class _Pair(nn.Module):
    """Two weights, and what a forward does with them, given another module."""

    act: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    taken: Any = None
    other: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.randn(_SIZE, _SIZE) / 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w if self.act is None else self.act(x)


def _models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = nn.Sequential(*(_Pair() for _ in range(3)))
    return plain, offload_tightly(copy.deepcopy(plain))


def _let(model: Any, act: Callable[[Any, torch.Tensor], torch.Tensor] | None) -> None:
    model[1].act = None if act is None else act.__get__(model[1])


def _outcome(model: Any, *, grad: bool = False) -> Any:
    """What a forward gives, and leaves; or that it is refused."""
    x = torch.linspace(-1, 1, 2 * _SIZE).view(2, _SIZE).requires_grad_(grad)
    try:
        with torch.set_grad_enabled(grad):
            y = model(x)
        if grad:
            model.zero_grad()
            y.sum().backward()
    except (ts.UnsupportedError, RuntimeError):
        return "refused"
    return [y.detach(), x.grad, *(p.detach().clone() for p in model.parameters())]


def _give(model: Any, offset: int) -> torch.Tensor:
    """Gives the weight memory that somebody keeps, at that byte of a cache line."""
    given = copy_at(model[1].w.detach(), offset)
    model[1].w.data = given
    return given


def test_a_place_is_given_to_no_parked_weight_in_exchange() -> None:
    _, model = _models()
    before = [p.detach().clone() for p in model[0].parameters()]

    def exchange(pair: Any, x: torch.Tensor) -> torch.Tensor:
        mine, others = pair.w, model[0].w
        kept = mine.data
        mine.data = others.data
        others.data = kept
        return x @ mine

    _let(model, exchange)
    assert _outcome(model) == "refused"
    _let(model, None)
    _outcome(model)
    assert_same(list(model[0].parameters()), before)


def _written_as_another(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.w.data, pair.v.data = pair.v.data, pair.w.data
    with torch.no_grad():
        pair.v.mul_(2)
    pair.w.data, pair.v.data = pair.v.data, pair.w.data
    return x @ pair.w


def _transposed(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.w.data = pair.w.data.t()
    return x @ pair.w


def _written_and_transposed(pair: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pair.w.mul_(2)
    return _transposed(pair, x)


def _kept(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.taken = pair.w.view(-1)
    return x @ pair.w


def _kept_and_written(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.taken = pair.w.detach().view(-1)
    with torch.no_grad():
        pair.w.mul_(2)
    return x @ pair.w


def _written(pair: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pair.w.mul_(0.5)
    return x @ pair.w


def test_what_is_written_to_a_weight_on_the_place_of_another_is_kept() -> None:
    plain, model = _models()
    for _ in range(2):
        for each in (plain, model):
            _let(each, _written_as_another)
        assert_same(_outcome(model), _outcome(plain))


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("act", [_transposed, _written_and_transposed, _written])
def test_an_alias_stays_one_where_a_forward_changes_the_weight(act: Any, offset: int) -> None:
    plain, model = _models()
    for _ in range(2):
        found = []
        for each in (plain, model):
            given = _give(each, offset)
            _let(each, act)
            first = _outcome(each)
            given.mul_(3)
            found.append((first, _outcome(each), given))
        assert_same(found[1], found[0])


def _exchanged_with_the_other(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.w.data, pair.v.data = pair.v.data, pair.w.data
    return x @ pair.w


@pytest.mark.parametrize("offset", [0, 20])
def test_memory_with_an_alias_goes_to_another_weight_or_is_refused(offset: int) -> None:
    plain, model = _models()
    found = []
    for each in (plain, model):
        given = _give(each, offset)
        _let(each, _exchanged_with_the_other)
        first = _outcome(each)
        _let(each, None)
        given.mul_(3)
        found.append([first, _outcome(each)])
    if offset == 0:  # the weight is lent where its place is
        assert found[1][0] == "refused"
    else:
        assert_same(found[1], found[0])


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("given_within", [False, True])
def test_a_write_through_an_alias_shows_where_the_weight_is_exchanged(
    offset: int, *, given_within: bool
) -> None:
    def give(pair: Any, x: torch.Tensor) -> torch.Tensor:
        pair.taken = copy_at(pair.w.detach(), offset)
        pair.w.data = pair.taken
        return x @ pair.w

    def write(pair: Any, x: torch.Tensor) -> torch.Tensor:
        pair.taken.mul_(2)
        y = x @ pair.w
        pair.w.data = pair.w.detach() * 1.0
        return y

    _, model = _models()
    if given_within:
        _let(model, give)
        assert _outcome(model) != "refused"
    else:
        model[1].taken = _give(model, offset)
    _let(model, write)
    assert _outcome(model) == "refused"


def _written_and_given(pair: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pair.w.mul_(2)
    pair.w.data = torch.full_like(pair.w.detach(), 0.25)
    return x @ pair.w


def _written_and_given_its_alias(pair: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pair.w.mul_(2)
    pair.w.data = pair.taken
    return x @ pair.w


def _written_and_swapped(pair: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pair.w.mul_(2)
    torch.utils.swap_tensors(pair.w, nn.Parameter(torch.full_like(pair.w.detach(), 0.25)))
    return x @ pair.w


def _given(pair: Any, x: torch.Tensor) -> torch.Tensor:
    pair.w.data = torch.full_like(pair.w.detach(), 0.25)
    return x @ pair.w


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize(
    "act", [_written_and_given, _written_and_given_its_alias, _written_and_swapped, _given]
)
def test_an_alias_sees_what_is_written_before_the_weight_leaves(act: Any, offset: int) -> None:
    plain, model = _models()
    found = []
    for each in (plain, model):
        each[1].taken = _give(each, offset)
        _let(each, act)
        found.append([_outcome(each), each[1].taken])
    if offset == 0 and act is not _given:  # it was lent where its place is
        assert found[1][0] == "refused"
    else:
        assert_same(found[1], found[0])


@pytest.mark.parametrize("act", [_kept, _kept_and_written])
@pytest.mark.parametrize("write", [None, _written])
def test_a_view_that_a_forward_keeps_of_given_memory_is_an_alias(act: Any, write: Any) -> None:
    plain, model = _models()
    found = []
    for each in (plain, model):
        _give(each, 20)  # and lets go of it
        _let(each, act)
        outcomes = [_outcome(each)]
        _let(each, write)
        outcomes.append(_outcome(each))
        with torch.no_grad():
            each[1].taken.add_(0.25)
        outcomes += [_outcome(each), each[1].taken.detach().clone()]
        with torch.no_grad():
            each[1].w.mul_(2)
        found.append([*outcomes, each[1].taken.detach().clone(), each[1].w.detach().clone()])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("writes", [False, True])
def test_what_is_written_through_a_kept_view_stops_a_backward(*, writes: bool) -> None:
    found = []
    for each in _models():
        _give(each, 20)
        _let(each, _kept)
        x = torch.ones(2, _SIZE, requires_grad=True)
        y = each(x)
        if writes:
            with torch.no_grad():
                each[1].taken.mul_(2)
            with pytest.raises(RuntimeError, match=r"modified by an inplace|was written to"):
                y.sum().backward()
        else:
            y.sum().backward()
            found.append([x.grad, *(p.grad for p in each.parameters())])
    if found:
        assert_same(found[1], found[0])


def test_a_weight_that_is_set_after_it_was_saved_stops_the_backward() -> None:
    def set_after(pair: Any, x: torch.Tensor) -> torch.Tensor:
        y = x @ pair.w
        with torch.no_grad():
            pair.w.set_(pair.w.detach() * 0.5)
        return y

    for each in _models():
        _let(each, set_after)
        assert _outcome(each, grad=True) == "refused"


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("writes", [False, True])
def test_a_write_after_a_forward_that_gave_memory_stops_the_backward(
    offset: int, *, writes: bool
) -> None:
    def give(pair: Any, x: torch.Tensor) -> torch.Tensor:
        pair.w.data = copy_at(pair.w.data * 0.5, offset)
        return F.linear(x, pair.w) + x @ pair.w

    found = []
    for each in _models():
        _let(each, give)
        x = torch.ones(2, _SIZE, requires_grad=True)
        y = each(x).square().sum()
        if writes:
            with torch.no_grad():
                each[1].w.mul_(3)
            with pytest.raises(RuntimeError, match=r"modified by an inplace|was written to"):
                y.backward()
        else:
            y.backward()
            found.append([x.grad, *(p.grad for p in each.parameters())])
    if found:
        assert_same(found[1], found[0])


def test_what_is_swapped_in_after_memory_was_given_stays() -> None:
    def swap(pair: Any, x: torch.Tensor) -> torch.Tensor:
        pair.w.data = pair.w.data * 0.5
        torch.utils.swap_tensors(pair.w, nn.Parameter(torch.full_like(pair.w.detach(), 0.25)))
        return x @ pair.w

    found = []
    for each in _models():
        _let(each, swap)
        first = _outcome(each)
        _let(each, None)
        found.append([first, _outcome(each)])
    assert_same(found[1], found[0])


def test_gradients_of_a_view_between_the_elements_of_given_memory() -> None:
    def beside(pair: Any, x: torch.Tensor) -> torch.Tensor:
        return x @ pair.w + (x[:, :8].to(torch.complex64) * pair.taken).real.sum()

    found = []
    for each in _models():
        flat = torch.empty(1 + _SIZE * _SIZE)
        flat[1:] = each[1].w.detach().flatten()
        each[1].w.data = flat[1:].view(_SIZE, _SIZE)
        each[1].taken = torch.view_as_complex(flat[2:18].view(8, 2))
        _let(each, beside)
        found.append(_outcome(each, grad=True))
    assert_same(found[1], found[0])
