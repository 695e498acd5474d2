"""The tables of this domain; schema/*/0001_accounts.sql is their DDL."""

from __future__ import annotations

from piccolo.columns import BigInt, Varchar
from piccolo.table import Table

from daydo_db.piccolo import Id, Index


class Profile(Table, tablename="app_profile"):
    """One user. Phone and e-mail are unique by the log-in they stand for, which daydo-auth keeps."""

    id = Id(primary_key=True)
    tenant = Id(default=None)
    phone = Varchar(length=20, null=True, default=None)
    email = Varchar(length=254, null=True, default=None)
    nickname = Varchar(length=32, null=True, default=None)
    avatar = Id(null=True)
    gender = Varchar(length=8, null=True, default=None)
    referrer_id = Id(null=True)
    created_at_us = BigInt(default=None)
    by_tenant = Index([tenant, id])  # noqa: A003 - the column
    by_phone = Index([tenant, phone])
    by_email = Index([tenant, email])


class Invite(Table, tablename="app_invite"):
    """One invite code: without ``owner`` it lies ready in the pool, with ``claimed_by`` it is used."""

    code = Id(primary_key=True)
    tenant = Id(default=None)
    owner = Id(null=True)
    op_key = Id(length=64, null=True)
    taken_at_us = BigInt(default=0)
    claimed_by = Id(null=True)
    claimed_at_us = BigInt(default=0)
    created_at_us = BigInt(default=None)
    by_owner = Index([tenant, owner, taken_at_us, code])
    by_key = Index([tenant, owner, op_key])
    by_claim = Index([tenant, owner, claimed_by])


class InvitePool(Table, tablename="app_invite_pool"):
    """One row a tenant: who holds its lock refills."""

    tenant = Id(primary_key=True)


TABLES = (Profile, Invite, InvitePool)
