"""What the six scales of nets without a table are worth: python -m bench.accuracy.six_scales

They follow table 5's ratios to the window; up to commit 33d82e7 each was 1.4 times the one before. The shipped net's
errors with the former sizes were measured at that commit, on the same images, and stay in the results.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from bench.common import RESULTS, ROOT, write_results
from overfeat.classification.evaluate import evaluate_classifier
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.data.annotated import align_boxes
from overfeat.data.image_folder import align
from overfeat.data.readers.coco import read_coco
from overfeat.data.readers.image_folder import read_image_folder
from overfeat.localization.evaluate import evaluate_localization
from overfeat.localization.predict import localize
from overfeat.models.checkpoint import load, load_regressor

NAME = "accuracy-six-scales"
COMMAND = "bench/accuracy/images.sh && python -m bench.accuracy.six_scales"
PROTOCOLS = ("1 scale, fine", "4 scales, fine", "6 scales, fine")


def measure(data: Path) -> dict:
    """Errors of the shipped net on the test images of a data set: {protocol or "localization": {"top1", "top5"}}."""
    net, regressor = load(SHIPPED_WEIGHTS), load_regressor(SHIPPED_WEIGHTS)
    images = align(read_image_folder(data / "test"), net.class_names)
    classification = evaluate_classifier([net], images.samples, protocols=PROTOCOLS)
    boxes = align_boxes(read_coco(data / "test.json"), net.class_names)
    localization = evaluate_localization(partial(localize, net, regressor), boxes)
    errors = {**classification["errors"], "localization": localization["errors"]}
    return {"images": classification["images"], "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/single")
    args = parser.parse_args()
    former = json.loads((RESULTS / f"{NAME}.json").read_text())["former"]
    write_results(NAME, COMMAND, {**measure(args.data), "former": former})


if __name__ == "__main__":
    main()
