"""Detection in a folder of images under Ray Data: python examples/ray_map_batches.py PHOTOS RESULTS [ACTORS]

The unit of work is that of `overfeat.cluster.run`: the net is loaded once for each actor, results are written through
atomic files where the actor runs, and images that have a result are skipped, so that a second run continues. It needs
`pip install overfeat 'ray[data]'`.
"""

import sys
from pathlib import Path

import numpy as np

import overfeat
from overfeat.data.images import list_images
from overfeat.dense.results import object_entries
from overfeat.errors import InputError
from overfeat.files import ASSETS, ensure_dir, write_json

WEIGHTS = ASSETS / "detector.safetensors"


class Detector:
    """An actor: `map_batches` makes it once and calls it with batches of paths."""

    def __init__(self, results: str):
        self.net, self.regressor = overfeat.load(WEIGHTS), overfeat.load_regressor(WEIGHTS)
        self.results = Path(results)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"path": batch["path"], "error": np.array([self.process(Path(path)) for path in batch["path"]])}

    def process(self, path: Path) -> str:
        """Write the objects of an image; returns what is wrong with it."""
        target = self.results / f"{path.name}.json"
        if target.exists():
            return ""
        try:
            detections = overfeat.detect(self.net, self.regressor, path)
        except InputError as error:
            return str(error)
        write_json(target, {"image": str(path), "objects": object_entries(detections, self.net.class_names)})
        return ""


def main(photos: str, results: str, actors: int = 2) -> None:
    """Process a folder, and print the images that failed."""
    import ray

    paths = [{"path": str(path.absolute())} for path in list_images(Path(photos))]
    folder = str(ensure_dir(results).absolute())
    done = ray.data.from_items(paths).map_batches(
        Detector, fn_constructor_args=(folder,), batch_size=8, compute=ray.data.ActorPoolStrategy(size=actors)
    )
    for row in done.iter_rows():
        if row["error"]:
            print(f"{row['path']}: {row['error']}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
