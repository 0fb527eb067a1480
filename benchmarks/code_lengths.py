"""Question: how many bits does a Gaussian bf16 weight take in codes that a GPU could decode?

Method: by calculation, for 64 standard deviations within an octave, which shift the weights'
distribution over their exponents, and for mixtures of deviations. Eight bits are sign and mantissa.
Codes of levels count what csrc/codec/FORMAT.md stores beside the codes; the others count nothing.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence

DEVIATIONS = [2 ** (step / 64) for step in range(64)]
EXPONENTS = range(-60, 10)
KEPT_BITS = 8
CHUNK = 8192
FRAME = 2**20
LITERAL_BITS = 8

Shares = list[float]
Widths = tuple[int, ...]

# The widths that the levels of csrc/codec/compression_level.cpp choose from.
FASTEST: list[Widths] = [(2, 2, 3)]
BALANCED = [*FASTEST, (2, 1, 2, 3), (2, 2, 2, 3)]
SMALLEST = [*BALANCED, (2, 1, 1, 2, 3), (2, 2, 2, 2, 2), (2, 1, 1, 1, 2, 3)]


def below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def shares_of(deviations: Sequence[float], mantissa_bits: int = 0) -> Shares:
    """How often each exponent, with so many bits of mantissa, occurs; the commonest first."""
    parts = 1 << mantissa_bits
    edges = [2.0**e * (1 + part / parts) for e in EXPONENTS for part in range(parts)]
    shares = [
        sum(2 * (below(high / s) - below(low / s)) for s in deviations) / len(deviations)
        for low, high in itertools.pairwise(edges)
    ]
    return sorted((share for share in shares if share > 0), reverse=True)


def entropy(shares: Shares) -> float:
    return -sum(share * math.log2(share) for share in shares)


def huffman(shares: Shares) -> float:
    heap = list(shares)
    heapq.heapify(heap)
    bits = 0.0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits


def huffman_of_pairs(shares: Shares) -> float:
    likely = [share for share in shares if share > 1e-7]
    return huffman([a * b for a in likely for b in likely]) / 2


def levels(shares: Shares, widths: Widths) -> float:
    """Bits of a symbol, its part of index, checksums and header, and of what alignment adds."""
    left, bits, rank = 1.0, 0.0, 0
    for width in widths:
        bits += left * width
        named = (1 << width) - 1
        left -= sum(shares[rank : rank + named])
        rank += named
    index = 8 * (4 + 4 + 2 * len(widths))
    padding = 3.5 * sum(widths[1:]) + 8 * 7.5
    return bits + max(left, 0) * LITERAL_BITS + (index + padding) / CHUNK + 8 * (68 + 24) / FRAME


def report(name: str, cost: Callable[[Shares], float], octave: list[Shares], mixed: list[Shares]):
    each = [KEPT_BITS + cost(shares) for shares in octave]
    mean, mixture = sum(each) / len(each), sum(map(cost, mixed)) / len(mixed) + KEPT_BITS
    print(f"{name:<52} {mean:8.3f} {max(each):8.3f} {mixture:10.3f}")


def main() -> None:
    octave = [shares_of([deviation]) for deviation in DEVIATIONS]
    chance = random.Random(1)
    # Rows of a matrix whose deviations differ by a factor of 1.2, 1.6 and 2.7 and its inverse.
    mixed = [
        shares_of([2 ** (step / 8) * math.exp(chance.gauss(0, spread)) for _ in range(200)])
        for step in range(8)
        for spread in (0.2, 0.5, 1.0)
    ]
    print(f"{'bits a weight':<52} {'mean':>8} {'worst':>8} {'mixtures':>10}")
    report("entropy of exponents", entropy, octave, mixed)
    for bits in (1, 2, 7):
        joint = sum(entropy(shares_of([d], bits)) - bits for d in DEVIATIONS) / len(DEVIATIONS)
        print(f"{f'entropy, {bits} bits of mantissa in the symbol':<52} {KEPT_BITS + joint:8.3f}")
    report("Huffman", huffman, octave, mixed)
    report("Huffman, pairs of exponents", huffman_of_pairs, octave, mixed)
    for widths in (
        (3,), (2, 3), (2, 2, 3), (2, 2, 2), (2, 1, 2, 3), (2, 2, 2, 3), (2, 1, 1, 2, 3),
        (2, 2, 2, 2, 2), (2, 1, 1, 1, 2, 3), (2, 1, 1, 1, 1, 2, 2), (1, 1, 1, 1, 1, 1, 1),
    ):  # fmt: skip
        name = f"levels of {', '.join(map(str, widths))}"
        report(name, lambda shares, w=widths: levels(shares, w), octave, mixed)
    every = [
        (2, *rest)
        for count in range(1, 7)
        for rest in itertools.product((1, 2, 3), repeat=count)
        if 3 + sum((1 << width) - 1 for width in rest) <= 16
    ]
    for name, choices in (("1 to 3", FASTEST), ("4 to 6", BALANCED), ("7 to 9", SMALLEST)):
        best = lambda shares, c=choices: min(levels(shares, w) for w in c)  # noqa: E731
        report(f"compression levels {name}: the best of {len(choices)}", best, octave, mixed)
    report(
        f"the best of all {len(every)} widths that a frame may have",
        lambda shares: min(levels(shares, widths) for widths in every), octave, mixed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
