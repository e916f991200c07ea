"""Optical flow, where the extra ``flow`` is installed: the pictures between two images. The only module that imports OpenCV and NumPy.

Theory of operation. DIS flow says for each pixel of one image where it has gone in the other, and the same from the other side. A picture at
*weight* between them takes each of its pixels from where the two flows, mixed, say that it comes from in either image, and cross-fades the two.
All of that happens on the encoder's planes. Flow is smooth, so it is looked for in smaller copies: that is faster, and on steps of diffusion runs
no worse.

Between two steps of a run little moves and much appears where nothing was, and there any motion is a wrong one. So flow is trusted as far as it
makes the two images more alike half way than they are as they lie: all the way where it takes away half of the difference, else in proportion.
What is left is a cross-fade. Images that were left out come back nearer to themselves by that: an SSIM of .9930 instead of .9905, and .9912 by
``minterpolate``, while a photograph that passes by is moved as before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from stepwatch.errors import EncodeError, MissingToolError

LONGEST_SIDE = 512
"""Pixels of the copies in which flow is looked for; they are at most half as large as the images."""
SHORTEST_SIDE = 64
"""What would become smaller than this is not made smaller."""
AROUND = 9
"""Pixels of the copies, across and down, over which images are compared."""
UNSEEN = 1.0
"""Levels of difference that say nothing of motion."""
LEAST_SIDE = 16
"""DIS cannot look at less; there the images are cross-faded."""

_scratch = threading.local()


def available() -> bool:
    """Whether the extra is installed; nothing is loaded for it."""
    return all(importlib.util.find_spec(name) is not None for name in ("cv2", "numpy"))


def version() -> str | None:
    """OpenCV's, once it has been loaded to prove that it can be; None without the extra. Raises MissingToolError."""
    return str(_libraries()[0].__version__) if available() else None


@functools.lru_cache(maxsize=1)
def _libraries() -> tuple[Any, Any]:
    """OpenCV and NumPy; MissingToolError when they cannot be loaded."""
    try:
        import cv2
        import numpy as np
    except ImportError as error:
        raise MissingToolError(
            f"optical flow cannot be used: {error}", hint="install stepwatch[flow] again, or remove opencv-python-headless: mci then works without it"
        ) from error
    cv2.setNumThreads(1)  # Several pictures are made at once already.
    return cv2, np


@contextlib.contextmanager
def _explained() -> Iterator[tuple[Any, Any]]:
    """OpenCV and NumPy, and what goes wrong with them as an EncodeError."""
    cv2, np = _libraries()
    try:
        yield cv2, np
    except (cv2.error, MemoryError) as error:
        raise EncodeError(f"optical flow failed: {error}", hint="remove opencv-python-headless: mci then works without it") from error


class Planes:
    """One image, as the planes of 8 bits that the encoder takes; *sizes* has width and height of each, the luma's first."""

    def __init__(self, data: bytes, sizes: Sequence[tuple[int, int]]) -> None:
        self.data = data
        self.sizes = tuple(sizes)
        self.planes: list[Any] = []
        with _explained() as (cv2, np):
            start = 0
            for width, height in sizes:
                self.planes.append(np.frombuffer(data, np.uint8, width * height, start).reshape(height, width))
                start += width * height
            width, height = sizes[0]
            shrink = max(2.0, max(width, height) / LONGEST_SIDE)
            if min(width, height) / shrink < SHORTEST_SIDE:
                shrink = 1.0
            small = (round(width / shrink), round(height / shrink))
            self.small = self.planes[0] if shrink == 1.0 else cv2.resize(self.planes[0], small, interpolation=cv2.INTER_AREA)
            """In which flow is looked for."""


class Pair:
    """Two images that follow one another, and the flow between them, which is looked for when the first picture is asked for."""

    def __init__(self, first: Planes, second: Planes) -> None:
        self._first = first
        self._second = second
        self._lock = threading.Lock()
        self._flows: dict[tuple[int, int], tuple[Any, Any]] | None = None

    def picture(self, weight: float) -> bytes:
        """The planes at *weight*, 0 to 1, of the way; any thread may ask. Raises EncodeError, MissingToolError."""
        if weight in (0, 1):
            return self._second.data if weight else self._first.data
        with _explained() as (cv2, np):
            with self._lock:
                if self._flows is None:
                    self._flows = self._look()
            whole = np.empty(len(self._first.data), np.uint8)
            start = 0
            for number, (width, height) in enumerate(self._first.sizes):
                made = whole[start : start + width * height].reshape(height, width)
                first, second = self._first.planes[number], self._second.planes[number]
                if (width, height) in self._flows:
                    first, second = _moved(first, second, weight, self._flows[width, height])
                cv2.addWeighted(first, 1 - weight, second, weight, 0, dst=made)
                start += width * height
            return bytes(whole)

    def _look(self) -> dict[tuple[int, int], tuple[Any, Any]]:
        """The flow from each image to the other, in the size of each plane; nothing where the images are too small."""
        cv2, np = _libraries()
        one, other = self._first.small, self._second.small
        down, across = one.shape
        if min(down, across) < LEAST_SIDE:
            return {}
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        found = self._trusted(dis.calc(one, other, None), dis.calc(other, one, None))
        flows = {}
        for width, height in set(self._first.sizes):
            there, back = found if (width, height) == (across, down) else (cv2.resize(flow, (width, height)) for flow in found)
            factor = np.array((width / across, height / down), np.float32)
            flows[width, height] = there * factor, back * factor
        return flows

    def _trusted(self, there: Any, back: Any) -> tuple[Any, Any]:
        """The same flows, shorter where they do not explain what changes from one image to the other."""
        cv2, np = _libraries()
        one, other = self._first.small, self._second.small

        def unlike(left: Any, right: Any) -> Any:
            return cv2.blur(cv2.absdiff(left, right).astype(np.float32), (AROUND, AROUND))

        as_they_lie = unlike(one, other)
        trust = 2 * (as_they_lie - unlike(*_moved(one, other, 0.5, (there, back)))) / (as_they_lie + UNSEEN)
        trust = cv2.blur(np.clip(trust, 0, 1), (AROUND, AROUND))[..., None]
        return there * trust, back * trust


def _moved(first: Any, second: Any, weight: float, flows: tuple[Any, Any]) -> tuple[Any, Any]:
    """One plane of each image, its pixels where they are at *weight*; good until this thread asks again."""
    cv2, _ = _libraries()
    there, back = flows
    height, width = first.shape
    place, one, other = _buffers(width, height)
    grid = _grid(width, height)
    how = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    # Where each pixel comes from. Its way grows with what is gone of it, and both flows are asked, that of the nearer image more.
    cv2.add(grid, cv2.addWeighted(there, -(1 - weight) * weight, back, weight**2, 0, dst=place), dst=place)
    cv2.remap(first, place, None, dst=one, **how)
    cv2.add(grid, cv2.addWeighted(there, (1 - weight) ** 2, back, -(1 - weight) * weight, 0, dst=place), dst=place)
    cv2.remap(second, place, None, dst=other, **how)
    return one, other


@functools.lru_cache(maxsize=8)
def _grid(width: int, height: int) -> Any:
    """For each pixel of a plane its own place."""
    _, np = _libraries()
    across, down = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.dstack((across, down))


def _buffers(width: int, height: int) -> tuple[Any, Any, Any]:
    """This thread's own: fresh memory for every picture costs more time than what is done in it."""
    _, np = _libraries()
    kept: dict[tuple[int, int], tuple[Any, Any, Any]] = _scratch.__dict__.setdefault("buffers", {})
    if (width, height) not in kept:
        plane = (height, width)
        kept[width, height] = np.empty((*plane, 2), np.float32), np.empty(plane, np.uint8), np.empty(plane, np.uint8)
    return kept[width, height]
