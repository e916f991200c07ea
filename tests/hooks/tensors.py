"""A tensor of plain lists with the few methods that hooks use, so that the ordinary suite needs neither torch nor numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any


class Tensor:
    """Numbers in rows of rows; equal when shape and numbers are, bit for bit."""

    def __init__(self, shape: tuple[int, ...], data: list[float]) -> None:
        assert math.prod(shape) == len(data)
        self.shape = shape
        self.data = data

    @classmethod
    def full(cls, shape: tuple[int, ...], value: Callable[..., float]) -> Tensor:
        return cls(shape, [value(*place) for place in product(*map(range, shape))])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, place: Any) -> Tensor:
        size = math.prod(self.shape[1:])
        if isinstance(place, int):
            place = range(len(self))[place]
            return Tensor(self.shape[1:], self.data[place * size : (place + 1) * size])
        assert isinstance(place, slice)
        start, stop, step = place.indices(len(self))
        assert step == 1
        return Tensor((max(0, stop - start), *self.shape[1:]), self.data[start * size : stop * size])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and (self.shape, self.data) == (other.shape, other.data)

    __hash__ = None  # type: ignore[assignment]

    def map(self, change: Callable[[float], float]) -> Tensor:
        return Tensor(self.shape, [change(value) for value in self.data])

    def with_(self, other: Any, change: Callable[[float, float], float]) -> Tensor:
        if isinstance(other, Tensor) and other.shape:
            assert self.shape == other.shape, "shapes differ"
            return Tensor(self.shape, [change(*pair) for pair in zip(self.data, other.data, strict=True)])
        number = float(other)
        return self.map(lambda value: change(value, number))

    def __add__(self, other: Any) -> Tensor:
        return self.with_(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Tensor:
        return self.with_(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Tensor:
        return self.with_(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Tensor:
        return self.with_(other, lambda a, b: a / b)

    def __neg__(self) -> Tensor:
        return self.map(lambda value: -value)

    def __float__(self) -> float:
        (value,) = self.data
        return value

    add, sub, mul = __add__, __sub__, __mul__

    def same(self, *_: object, **__: object) -> Tensor:
        """What another device or type would be."""
        return self

    float = to = cpu = detach = contiguous = same

    def clamp(self, low: Any, high: Any) -> Tensor:
        return self.map(lambda value: min(max(value, low), high))

    def nan_to_num(self, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Tensor:
        return self.map(lambda value: nan if math.isnan(value) else (posinf if value > 0 else neginf) if math.isinf(value) else value)

    def round(self) -> Tensor:
        return self.map(round)

    def byte(self) -> Tensor:
        assert all(math.isfinite(value) and 0 <= value <= 255 for value in self.data), "torch would make undefined colours of it"
        return self.map(int)

    def unsqueeze(self, place: int) -> Tensor:
        return Tensor((*self.shape[:place], 1, *self.shape[place:]), self.data)

    def permute(self, *order: int) -> Tensor:
        shape = tuple(self.shape[axis] for axis in order)
        strides = [math.prod(self.shape[axis + 1 :]) for axis in order]
        return Tensor.full(shape, lambda *place: self.data[sum(map(int.__mul__, place, strides))])

    def numpy(self) -> Array:
        return Array(self)


class Array:
    """What ``Tensor.numpy`` returns."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape = tensor.shape

    def __iter__(self) -> Iterator[Array]:
        return (Array(part) for part in self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def tobytes(self) -> bytes:
        return bytes(int(value) for value in self.tensor.data)
