"""The command line: what it says, and what it exits with."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from daydo_db.testing import fresh_database
from reference_app.main import migrate_schema
from reference_app.settings import load_settings
from reference_app.testing import photo


def daydo(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder`` with nothing but these settings."""
    return subprocess.run(
        [sys.executable, "-m", "reference_app.cli", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "DAYDO_DATA_DIR": str(folder / "data"), **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_check_passes_on_the_embedded_default(tmp_path):
    """Nothing has to be set up."""
    done = daydo("check", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout


def test_check_names_what_is_missing_and_migrate_mends_it(tmp_path, database_backends, redis_server_url):
    """A fresh database: check fails and names the command, migrate runs twice without harm, then check passes."""
    servers = [backend for backend in database_backends if backend.dialect == "mysql"]
    if not servers or redis_server_url is None:
        pytest.skip("asked for the embedded back ends alone")
    with fresh_database(servers[0], tmp_path) as url:
        settings = {"DAYDO_DATABASE_URL": url}
        before = daydo("check", folder=tmp_path, **settings)
        assert before.returncode == 1
        assert "daydo db up" in before.stdout
        for _ in range(2):
            migrated = daydo("migrate", folder=tmp_path, **settings)
            assert migrated.returncode == 0, migrated.stderr
        after = daydo("check", folder=tmp_path, **settings)
        assert after.returncode == 0, after.stdout


def test_check_looks_whether_the_replicas_follow(tmp_path, database_backends):
    """One that shows the primary's heartbeat passes (here it is the primary itself); one that does not is named."""
    servers = [backend for backend in database_backends if backend.dialect == "mysql"]
    if not servers:
        pytest.skip("asked for the embedded back ends alone")
    (tmp_path / "other").mkdir()
    with fresh_database(servers[0], tmp_path) as url, fresh_database(servers[0], tmp_path / "other") as other:
        settings = {"DAYDO_DATABASE_URL": url, "DAYDO_DATABASE__REPLICA_LAG_S": "1", "COLUMNS": "300"}
        for database in (url, other):
            migrated = {"DAYDO_DATABASE_URL": database, "DAYDO_DATA_DIR": str(tmp_path)}
            asyncio.run(migrate_schema(load_settings(migrated, dotenv=tmp_path / ".env")))
        good = daydo("check", folder=tmp_path, **settings, DAYDO_DATABASE_REPLICAS=url)
        assert good.returncode == 0, good.stdout
        assert " follows within " in good.stdout
        for replica, said in (
            (other, "does not follow"),
            ("mysql://u@127.0.0.1:1/x", "127.0.0.1:1: The database cannot"),
        ):
            bad = daydo("check", folder=tmp_path, **settings, DAYDO_DATABASE_REPLICAS=replica)
            assert bad.returncode == 1
            assert said in bad.stdout


def test_bad_settings_end_every_command_with_words_and_status_1(tmp_path):
    """All problems, no traceback."""
    done = daydo("migrate", folder=tmp_path, DAYDO_PORT="eighty", DAYDO_WORKERS="none")
    assert done.returncode == 1
    assert "DAYDO_PORT" in done.stderr
    assert "DAYDO_WORKERS" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_takes_a_picture_of_ones_own_and_ends_with_a_json_line(tmp_path):
    """Progress on standard error; the last line of standard output is the summary, and the result can be viewed."""
    (tmp_path / "mine.jpg").write_bytes(photo(size=(400, 300)))
    done = daydo("demo", "--once", "--image", str(tmp_path / "mine.jpg"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["task"], summary["quota"]) == ("succeeded", "confirmed")
    assert summary["phone"].startswith("138****")
    with Image.open(summary["result"]) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (400, 300))
        assert picture.getextrema()[3][0] == 0


@pytest.mark.parametrize(("name", "said"), [("missing.jpg", "No such file"), ("text.jpg", "images.unsupported")])
def test_a_demo_that_cannot_go_on_says_why(tmp_path, name, said):
    """A wrong file ends the tour with status 1 and no traceback."""
    (tmp_path / "text.jpg").write_text("not a picture")
    done = daydo("demo", "--once", "--image", str(tmp_path / name), folder=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
