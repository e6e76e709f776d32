"""Training a classifier on labelled images (section 3.1)."""

from pathlib import Path

from overfeat.classification.config import TRAINING, ClassifierConfig
from overfeat.classification.data import CentreCropDataset, CropDataset
from overfeat.data.image_folder import ImageFolder
from overfeat.densify.initial_net import FOR_IMAGES, new_net
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.box_regressor import train_together
from overfeat.models.overfeat import OverFeat
from overfeat.training.classification import ClassificationTask
from overfeat.training.config import TrainConfig
from overfeat.training.task import describe_data


def build_classifier(data: ImageFolder, options: ClassifierConfig) -> tuple[OverFeat, bool]:
    """The net that training starts from, and whether its last layer is new. Raises InputError for a bad `init`."""
    if options.init:
        net = checkpoint.load(options.init)
        if options.net not in (None, net.architecture.name):
            raise InputError(f"{options.init} is a {net.architecture.name} net, not {options.net}; leave the name out")
    else:
        net = new_net(options, "fast", len(data.class_names), FOR_IMAGES)
    net.feature_layers.requires_grad_(not options.frozen(net.backbone is not None))
    new_layer = sorted(net.class_names) != sorted(data.class_names)
    if new_layer:
        net.reset_classifier(data.class_names)
    return net, new_layer


class ClassifierTask(ClassificationTask):
    """Trains an OverFeat net on random crops; validates it on centre crops. Arguments: see `Task`.

    The net's `flip` and `dropout` become those of the options.
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
        limit, sides = options.max_pixels, (resize[0], resize[-1])
        dataset = CropDataset(
            data, window, sides, crops=options.crops, flip=options.flip, seed=train.seed, max_pixels=limit
        )
        centres = CentreCropDataset(validation, window, short_side, max_pixels=limit) if validation else None
        description = {**describe_data(data, validation), "architecture": net.architecture.to_json()}
        self.net = net
        train_together(net)
        super().__init__(net, dataset, centres, options, train, description)

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load` reads it."""
        checkpoint.save(self.net, path)
