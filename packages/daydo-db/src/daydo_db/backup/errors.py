"""What can go wrong with a backup. None of these leaves a backup behind that looks good and is not."""

from __future__ import annotations

from daydo_db.errors import DbError


class BackupFailed(
    DbError,
    code=50226,
    name="db.backup_failed",
    zh="备份失败：{reason}",
    en="No backup was made: {reason}",
):
    """The tool failed, the restored copy was not what had been dumped, there is no room, or time ran out."""

    reason: str


class RestoreFailed(
    DbError,
    code=50227,
    name="db.restore_failed",
    zh="恢复失败：{reason}",
    en="The restore failed: {reason}",
):
    """It was begun and did not end well. SQLite's target is as it was; MySQL's may hold a part of it."""

    reason: str


class BackupToolMissing(
    DbError,
    code=50126,
    name="db.backup_tool_missing",
    zh="未找到 {server} 所需的 {tool}，请安装：{package}",
    en="{server} needs {tool} on PATH, and it is not there; install {package}.",
):
    """A server is dumped and loaded by the tools of its own make: the other's exit with 0 and write what cannot be
    restored (MariaDB's, of a MySQL table with a generated column), or cannot log in.
    """

    server: str
    tool: str
    package: str


class BackupBusy(
    DbError,
    code=42326,
    name="db.backup_busy",
    zh="另一个备份正在该目录中进行。",
    en="Another backup is being made in this folder; one at a time.",
    retryable=True,
):
    """Another process, or task, holds the folder's lock."""


class BackupUnknown(
    DbError,
    code=40425,
    name="db.backup_unknown",
    zh="没有名为 {backup} 的备份。",
    en="There is no backup named {backup}; `backups` lists those that are there.",
):
    """No finished backup of that name is in the folder."""

    backup: str


class BackupDamaged(
    DbError,
    code=42225,
    name="db.backup_damaged",
    zh="备份 {backup} 已损坏：{reason}",
    en="The backup {backup} is damaged ({reason}); restore another one.",
):
    """The file is not the one that was verified. Found before anything in the target is touched."""

    backup: str
    reason: str


class RestoreRefused(
    DbError,
    code=42226,
    name="db.restore_refused",
    zh="未恢复：{reason}",
    en="Nothing was restored: {reason}",
):
    """The target holds something already, is in use, or is not the kind of server that the backup is of."""

    reason: str
