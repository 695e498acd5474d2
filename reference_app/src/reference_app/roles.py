"""The roles that every installation has. More are defined while it runs, or given by ``DAYDO_AUTH__ROLES``."""

from __future__ import annotations

from daydo_auth import RoleSpec

ROLES = {
    "admin": RoleSpec(permissions=("*",)),
    # Looks after people. Since nobody touches what is above them, never after somebody who may do more.
    "support": RoleSpec(permissions=("users:read", "users:write")),
    # Looks after the service.
    "operator": RoleSpec(permissions=("quota:admin", "limits:admin", "roles:write"), inherits=("support",)),
}
