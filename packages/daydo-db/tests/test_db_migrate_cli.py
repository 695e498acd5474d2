"""``python -m daydo_db``: what it prints, and the exit status that scripts go by."""

from __future__ import annotations

import io
import sqlite3
import sys

import pytest
from toy_package import NOTE, ORDERS, ToyPackage

from daydo_db.__main__ import main

pytestmark = pytest.mark.dialect("sqlite")

Output = pytest.CaptureFixture[str]


@pytest.fixture
def shop(toy: ToyPackage) -> ToyPackage:
    toy.write("0001_orders.sql", ORDERS)
    return toy


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_up_applies_what_is_missing(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """Twice is fine; the statements under way go to standard error, what was done to standard output."""
    assert main(["up", database_url, shop.name]) == 0
    said = capsys.readouterr()
    assert said.out == f"{shop.name} 0001_orders: 3 statements\nup to date\n"
    assert said.err.splitlines()[1] == (
        f"{shop.name} 0001_orders 2/3: CREATE INDEX shop_order_amount ON shop_order (amount)"
    )
    assert main(["up", database_url, shop.name]) == 0
    assert capsys.readouterr() == ("up to date\n", "")


def test_the_url_may_come_from_standard_input(
    database_url: str, shop: ToyPackage, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of the host can read a command line, and a password in it."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{database_url}\n"))
    assert main(["up", "-", shop.name]) == 0
    assert capsys.readouterr().out.endswith("up to date\n")
    assert main(["status", database_url, shop.name]) == 0


def test_migrate_is_its_other_name(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """The one that SchemaOutdated prints."""
    assert main(["migrate", database_url, shop.name]) == 0
    assert capsys.readouterr().out.endswith("up to date\n")


def test_a_dry_run_prints_and_runs_nothing(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """Statement by statement, as SQL that a person can run."""
    for _ in range(2):
        assert main(["up", "--dry-run", database_url, shop.name]) == 0
        script = capsys.readouterr().out
        assert script.startswith(f"-- {shop.name} 0001_orders 1/3\nCREATE TABLE shop_order (")
    with sqlite3.connect(":memory:") as other:
        other.executescript(script)
        assert other.execute("SELECT amount FROM shop_order").fetchall() == [(1,)]
    main(["up", database_url, shop.name])
    capsys.readouterr()
    assert main(["up", "--dry-run", database_url, shop.name]) == 0
    assert capsys.readouterr().out == "-- up to date\n"


def test_the_sql_is_printed_without_a_database(shop: ToyPackage, capsys: Output) -> None:
    """All of it, or what a later release adds."""
    shop.write("0002_note.sql", NOTE)
    with sqlite3.connect(":memory:") as other:
        for part in (["--upto", "1"], ["--after", "1"]):
            assert main(["up", "--sql", "sqlite", *part, shop.name]) == 0
            other.executescript(capsys.readouterr().out)
        assert other.execute("SELECT amount, note FROM shop_order").fetchall() == [(2, None)]
        assert other.execute("SELECT COUNT(*) FROM daydo_migration").fetchall() == [(5,)]


def test_status_says_where_each_file_stands(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """0 only where nothing is left to do; newer files are nothing to do."""
    assert main(["status", database_url, shop.name]) == 1
    main(["up", database_url, shop.name])
    capsys.readouterr()
    assert main(["status", database_url, shop.name]) == 0
    assert capsys.readouterr().out == f"{shop.name} 0001_orders: applied\n"
    shop.write("0002_note.sql", f"-- contract: needs code >= 0.3\n{NOTE}")
    assert main(["status", database_url, shop.name]) == 1
    assert "0002_note: pending (contract: needs code >= 0.3 everywhere)\n" in capsys.readouterr().out
    main(["up", database_url, shop.name])
    shop.write("0002_note.sql", NOTE.replace("+ 1", "+ 2"))
    assert main(["status", database_url, shop.name]) == 1
    assert "edited, statement 2 is not the one that ran: UPDATE shop_order" in capsys.readouterr().out
    shop.remove("0002_note.sql")
    assert main(["status", database_url, shop.name]) == 0
    assert f"{shop.name} 0002: applied by newer code\n" in capsys.readouterr().out


def test_status_shows_the_statement_a_runner_died_in(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """And one that was never begun is told apart."""
    main(["up", database_url, shop.name])
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as other:
        other.execute("DELETE FROM daydo_migration WHERE statement = 3")
    capsys.readouterr()
    assert main(["status", database_url, shop.name]) == 1
    assert "half applied, 2 of 3 statements; statement 3 (not begun): INSERT" in capsys.readouterr().out
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as other:
        other.execute("UPDATE daydo_migration SET state = 'started' WHERE statement = 2")
    assert main(["status", database_url, shop.name]) == 1
    assert "1 of 3 statements; statement 2 (a runner died in it" in capsys.readouterr().out


def test_colour_and_a_moving_line_are_for_terminals(
    database_url: str, shop: ToyPackage, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """A log gets neither; see the tests above."""
    screen, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    main(["status", database_url, shop.name])
    assert "\033[33mpending\033[0m" in screen.getvalue()
    main(["up", database_url, shop.name])
    assert errors.getvalue().count("\r\033[K") == 4
    assert errors.getvalue().endswith("\r\033[K")
    assert "\n" not in errors.getvalue()


def test_wrong_usage_is_status_2(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """With a sentence, and without a stack trace."""
    shop.write("0003_Bad name.sql", NOTE)
    wrong = [
        ["up", database_url],
        ["up", "postgres://x", shop.name],
        ["up", database_url, "not_there"],
        ["status", database_url, shop.name],
        ["lint"],
        [],
    ]
    for arguments in wrong:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_refusal_is_status_1_and_says_where(database_url: str, shop: ToyPackage, capsys: Output) -> None:
    """The error, the statement's place, and the database's own words."""
    main(["up", database_url, shop.name])
    shop.write("0002_bad.sql", "CREATE TABLE shop_order (id INTEGER);\n")
    assert main(["up", database_url, shop.name]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [f"  in statement {shop.name} 0002_bad 1/1", "  table shop_order already exists"]


def test_lint_names_what_breaks_a_rule(shop: ToyPackage, capsys: Output) -> None:
    """0 and silence where nothing does."""
    assert main(["lint", shop.name]) == 0
    assert capsys.readouterr() == ("", "")
    shop.write("0002_bad.sql", "DROP TABLE shop_order;\n")
    assert main(["lint", shop.name]) == 1
    assert f"{shop.name}/schema/mysql/0002_bad.sql, statement 1: DROP TABLE takes" in capsys.readouterr().out


def test_it_runs_as_a_module(database_url: str, shop: ToyPackage) -> None:
    """As the message of SchemaOutdated says."""
    code, _, err = shop.run("migrate", database_url, "not_there")
    assert (code, "not_there is not installed" in err) == (2, True)
