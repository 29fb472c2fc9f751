"""The three maps in the frequency domain, a few planes at a time so that their spectra stay in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.fft.library import LibraryTransform
from widefield.ops.depthwise_conv.fft.matrices import MatrixTransform
from widefield.ops.depthwise_conv.fft.placement import CellPlaces, Places, geometry, is_sequence, mirrored
from widefield.ops.depthwise_conv.problem import Problem, memory_format
from widefield.ops.weight_cache import kept

Transform = LibraryTransform | MatrixTransform
Kind = type[LibraryTransform] | type[MatrixTransform]
Part = tuple[slice, slice]
"""Some images and some channels."""

CHUNK_BYTES = 3 << 20
"""Spectra held at a time for each thread."""


def make_transform(kind: Kind, problem: Problem) -> Transform:
    """Return a transform of one kind that is large enough for a problem."""
    return kind(geometry(problem).least, torch.promote_types(problem.dtype, torch.float32))


class FourierMaps:
    """The maps of one problem, for one call.

    A kernel is (C, 1, K_h, K_w), or with `cells` (C, 1, P_h, P_w), one value for all taps of a cell: the transform then
    gives its spectra, and the sums of its gradient over each cell, without the taps between.
    """

    def __init__(self, kind: Kind, problem: Problem, cells: CellPlaces | None = None) -> None:
        self._is_sequence = is_sequence(problem)
        if self._is_sequence:
            problem = mirrored(problem)
            cells = None if cells is None else CellPlaces(cells.columns, cells.rows)
        self._problem = problem
        self._places = geometry(problem)
        self._kernel: Places | CellPlaces = self._places.taps if cells is None else cells
        self._transform = make_transform(kind, problem)

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply the spectra of image and kernel: (N, C, P, Q). Those of an unchanged kernel are kept."""
        x, kernel = self._turned(x), self._turned(kernel)
        transform, places = self._transform, self._kernel
        key = (type(transform), transform.size, transform.dtype, places)
        known = kept(kernel, key, lambda: self._spectra(kernel))

        def spectra(channels: slice) -> Tensor:
            return transform.analyse(kernel[channels, 0], places, conj=True) if known is None else known[channels]

        return self._turned(self._filtered(x, spectra, self._places.image, self._places.gradient, bias))

    def grad_input(self, grad: Tensor, kernel: Tensor) -> Tensor:
        """Multiply the spectra of gradient and kernel: (N, C, H, W)."""
        grad, kernel = self._turned(grad), self._turned(kernel)

        def spectra(channels: slice) -> Tensor:
            return self._transform.analyse(kernel[channels, 0], self._kernel)

        return self._turned(self._filtered(grad, spectra, self._places.gradient, self._places.image, None))

    def grad_kernel(self, grad: Tensor, x: Tensor) -> Tensor:
        """Sum the products of the spectra of image and gradient over the batch: (C, 1, ...), as the kernel."""
        grad, x = self._turned(grad), self._turned(x)
        transform, places, batch = self._transform, self._places, self._problem.batch
        size = (self._problem.channels, 1, *(axis.count for axis in self._kernel))
        out = torch.empty(size, dtype=transform.dtype, device=x.device)
        total: Tensor | None = None
        for images, channels in self._parts(batch):
            image = transform.analyse(x[images, channels], places.image)
            other = transform.analyse(grad[images, channels], places.gradient, conj=True)
            product = transform.multiply(image, other)
            part = product[0] if product.shape[0] == 1 else product.sum(0)
            total = part if images.start == 0 or total is None else total.add_(part)
            if images.stop == batch:
                out[channels, 0] = transform.synthesise(total, self._kernel)
        return self._turned(out)

    def _filtered(
        self, x: Tensor, spectra: Callable[[slice], Tensor], source: Places, target: Places, bias: Tensor | None
    ) -> Tensor:
        transform, problem = self._transform, self._problem
        size = (problem.batch, problem.channels, *(axis.count for axis in target))
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(problem.layout))
        kernels, held = None, None
        for images, channels in self._parts(problem.batch):
            if kernels is None or held != channels:
                kernels, held = spectra(channels), channels
            spectrum = transform.analyse(x[images, channels], source)
            planes = transform.synthesise(transform.multiply(spectrum, kernels), target)
            y[images, channels] = planes if bias is None else planes + bias[channels, None, None].to(planes.dtype)
        return y

    def _spectra(self, kernel: Tensor) -> Tensor:
        transform = self._transform
        size = (self._problem.channels, *transform.shape)
        spectra = torch.empty(size, dtype=transform.complex_dtype, device=kernel.device)
        for _, channels in self._parts(1):
            spectra[channels] = transform.analyse(kernel[channels, 0], self._kernel, conj=True)
        return spectra

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self._is_sequence else x

    def _parts(self, batch: int) -> Iterator[Part]:
        bytes_per_plane = math.prod(self._transform.shape) * self._transform.complex_dtype.itemsize
        planes = max(1, CHUNK_BYTES * torch.get_num_threads() // (2 * bytes_per_plane))
        yield from _split(batch, self._problem.channels, planes)


@lru_cache(maxsize=1024)
def _split(images: int, channels: int, planes: int) -> tuple[Part, ...]:
    """Cut images x channels into parts of about `planes` planes: all channels of a few images, or a few of one."""
    count = -(-channels // min(planes, channels))
    step = -(-channels // count)
    group = max(1, planes // channels)
    return tuple(
        (slice(n, min(n + group, images)), slice(c, min(c + step, channels)))
        for c in range(0, channels, step)
        for n in range(0, images, group)
    )
