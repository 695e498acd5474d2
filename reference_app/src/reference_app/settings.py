"""Settings from the environment and ``.env``: all bad values reported at once, each with an example.

``DAYDO_<FIELD>`` sets a field of :class:`Settings`, ``DAYDO_<SECTION>__<FIELD>`` one of a library's
configuration struct. The environment wins over ``.env``. ``python -m reference_app.settings`` prints
``.env.example``.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import inspect
import os
import re
import secrets
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from dotenv import dotenv_values
from msgspec import Meta

from daydo_auth import AuthConfig, RoleSpec
from daydo_auth.asgi import ShieldConfig
from daydo_auth.wechat import WeChatConfig
from daydo_cache import CacheConfig
from daydo_db import Database, DatabaseConfig
from daydo_db.backup import BackupsConfig
from daydo_db.config import parse_url
from daydo_kernel import Config
from daydo_kernel.addresses import TrustedProxies
from daydo_observe import ObserveConfig
from daydo_pipeline import RunsConfig
from daydo_quota import LedgerConfig
from daydo_redis import Redis, RedisConfig

from .accounts.config import InvitesConfig
from .images.config import ImagesConfig
from .images.workers import ImageWorkersConfig
from .roles import EVERYBODY, ROLES
from .sms import SmsConfig
from .traffic import TrafficConfig

PREFIX = "DAYDO_"
SECRET_LENGTH_MIN = 32
# Names the origin of this kit used; deployments still set them.
ALIASES = {
    "DATABASE_URL": "DAYDO_DATABASE_URL",
    "JWT_SECRET": "DAYDO_JWT_SECRET",
    "MAX_PIPELINE_CONCURRENCY": "DAYDO_PIPELINE__MAX_PARALLEL",
    "PORT": "DAYDO_PORT",
    "REDIS_URL": "DAYDO_REDIS_URL",
}
# Read by the test session only; not a misspelt setting.
FOREIGN = ("DAYDO_TEST_",)
# Made of other settings, never set by themselves: secrets, and the one upload limit.
DERIVED = {
    "DAYDO_AUTH__KEYS",
    "DAYDO_AUTH__PEPPER",
    "DAYDO_DATABASE__CURSOR_KEY",
    "DAYDO_IMAGE_WORKERS__PHOTO_BYTES_MAX",
}


class BackupSettings(BackupsConfig, frozen=True, kw_only=True):
    """Where ``daydo db backup`` writes, and what becomes of old backups.

    Attributes:
        folder: of the backups of this one database. The service exports their age where it is set; empty: `daydo db`
            uses the folder backups below the data folder.
    """

    folder: str = ""


class Settings(Config, frozen=True, kw_only=True):
    """Everything the service can be told. Sections are the libraries' own configuration structs."""

    environment: Annotated[
        Literal["development", "production"],
        Meta(description="production refuses to start on a missing or weak secret", examples=["production"]),
    ] = "development"
    data_dir: Annotated[
        str, Meta(description="uploads, results and the embedded database live below it", examples=["/srv/daydo"])
    ] = ".daydo"
    database_url: Annotated[
        str,
        Meta(
            description="empty: SQLite below the data folder, migrated at start",
            examples=["mysql://daydo:password@127.0.0.1:3306/daydo"],
        ),
    ] = ""
    database_replicas: Annotated[
        str,
        Meta(
            description="servers that follow it, separated by spaces; reads that may be a moment old go there",
            examples=["mysql://daydo:password@127.0.0.1:3307/daydo"],
        ),
    ] = ""
    redis_url: Annotated[
        str,
        Meta(
            description="embedded:// is a private server, or one in process; one worker only",
            examples=["redis://127.0.0.1:6379/0"],
        ),
    ] = "embedded://"
    host: Annotated[str, Meta(description="address to listen on", examples=["0.0.0.0"])] = "127.0.0.1"  # noqa: S104
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 takes a free one", examples=[8000])] = 8000
    workers: Annotated[int, Meta(ge=1, le=64, description="processes that share the port", examples=[4])] = 1
    trusted_proxies: Annotated[
        str,
        Meta(
            description="networks of your proxies, separated by spaces: they say in X-Forwarded-For who is asking",
            examples=["10.0.0.0/8"],
        ),
    ] = ""
    drain_s: Annotated[
        float, Meta(gt=0, le=120, description="how long a stop waits for requests under way", examples=[10.0])
    ] = 10.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="least level that is logged", examples=["INFO"])
    ] = "INFO"
    jwt_secret: Annotated[
        str,
        Meta(
            description="signs tokens, 32 characters or more; `new,old` rotates; made at first start in development",
            examples=["run: openssl rand -base64 48"],
        ),
    ] = ""
    password_pepper: Annotated[
        str,
        Meta(
            description="mixed into every password hash; losing it loses all passwords; made in development",
            examples=["run: openssl rand -base64 48"],
        ),
    ] = ""
    welcome_credits: Annotated[
        int, Meta(ge=0, le=1_000_000, description="granted once at registration", examples=[100])
    ] = 100
    daily_credits: Annotated[
        int, Meta(ge=0, le=1_000_000, description="free each day for users who register from now on", examples=[10])
    ] = 0
    images: ImagesConfig = ImagesConfig()
    image_workers: ImageWorkersConfig = ImageWorkersConfig()
    database: DatabaseConfig = DatabaseConfig()
    backup: BackupSettings = BackupSettings()
    redis: RedisConfig = RedisConfig()
    cache: CacheConfig = CacheConfig()
    auth: AuthConfig = AuthConfig()
    invites: InvitesConfig = InvitesConfig()
    sms: SmsConfig = SmsConfig()
    wechat: WeChatConfig = WeChatConfig()
    shield: ShieldConfig = ShieldConfig()
    quota: LedgerConfig = LedgerConfig()
    pipeline: RunsConfig = RunsConfig()
    observe: ObserveConfig = ObserveConfig(service="daydo")
    traffic: TrafficConfig = TrafficConfig()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).resolve()

    @property
    def backup_path(self) -> Path:
        return Path(self.backup.folder).resolve() if self.backup.folder else self.data_path / "backups"

    @property
    def on_embedded_database(self) -> bool:
        return not self.database_url or self.database_url.startswith("sqlite:")

    @property
    def roles(self) -> dict[str, RoleSpec]:
        """The built-in roles: the service's own, and what the environment adds or says otherwise."""
        return ROLES | self.auth.roles

    @property
    def default_permissions(self) -> tuple[str, ...]:
        """What every user may: what the service itself needs, and what the environment adds."""
        return tuple(dict.fromkeys((*EVERYBODY, *self.auth.default_permissions)))

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_path / 'daydo.db'}"


class SettingsInvalid(Exception):
    """The environment is not usable; the message lists every problem, each with an example."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(["These settings cannot be used:", *(f"  {problem}" for problem in problems)]))


def load_settings(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
    """Read, check and complete the settings.

    In development, missing secrets are made and kept in ``<data_dir>/development.env`` (mode 0600).

    Raises:
        SettingsInvalid: any value is unusable, any ``DAYDO_`` name is unknown, or, outside development, a
            secret is missing or weak.
    """
    given = _gather({**dotenv_values(dotenv), **(os.environ if environ is None else environ)})
    problems = [_unknown(name) for name in given if name not in _names()]
    values: dict[str, Any] = {}
    for name, path, hint in _fields(Settings):
        if name in given and given[name] != "":
            try:
                _put(values, path, _parse(given[name], hint))
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                problems.append(f"{name}={_shown(name, given[name])}: {error}; for example {_example(name, hint)}")
    problems += _complete_secrets(values)
    if problems:
        raise SettingsInvalid(problems)
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:  # values that do not go together, within one section
        raise SettingsInvalid([_section_problem(str(error))]) from None
    if problems := _contradictions(settings):
        raise SettingsInvalid(problems)
    return settings


def env_example() -> str:
    """The text of ``.env.example``: every setting with its meaning and default, commented out."""
    lines = ["# Copy to .env and uncomment what you change. `daydo check` tells whether it can work."]
    section = ""
    for name, path, hint in _fields(Settings):
        if len(path) > 1 and path[0] != section:
            section = path[0]
            lines += ["", f"# ---- {section} ----"]
        lines += ["", *textwrap.wrap(_meaning(path, hint), 118, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"# {name}={_text(_default(path))}")
    return "\n".join(lines) + "\n"


def is_setting(name: str) -> bool:
    """Whether an environment variable of this name, or historical name, is ours."""
    return name.startswith(PREFIX) or name in ALIASES


def signing_keys(jwt_secret: str) -> dict[str, str]:
    """``new,old`` as key id → secret. The id is a digest, so a rotation needs no bookkeeping."""
    return {hashlib.sha256(secret.encode()).hexdigest()[:8]: secret for secret in jwt_secret.split(",")}


def cursor_key(jwt_secret: str) -> str:
    """What signs the cursors of lists: the same on all workers, and rotated with the secret it is made of."""
    keys = [hmac.digest(secret.encode(), b"daydo cursors", "sha256") for secret in jwt_secret.split(",")]
    return ",".join(key.hex() for key in keys)


def _gather(environ: Mapping[str, str | None]) -> dict[str, str]:
    named = {ALIASES[name]: value or "" for name, value in environ.items() if name in ALIASES}
    ours = {
        name: value or "" for name, value in environ.items() if name.startswith(PREFIX) and not name.startswith(FOREIGN)
    }
    return named | ours


def _fields(struct: type[Config], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Environment name, path and annotated type of every setting, sections after plain fields."""
    hints = get_type_hints(struct, include_extras=True)
    plain = [field for field in struct.__struct_fields__ if not _is_section(hints[field])]
    for field in plain:
        name = PREFIX + "__".join((*path, field)).upper()
        if name not in DERIVED:
            yield name, (*path, field), hints[field]
    for field in struct.__struct_fields__:
        if field not in plain:
            yield from _fields(hints[field], (*path, field))


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Config)


def _names() -> set[str]:
    return {name for name, _, _ in _fields(Settings)}


def _parse(text: str, hint: Any) -> Any:
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError:
        # Lists and mappings are written as JSON; anything else was just wrong.
        if text[:1] not in "[{":
            raise
        return msgspec.json.decode(text, type=hint)


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _names(), n=1)
    return f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "")


def _complete_secrets(values: dict[str, Any]) -> list[str]:
    """Check the secrets, make missing ones in development; the problems found."""
    problems = []
    development = values.get("environment", "development") == "development"
    for field in ("jwt_secret", "password_pepper"):
        name = PREFIX + field.upper()
        secret = values.get(field, "")
        if not secret and development:
            values[field] = _development_secret(Path(values.get("data_dir", ".daydo")), name)
        elif not all(len(part) >= SECRET_LENGTH_MIN and len(set(part)) >= 10 for part in secret.split(",")):
            problems.append(
                f"{name} is {'weak' if secret else 'missing'}: it needs {SECRET_LENGTH_MIN} random characters; "
                "for example the output of: openssl rand -base64 48"
            )
    return problems


def _development_secret(data_dir: Path, name: str) -> str:
    path = data_dir / "development.env"
    known = dotenv_values(path).get(name) if path.exists() else None
    if known:
        return known
    secret = secrets.token_urlsafe(48)
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        file.write(f"{name}={secret}\n")
    return secret


def _contradictions(settings: Settings) -> list[str]:
    """What each value allows and all together do not."""
    problems = []
    if settings.workers > 1 and settings.redis_url.startswith("embedded:"):
        problems.append("DAYDO_WORKERS needs a shared Redis; for example DAYDO_REDIS_URL=redis://127.0.0.1:6379/0")
    if bool(settings.wechat.appid) != bool(settings.wechat.secret):
        problems.append(
            "DAYDO_WECHAT__APPID and DAYDO_WECHAT__SECRET go together; for example DAYDO_WECHAT__APPID=wx0123456789"
        )
    run_s = settings.pipeline.run_deadline_s + settings.pipeline.hold_margin_s
    if run_s > settings.quota.max_hold_ttl_s:
        problems.append(
            f"a run may hold credits for {run_s:g} s, longer than DAYDO_QUOTA__MAX_HOLD_TTL_S allows; for example "
            f"DAYDO_QUOTA__MAX_HOLD_TTL_S={run_s:g}"
        )
    try:
        AuthConfig(roles=settings.roles).require_roles()
    except ValueError as error:
        example = '{"auditor": {"permissions": ["users:read"], "inherits": ["support"]}}'
        problems.append(f"DAYDO_AUTH__ROLES: {error}; for example DAYDO_AUTH__ROLES={example}")
    try:
        location = parse_url(settings.resolved_database_url)
        Database(settings.resolved_database_url, settings.database)
    except ValueError as error:
        problems.append(f"DAYDO_DATABASE_URL: {error}; for example DAYDO_DATABASE_URL=mysql://user:pw@127.0.0.1/daydo")
    else:
        if settings.database_url and location.path and not (folder := Path(location.path).resolve().parent).is_dir():
            problems.append(f"DAYDO_DATABASE_URL: there is no folder {folder}; for example: mkdir -p {folder}")
        problems += _bad_replicas(settings)
    try:
        TrustedProxies(settings.trusted_proxies.split())
    except ValueError as error:
        problems.append(f"DAYDO_TRUSTED_PROXIES: {error}; for example DAYDO_TRUSTED_PROXIES=10.0.0.0/8")
    try:
        Redis(settings.redis_url, settings.redis)
    except ValueError as error:
        problems.append(f"DAYDO_REDIS_URL: {error}; for example DAYDO_REDIS_URL=redis://127.0.0.1:6379/0")
    return problems


def _section_problem(said: str) -> str:
    """``… - at `$.traffic.limits` `` as a setting's name and what is wrong with it."""
    problem, _, path = said.partition(" - at `$.")
    return f"{PREFIX}{path.rstrip('`').upper().replace('.', '__')}: {problem}"


def _bad_replicas(settings: Settings) -> list[str]:
    replicas = settings.database_replicas.split()
    example = "for example DAYDO_DATABASE_REPLICAS=mysql://user:pw@127.0.0.1:3307/daydo"
    for number in range(1, len(replicas) + 1):
        try:
            # With those before it: none may be named twice.
            Database(settings.resolved_database_url, settings.database, replicas=replicas[:number])
        except ValueError as error:
            where = f"DAYDO_DATABASE_REPLICAS, URL {number} of {len(replicas)}"
            return [f"{where}: {error}; {example}"]
    return []


def _shown(name: str, value: str) -> str:
    return "***" if any(word in name for word in ("SECRET", "PEPPER", "TOKEN")) or "://" in value else repr(value)


def _example(name: str, hint: Any) -> str:
    examples = [example for meta in _metas(hint) for example in meta.examples or ()]
    path = next(path for known, path, _ in _fields(Settings) if known == name)
    return f"{name}={_text(examples[0] if examples else _default(path))}"


def _meaning(path: tuple[str, ...], hint: Any) -> str:
    """What a field means: its own description, or its line under ``Attributes:`` in its struct's docstring."""
    described = next((meta.description for meta in _metas(hint) if meta.description), "")
    structs = type(_default(path[:-1])).__mro__
    return described or next(filter(None, (_attributes(struct).get(path[-1], "") for struct in structs)), "")


def _attributes(struct: type) -> dict[str, str]:
    _, _, attributes = (inspect.getdoc(struct) or "").partition("Attributes:\n")
    said: dict[str, str] = {}
    for entry in re.findall(r"^    \S.*(?:\n     +.*)*", attributes, re.MULTILINE):
        names, _, meaning = " ".join(entry.split()).partition(": ")
        said |= dict.fromkeys(names.split(", "), meaning.replace("``", ""))
    return said


def _metas(hint: Any) -> list[Meta]:
    return [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Meta)]


def _default(path: tuple[str, ...]) -> Any:
    value: Any = Settings()
    for part in path:
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


if __name__ == "__main__":
    print(env_example(), end="")  # noqa: T201
