"""Layers that lie on one device, one after the other, and what carries a batch from one device to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from runner.kernels import Kernels
from runner.model.spec import ModelSpec
from runner.model.step import Buffers, Step, Views
from runner.sequence import Int32Array


class Layer(Protocol):
    def __call__(self, step: Step, views: Views, is_pending: bool, only: Int32Array | None) -> bool:
        """Runs the layer; returns whether ``views.delta`` is still to be added to ``views.residual``.

        ``only`` restricts what follows the keys and values to some rows, which become the buffers' first rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A device as the forward pass sees it: its kernels and its buffers."""

    kernels: Kernels
    buffers: Buffers


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers on one device."""

    place: Place
    layers: tuple[Layer, ...]


def stages(layers: Sequence[Layer], places: Sequence[Place]) -> tuple[Stage, ...]:
    """Joins neighbouring layers whose places are the same. ``places[i]`` is where layer i lies."""
    runs = groupby(range(len(layers)), key=lambda i: id(places[i]))
    numbers = [tuple(run) for _, run in runs]
    return tuple(Stage(places[run[0]], tuple(layers[i] for i in run)) for run in numbers)


@dataclass(slots=True)
class Hidden:
    """The hidden states of a batch on their way through the stages.

    ``is_pending``: the last layer's output still lies in ``views.delta``, to be added to ``views.residual``.
    """

    place: Place
    views: Views
    is_pending: bool = False

    def settle(self) -> None:
        """Adds what is pending."""
        if self.is_pending and len(self.views.residual):
            self.place.kernels.add(self.views.residual, self.views.delta)
        self.is_pending = False

    def move_to(self, place: Place, spec: ModelSpec) -> None:
        """Copies the hidden states to another device's buffers."""
        if place is self.place:
            return
        self.settle()
        views = Views(place.buffers, spec, len(self.views.residual))
        np.copyto(views.residual, self.views.residual)
        self.place, self.views = place, views

    def narrow(self, rows: Int32Array, spec: ModelSpec) -> None:
        """After a layer that kept only some rows: they are now the buffers' first rows."""
        self.views = Views(self.place.buffers, spec, rows.size)
