"""The cache of compiled functions."""

from overfeat.ops.backends import numba_compile, numba_nms


def test_the_cache_is_of_the_sources_as_they_are(tmp_path):
    """Also of those that a function's own file only uses."""
    assert f"numba-{numba_compile.digest()}" in numba_nms._keep.stats.cache_path
    used = {path.name for path in numba_compile.SOURCES}
    assert {"numba_nms.py", "numba_index.py", "simd.py", "winograd.py", "toom_cook.py"} <= used
    source = tmp_path / "source.py"
    source.write_text("SIDE = 2")
    before = numba_compile.digest((source,))
    numba_compile.digest.cache_clear()
    source.write_text("SIDE = 3")
    assert numba_compile.digest((source,)) != before
