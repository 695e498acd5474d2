"""Passwords, dual tokens and sessions; see README.md."""

from .auth import Auth
from .config import AuthConfig
from .errors import (
    AuthError,
    Forbidden,
    HashingSaturated,
    LoginTaken,
    LoginUnusable,
    PasswordTooWeak,
    RefreshReused,
    SessionRevoked,
    SubjectTaken,
    TicketInvalid,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    WrongCredentials,
)
from .model import HashedPassword, Password, Principal, Tokens

__all__ = [
    "Auth",
    "AuthConfig",
    "AuthError",
    "Forbidden",
    "HashedPassword",
    "HashingSaturated",
    "LoginTaken",
    "LoginUnusable",
    "Password",
    "PasswordTooWeak",
    "Principal",
    "RefreshReused",
    "SessionRevoked",
    "SubjectTaken",
    "TicketInvalid",
    "TokenExpired",
    "TokenInvalid",
    "TokenMissing",
    "Tokens",
    "WrongCredentials",
]
