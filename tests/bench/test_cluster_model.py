"""The model of the throughput, and the function that workers are measured with."""

import pytest

from bench.cluster import detector, model, nothing, write_images


def test_the_least_of_workers_scheduler_and_storage():
    # 0.25 s an image, so four in a group of a second; 2 ms a group; 0.5 MB an image.
    rates = [model(0.25, 0.002, 0.5, workers=workers, bandwidth=100) for workers in (1, 10, 1000)]
    assert rates == pytest.approx([4, 40, 200])  # the last is what the storage gives
    assert model(0.25, 0.002, 0.5, workers=1000, bandwidth=10_000) == pytest.approx(2000)  # what the scheduler sends
    assert model(2.0, 0.002, 0.5, workers=5000, bandwidth=10_000) == pytest.approx(500)  # a group each


def test_what_is_measured(tmp_path):
    (path,) = write_images(tmp_path, 1)
    assert detector.__module__ == "bench.cluster" and nothing()(path) is None
