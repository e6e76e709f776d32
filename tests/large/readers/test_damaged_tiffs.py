"""TIFFs that are damaged, cut short, or not made to be read in windows."""

import itertools
import pickle
import threading

import numpy as np
import pytest
import tifffile
from large_files import picture, write_enormous, write_pyramid
from PIL import Image

from overfeat.data.images import read_image
from overfeat.errors import InputError
from overfeat.large import TileError, is_large, open_image
from overfeat.large.readers.tiff import TiffImage

RGB = picture(150, 200)
ALL = slice(None), slice(None)


def pixels(image, level=0, rows=slice(None), columns=slice(None), **options):
    """A window as [h, w, 3]."""
    return image.read(level, rows, columns, **options).permute(1, 2, 0).numpy()


def overwrite(path, number, change, level=0):
    """Change the bytes of a tile of a file."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].pages[0]
        start, count = page.dataoffsets[number], page.databytecounts[number]
    content = bytearray(path.read_bytes())
    content[start : start + count] = change(bytes(content[start : start + count]))
    path.write_bytes(content)


DAMAGE = {
    "zeros": lambda content: bytes(len(content)),
    "random bytes": lambda content: np.random.default_rng(0).bytes(len(content)),
    "the second half is zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


@pytest.mark.parametrize(
    "compression, damage",
    [*itertools.product(["jpeg", "deflate", "lzw", "zstd"], DAMAGE), ("jpeg2000", "the second half is zeros")],
)
def test_a_damaged_tile_is_named_and_left_out(tmp_path, compression, damage):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression=compression)
    whole = pixels(open_image(path))
    overwrite(path, 5, DAMAGE[damage])
    image = open_image(path)
    with pytest.raises(TileError) as caught:
        image.read(0, *ALL)
    error = caught.value
    assert str(error).startswith(f"{path}: damaged tile at level 0, rows 64 to 128, columns 64 to 128 (")
    assert str(error).endswith("); copy the file again") and "\n" not in str(error)
    assert (error.name, error.level, error.rows, error.columns) == (str(path), 0, slice(64, 128), slice(64, 128))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.rows == error.rows
    damaged = []
    read = pixels(image, damaged=damaged)
    assert [str(one) for one in damaged] == [str(error)]
    whole[64:128, 64:128] = 255
    assert np.array_equal(read, whole)
    rows, columns = slice(100, 140), slice(10, 90)
    assert np.array_equal(pixels(image, 0, rows, columns, damaged=[]), whole[rows, columns])
    assert np.array_equal(pixels(image, 0, slice(0, 64)), whole[:64])  # the other tiles are read


def test_a_turned_image_names_the_tile_upright(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, RGB, photometric="rgb", tile=(64, 64), compression="deflate", extratags=[(274, 3, 1, 6, True)]
    )
    whole = read_image(path).permute(1, 2, 0).numpy().copy()
    overwrite(path, 0, DAMAGE["zeros"])
    image, damaged = open_image(path), []
    read = pixels(image, damaged=damaged)
    assert [(error.rows, error.columns) for error in damaged] == [(slice(0, 64), slice(86, 150))]
    whole[:64, 86:] = 255
    assert np.array_equal(read, whole)
    with pytest.raises(TileError, match="rows 0 to 64, columns 86 to 150"):
        pixels(image)


def test_a_damaged_plane(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(64, 64), compression="lzw"
    )
    for number in (13, 25):  # of 12 tiles of each plane
        overwrite(path, number, DAMAGE["zeros"])
    damaged = []
    read = pixels(open_image(path), damaged=damaged)
    assert [(error.rows, error.columns) for error in damaged] == [(slice(0, 64), slice(64, 128))]
    expected = RGB.copy()
    expected[:64, 64:128] = 255
    assert np.array_equal(read, expected)


def test_a_file_that_is_cut_short(tmp_path):
    path = tmp_path / "a.tif"
    write_enormous(path, 1500, 1500, levels=1)
    content = path.read_bytes()
    (tmp_path / "b.tif").write_bytes(content[:-300])  # its directory is at its end
    with pytest.raises(InputError, match=r"b\.tif: (cannot be read as a TIFF|damaged|a TIFF without an image)"):
        open_image(tmp_path / "b.tif")
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="deflate", metadata=None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 100])
    with pytest.raises(TileError, match=r"rows 128 to 150, columns 192 to 200 \(it ends 100 bytes after the file\)"):
        open_image(path).read(0, *ALL)
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.tif: cut short, the file ends before its pixels do; copy the file"):
        TiffImage(path).read(0, *ALL)


@pytest.mark.parametrize("content", [b"II*\0", b"II*\0\x08\0\0\0", b"MM\0+" + bytes(60), b"II+\0" + b"\xff" * 60])
def test_no_tiff(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert not is_large(path)
    with pytest.raises(InputError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value) and "; " in str(caught.value)


def test_other_paths(tmp_path):
    assert not is_large(tmp_path / "a.tif") and not is_large(tmp_path)
    with pytest.raises(InputError, match=r"a\.tif: no such file; check the path$"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r": a folder, not an image; give one of the files in it$"):
        open_image(tmp_path)
    with pytest.raises(TypeError, match=r"^a large image must be a path, a NumPy array or an open image, not int$"):
        open_image(3)


def test_untiled_files_are_refused_with_the_command_that_tiles_them(tmp_path):
    path = tmp_path / "it's.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="deflate", rowsperstrip=64, metadata=None)
    assert not is_large(path, max_pixels=1000)
    with pytest.raises(InputError) as caught:
        open_image(path, max_pixels=1000)
    quoted = f"'{str(path)[:-6]}'\"'\"'s"  # as a shell takes it
    command = f"`vips tiffsave {quoted}.tif' {quoted}.tiled.tif' --tile --pyramid --bigtiff --compression deflate`"
    problem = f"{path}: 150x200 pixels in compressed strips, of which no windows can be read"
    assert str(caught.value) == f"{problem}; max_pixels allows to read all of them, or {command} writes tiles"
    assert np.array_equal(pixels(open_image(path)), RGB)
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None)  # not compressed: read through a map
    assert is_large(path, max_pixels=1000) and np.array_equal(pixels(open_image(path, max_pixels=1000)), RGB)
    for suffix, compression in ((".png", "deflate"), (".jpg", "jpeg --Q 95")):
        image = tmp_path / f"a{suffix}"
        Image.fromarray(RGB).save(image)
        with pytest.raises(InputError) as caught:
            open_image(image, max_pixels=1000)
        assert str(caught.value) == (
            f"{image}: 150x200 pixels, more than the limit of 1,000; max_pixels allows more, or "
            f"`vips tiffsave {image} {tmp_path}/a.tiled.tif --tile --pyramid --bigtiff --compression {compression}` "
            "makes a file to be read in windows"
        )


def test_a_file_whose_tiles_all_fail_is_not_opened(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="deflate")
    for number in range(12):
        overwrite(path, number, DAMAGE["zeros"])
    with pytest.raises(InputError, match=r"a\.tif: its tiles cannot be decoded \(.+\); copy or export the file again$"):
        open_image(path, channels=(0, 1, 2))


def test_enormous_tiles_are_refused(tmp_path):
    """Those of a damaged header, which would fill the memory."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="deflate", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[322].overwrite(48_000)
        file.pages[0].tags[323].overwrite(48_000)
    with pytest.raises(InputError, match=r"a\.tif: tiles of 48000x48000 pixels, too large to be read; `vips tiffsave "):
        TiffImage(path)


def test_windows_outside_of_the_image(tmp_path):
    path = tmp_path / "a.tif"
    write_pyramid(path, RGB, tile=64, levels=2)
    image = open_image(path)
    for level in (2, -1, 0.0, None, True):
        with pytest.raises(InputError) as caught:
            image.read(level, *ALL)
        assert str(caught.value) == f"{path} has 2 levels; level must be a whole number from 0 to 1, not {level!r}"
    for rows in (slice(0, 151), slice(-1, 3), slice(3, 3), slice(0, 10, 2), 3, slice(0.0, 1.0)):
        with pytest.raises(InputError, match=r"^rows must be a slice inside 0 to 150 that is not empty, not "):
            image.read(0, rows, slice(None))
    with pytest.raises(InputError, match=r"^columns must be a slice inside 0 to 100 that is not empty, not "):
        image.read(1, slice(None), slice(0, 101))


def test_several_threads_read_at_once(tmp_path):
    path = tmp_path / "a.tif"
    array = picture(700, 900)
    write_pyramid(path, array, tile=64, levels=1)
    image, wrong = open_image(path), []

    def read(seed):
        random = np.random.default_rng(seed)
        for _ in range(12):
            top, left = random.integers(0, 500), random.integers(0, 700)
            rows, columns = slice(top, top + 180), slice(left, left + 170)
            if not np.array_equal(pixels(image, 0, rows, columns), array[rows, columns]):
                wrong.append((rows, columns))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
