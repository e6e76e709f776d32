"""What the measurement of the server is made with."""

import io

from PIL import Image

from bench.serve import frames, memory_of


def test_frames_are_those_of_a_camera():
    sizes = {Image.open(io.BytesIO(content)).size for content in frames()}
    assert sizes == {(320, 240)} and len(set(frames())) == 24
    assert memory_of("a 1\nprocess_resident_memory_bytes 1.048576e+06\n") == 1.0
