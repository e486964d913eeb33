"""Counters and histograms that cost a dictionary look-up, read by Prometheus when it scrapes.

prometheus_client's own take a lock and several calls for each step; a request takes a dozen steps, and they were an
eighth of what routing costs. These belong to one event loop: nothing here is safe from other threads, except to read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Counts(Collector):
    """A counter with labels. ``name`` goes without ``_total``."""

    def __init__(self, name: str, text: str, labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels.split()
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """One more for ``labels``, or ``by`` more."""
        self._values[labels] = self._values.get(labels, 0.0) + by

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class Timings(Collector):
    """A histogram of seconds with one label; ``bounds`` are its buckets' upper ends, in order."""

    def __init__(self, name: str, text: str, label: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = bounds
        self._marks = [str(float(bound)) for bound in bounds] + ["+Inf"]
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, label: str, seconds: float) -> None:
        buckets = self._buckets.get(label)
        if buckets is None:
            buckets = self._buckets[label] = [0] * len(self._marks)
            self._sums[label] = 0.0
        buckets[bisect_left(self._bounds, seconds)] += 1
        self._sums[label] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for label, buckets in list(self._buckets.items()):
            marked = list(zip(self._marks, map(float, accumulate(buckets)), strict=True))
            family.add_metric([label], marked, self._sums[label])
        yield family
