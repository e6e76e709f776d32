"""Training a classifier on labelled images (section 3.1)."""

from pathlib import Path

from overfeat.classification.config import TRAINING, ClassifierConfig
from overfeat.classification.data import CentreCropDataset, CropDataset
from overfeat.data.image_folder import ImageFolder
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.overfeat import OverFeat, build
from overfeat.training.classification import ClassificationTask
from overfeat.training.config import TrainConfig
from overfeat.training.task import describe_data


def build_classifier(data: ImageFolder, options: ClassifierConfig) -> tuple[OverFeat, bool]:
    """The net that training starts from, and whether its last layer is new.

    Raises:
        InputError: `init` cannot be read, or `net` names another net.
    """
    if options.init:
        net = checkpoint.load(options.init)
        if options.net not in (None, net.architecture.name):
            raise InputError(f"{options.init} is a {net.architecture.name} net, not {options.net}; leave the name out")
    else:
        net = build(options.net or "fast", len(data.class_names))
    new_layer = sorted(net.class_names) != sorted(data.class_names)
    if new_layer:
        net.reset_classifier(data.class_names)
    return net, new_layer


class ClassifierTask(ClassificationTask):
    """Trains an OverFeat net on random crops; validates it on centre crops.

    Args:
        net: The net; its `flip` and `dropout` become those of the options.
        data: Images labelled by net.class_names, in that order.
        validation: Images to validate on, labelled alike.
        options: How to train.
        train: The options of the loop.

    Raises:
        InputError: Classes, sizes or files do not match.
    """

    def __init__(
        self,
        net: OverFeat,
        data: ImageFolder,
        validation: ImageFolder | None = None,
        options: ClassifierConfig = ClassifierConfig(),
        train: TrainConfig = TRAINING,
    ):
        for folder in (data, validation):
            if folder is not None and folder.class_names != net.class_names:
                raise InputError("the images' classes are not the net's class_names; see data.image_folder.align")
        short_side, window = net.architecture.short_side, net.architecture.window
        resize = options.resize or (short_side,)
        net.flip, net.dropout = options.flip, options.dropout
        if net.context is not None:
            net.context.requires_grad_(False)  # classification does not use it
        dataset = CropDataset(
            data,
            window,
            (resize[0], resize[-1]),
            crops=options.crops,
            flip=options.flip,
            seed=train.seed,
            max_pixels=options.max_pixels,
        )
        centres = None
        if validation:
            centres = CentreCropDataset(validation, window, short_side, max_pixels=options.max_pixels)
        description = {**describe_data(data, validation), "architecture": net.architecture.to_json()}
        self.net = net
        super().__init__(net, dataset, centres, options, train, description)

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load` reads it."""
        checkpoint.save(self.net, path)
