"""What everybody may, and the roles that every installation has.

More roles are defined while it runs, or given by ``DAYDO_AUTH__ROLES``.
"""

from __future__ import annotations

from daydo_auth import RoleSpec

# Of every user, without a role. An API key may of these what its scopes name: one made for reading starts no task.
EVERYBODY = ("image:create", "image:read", "profile:read", "quota:read")

ROLES = {
    "admin": RoleSpec(permissions=("*",)),
    # Looks after people. Since nobody touches what is above them, never after somebody who may do more.
    "support": RoleSpec(permissions=("users:read", "users:write")),
    # Looks after the service.
    "operator": RoleSpec(permissions=("quota:admin", "limits:admin", "roles:write"), inherits=("support",)),
}
