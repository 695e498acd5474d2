"""The tables of this domain; schema/*/0001_accounts.sql is their DDL."""

from __future__ import annotations

from piccolo.columns import BigInt, Varchar
from piccolo.table import Table

from daydo_db.piccolo import Id


class Profile(Table, tablename="app_profile"):
    """One user. Phone and e-mail are unique by the log-in they stand for, which daydo-auth keeps."""

    id = Id(primary_key=True)
    tenant = Id(default=None)
    phone = Varchar(length=20, null=True, default=None)
    email = Varchar(length=254, null=True, default=None)
    created_at_us = BigInt(default=None)
