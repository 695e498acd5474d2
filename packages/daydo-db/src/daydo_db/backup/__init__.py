"""Backups that have been restored once before they count; see docs/how-to/backup.md."""

from .backups import Backups, BackupsConfig
from .errors import (
    BackupBusy,
    BackupDamaged,
    BackupFailed,
    BackupToolMissing,
    BackupUnknown,
    RestoreFailed,
    RestoreRefused,
)
from .folder import Backup, kept
from .work import Progress

__all__ = [
    "Backup",
    "BackupBusy",
    "BackupDamaged",
    "BackupFailed",
    "BackupToolMissing",
    "BackupUnknown",
    "Backups",
    "BackupsConfig",
    "Progress",
    "RestoreFailed",
    "RestoreRefused",
    "kept",
]
