"""Reading labelled folders and the ILSVRC layout."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from overfeat.data.image_folder import ImageFolder, LabeledImage, align
from overfeat.data.readers.ilsvrc import read_ilsvrc
from overfeat.data.readers.image_folder import read_image_folder
from overfeat.errors import InputError

SYNSETS = [("n02119789", "kit fox, Vulpes macrotis"), ("n02012849", "crane"), ("n03126707", "crane")]


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_classes_and_files_are_sorted(tmp_path):
    for name in ("zebra/b.png", "zebra/a.jpg", "ant/c.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no class")
    folder = read_image_folder(tmp_path)
    assert folder.class_names == ["ant", "zebra"]
    assert [(p.name, label) for p, label in folder.samples] == [("c.png", 0), ("a.jpg", 1), ("b.png", 1)]


def test_folders_that_cannot_be_read_are_explained(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="one for each class"):
        read_image_folder(tmp_path)
    picture(tmp_path / "full" / "a.png")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(InputError, match="class folders hollow, texts"):
        read_image_folder(tmp_path)
    with pytest.raises(InputError, match="a file, not a folder"):
        read_image_folder(tmp_path / "full" / "a.png")


def test_align_maps_labels_to_the_given_names(tmp_path):
    folder = ImageFolder(["ant", "bee"], [LabeledImage(tmp_path / "a", 0), LabeledImage(tmp_path / "b", 1)])
    assert align(folder, ["bee", "ant"]).samples == [(tmp_path / "a", 1), (tmp_path / "b", 0)]
    with pytest.raises(InputError, match=r"does not know: ant.*without images: cat"):
        align(folder, ["bee", "cat"])


def test_the_fingerprint_depends_on_files_and_labels_and_not_on_the_folder(tmp_path):
    def folder(root, names, label=0):
        return ImageFolder(["ant", "bee"], [LabeledImage(root / name, label) for name in names])

    same = folder(tmp_path, ["a", "b"]).fingerprint
    assert folder(tmp_path / "moved", ["a", "b"]).fingerprint == same
    assert folder(tmp_path, ["a", "c"]).fingerprint != same
    assert folder(tmp_path, ["a", "b"], label=1).fingerprint != same


def devkit(tmp_path, truth="2\n3\n1\n"):
    data = tmp_path / "devkit" / "data"
    data.mkdir(parents=True)
    lines = [f"{i} {wnid} {words}" for i, (wnid, words) in enumerate(SYNSETS, 1)]
    # Inner nodes of WordNet follow the thousand classes and are not classes.
    (data / "synsets.txt").write_text("\n".join([*lines[::-1], "1001 n00001740 entity"]))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return tmp_path / "devkit"


def test_ilsvrc_training_order_is_that_of_the_development_kit(tmp_path):
    for wnid, _ in SYNSETS:
        picture(tmp_path / "train" / wnid / f"{wnid}_1.JPEG")
    folder = read_ilsvrc(devkit(tmp_path), tmp_path / "train", "train")
    assert folder.class_names == ["n02119789 kit fox, Vulpes macrotis", "n02012849 crane", "n03126707 crane"]
    assert [(path.parent.name, label) for path, label in folder.samples] == [
        (wnid, label) for label, (wnid, _) in enumerate(SYNSETS)
    ]


def test_ilsvrc_validation_labels_are_those_of_the_ground_truth(tmp_path):
    kit = devkit(tmp_path)
    for number in (1, 2, 3):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    folder = read_ilsvrc(kit / "data", tmp_path / "val", "validation")
    assert [label for _, label in folder.samples] == [1, 2, 0]
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(InputError, match=r"2 files .* 3 lines"):
        read_ilsvrc(kit, tmp_path / "val", "validation")


def test_ilsvrc_kits_that_do_not_fit_are_explained(tmp_path):
    picture(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    kit = devkit(tmp_path, truth="4\n")
    with pytest.raises(InputError, match=r"'4' is no ILSVRC2012_ID in 1\.\.3"):
        read_ilsvrc(kit, tmp_path / "val", "validation")
    with pytest.raises(InputError, match="class folders n02119789"):
        read_ilsvrc(kit, tmp_path / "val", "train")
    with pytest.raises(InputError, match="not 'test'"):
        read_ilsvrc(kit, tmp_path / "val", "test")
    synsets = kit / "data" / "synsets.txt"
    synsets.write_text("1 n02119789 kit fox\n3 n02012849 crane\n")
    with pytest.raises(InputError, match="without gaps"):
        read_ilsvrc(kit, tmp_path / "val", "validation")
    synsets.write_text("n02119789 kit fox\n")
    with pytest.raises(InputError, match="line 1"):
        read_ilsvrc(kit, tmp_path / "val", "validation")
    synsets.unlink()
    with pytest.raises(InputError, match=r"neither synsets\.txt nor meta\.mat"):
        read_ilsvrc(kit, tmp_path / "val", "validation")


def test_ilsvrc_meta_mat_is_read(tmp_path):
    kit = devkit(tmp_path)
    (kit / "data" / "synsets.txt").unlink()
    dtype = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(i, *synset) for i, synset in enumerate([*SYNSETS], 1)]
    savemat(kit / "data" / "meta.mat", {"synsets": np.array(rows, dtype=dtype)[:, None]})
    for wnid, _ in SYNSETS:
        picture(tmp_path / "train" / wnid / "1.JPEG")
    folder = read_ilsvrc(kit, tmp_path / "train", "train")
    assert folder.class_names == [f"{wnid} {words}" for wnid, words in SYNSETS]
    (kit / "data" / "meta.mat").write_bytes(b"broken")
    with pytest.raises(InputError, match="not the development kit's list"):
        read_ilsvrc(kit, tmp_path / "train", "train")
