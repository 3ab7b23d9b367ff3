"""Keys to stores: where they come from, what is said of those that are wrong, and when new ones are read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import string
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.errors import ConfigError, CredentialsUnavailable
from hexz.protocol.s3.client import Keys
from hexz.storage.remote.keys import credentials, services
from hexz.storage.remote.keys.credentials import REFRESH_S, Credentials
from hexz.storage.remote.keys.files import MAX_FILE, document_keys, parse_profiles, profile_keys
from hexz.storage.remote.keys.services import MAX_ANSWER
from tests.peers import need_module, write_secret
from tests.waiting import until

KEYS = Keys("AKID", "secret/one+")
OTHER = Keys("AKID2", "secret two", "token")


def section(name: str, keys: Keys, *more: str) -> str:
    lines = [f"[{name}]", f"aws_access_key_id = {keys.access_key}", f"aws_secret_access_key={keys.secret}"]
    token = [f"aws_session_token = {keys.token}"] if keys.token is not None else []
    return "\n".join([*lines, *token, *more, ""])


def document(keys: Keys, lives: float | None = None, **more: object) -> str:
    """As a service gives it; the keys live `lives` seconds from now on."""
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lives)) if lives is not None else None
    known = {"AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret, "Token": keys.token, "Expiration": ends}
    return json.dumps({**{name: value for name, value in known.items() if value is not None}, **more})


def bare(keys: Keys | None) -> Keys | None:
    return keys._replace(expires=None) if keys is not None else None


class Home:
    """A user's files, and the environment that goes with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"HOME": str(folder), "PATH": os.environ["PATH"]}
        self.shared, self.config = folder / ".aws/credentials", folder / ".aws/config"
        self.shared.parent.mkdir()

    def write(self, shared: str | None = None, config: str | None = None, **environ: str) -> Home:
        for path, text in ((self.shared, shared), (self.config, config)):
            if text is not None:
                write_secret(path, text)
        self.environ.update(environ)
        return self

    def credentials(self, **settings: Any) -> Credentials:
        return Credentials(environ=self.environ, **settings)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that were asked are left alone for as long as a test may take."""
    monkeypatch.setattr(credentials, "RETRY_S", 1e9)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are asked again as soon as there is a reason."""
    monkeypatch.setattr(credentials, "RETRY_S", 0.0)


# --- the order of the sources

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "E", "AWS_SECRET_ACCESS_KEY": "e"}
SHARED = section("default", Keys("D", "d")) + section("x", Keys("X", "x", "t"))
CONFIG = section("default", Keys("CD", "cd")) + section("profile y", Keys("Y", "y")) + section("x", Keys("CX", "cx"))

# Credentials, config, environment, the profile that is asked for; the keys.
ORDER: list[tuple[str | None, str | None, dict[str, str], str | None, Keys | None]] = [
    (None, None, {}, None, None),
    (SHARED, CONFIG, {}, None, Keys("D", "d")),
    (SHARED, CONFIG, ENVIRONMENT, None, Keys("E", "e")),
    (SHARED, CONFIG, {**ENVIRONMENT, "AWS_SESSION_TOKEN": "t"}, None, Keys("E", "e", "t")),
    (SHARED, CONFIG, {**ENVIRONMENT, "AWS_PROFILE": "x"}, None, Keys("E", "e")),
    (SHARED, CONFIG, ENVIRONMENT, "x", Keys("X", "x", "t")),
    (SHARED, CONFIG, {"AWS_PROFILE": "x"}, None, Keys("X", "x", "t")),
    (SHARED, CONFIG, {"AWS_PROFILE": "x"}, "y", Keys("Y", "y")),
    (None, CONFIG, {}, None, Keys("CD", "cd")),
    (section("x", KEYS), CONFIG, {}, None, Keys("CD", "cd")),
    (SHARED, None, {"AWS_SECRET_ACCESS_KEY": "e"}, None, Keys("D", "d")),
    (section("x", KEYS), "[default]\nregion = r\n", {}, None, None),
    ("\ufeff# first\r\n; second\r\n" + SHARED.replace("\n", "\r\n"), None, {}, None, Keys("D", "d")),
    (None, section('profile "two words"', KEYS), {}, "two words", KEYS),
    (section("default", KEYS).replace("aws_access", "AWS_Access"), None, {}, None, KEYS),
    (section("default", KEYS).replace("]", "]  # mine"), None, {}, None, KEYS),
    (section("default", KEYS) + section("default", Keys("L", "l")), None, {}, None, Keys("L", "l")),
    ("[default]\ns3 =\n  aws_access_key_id = nested\n" + section("default", KEYS), None, {}, None, KEYS),
]


BEYOND = re.compile(r"\ufeff|# mine|(?s:\[default.*\[default)")
"""What Python's SDK does not read: a byte order mark, a comment behind a section, a section in two places."""


@pytest.mark.parametrize(("shared", "config", "environ", "profile", "keys"), ORDER)
def test_the_order_of_the_sources(
    home: Home,
    shared: str | None,
    config: str | None,
    environ: dict[str, str],
    profile: str | None,
    keys: Keys | None,
) -> None:
    assert home.write(shared, config, **environ).credentials(profile=profile).get() == keys


@pytest.mark.parametrize(
    ("shared", "config", "environ", "profile", "keys"), [case for case in ORDER if not BEYOND.search(case[0] or "")]
)
def test_the_sdk_finds_the_same(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    shared: str | None,
    config: str | None,
    environ: dict[str, str],
    profile: str | None,
    keys: Keys | None,
) -> None:
    session = need_module("botocore.session")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**home.write(shared, config, **environ).environ, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    found = session.Session(profile=profile).get_credentials()
    assert (Keys(*found.get_frozen_credentials()[:3]) if found is not None else None) == keys


def test_files_lie_where_the_environment_says(home: Home, tmp_path: Path) -> None:
    write_secret(tmp_path / "c", section("x", KEYS))
    write_secret(tmp_path / "d", "[profile x]\nregion = eu-north-1\n")
    home.write(SHARED, CONFIG, AWS_SHARED_CREDENTIALS_FILE="~/c", AWS_CONFIG_FILE=str(tmp_path / "d"))
    found = home.credentials(profile="x")
    assert (found.get(), found.region()) == (KEYS, "eu-north-1")
    home.environ["AWS_SHARED_CREDENTIALS_FILE"] = "/nowhere/at/all"
    assert home.credentials(profile="x").get() is None


REGION = "[default]\nregion = eu-west-1\nendpoint_url = https://store.example\n"
SERVICES = (
    REGION + "services = mine\n[services mine]\nec2 =\n  endpoint_url = http://no\ns3 =\n  endpoint_url = http://s3\n"
)
# The config file, the environment; region and endpoint.
BESIDE: list[tuple[str, dict[str, str], str | None, str | None]] = [
    ("", {}, None, None),
    (REGION, {}, "eu-west-1", "https://store.example"),
    (REGION, {"AWS_DEFAULT_REGION": "r1"}, "r1", "https://store.example"),
    (REGION, {"AWS_DEFAULT_REGION": "r1", "AWS_REGION": "r2"}, "r2", "https://store.example"),
    (REGION, {"AWS_ENDPOINT_URL": "http://e"}, "eu-west-1", "http://e"),
    (REGION, {"AWS_ENDPOINT_URL": "http://e", "AWS_ENDPOINT_URL_S3": "http://s"}, "eu-west-1", "http://s"),
    (SERVICES, {}, "eu-west-1", "http://s3"),
    (SERVICES, {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "eu-west-1", None),
    (REGION + "ignore_configured_endpoint_urls = true\n", {}, "eu-west-1", None),
    (REGION.replace("default", "other"), {}, None, None),
]


@pytest.mark.parametrize(("config", "environ", "region", "endpoint"), BESIDE)
def test_region_and_endpoint(
    home: Home, config: str, environ: dict[str, str], region: str | None, endpoint: str | None
) -> None:
    found = home.write(None, config, **environ, **ENVIRONMENT).credentials()
    assert (found.region(), found.endpoint()) == (region, endpoint)


# --- a file of our own


def test_a_file_of_our_own_is_the_only_source(home: Home, tmp_path: Path) -> None:
    home.write(SHARED, REGION, **ENVIRONMENT, AWS_PROFILE="y")
    path = write_secret(tmp_path / "own", section("default", KEYS) + section("b", OTHER, "region = b1"))
    found = home.credentials(file=str(path))
    assert (found.get(), found.region(), found.endpoint()) == (KEYS, None, None)
    found = home.credentials(file=str(path), profile="b")
    assert (found.get(), found.region()) == (OTHER, "b1")
    home.environ.update(AWS_REGION="e1", AWS_ENDPOINT_URL="http://e")
    assert home.credentials(file=str(path), profile="b").region() == "b1"
    found = home.credentials(file=str(path))
    assert (found.region(), found.endpoint()) == ("e1", "http://e")


def test_a_file_of_our_own_may_be_a_document(home: Home, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "own", "\n" + document(OTHER, 3600, Version=1))
    found = home.credentials(file=str(path)).get()
    assert bare(found) == OTHER
    assert found is not None and found.expires is not None and abs(found.expires - time.time() - 3600) < 60


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_of_our_own_is_for_its_owner_alone(tmp_path: Path, home: Home, mode: int) -> None:
    path = write_secret(tmp_path / "own", section("default", KEYS))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"{path}: open to other users \(mode {mode:04o}\): chmod 600 {path}"):
        home.credentials(file=str(path)).get()


def test_usual_files_that_others_may_read_are_only_warned_of(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.write(section("default", KEYS), REGION)
    home.config.chmod(0o644)  # has no secrets
    assert home.credentials().get() == KEYS and not caplog.records
    home.shared.chmod(0o644)
    found = home.credentials()
    assert found.get() == KEYS
    os.utime(home.shared, (1, 1))
    assert found.get() == KEYS
    assert [record.getMessage() for record in caplog.records] == [
        f"{home.shared}: open to other users (mode 0644): chmod 600 {home.shared}"
    ]


# --- what is said of mistakes

LONG = "x" * 20000
# What is in the user's credentials, and what is said; "F" is the file.
MISTAKES: list[tuple[str, str]] = [
    ("aws_access_key_id = A\n", "F:1: comes before the first [section]"),
    ("[default\n", "F:1: a section is written [NAME]"),
    ("[default]\n\nwhat is this\n", "F:3: neither [section] nor name = value"),
    ("[default]\n= x\n", "F:2: neither [section] nor name = value"),
    ("[default]\naws_access_key_id = A\n", "F:2: the profile has no aws_secret_access_key"),
    ("[default]\n\naws_secret_access_key = A\n", "F:3: the profile has no aws_access_key_id"),
    (
        "[default]\naws_access_key_id = A B\naws_secret_access_key = s\n",
        "F:2: the aws_access_key_id is empty, too",
    ),
    ("[default]\naws_access_key_id = A,B\naws_secret_access_key = s\n", "F:2: the aws_access_key_id is empty"),
    ("[default]\naws_access_key_id =\naws_secret_access_key = s\n", "F:2: the aws_access_key_id is empty"),
    ("[default]\naws_access_key_id = \u00e9\naws_secret_access_key = s\n", "F:2: the aws_access_key_id is empty"),
    ("[default]\naws_access_key_id = A\naws_secret_access_key = s\x07\n", "F:3: the aws_secret_access_key is empty"),
    ("[default]\naws_access_key_id = A\n aws_secret_access_key = s\n", "F:2: the profile has no aws_secret_access_key"),
    (f"[default]\naws_access_key_id = {LONG}\naws_secret_access_key = s\n", "F:2: the aws_access_key_id is empty"),
    (section("default", Keys("A", "s", LONG)), "F:4: the aws_session_token is empty"),
    (section("default", Keys("A", "s", "a\rb")), "F:4: the aws_session_token is empty"),
    (section("default", KEYS, "region = a/b"), "F:4: not a region"),
    (section("default", KEYS, "endpoint_url = s3.example"), "F:4: not an http or https URL"),
    (section("default", KEYS, "role_arn = arn:aws:iam::1:role/x"), "F:4: role_arn is not supported here: name a crede"),
    ("[default]\nsso_session = x\n", "F:2: sso_session is not supported here: name a credential_process, such as"),
    ("[default]\ncredential_process = 'a\n", "F:2: credential_process: no closing quotation"),
    ("[default]\ncredential_process =\n", "F:2: credential_process is empty"),
    ("[default]\ncredential_process = /no/such\n", "F:2: credential_process: cannot run '/no/such': No such file"),
    ("\xff".encode("latin-1").decode("utf-8", "surrogateescape"), "F: not UTF-8"),
    ("#" * (MAX_FILE + 1), f"F: too long: a file of keys may have {MAX_FILE} bytes"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=[told[:50] for _, told in MISTAKES])
def test_a_mistake_is_told_with_its_line(home: Home, text: str, told: str) -> None:
    write_secret(home.shared, text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        home.credentials().get()
    assert str(caught.value).startswith(told.replace("F", str(home.shared), 1))
    assert "secret/one" not in str(caught.value) and LONG not in str(caught.value)


# What is in a file of our own, and what is said.
OWN_MISTAKES: list[tuple[str, str]] = [
    ("", "F: no section [default]"),
    ("[other]\n", "F: no section [default]"),
    ("[default]\nregion = r\n", "F: the section [default] has no aws_access_key_id"),
    ("{", "F: not JSON: "),
    ("{" + '"a":{' * 100 + "}" * 101, "F: not JSON: nested deeper"),
    ("{}", "F: has no AccessKeyId"),
    ('{"AccessKeyId": "A"}', "F: has no SecretAccessKey"),
    ('{"AccessKeyId": 5, "SecretAccessKey": "s"}', "F: AccessKeyId is not a string"),
    ('{"AccessKeyId": "A", "SecretAccessKey": "s", "Version": 2}', "F: keys of another Version than 1"),
    ('{"AccessKeyId": "A", "SecretAccessKey": "s", "SessionToken": "a\\r\\nb"}', "F: the session token is empty"),
    ('{"AccessKeyId": "A", "SecretAccessKey": "\\ud800"}', "F: the secret is empty, too long, or has a character"),
    ('{"AccessKeyId": "A", "SecretAccessKey": "s", "Expiration": "tomorrow"}', "F: Expiration is not a time as in"),
    ('{"AccessKeyId": "A", "SecretAccessKey": "s", "Expiration": "2001-02-30T00:00:00Z"}', "F: Expiration is not a"),
    (document(KEYS, Expiration="2001-02-28T01:02:03Z"), "the S3 keys from F expired at 2001-02-28 01:02:03 UTC"),
]


@pytest.mark.parametrize(("text", "told"), OWN_MISTAKES, ids=[told[:50] for _, told in OWN_MISTAKES])
def test_a_mistake_in_our_own_file_is_told(home: Home, tmp_path: Path, text: str, told: str) -> None:
    path = write_secret(tmp_path / "own", text)
    with pytest.raises((ConfigError, CredentialsUnavailable)) as caught:
        home.credentials(file=str(path)).get()
    assert str(caught.value).startswith(told.replace("F", str(path), 1))


def test_a_file_of_our_own_has_to_be_there(home: Home, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"{missing}: cannot read the S3 credentials: No such file"):
        home.credentials(file=str(missing)).get()
    with pytest.raises(ConfigError, match="not a regular file"):
        home.credentials(file="/dev/null").get()
    os.mkfifo(missing, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        home.credentials(file=str(missing)).get()


def test_a_profile_that_is_named_has_to_be_there(home: Home) -> None:
    home.write(SHARED, CONFIG)
    with pytest.raises(ConfigError, match=rf"{home.shared}: no profile 'z', and none in {home.config}"):
        home.credentials(profile="z").get()
    home.environ["AWS_PROFILE"] = "w"
    with pytest.raises(ConfigError, match="no profile 'w'"):
        home.credentials().get()


def test_what_the_environment_lacks_is_told(home: Home) -> None:
    home.environ["AWS_ACCESS_KEY_ID"] = "A"
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not"):
        home.credentials().get()
    home.environ.update(AWS_SECRET_ACCESS_KEY="s", AWS_REGION="a b")
    with pytest.raises(ConfigError, match="AWS_REGION: not a region"):
        home.credentials().get()
    del home.environ["AWS_REGION"], home.environ["AWS_ACCESS_KEY_ID"]
    home.environ["AWS_WEB_IDENTITY_TOKEN_FILE"] = "/token"
    with pytest.raises(ConfigError, match="AWS_WEB_IDENTITY_TOKEN_FILE: web_identity_token_file is not supported"):
        home.credentials().get()


@given(st.one_of(st.binary(), st.text("[]=#; \n\tabAWS_keyidsecretprofile\r").map(str.encode)))
def test_any_bytes_are_profiles_or_a_mistake(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        for profile in parse_profiles(data, "F").values():
            profile_keys(profile)
    with contextlib.suppress(ConfigError):
        assert document_keys(data, "F").access_key


PRINTABLE = st.text(string.ascii_letters + string.digits + "/+=!#;[]", min_size=1, max_size=40)


@given(st.dictionaries(st.text(string.ascii_letters + "-_.@ ", min_size=1).map(str.strip).filter(bool), PRINTABLE))
def test_profiles_are_read_as_they_were_written(profiles: dict[str, str]) -> None:
    profiles = {name: secret for name, secret in profiles.items() if not name.startswith("profile")}
    text = "".join(section(name, Keys("A", secret)) for name, secret in profiles.items())
    found = {name: profile_keys(profile) for name, profile in parse_profiles(text.encode(), "F").items()}
    assert found == {name: Keys("A", secret) for name, secret in profiles.items()}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2030-12-31T23:59:59Z", 1924991999),
        ("2030-12-31T23:59:59.123456789Z", 1924991999),
        ("2030-12-31T23:59:59+00:00", 1924991999),
        ("2031-01-01T01:29:59+01:30", 1924991999),
        ("2030-12-31T15:59:59-0800", 1924991999),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert document_keys(document(KEYS, Expiration=text).encode(), "F").expires == seconds


# --- a program that prints keys


def program(home: Home, body: str) -> str:
    """The setting for a program in Python."""
    path = home.folder / "a program.py"
    path.write_text(body)
    return f'[default]\ncredential_process = {sys.executable} "{path}" one "two three"\n'


def test_a_program_prints_keys(home: Home) -> None:
    body = (
        "import os, sys\nassert sys.argv[1:] == ['one', 'two three'] and os.environ['X'] == 'y'\n"
        f"print({document(OTHER, 900)!r})"
    )
    assert bare(home.write(None, program(home, body), X="y").credentials().get()) == OTHER
    assert bare(home.write(section("default", KEYS)).credentials().get()) == KEYS


def test_no_shell_has_to_do_with_it(home: Home) -> None:
    home.write("[default]\ncredential_process = echo $HOME; touch x\n")
    with pytest.raises(ConfigError, match=r"F:2: credential_process 'echo': not JSON".replace("F", str(home.shared))):
        home.credentials().get()


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        ("raise SystemExit(3)", CredentialsUnavailable, "ended with exit status 3: run it by hand"),
        ("import os; os.kill(os.getpid(), 9)", CredentialsUnavailable, "ended with signal 9"),
        ("import sys; print('x' * 70000)", ConfigError, f"prints more than {MAX_ANSWER} bytes"),
        ("print('{}')", ConfigError, "has no AccessKeyId"),
    ],
)
def test_a_program_that_fails(home: Home, body: str, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        home.write(None, program(home, body)).credentials().get()


def test_a_program_that_hangs_is_ended_with_all_it_started(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PROCESS_S", 3.0)
    pids = home.folder / "pids"
    body = (
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)"
    )
    with pytest.raises(CredentialsUnavailable, match=r"credential_process '.*': took longer than 3 s"):
        home.write(None, program(home, body)).credentials().get()
    for pid in pids.read_text().split():
        until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]


def is_running(pid: str) -> bool:
    """Neither gone nor a zombie of somebody who does not look."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_no_program_is_run_that_others_could_have_named(home: Home) -> None:
    home.write(None, program(home, f"print('''{document(KEYS)}''')"))
    home.config.chmod(0o664)
    with pytest.raises(ConfigError, match=rf"{home.config}:2: others may write to it: .* chmod go-w {home.config}"):
        home.credentials().get()
    home.config.chmod(0o644)
    assert home.credentials().get() == KEYS
    if os.geteuid() == 0:
        os.chown(home.config, 65534, 65534)
        with pytest.raises(ConfigError, match="belongs to another user"):
            home.credentials().get()


# --- metadata services


class Metadata:
    """An instance's and a container's metadata: what it answers can be changed."""

    def __init__(self) -> None:
        self.keys: str | Callable[[], str] = document(OTHER, 3600, Code="Success")
        self.status = 200
        self.role = "the-role\nanother\n"
        self.asked: list[str] = []
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                life = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
                self.answer("the==token" if self.path == "/latest/api/token" and 0 < life <= 21600 else "")

            def do_GET(self) -> None:
                roles = "/latest/meta-data/iam/security-credentials/"
                if self.path.startswith("/latest/") and self.headers["X-aws-ec2-metadata-token"] != "the==token":
                    self.answer("", 401)
                elif self.path == roles:
                    self.answer(metadata.role, 200 if metadata.role else 404)
                elif self.path == f"{roles}the-role":
                    self.answer(metadata.keys if isinstance(metadata.keys, str) else metadata.keys())
                elif self.path == "/container/keys?x=1":
                    self.answer(document(Keys("C", "c", self.headers["Authorization"])))
                else:
                    self.answer("", 404)

            def answer(self, body: str, status: int = 200) -> None:
                metadata.asked.append(f"{self.command} {self.path}")
                self.send_response(metadata.status if status == 200 else status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Metadata:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    monkeypatch.setattr(services, "METADATA_S", 60.0)
    with Metadata() as service:
        yield service


def test_the_machine_is_asked_last_and_only_when_that_is_wanted(home: Home, metadata: Metadata) -> None:
    assert home.credentials(metadata_url=metadata.url).get() is None
    for keys in (section("default", KEYS), ""):
        found = home.write(keys).credentials(metadata_url=metadata.url, instance=True)
        assert bare(found.get()) == (KEYS if keys else OTHER)
    assert metadata.asked == [
        "PUT /latest/api/token",
        "GET /latest/meta-data/iam/security-credentials/",
        "GET /latest/meta-data/iam/security-credentials/the-role",
    ]


def test_the_environment_says_where_the_machine_is_asked_and_may_forbid_it(home: Home, metadata: Metadata) -> None:
    home.write(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"{metadata.url}/")
    assert bare(home.credentials(instance=True, metadata_url="http://127.0.0.1:1").get()) == OTHER
    home.write(AWS_EC2_METADATA_DISABLED="true")
    with pytest.raises(ConfigError, match="AWS_EC2_METADATA_DISABLED forbids"):
        home.credentials(instance=True).get()
    for url in ("https://h", "ftp://h", "h", "http://", "http://h:x", "http://u:p@h", "http://h/a b"):
        with pytest.raises(ConfigError, match="the URL of instance metadata: has to be http://HOST"):
            Credentials(instance=True, environ={"HOME": str(home.folder)}, metadata_url=url).get()


def test_a_container_is_asked_first(home: Home, metadata: Metadata, tmp_path: Path) -> None:
    def got(**environ: str) -> Keys | None:
        settings = {"environ": {"HOME": str(tmp_path), **environ}, "container_url": metadata.url}
        return Credentials(instance=True, metadata_url=metadata.url, **settings).get()

    relative = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/container/keys?x=1"}
    full = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{metadata.url}/container/keys?x=1"}
    assert got(**relative) == got(**full) == Keys("C", "c")
    assert got(**full, AWS_CONTAINER_AUTHORIZATION_TOKEN="a") == Keys("C", "c", "a")
    (tmp_path / "token").write_text("b\n")
    assert got(**full, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(tmp_path / "token")) == Keys("C", "c", "b")
    for environ, told in (
        ({**full, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "a\r\nX: y"}, "not a token for a header"),
        ({**full, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/no/such"}, "/no/such: cannot read the container's token"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/k"}, "only on this machine and of the agents"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://evil.example/k"}, "only on this machine"),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "@evil.example/"}, "has to begin with a slash"),
    ):
        with pytest.raises(ConfigError, match=told):
            got(**environ)


def test_a_service_that_does_not_give_keys(home: Home, metadata: Metadata) -> None:
    def told() -> str:
        with pytest.raises(CredentialsUnavailable) as caught:
            home.credentials(instance=True, metadata_url=metadata.url).get()
        assert str(caught.value).startswith(metadata.url)
        return str(caught.value)

    good = metadata.keys
    for keys in ("{}", "<html>", document(Keys("A", "s", "a\nb"))):
        metadata.keys = keys
        told()
    metadata.keys = "x" * (MAX_ANSWER + 1)
    assert f"status 200 and {MAX_ANSWER + 1} bytes" in told()
    metadata.keys, metadata.role = good, ""
    assert told().endswith("this machine has no role")
    metadata.role = "../../x"
    assert "makes no sense" in told()
    metadata.status = 403
    metadata.asked.clear()
    assert "status 403" in told() and len(metadata.asked) == 1
    metadata.status = 503
    assert "status 503" in told() and len(metadata.asked) == 3, "asked once more"


@pytest.mark.parametrize("sends", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"])
def test_a_service_that_lets_us_wait(home: Home, monkeypatch: pytest.MonkeyPatch, sends: bytes) -> None:
    """Also one that says a byte now and then: the bound is on the whole."""
    monkeypatch.setattr(services, "METADATA_S", 0.3)
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(sends)
            while sends and not done.wait(0.02):
                connection.sendall(b"x")
            done.wait(60)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listening.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(CredentialsUnavailable, match="no answer in time"):
                home.credentials(instance=True, metadata_url=url).get()
        finally:
            done.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("sends", [b"what?\x1b[31m\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"])
def test_a_service_that_speaks_something_else(home: Home, sends: bytes) -> None:
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listening.accept()[0]
                with connection:
                    connection.recv(65536)
                    connection.sendall(sends)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(CredentialsUnavailable) as caught:
                home.credentials(instance=True, metadata_url=url).get()
            assert "\x1b" not in str(caught.value)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
    with pytest.raises(CredentialsUnavailable, match="refused"):
        home.credentials(instance=True, metadata_url=url).get()
    with pytest.raises(CredentialsUnavailable):
        home.credentials(instance=True, metadata_url=f"http://{'a' * 70}").get()


# --- new keys


def replace(path: Path, text: str) -> None:
    """As editors and secret stores do it."""
    write_secret(path.with_suffix(".new"), text).rename(path)


def test_a_changed_file_is_read_again(home: Home, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "own", section("default", KEYS, "region = r1"))
    found = home.credentials(file=str(path))
    assert (found.get(), found.region()) == (KEYS, "r1")
    replace(path, section("default", OTHER, "region = r2"))
    assert (found.region(), found.get()) == ("r2", OTHER)
    usual = home.credentials()
    assert usual.get() is None
    home.write(section("default", KEYS))  # was not there
    assert usual.get() == KEYS
    home.shared.unlink()
    assert usual.get() is None
    home.write(None, section("default", OTHER))
    assert usual.get() == OTHER


def test_a_file_that_breaks_leaves_the_old_keys(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_secret(tmp_path / "own", section("default", KEYS))
    found = home.credentials(file=str(path))
    assert found.get() == KEYS
    replace(path, "[default")
    for _ in range(3):
        assert found.get() == KEYS and found.renew(KEYS) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}:1: a section is written [NAME]; going on with the S3 keys from [default] of {path}"
    ]
    path.unlink()
    assert found.get() == KEYS
    replace(path, section("default", OTHER))
    assert found.get() == OTHER


def test_a_mistake_that_is_mended_is_over(home: Home, tmp_path: Path) -> None:
    found = home.credentials(file=str(tmp_path / "own"))
    for _ in range(3):
        with pytest.raises(ConfigError, match="No such file"):
            found.get()
        assert found.renew(None) is None
    replace(tmp_path / "own", section("default", KEYS))
    assert found.get() == KEYS


def test_keys_are_renewed_before_they_expire(home: Home, metadata: Metadata, at_once: None) -> None:
    metadata.keys = document(KEYS, REFRESH_S + 60)
    found = home.credentials(instance=True, metadata_url=metadata.url)
    assert bare(found.get()) == KEYS
    metadata.keys = document(OTHER, REFRESH_S - 60)
    assert bare(found.get()) == KEYS, "those are good for long enough"
    assert bare(found.renew(found.get())) == OTHER
    metadata.keys = document(Keys("N", "n"), REFRESH_S + 60)
    assert bare(found.get()) == Keys("N", "n")


def test_a_refresh_that_fails_leaves_the_old_keys_while_they_are_good(
    home: Home, metadata: Metadata, monkeypatch: pytest.MonkeyPatch, at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    metadata.keys = document(KEYS, REFRESH_S - 60)
    found = home.credentials(instance=True, metadata_url=metadata.url)
    keys = found.get()
    assert bare(keys) == KEYS and keys is not None and keys.expires is not None
    metadata.status = 500
    assert found.get() == keys and found.get() == keys
    assert found.renew(keys) is None
    assert len(caplog.records) == 1 and "going on with the S3 keys from instance metadata" in caplog.text
    monkeypatch.setattr(time, "time", lambda: keys.expires)
    with pytest.raises(CredentialsUnavailable, match="status 500"):
        found.get()
    assert found.renew(keys) is None
    metadata.status = 200
    with pytest.raises(CredentialsUnavailable, match="the S3 keys from instance metadata expired at"):
        found.get()
    metadata.keys = document(OTHER, REFRESH_S + 60)
    assert bare(found.get()) == OTHER


def test_a_service_that_is_down_is_left_alone_for_a_while(home: Home, metadata: Metadata, later: None) -> None:
    metadata.status = 403
    found = home.credentials(instance=True, metadata_url=metadata.url)
    for _ in range(5):
        with pytest.raises(CredentialsUnavailable, match="status 403"):
            found.get()
        assert found.renew(None) is None
    assert len(metadata.asked) == 1


def test_keys_that_a_store_refuses(home: Home, metadata: Metadata, at_once: None) -> None:
    metadata.keys = document(KEYS, 3600)
    found = home.credentials(instance=True, metadata_url=metadata.url)
    first = found.get()
    assert found.renew(first) is None, "they are the same"
    metadata.keys = document(OTHER, 3600)
    second = found.renew(first)
    assert bare(second) == OTHER and found.get() == second
    metadata.asked.clear()
    assert found.renew(first) == second and found.renew(None) == second and not metadata.asked
    assert found.renew(second) is None and metadata.asked


def test_refusals_do_not_each_ask_anew(home: Home, metadata: Metadata, later: None) -> None:
    found = home.credentials(instance=True, metadata_url=metadata.url)
    keys = found.get()
    metadata.asked.clear()
    metadata.keys = document(KEYS, 3600)
    assert found.renew(keys) is None and not metadata.asked, "they were asked a moment ago"
    home.write(section("default", Keys("F", "f")))
    assert found.renew(keys) == Keys("F", "f"), "a file is another matter"


def test_many_are_refused_and_one_asks(home: Home, metadata: Metadata, at_once: None) -> None:
    metadata.keys = document(KEYS, 3600)
    found = home.credentials(instance=True, metadata_url=metadata.url)
    first = found.get()
    metadata.asked.clear()
    release = threading.Event()
    metadata.keys = lambda: document(OTHER, 3600) if release.wait(60) else ""
    got: list[Keys | None] = []
    threads = [threading.Thread(target=lambda: got.append(bare(found.renew(first)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(metadata.asked) == 2)
    assert found.get() == first, "who was not refused does not wait"
    release.set()
    for thread in threads:
        thread.join()
    assert got == [OTHER] * 8
    assert len(metadata.asked) == 3


def test_while_one_refreshes_the_others_go_on(home: Home, metadata: Metadata, at_once: None) -> None:
    metadata.keys = document(KEYS, REFRESH_S - 60)
    found = home.credentials(instance=True, metadata_url=metadata.url)
    first = found.get()
    metadata.asked.clear()
    release = threading.Event()
    metadata.keys = lambda: document(OTHER, 3600) if release.wait(60) else ""
    got: list[Keys | None] = []
    thread = threading.Thread(target=lambda: got.append(bare(found.get())))
    thread.start()
    until(lambda: len(metadata.asked) == 2)
    assert [found.get() for _ in range(5)] == [first] * 5
    release.set()
    thread.join()
    assert got == [OTHER] and bare(found.get()) == OTHER


def test_the_first_keys_are_read_once(home: Home, metadata: Metadata) -> None:
    found = home.credentials(instance=True, metadata_url=metadata.url)
    got: list[Keys | None] = []
    threads = [threading.Thread(target=lambda: got.append(bare(found.get()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [OTHER] * 8 and len(metadata.asked) == 3


def test_who_waits_in_vain_is_told(home: Home, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LONGEST_S", 0.0)
    monkeypatch.setattr(credentials, "LOOK_S", 0.01)
    release = threading.Event()
    metadata.keys = lambda: document(OTHER) if release.wait(60) else ""
    found = home.credentials(instance=True, metadata_url=metadata.url)
    got: list[Keys | None] = []
    thread = threading.Thread(target=lambda: got.append(found.get()))
    thread.start()
    until(lambda: len(metadata.asked) == 2)
    with pytest.raises(CredentialsUnavailable, match="reading them has taken longer than 0 s"):
        found.get()
    release.set()
    thread.join()
    assert got == [OTHER] and found.get() == OTHER


def test_the_log_says_where_keys_come_from_and_never_which(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert home.write(section("default", OTHER)).credentials().get() == OTHER
    assert [record.getMessage() for record in caplog.records] == [f"S3 keys from profile 'default' of {home.shared}"]
