"""The page of the server's measurements."""

import io

from PIL import Image

from bench.pages.serve import page
from bench.serve import frames, memory_of
from overfeat.profiling.measure import machine

RESULTS = {
    "command": "python -m bench.serve", "machine": machine(), "load average": 0.04,
    "live": {"classify, squeezenet": {"frames/s": 13.44, "ms": {"features": 56.31, "decode": 3.12}}},
    "page": {"classify, squeezenet": {"frames/s": 12.9, "own ms": 11.81}},
    "load": {
        "clients": 64, "seconds": 60.0, "answers": {"200": 1400, "422": 40, "left": 55}, "requests/s": 23.5,
        "p50": 2.29, "p99": 6.16, "memory": [843.0, 858.2, 850.0], "loop": [20.0, 22.0], "ratio": 1.12,
        "exit status": 0,
    },
}  # fmt: skip


def test_rates_answers_and_memory_are_stated():
    text = page(RESULTS)
    assert "| classify, squeezenet | 13.4 | 12.9 | 11.8 |" in text
    assert "| classify, squeezenet | features 56.3, decode 3.1 |" in text
    assert "The load average before was 0.0" in text
    assert "23.5 answers/s, 1.12 of a bare loop over the same images (20.0 and\n22.0 images/s" in text
    assert "was 843 MiB after 5 s, 858 MiB at its largest and 850 MiB at the end" in text
    assert "| 200, classified | 1,400 |" in text and "| the client left | 55 |" in text


def test_frames_are_those_of_a_camera():
    sizes = {Image.open(io.BytesIO(content)).size for content in frames()}
    assert sizes == {(320, 240)} and len(set(frames())) == 24
    assert memory_of("a 1\nprocess_resident_memory_bytes 1.048576e+06\n") == 1.0
