"""Everything that can go wrong with a database, the same on every back end.

No driver exception leaves this package: it is the ``__cause__`` of one of these. Messages never hold
parameters, since parameters are other people's names and numbers.
"""

from __future__ import annotations

from daydo_kernel import DaydoError


class DbError(DaydoError):
    """The family; catch it for "the database said no, or did not answer"."""


class CursorInvalid(
    DbError,
    code=40025,
    name="db.cursor_invalid",
    zh="游标无效，请从第一页重新开始。",
    en="This cursor is not one of this list's; start from the first page.",
):
    """The ``cursor`` of a page is not one that this list gave out, or it is another owner's, or of other filters."""


class UniqueViolation(
    DbError,
    code=40925,
    name="db.unique_violation",
    zh="相同的记录已存在。",
    en="The same entry already exists.",
):
    """A primary key or unique index already holds this value; the transaction can go on.

    ``constraint`` is the index (MySQL) or the columns (SQLite) as the server names them.
    """

    constraint: str


class ForeignKeyViolation(
    DbError,
    code=40926,
    name="db.foreign_key_violation",
    zh="引用的记录不存在，或仍被其他记录引用。",
    en="The entry refers to one that does not exist, or is still referred to.",
):
    """A foreign key points nowhere, or a row others point at would go; the transaction can go on.

    ``constraint`` is empty on SQLite, which does not tell.
    """

    constraint: str


class CheckViolation(
    DbError,
    code=40927,
    name="db.check_violation",
    zh="数据不满足约束条件。",
    en="The entry breaks a rule of its table.",
):
    """A CHECK constraint, named by ``constraint``, refused the row; the transaction can go on."""

    constraint: str


class NotNullViolation(
    DbError,
    code=40928,
    name="db.not_null_violation",
    zh="缺少必填数据。",
    en="The entry lacks a required value.",
):
    """A NOT NULL column, named by ``constraint``, got no value; the transaction can go on."""

    constraint: str


class Deadlock(
    DbError,
    code=40929,
    name="db.deadlock",
    zh="操作冲突，请重试。",
    en="Two transactions stood in each other's way; please try again.",
    retryable=True,
):
    """The server chose this transaction to break a deadlock and has rolled it back already."""


class LockTimeout(
    DbError,
    code=42325,
    name="db.lock_timeout",
    zh="数据正被占用，请稍后重试。",
    en="The data is in use; please try again shortly.",
    retryable=True,
):
    """A lock was not had within ``lock_timeout_s`` (or at once, with NOWAIT); the transaction is over."""


class PoolTimeout(
    DbError,
    code=50325,
    name="db.pool_timeout",
    zh="数据库繁忙，请稍后重试。",
    en="The database is busy; please try again shortly.",
    retryable=True,
):
    """Every connection was in use for ``acquire_timeout_s``: shorten transactions, or raise ``pool_max`` or that.

    Clients read that the database is busy; the figures and the advice stand in ``str(error)``, for the log.
    """

    waited_s: float
    size: int

    def __str__(self) -> str:
        return (
            f"No database connection became free within {self.waited_s} s ({self.size} in all); "
            "shorten transactions, or raise pool_max or acquire_timeout_s."
        )


class ConnectionLost(
    DbError,
    code=50326,
    name="db.connection_lost",
    zh="数据库连接不可用，请稍后重试。",
    en="The database cannot be reached, or went away; nothing of this transaction was kept.",
    retryable=True,
):
    """Connecting failed, or the connection broke before COMMIT was sent."""


class CommitUnknown(
    DbError,
    code=50327,
    name="db.commit_unknown",
    zh="提交结果未知，请先查询再决定是否重试。",
    en="The connection broke while a change was being committed: it may or may not be kept. "
    "Read it back, or repeat it under the same idempotency key.",
):
    """The answer to COMMIT, or to an autocommitted statement, never came. Never retried by this package."""


class StorageFull(
    DbError,
    code=50725,
    name="db.storage_full",
    zh="存储空间不足，请稍后重试。",
    en="The database has no room left; please retry later.",
    retryable=True,
):
    """The database's disk is full; the transaction was rolled back. It works again as soon as there is room."""


class QueryTimeout(
    DbError,
    code=50425,
    name="db.query_timeout",
    zh="数据库查询超时。",
    en="A statement ran longer than statement_timeout_s and was stopped.",
):
    """The statement was killed on the server; the transaction is over."""


class TransactionAborted(
    DbError,
    code=50025,
    name="db.transaction_aborted",
    zh="事务已结束：{reason}",
    en="This transaction is over ({reason}); nothing more runs in it and nothing of it is committed. "
    "Start a new one, or let db.run repeat it.",
):
    """A statement or COMMIT on a transaction that the server no longer has, or that has been left.

    Without this check later statements would run outside any transaction and commit one by one.
    """

    reason: str


class InsideTransaction(
    DbError,
    code=50026,
    name="db.inside_transaction",
    zh="当前任务已在该数据库的事务中，请传入 tx=。",
    en="This task is already inside a transaction on this database; pass tx= to write within it.",
):
    """Waiting for a second connection while holding the first is how programs dead-lock themselves."""


class SchemaOutdated(
    DbError,
    code=50027,
    name="db.schema_outdated",
    zh="{package} 的数据表版本为 {have}，需要 {need}，请运行：{command}",
    en="The tables of {package} are at version {have}, this code needs {need}; run: {command}",
):
    """Raised by a noun's start, never during work. ``command`` shows no password."""

    package: str
    have: int
    need: int
    command: str

    def __str__(self) -> str:
        return super().__str__() + (" (with the password in place of ***)" if "***" in self.command else "")


class SchemaEdited(
    DbError,
    code=41225,
    name="db.schema_edited",
    zh="{file} 的第 {statement} 条语句在执行之后被修改过；请恢复原文，并把修改写进新的文件。",
    en="Statement {statement} of {file} is not the one that ran here, or had begun to; "
    "put its old text back and write the change as a new file.",
):
    """A migration finds an applied file edited; it applies nothing, for what the tables are like is unknown."""

    file: str
    statement: int


class StatementFailed(
    DbError,
    code=50029,
    name="db.statement_failed",
    zh="数据库拒绝了语句（{reason}）：{statement}",
    en="The database refused a statement ({reason}): {statement}",
):
    """Anything else: a mistake in the SQL, a missing right. ``statement`` has no parameters in it."""

    reason: str
    statement: str
