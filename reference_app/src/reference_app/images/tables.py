"""The table of this domain; schema/*/0002_images.sql is its DDL. Tasks are daydo-pipeline's runs."""

from __future__ import annotations

from piccolo.columns import BigInt, Integer, Varchar
from piccolo.table import Table

from daydo_db.piccolo import Id, Index


class Upload(Table, tablename="app_upload"):
    """One checked photo of one user; the file is ``uploads/<id>`` in the file store."""

    id = Id(primary_key=True)
    tenant = Id(default=None)
    subject = Id(default=None)
    media_type = Varchar(length=32, default=None)
    width = Integer(default=None)
    height = Integer(default=None)
    size_bytes = Integer(default=None)
    created_at_us = BigInt(default=None)
    by_owner = Index([tenant, subject])
