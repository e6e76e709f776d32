"""Detections as JSON, COCO and tables hold them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overfeat.dense.detections import Detections


def object_entries(detections: "Detections", names: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of an image as JSON holds them, best first; names: of their labels."""
    return [
        {
            "class": names[int(detections.labels[i])],
            "score": round(float(detections.scores[i]), 4),
            "box": [round(edge, 2) for edge in detections.boxes[i].tolist()],
            "confidence_sum": round(float(detections.confidence_sum[i]), 3),
            "count": int(detections.counts[i]),
        }
        for i in range(len(detections))
    ]


def coco_results(
    objects: Mapping[str, Sequence[dict]], image_ids: Mapping[str, Any], category_ids: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The objects of images, by the images' names, as COCO's tools read results, with names beside the ids."""
    for name, entries in objects.items():
        for entry in entries:
            x1, y1, x2, y2 = entry["box"]
            ids = {"image_id": image_ids[name], "category_id": category_ids[entry["class"]]}
            box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            yield {**ids, "bbox": box, "score": entry["score"], "file_name": name, "category": entry["class"]}
