"""schemathesis: every request that the OpenAPI document allows, and many that it does not."""

import io

import pytest
from PIL import Image
from serving import served

schemathesis = pytest.importorskip("schemathesis")
strategies = pytest.importorskip("hypothesis.strategies")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.config import SchemathesisConfig  # noqa: E402


def _image(kind: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()


IMAGES = [_image(kind, size) for kind in ("PNG", "JPEG") for size in ((50, 60), (64, 64))]
for media_type in ("image/png", "image/jpeg", "image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, strategies.sampled_from(IMAGES))


@pytest.fixture(scope="module")
def schema():
    with served(max_work=0.1) as address:  # small scales alone are evaluated
        yield schemathesis.openapi.from_url(f"{address}/openapi.json", config=CONFIG)


# 422 is also the answer where the parameters do not fit the image or the net, which a schema cannot express.
ACCEPTED = {"expected-statuses": ["2xx", "404", "422"]}
CONFIG = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": ACCEPTED}})
OPERATIONS = [
    ("POST", f"/v1/{task}") for task in ("classify", "detect", "localize", "features")
] + [("GET", path) for path in ("/v1/models", "/healthz", "/metrics")]  # fmt: skip


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_requests_by_the_document_and_others(schema, method, path, mode):
    @settings(
        max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(timeout=60)

    try:
        check()
    except Unsatisfiable:
        pytest.skip("the operation has nothing to get wrong")
