"""What a Llama does in a row of the result: decode steps or a prefill, timed and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import statistics
import time
from typing import Any

import torch

from cuda_runs.accelerator import Accelerator

_SHORT_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Pass:
    """ "decode" or "prefill" at a batch size."""

    kind: str
    batch: int

    @staticmethod
    def parse(text: str) -> Pass:
        """A pass of its name, "decode/16"."""
        kind, _, batch = text.partition("/")
        if kind not in ("decode", "prefill") or not batch.isdecimal() or int(batch) < 1:
            raise SystemExit(f"pass '{text}': give decode/BATCH or prefill/BATCH")
        return Pass(kind, int(batch))

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.batch}"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the passes are.

    Attributes:
        prompt: Tokens before the first decode step.
        new_tokens: Decode steps.
        context: Tokens of a prefill.
        repeats: Prefills that count; one more comes before them.
        seed: Of the tokens.
    """

    prompt: int
    new_tokens: int
    context: int
    repeats: int
    seed: int = 1


@dataclasses.dataclass
class Timed:
    """Seconds of each step, and what came out of each, hashed.

    Attributes:
        seconds: Of each step that counts.
        thread_seconds: Processor time that the calling thread took for each, where it is told.
        switches: How often the thread gave its processor up in all of these.
        logits_sha256: Of the bytes of the last position's logits, of the prompt and of each step.
        tokens: The greedy tokens of the batch, likewise.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    logits_sha256: list[str] = dataclasses.field(default_factory=list)
    tokens: list[list[int]] = dataclasses.field(default_factory=list)
    thread_seconds: list[float] = dataclasses.field(default_factory=list)
    switches: int = 0

    def keep(self, logits: torch.Tensor) -> None:
        """Hashes (batch, vocabulary) logits in host RAM, and keeps the greedy tokens."""
        self.keep_bytes(logits)
        self.tokens.append(logits.argmax(-1).tolist())

    def keep_bytes(self, output: torch.Tensor) -> None:
        """Hashes an output in host RAM."""
        if not torch.isfinite(output).all():
            raise RuntimeError("an output is not finite: nothing can be compared")
        raw = output.contiguous().view(torch.uint8).numpy().tobytes()
        self.logits_sha256.append(hashlib.sha256(raw).hexdigest())


def prompt_tokens(
    batch: int, length: int, vocabulary: int, seed: int, device: torch.device
) -> torch.Tensor:
    """(batch, length) token ids, the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator).to(device)


def _last_logits(model: Any, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
    options = (
        {"past_key_values": cache, "use_cache": True} if cache is not None else {"use_cache": False}
    )
    return model(tokens, logits_to_keep=1, **options).logits[:, -1]


@dataclasses.dataclass(frozen=True)
class Step:
    """A greedy step.

    Attributes:
        seconds: What it took.
        thread_seconds: Processor time of the calling thread.
        waited_seconds: For its logits, once all was enqueued.
        logits: (batch, vocabulary) in host RAM.
    """

    seconds: float
    thread_seconds: float
    waited_seconds: float
    logits: torch.Tensor


class Decoding:
    """A model that decodes, step by step.

    The cache has room for all steps from the start: one that grows leaves torch's allocator with blocks
    that are too small for the next step.

    Attributes:
        logits: (batch, vocabulary) after the prompt, in host RAM.
        room: Steps that there is room for still.
    """

    def __init__(self, model: Any, tokens: torch.Tensor, room: int) -> None:
        """Prefills `tokens`."""
        from transformers import StaticCache

        self._model = model
        self._cache = StaticCache(model.config, max_cache_len=tokens.shape[1] + room)
        self.room = room
        with torch.inference_mode():
            logits = _last_logits(model, tokens, self._cache)
            self._token = logits.argmax(-1, keepdim=True)
            self.logits = logits.cpu()

    def step(self) -> Step:
        """The next one. It ends with its logits in host RAM."""
        self.room -= 1
        with torch.inference_mode():
            start, on_thread = time.perf_counter(), time.thread_time()
            logits = _last_logits(self._model, self._token, self._cache)
            self._token = logits.argmax(-1, keepdim=True)
            enqueued = time.perf_counter()
            there = logits.cpu()
            end = time.perf_counter()
            return Step(end - start, time.thread_time() - on_thread, end - enqueued, there)


def decode(model: Any, tokens: torch.Tensor, new_tokens: int, room_for: int = 1) -> Timed:
    """Prefills `tokens`, then times greedy steps, with room for `room_for` of them at least."""
    decoding = Decoding(model, tokens, max(room_for, new_tokens))
    switches = _switches()
    steps = [decoding.step() for _ in range(new_tokens)]
    timed = Timed(
        seconds=[step.seconds for step in steps],
        thread_seconds=[step.thread_seconds for step in steps],
        switches=_switches() - switches,
    )
    for logits in (decoding.logits, *(step.logits for step in steps)):
        timed.keep(logits)
    return timed


def _switches() -> int:
    """How often the calling thread gave its processor up by itself, in its life."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def prefill(model: Any, tokens: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of one pass without a cache, and the last position's logits in host RAM."""
    with torch.inference_mode():
        start = time.perf_counter()
        logits = _last_logits(model, tokens, None).cpu()
        return time.perf_counter() - start, logits


def repeated_prefill(model: Any, tokens: torch.Tensor, repeats: int) -> Timed:
    """Prefills `repeats` times after once that is not counted; each one's logits are hashed."""
    timed = Timed()
    for repeat in range(repeats + 1):
        seconds, logits = prefill(model, tokens)
        timed.keep(logits)
        if repeat > 0:
            timed.seconds.append(seconds)
    return timed


def tokens_of(one: Pass, lengths: Lengths, model: Any, accelerator: Accelerator) -> torch.Tensor:
    """The tokens that a pass begins with."""
    length = lengths.prompt if one.kind == "decode" else lengths.context
    vocabulary = model.config.vocab_size
    return prompt_tokens(one.batch, length, vocabulary, lengths.seed, accelerator.device)


def run_pass(one: Pass, lengths: Lengths, model: Any, accelerator: Accelerator) -> Timed:
    """One row's work."""
    tokens = tokens_of(one, lengths, model, accelerator)
    if one.kind == "decode":
        return decode(model, tokens, lengths.new_tokens)
    return repeated_prefill(model, tokens, lengths.repeats)


def run_shortly(one: Pass, lengths: Lengths, model: Any, accelerator: Accelerator) -> None:
    """The same memory for less time: a few of its steps."""
    tokens = tokens_of(one, lengths, model, accelerator)
    if one.kind == "decode":
        decode(model, tokens, min(_SHORT_STEPS, lengths.new_tokens), room_for=lengths.new_tokens)
    else:
        prefill(model, tokens)


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and ends of some times, and every one of them."""
    ordered = sorted(seconds)
    low, high = ordered[0], ordered[-1]
    quartiles = (
        statistics.quantiles(ordered, n=4, method="inclusive")
        if len(ordered) > 1
        else [low, low, low]
    )
    return {
        "seconds_median": statistics.median(ordered),
        "seconds_min": low,
        "seconds_quartile_1": quartiles[0],
        "seconds_quartile_3": quartiles[2],
        "seconds_max": high,
        "seconds": [round(value, 7) for value in seconds],
    }
