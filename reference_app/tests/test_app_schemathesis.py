"""What the OpenAPI document says is what the service does: data made from it, right and wrong, for every operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from reference_app.outside import outside_world
from reference_app.server import ServiceProcess
from reference_app.testing import Client

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 5


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service in which everybody may do everything, however often: refusals for want of that would hide the rest."""
    environment = {
        "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
        "DAYDO_AUTH__DEFAULT_PERMISSIONS": '["*"]',
        "DAYDO_TRAFFIC__LIMIT_FACTOR": "10000",
        "DAYDO_TRAFFIC__SHEDDER__LAG_BEGIN_S": "9",
        "DAYDO_TRAFFIC__SHEDDER__LAG_MAX_S": "60",
    }
    with (
        outside_world() as (_, outside),
        ServiceProcess(tmp_path_factory.mktemp("schemathesis"), {**environment, **outside}) as process,
    ):
        yield process.url


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_as_documented(url: str, mode: GenerationMode) -> None:
    """No 5xx, no status, content type or shape of an answer that the document does not name."""
    schema = schemathesis.openapi.from_url(f"{url}/docs/openapi.json", config=SchemathesisConfig())
    wrong: list[str] = []
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        tried += 1
        try:
            _try(operation, mode, url)
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # what takes nothing cannot be given anything wrong
        except (Failure, FailureGroup) as error:
            wrong += [f"{operation.label}: {failure}" for failure in getattr(error, "exceptions", [error])]
    assert tried > 25
    assert not wrong, "\n\n".join(wrong)


def _try(operation: APIOperation, mode: GenerationMode, url: str) -> None:
    """Each operation with a user of its own, whom it may log out or erase."""
    with Client(url) as client, requests.Session() as session:
        session.headers["Authorization"] = client.register().http.headers["Authorization"]

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def call(case: Case) -> None:
            answer = case.call(base_url=url, session=session, timeout=20)
            case.validate_response(answer, checks=CHECKS)

        call()
