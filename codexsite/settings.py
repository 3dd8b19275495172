"""Environment in, typed values out. A bad value stops the start and is named; README lists all.

Nothing else in the project reads the environment.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy
from environs import Env, EnvError

from codexsite.datadir import DataDir, find_user, locate
from proxy.overrides import OverrideRefused, check_override

BASE_DIR = Path(__file__).resolve().parent.parent

env = Env()


def read(reader: Any, name: str, default: Any = None) -> Any:  # noqa: ANN401 - environs' readers
    """Return the variable through an environs reader; raise `ImproperlyConfigured` naming it."""
    try:
        return reader(name, default)
    except (EnvError, ValueError) as error:
        raise ImproperlyConfigured(f"{name}: {error}") from error


# --- Where things are -------------------------------------------------------------------------

DATA_DIR = DataDir(locate(read(env.str, "CODEX_PROXY_DATA_DIR")))
# Whom Codex and all that it starts run as; None is the server's own user.
CODEX_USER = find_user(read(env.str, "CODEX_PROXY_CODEX_USER"))
DATA_DIR.prepare(CODEX_USER)

SECRET_KEY = read(env.str, "CODEX_PROXY_SECRET_KEY") or DATA_DIR.secret_key()
INSTANCE_ID = DATA_DIR.instance_id()
DEBUG = read(env.bool, "CODEX_PROXY_DEBUG", False)

# --- The proxy --------------------------------------------------------------------------------

DEMO = read(env.bool, "CODEX_PROXY_DEMO", False)
HOST = read(env.str, "CODEX_PROXY_HOST") or "127.0.0.1"
PORT = read(env.int, "CODEX_PROXY_PORT", 8765)
ENV_API_KEY = read(env.str, "CODEX_PROXY_API_KEY") or None
ALLOW_ANONYMOUS = read(env.bool, "CODEX_PROXY_ALLOW_ANONYMOUS", False)
ALLOW_ROOT_AGENT = read(env.bool, "CODEX_PROXY_ALLOW_ROOT_AGENT", False)
CHILD_ENV = read(env.list, "CODEX_PROXY_CHILD_ENV", [])
CHILD_ENVIRONMENT = {name: read(env.str, name, "") for name in CHILD_ENV}
CHILD_PATH = read(env.str, "PATH", "/usr/local/bin:/usr/bin:/bin")
CHILD_LANG = read(env.str, "LANG", "C.UTF-8")
USER_CODEX_HOME = Path(read(env.str, "CODEX_HOME", "~/.codex")).expanduser()
MAX_BODY_BYTES = int(read(env.float, "CODEX_PROXY_MAX_BODY_MB", 20.0) * 1_000_000)
SHUTDOWN_GRACE_S = read(env.float, "CODEX_PROXY_SHUTDOWN_GRACE_SECONDS", 10.0)
GRANTS_NEED_APPROVAL = read(env.bool, "CODEX_PROXY_GRANTS_NEED_APPROVAL", False)
REDIS_URL = read(env.str, "CODEX_PROXY_REDIS_URL") or None
SPOOL_BYTES = int(read(env.float, "CODEX_PROXY_SPOOL_MB", 256.0) * 1_000_000)
if SPOOL_BYTES <= 0:
    raise ImproperlyConfigured("CODEX_PROXY_SPOOL_MB: it must be above 0")


def _networks(name: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(item.strip()) for item in read(env.list, name, []))
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from error


TRUSTED_PROXIES = _networks("CODEX_PROXY_TRUSTED_PROXIES")


def _origins(name: str) -> tuple[str, ...]:
    """Return web origins (`https://host:port`) as browsers write them, or `*` for all."""
    origins = tuple(item.strip().lower() for item in read(env.list, name, []))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
            raise ImproperlyConfigured(
                f"{name}: {origin!r} is not an origin like https://host:port"
            )
    if "*" in origins and ALLOW_ANONYMOUS:
        raise ImproperlyConfigured(
            f"{name}: '*' and CODEX_PROXY_ALLOW_ANONYMOUS together would let any web page ask."
        )
    return origins


CORS_ORIGINS = _origins("CODEX_PROXY_CORS_ORIGINS")


# Field of the settings' row, its variable, how it is read.
OPTION_READERS: dict[str, tuple[str, Any]] = {
    "codex_bin": ("CODEX_PROXY_CODEX_BIN", env.str),
    "proxy": ("CODEX_PROXY_PROXY", env.str),
    "model": ("CODEX_PROXY_MODEL", env.str),
    "engine": ("CODEX_PROXY_ENGINE", env.str),
    "workers": ("CODEX_PROXY_WORKERS", env.int),
    "max_queue_size": ("CODEX_PROXY_MAX_QUEUE_SIZE", env.int),
    "queue_timeout_seconds": ("CODEX_PROXY_QUEUE_TIMEOUT_SECONDS", env.float),
    "app_server_codex_home": ("CODEX_PROXY_APP_SERVER_CODEX_HOME", env.str),
    "codex_configs": ("CODEX_PROXY_CODEX_CONFIGS", env.str),
    "ephemeral": ("CODEX_PROXY_EPHEMERAL", env.bool),
    "agent": ("CODEX_PROXY_AGENT", env.bool),
    "fast": ("CODEX_PROXY_FAST", env.bool),
    "default_cwd": ("CODEX_PROXY_DEFAULT_CWD", env.str),
    "allowed_roots": ("CODEX_PROXY_ALLOWED_ROOTS", env.str),
    "timeout_seconds": ("CODEX_PROXY_TIMEOUT_SECONDS", env.float),
    "max_concurrency": ("CODEX_PROXY_MAX_CONCURRENCY", env.int),
    "log_level": ("CODEX_PROXY_LOG_LEVEL", env.str),
}
OPTION_VARIABLES = {field: name for field, (name, _) in OPTION_READERS.items()}


def _option_overrides() -> dict[str, Any]:
    """Return the options that the predecessor's variables set; they win over the admin's row."""
    found = {
        field: read(reader, name)
        for field, (name, reader) in OPTION_READERS.items()
        if read(env.str, name)
    }
    if "codex_configs" in found:
        found["codex_configs"] = [item for item in found["codex_configs"].split(";;") if item]
        for item in found["codex_configs"]:
            try:
                check_override(item)
            except OverrideRefused as refused:
                raise ImproperlyConfigured(f"CODEX_PROXY_CODEX_CONFIGS: {refused}") from refused
    if "allowed_roots" in found:
        found["allowed_roots"] = [item for item in found["allowed_roots"].split(":") if item]
    for field, least in {
        "workers": 1,
        "max_concurrency": 1,
        "max_queue_size": 0,
        "queue_timeout_seconds": 0,
        "timeout_seconds": 1,
    }.items():
        if field in found and found[field] < least:
            raise ImproperlyConfigured(
                f"{OPTION_VARIABLES[field]}: {found[field]} is less than {least}"
            )
    for field, choices in {
        "engine": ("app-server", "exec"),
        "log_level": ("debug", "info", "warning", "error"),
    }.items():
        if field in found and found[field] not in choices:
            raise ImproperlyConfigured(
                f"{OPTION_VARIABLES[field]}: {found[field]!r} is none of {', '.join(choices)}"
            )
    return found


OPTION_OVERRIDES = _option_overrides()

# --- Django -----------------------------------------------------------------------------------

# The address that the operator named is one more that people type; a wildcard names none.
ALLOWED_HOSTS = read(env.list, "CODEX_PROXY_ALLOWED_HOSTS") or [
    *("localhost", "127.0.0.1", "[::1]"),
    *([f"[{HOST}]" if ":" in HOST else HOST] if HOST not in ("0.0.0.0", "::") else []),  # noqa: S104 - left out
]
CSRF_TRUSTED_ORIGINS = read(env.list, "CODEX_PROXY_CSRF_TRUSTED_ORIGINS", [])

INSTALLED_APPS = [
    "codexsite.apps.CodexsiteConfig",  # before daphne: its runserver is ours
    "daphne",
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "ninja",
    "auditlog",
    "audit.apps.AuditConfig",
    "proxy.apps.ProxyConfig",
]

# For people: the admin, the docs, the front page. The API has a chain of its own, see asgi.py:
# each of these costs one to three thread hops a request.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "proxy.changelog.ChangelogMiddleware",
]
API_MIDDLEWARE = ["proxy.rendering.envelope_middleware"]

ROOT_URLCONF = "codexsite.urls"
ASGI_APPLICATION = "codexsite.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "proxy.notices.notices",
            ],
        },
    },
]


def _database() -> Any:  # noqa: ANN401 - Django's own dictionary
    url = read(env.str, "DATABASE_URL") or f"sqlite:///{DATA_DIR.database}"
    try:
        return dj_database_url.parse(url, conn_health_checks=True)
    except ValueError as error:
        raise ImproperlyConfigured(
            "DATABASE_URL: this is no URL of a database, such as postgresql://user@host/name"
        ) from error


DATABASES = {"default": _database()}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # WAL alone leaves read-then-write transactions failing at once; IMMEDIATE queues them.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;"
        "PRAGMA temp_store=MEMORY;PRAGMA cache_size=-20000;PRAGMA mmap_size=134217728;",
    }
    # A file, not memory: the tests' threads must see each other's rows as those of a server do.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR.scratch / "test.sqlite3")}
elif DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
    # A host that falls silent must not hold a thread for the quarter of an hour that TCP allows.
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 4,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        **DATABASES["default"].get("OPTIONS", {}),
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The API refuses larger bodies itself, before Django reads them.
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES + 1

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
    )
]
LOGIN_URL = "admin:login"

USE_TZ = True
TIME_ZONE = read(env.str, "CODEX_PROXY_TIME_ZONE", "UTC")
LANGUAGE_CODE = "en-us"
USE_I18N = False
FORMAT_MODULE_PATH = ["codexsite.formats"]

STATIC_URL = "/static/"
SERVESTATIC_USE_FINDERS = True  # no collectstatic: the admin's files come from their packages
SERVESTATIC_AUTOREFRESH = False
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}


def _channel_layer() -> dict[str, Any]:
    """Return the layer by which several processes of one site tell each other what runs."""
    if REDIS_URL is None:
        return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    if not re.match(r"(rediss?|unix)://", REDIS_URL):
        raise ImproperlyConfigured(
            "CODEX_PROXY_REDIS_URL: this is no URL such as redis://127.0.0.1:6379/0"
        )
    if find_spec("channels_redis") is None:
        raise ImproperlyConfigured(
            "CODEX_PROXY_REDIS_URL needs one more package: pip install 'codexsite[redis]'"
        )
    # Processes of one site share the secret key, or a login in one would be none in another.
    site = hashlib.sha256(f"channel layer of {SECRET_KEY}".encode()).hexdigest()[:16]
    return {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": f"codexsite-{site}"},
    }


CHANNEL_LAYERS = {"default": _channel_layer()}

SESSION_COOKIE_NAME = "codexsite_session"
CSRF_COOKIE_NAME = "codexsite_csrf"
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "proxy": {"level": "INFO"},
        "audit": {"level": "INFO"},
        "codexsite": {"level": "INFO"},
        # Refused requests are in the audit log.
        "django.request": {"level": "ERROR"},
        "django": {"handlers": ["console"], "level": "WARNING", "propagate": False},
    },
}

# --- Changelog (django-auditlog) --------------------------------------------------------------

AUDITLOG_CID_HEADER = None  # a client's header has no place in the record
AUDITLOG_USE_FK_STRING_REPRESENTATION = True  # an owner by name, as it was then

# --- The admin's look (django-unfold) ---------------------------------------------------------


def _page(title: str, icon: str, view: str, permission: str = "") -> dict[str, Any]:
    """Return an entry of the sidebar; it is shown to those who may open it."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(view),
        "permission": lambda request: not permission or request.user.has_perm(permission),
    }


UNFOLD = {
    "SITE_TITLE": "codexsite",
    "SITE_HEADER": "codexsite",
    "SITE_SUBHEADER": "A team's Codex endpoint",
    "SITE_SYMBOL": "hub",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": f"{STATIC_URL}codexsite/icon.svg"}
    ],
    "SITE_URL": "/",
    "ENVIRONMENT": "proxy.notices.environment",
    "ENVIRONMENT_TITLE_PREFIX": "proxy.notices.title_prefix",
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {
        "show_search": False,
        "navigation": [
            {
                "title": "What happened",
                "items": [
                    _page("Running now", "monitoring", "running", "audit.view_requestrecord"),
                    _page("Requests", "list_alt", "admin:audit_requestrecord_changelist", "audit.view_requestrecord"),
                    _page("Agent actions", "terminal", "admin:audit_agentaction_changelist", "audit.view_agentaction"),
                    _page("Changes", "history", "admin:proxy_changeentry_changelist", "proxy.view_changeentry"),
                ],
            },
            {
                "title": "Who may do what",
                "items": [
                    _page("API keys", "key", "admin:proxy_apikey_changelist", "proxy.view_apikey"),
                    _page("Allowed roots", "folder_open", "admin:proxy_allowedroot_changelist", "proxy.view_allowedroot"),
                    _page("Agent grants", "verified_user", "admin:proxy_agentgrant_changelist", "proxy.view_agentgrant"),
                    _page("Who could write", "calendar_month", "who_could_write", "proxy.view_agentgrant"),
                    _page("Sandbox proofs", "shield_lock", "admin:proxy_sandboxproof_changelist", "proxy.view_sandboxproof"),
                ],
            },
            {
                "title": "Server",
                "items": [
                    _page("Proxy settings", "tune", "admin:proxy_proxysettings_changelist", "proxy.view_proxysettings"),
                    {"title": "API documentation", "icon": "api", "link": "/docs"},
                ],
            },
            {
                "title": "People",
                "items": [
                    _page("Users", "person", "admin:auth_user_changelist", "auth.view_user"),
                    _page("Groups", "group", "admin:auth_group_changelist", "auth.view_group"),
                ],
            },
        ],
    },
}  # fmt: skip
