"""Settings: everything wrong is said at once, with an example; secrets are never weak outside development."""

from __future__ import annotations

import stat
from itertools import pairwise
from pathlib import Path

import pytest

from reference_app.settings import SettingsInvalid, cursor_key, env_example, load_settings, signing_keys

SECRET = "0123456789abcdefghijklmnopqrstuvwxyz"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"DAYDO_DATA_DIR": str(tmp_path / "data")}


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(environ, dotenv=Path("/nonexistent"))
    return caught.value.problems


def test_all_bad_values_are_reported_at_once_each_with_an_example(environ):
    """Three mistakes are three lines, and each line can be copied from."""
    environ |= {"DAYDO_PORT": "eighty", "DAYDO_WORKERS": "0", "DAYDO_QUOTA__HOLD_TTL_S": "-1"}
    found = problems_of(environ)
    assert [problem.split("=")[0] for problem in found] == ["DAYDO_PORT", "DAYDO_WORKERS", "DAYDO_QUOTA__HOLD_TTL_S"]
    assert "for example DAYDO_PORT=8000" in found[0]
    assert all("for example" in problem for problem in found)


def test_a_misspelt_name_is_refused_and_the_right_one_proposed(environ):
    """A typo must not silently mean the default."""
    assert "did you mean DAYDO_WORKERS?" in problems_of(environ | {"DAYDO_WORKER": "2"})[0]


def test_section_fields_reach_the_library_configuration(environ):
    """DAYDO_QUOTA__… sets a field of LedgerConfig."""
    settings = load_settings(environ | {"DAYDO_QUOTA__HOLD_TTL_S": "77"}, dotenv=Path("/nonexistent"))
    assert settings.quota.hold_ttl_s == 77.0


def test_historical_names_are_accepted(environ):
    """PORT, JWT_SECRET and MAX_PIPELINE_CONCURRENCY still work; the DAYDO_ name wins where both are set."""
    settings = load_settings(
        environ | {"PORT": "9001", "JWT_SECRET": SECRET, "MAX_PIPELINE_CONCURRENCY": "3"}, dotenv=Path("/nonexistent")
    )
    assert (settings.port, settings.jwt_secret, settings.pipeline.max_parallel) == (9001, SECRET, 3)
    both = load_settings(environ | {"PORT": "9001", "DAYDO_PORT": "9002"}, dotenv=Path("/nonexistent"))
    assert both.port == 9002


def test_development_makes_its_secrets_once_in_a_private_file(environ, tmp_path):
    """The second start reads what the first one made, and nobody else can."""
    first = load_settings(environ, dotenv=Path("/nonexistent"))
    second = load_settings(environ, dotenv=Path("/nonexistent"))
    assert first.jwt_secret == second.jwt_secret
    assert first.password_pepper == second.password_pepper != first.jwt_secret
    mode = (tmp_path / "data" / "development.env").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("secret", ["", "short", "a" * 64, f"{SECRET},short"])
def test_production_stops_on_a_missing_or_weak_secret(environ, secret):
    """Nothing is invented outside development, and the value is not printed."""
    environ |= {"DAYDO_ENVIRONMENT": "production", "DAYDO_PASSWORD_PEPPER": SECRET, "DAYDO_JWT_SECRET": secret}
    found = problems_of(environ)
    assert len(found) == 1
    assert found[0].startswith("DAYDO_JWT_SECRET is")
    assert SECRET not in found[0]


def test_several_workers_need_a_shared_redis(environ):
    """The embedded Redis belongs to one process; more workers would each have their own."""
    assert "DAYDO_REDIS_URL=" in problems_of(environ | {"DAYDO_WORKERS": "2"})[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("DAYDO_DATABASE_URL", "postgres://a/b"), ("DAYDO_REDIS_URL", "localhost:6379"), ("DATABASE_URL", "mysql://h")],
)
def test_a_url_that_nobody_can_use_is_a_problem_like_any_other(environ, name, value):
    """Not a traceback at the first connection."""
    [problem] = problems_of(environ | {name: value})
    assert "for example" in problem


MYSQL = {"DAYDO_DATABASE_URL": "mysql://h/x"}


@pytest.mark.parametrize(
    ("database", "replicas", "words"),
    [
        (MYSQL, "rubbish", "URL 1 of 1: database URL: it starts with"),
        (MYSQL, "mysql://h:3307/x mysql://h:abc/x", "URL 2 of 2: database URL: write mysql://"),
        (MYSQL, "sqlite:///x", "replicas are for MySQL"),
        (MYSQL, "mysql://r/x mysql://r/x", "named twice"),
        ({}, "mysql://h/x", "replicas are for MySQL"),
    ],
)
def test_replicas_that_nobody_can_use_are_a_problem_like_any_other(environ, database, replicas, words):
    """Each by its number, with an example, and not a traceback of `daydo serve`."""
    [problem] = problems_of(environ | database | {"DAYDO_DATABASE_REPLICAS": replicas})
    assert problem.startswith("DAYDO_DATABASE_REPLICAS")
    assert words in problem
    assert "for example DAYDO_DATABASE_REPLICAS=" in problem


@pytest.mark.parametrize("name", ["DAYDO_DATABASE_URL", "DAYDO_DATABASE_REPLICAS", "DAYDO_REDIS_URL"])
def test_no_part_of_a_password_is_printed(environ, name):
    """Written plainly it ends at its # and the rest looks like anything; the words tell how to write it."""
    scheme = "redis" if "REDIS" in name else "mysql"
    found = problems_of(environ | MYSQL | {name: f"{scheme}://u:S3cr#et/Pw@h:1/0"})
    assert "%23 %2F %3F %40 %3A" in found[0]
    assert "S3cr" not in "".join(found)


def test_a_sqlite_file_in_no_folder_is_a_problem_like_any_other(environ, tmp_path):
    """SQLite's own words would come out of a thread, with its traceback."""
    [problem] = problems_of(environ | {"DAYDO_DATABASE_URL": f"sqlite:///{tmp_path}/no/such/x.db"})
    assert f"mkdir -p {tmp_path}/no/such" in problem


def test_a_run_may_not_hold_credits_longer_than_the_ledger_allows(environ):
    """Two settings that together would refuse every paid task."""
    [problem] = problems_of(environ | {"DAYDO_QUOTA__HOLD_TTL_S": "60", "DAYDO_QUOTA__MAX_HOLD_TTL_S": "60"})
    assert "DAYDO_QUOTA__MAX_HOLD_TTL_S=" in problem


def test_the_environment_wins_over_the_dotenv_file(environ, tmp_path):
    """A file gives defaults, the process's own environment decides."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("DAYDO_PORT=7001\nDAYDO_WELCOME_CREDITS=7\n")
    settings = load_settings(environ | {"DAYDO_PORT": "7002"}, dotenv=dotenv)
    assert (settings.port, settings.welcome_credits) == (7002, 7)


def test_rotating_the_signing_secret_keeps_the_old_key_for_verification():
    """The first secret signs; both are known, under ids that do not depend on their order."""
    old, both = signing_keys("old" * 12), signing_keys("new" * 12 + "," + "old" * 12)
    assert list(both)[1] in old
    assert len(both) == 2


def test_rotating_the_signing_secret_rotates_what_signs_cursors():
    """Cursors given out before stay good, and the key tells nothing of the secret."""
    old, new = "old" * 12, "new" * 12
    assert cursor_key(f"{new},{old}") == f"{cursor_key(new)},{cursor_key(old)}"
    assert old not in cursor_key(old)


def test_every_setting_says_what_it_means():
    """A line of .env.example without words would send its reader to the source."""
    lines = env_example().splitlines()
    silent = [line for before, line in pairwise(lines) if line.startswith("# DAYDO_") and not before.strip("# ")]
    assert silent == []


def test_env_example_is_what_the_settings_say():
    """Regenerate with: python -m reference_app.settings > .env.example"""
    assert (ROOT / ".env.example").read_text() == env_example()
