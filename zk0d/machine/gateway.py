"""The gateway: an nginx that shows nodes the Fleet API and the presence page, and no more.

It also carries the rounds' files: it asks ``zk0d superlink`` who may fetch and send which, and
moves the bytes itself (:mod:`zk0d.services.transfers`).

People see the status page, where ``gateway.status-page`` switches it on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil

from zk0d.config.machine import GatewaySettings, ServerSettings, TransferSettings
from zk0d.errors import ConfigError
from zk0d.files import write_file
from zk0d.machine import units
from zk0d.machine.rights import writing
from zk0d.machine.roles import service

FILE = "gateway.conf"
UNIT = f"{service('gateway').unit}.service"

#: Where systemd puts the gateway's credentials.
CREDENTIALS = Path("/run/credentials") / UNIT
RUNTIME = Path("/run/zk0d-gateway")

#: Says to the application that nginx carries the bytes.
GATEWAY_HEADER = "x-zk0d-gateway"
CARRIES = "carries"
#: With which status and words nginx is to refuse a piece. It asks for leave and understands 403
#: alone; it then says these itself, because whoever passes a body on meets a reader that has gone.
STATUS_HEADER, WHY_HEADER = "x-zk0d-status", "x-zk0d-why"
REFUSALS = (401, 404, 411, 413, 422, 503, 507)
#: The piece that nginx asks for.
PIECE_HEADER = "x-zk0d-piece"
#: Where nginx finds the files that it is told to send.
ACCEL_PREFIX = "/zk0d/v1/files/"
#: … and those of releases.
RELEASES_PREFIX = "/zk0d/v1/release-files/"

_TEXT = """\
# Written by zk0bot server init from server.toml ([gateway]); changes are lost.
daemon off;
pid "{runtime}/nginx.pid";
error_log stderr warn;
worker_processes 2;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}

http {{
    server_tokens off;
    log_format zk0d '$remote_addr "$request" $status $request_length $request_time';
    access_log {log};
    client_body_temp_path "{runtime}/body";
    proxy_temp_path "{runtime}/proxy";
    fastcgi_temp_path "{runtime}/fastcgi";
    uwsgi_temp_path "{runtime}/uwsgi";
    scgi_temp_path "{runtime}/scgi";

    # One address: how often it asks, and how many connections it holds.
    limit_req_zone $binary_remote_addr zone=fleet:2m rate={rate}r/s;
    limit_req_zone $binary_remote_addr zone=presence:1m rate=5r/s;
    limit_req_zone $binary_remote_addr zone=enrol:1m rate=1r/s;
    limit_conn_zone $binary_remote_addr zone=held:2m;
    limit_conn_zone $binary_remote_addr zone=waiting:2m;
    limit_req_status 429;
    limit_conn_status 429;

    # Who says nothing, or a byte now and then, does not hold a connection.
    client_header_timeout 10s;
    client_body_timeout 20s;
    send_timeout 30s;
    keepalive_timeout 75s;
    reset_timedout_connection on;
    large_client_header_buffers 4 8k;

    # A new connection would be a handshake for each request. The SuperLink closes one after 5 s.
    upstream zk0d_link {{
        server 127.0.0.1:{link};
        keepalive 64;
        keepalive_timeout 3s;
    }}

    server {{
        listen {listen}{port} ssl;{ipv6}
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        limit_conn held {connections};

        location /v1/fleet/ {{
            limit_req zone=fleet burst={burst} nodelay;
            proxy_pass https://zk0d_link;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate "{ca}";
            proxy_ssl_name localhost;
            proxy_ssl_session_reuse on;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header x-zk0d-control-secret "";
            # A message's pieces are 4 MiB; they go through without being kept on disk.
            client_max_body_size {body}m;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_read_timeout 60s;

            # A node that waits holds a connection; the other requests of its address have theirs.
            location = /v1/fleet/zk0d-wait {{
                limit_conn waiting {connections};
                proxy_pass https://zk0d_link;
            }}
        }}

        location /zk0d/v1/nodes/ {{
            limit_except GET {{ deny all; }}
            limit_req zone=presence burst=20 nodelay;
            proxy_pass http://127.0.0.1:{presence};
        }}

        # A node with an invite's token asks to be let in.
        location = /zk0d/v1/enrol {{
            limit_except POST {{ deny all; }}
            limit_req zone=enrol burst=20 nodelay;
            client_max_body_size 4k;
            proxy_pass http://127.0.0.1:{presence};
        }}

{files}{releases}{page}        location / {{ return 403; }}
    }}
}}
"""


_CARRIES = """\
        # A round's weights: whether, says the application; the bytes are sent from the file.
        location ~ ^/zk0d/v1/(down/[0-9a-f]+|up/[0-9a-f]+)$ {{
            limit_except GET {{ deny all; }}
            limit_req zone=fleet burst={burst} nodelay;
            proxy_pass http://127.0.0.1:{presence};
            proxy_set_header {gateway_header} {carries};
        }}
        location {accel} {{
            internal;
            sendfile on;
            default_type application/octet-stream;
            alias "{down}/";
        }}

        # A piece of an update: the application says whether before a byte of it is taken.
        location ~ ^/zk0d/v1/up/(?<ticket>[0-9a-f]+)/(?<piece>[0-9a-f]+)$ {{
            limit_except PUT {{ deny all; }}
            limit_req zone=fleet burst={burst} nodelay;
            auth_request /zk0d/v1/may;
            auth_request_set $asked $upstream_status;
            auth_request_set $refusal $upstream_http_{status};
            auth_request_set $why $upstream_http_{why};
            error_page 401 403 = @refused;
            error_page 500 = @failed;
            client_max_body_size 16m;
            client_body_temp_path "{incoming}";
            dav_methods PUT;
            dav_access user:rw group:rw;
            alias "{up}/$ticket.$piece";
        }}
        location = /zk0d/v1/may {{
            internal;
            proxy_pass http://127.0.0.1:{presence};
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header x-content-length $http_content_length;
            proxy_set_header {gateway_header} {carries};
            proxy_set_header {piece_header} $request_uri;
            client_max_body_size 16m;
        }}
        # Before the body has come, so that nothing of it is kept.
        location @refused {{
            default_type text/plain;
{refusals}            return 403 "$why\\n";
        }}
        location @failed {{
            default_type text/plain;
            if ($asked = 204) {{
                return 507 "the coordinator could not write the piece; its disk may be full.\\n";
            }}
            return 503 "the coordinator did not say whether the piece may come; send it again.\\n";
        }}

"""

#: Where nginx may not touch the files, the application has the bytes pass through it.
_PASSES_ON = """\
        location ~ ^/zk0d/v1/(down|up)/[0-9a-f/]+$ {{
            limit_req zone=fleet burst={burst} nodelay;
            # A short body without a length would get one from nginx.
            default_type text/plain;
            if ($http_transfer_encoding) {{
                return 411 "a piece needs a Content-Length.\\n";
            }}
            client_max_body_size 16m;
            proxy_pass http://127.0.0.1:{presence};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffering off;
        }}

"""

#: A node of the roster fetches releases: who it is, says the application.
_RELEASES = """\
        location ~ ^/zk0d/v1/releases(/[A-Za-z0-9-]+/[0-9]+/[0-9a-f]+)?$ {{
            limit_except GET {{ deny all; }}
            limit_req zone=fleet burst={burst} nodelay;
            proxy_pass http://127.0.0.1:{presence};
            proxy_http_version 1.1;
            proxy_buffering off;
{carried}        }}
"""
_RELEASES_CARRIED = """\
            proxy_set_header {gateway_header} {carries};
"""
_RELEASE_FILES = """\
        location {prefix} {{
            internal;
            sendfile on;
            default_type application/octet-stream;
            types {{ }}
            alias "{folder}/";
        }}
"""

_PAGE = """\
        location = /zk0d/v1/ {{
            limit_except GET {{ deny all; }}
            limit_req zone=presence burst=20 nodelay;
            proxy_pass http://127.0.0.1:{presence};
        }}

"""


def configuration(
    settings: ServerSettings,
    *,
    certificate: Path = CREDENTIALS / "server.crt",
    key: Path = CREDENTIALS / "server.key",
    ca: Path = CREDENTIALS / "ca.crt",
    runtime: Path = RUNTIME,
    transfer: Path | None = None,
    carries: bool = True,
    log: str = "syslog:server=unix:/dev/log,nohostname,tag=zk0d_gateway",
    loopback: bool = False,
) -> str:
    """The whole configuration file.

    Parameters
    ----------
    certificate, key
        What nodes see; by default as systemd hands them over.
    ca
        What the SuperLink's own certificate is checked against.
    runtime
        A folder for the pid and for temporary files.
    transfer
        The folder of what is on its way, if not that of the settings.
    carries
        Whether nginx's workers may write and read there; else the application carries the bytes.
    log
        Where each request is written to, or ``off``.
    loopback
        Listen on loopback alone, for tests and demos.
    """
    gateway, link = settings.gateway, settings.superlink
    files = settings.transfers if transfer is None else TransferSettings(folder=transfer)
    carried = (_CARRIES if carries else _PASSES_ON).format(
        presence=link.presence_port,
        burst=2 * gateway.requests_per_second,
        down=files.down,
        up=files.up,
        incoming=files.incoming,
        accel=ACCEL_PREFIX,
        gateway_header=GATEWAY_HEADER,
        carries=CARRIES,
        status=STATUS_HEADER.replace("-", "_"),
        why=WHY_HEADER.replace("-", "_"),
        refusals="".join(
            f'            if ($refusal = {each}) {{ return {each} "$why\\n"; }}\n'
            for each in REFUSALS
        ),
        piece_header=PIECE_HEADER,
    )
    return _TEXT.format(
        runtime=runtime,
        log=log if log == "off" else f"{log} zk0d",
        certificate=certificate,
        key=key,
        ca=ca,
        listen="127.0.0.1:" if loopback else "",
        ipv6="" if loopback else f"\n        listen [::]:{gateway.port} ssl;",
        port=gateway.port,
        rate=gateway.requests_per_second,
        burst=2 * gateway.requests_per_second,
        connections=gateway.connections,
        body=gateway.body_limit_mib,
        link=link.port,
        presence=link.presence_port,
        files=carried,
        releases=_releases(settings, carries=carries),
        page=_PAGE.format(presence=link.presence_port) if gateway.status_page else "",
    )


def _releases(settings: ServerSettings, *, carries: bool) -> str:
    """What is for releases; nothing where none are shared."""
    if not settings.share_releases:
        return ""
    sent = _RELEASES_CARRIED.format(gateway_header=GATEWAY_HEADER, carries=CARRIES)
    asked = _RELEASES.format(
        burst=2 * settings.gateway.requests_per_second,
        presence=settings.superlink.presence_port,
        carried=sent if carries else f'            proxy_set_header {GATEWAY_HEADER} "";\n',
    )
    if not carries:
        return f"{asked}\n"
    files = _RELEASE_FILES.format(prefix=RELEASES_PREFIX, folder=settings.releases_folder)
    return f"{asked}{files}\n"


def nginx() -> str | None:
    """The gateway's program, if it is installed."""
    # Where it is installed is on root's PATH alone.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin")


def own_files(settings: ServerSettings) -> Path:
    """Where nginx keeps its own files if systemd does not start it."""
    return settings.superlink.state / "gateway"


def configure(folder: Path, settings: ServerSettings) -> bool:
    """Write nginx's configuration, after nginx has read it; whether it changed.

    The system's unit hands nginx its files; without it nginx takes them from where they lie, and
    keeps what it writes itself in the state folder.

    Raises
    ------
    ConfigError
        With nginx's words, if it refuses.
    TryAgainError
        If it cannot be written.
    """

    def here(runtime: Path, transfer: Path | None = None) -> str:
        own, ca = settings.gateway, settings.superlink.ca
        return configuration(
            settings,
            certificate=own.certificate,
            key=own.key,
            ca=ca,
            runtime=runtime,
            transfer=transfer,
            # Workers of an nginx that root starts are another user's.
            carries=os.geteuid() != 0,
            log="off",
        )

    path, program = folder / FILE, nginx()
    with writing(folder):
        if units.by_systemd(folder):
            text = configuration(settings)
        else:
            own_files(settings).mkdir(parents=True, exist_ok=True)
            settings.transfers.incoming.mkdir(parents=True, exist_ok=True)
            text = here(own_files(settings))
        if program:
            with tempfile.TemporaryDirectory() as draft:
                # nginx makes its folders even if it only looks.
                (Path(draft) / "up").mkdir()
                text_here = here(Path(draft), Path(draft))
                (Path(draft) / "nginx.conf").write_text(text_here, encoding="utf-8")
                said = subprocess.run(
                    [program, "-t", "-q", "-e", "stderr", "-c", f"{draft}/nginx.conf"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if said.returncode:
                lines = said.stderr.strip().splitlines() or ["it says nothing"]
                raise ConfigError(
                    f"[gateway]: nginx refuses what these settings give ({lines[0]})."
                )
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        write_file(path, text)
        return True


def hand_over_certificate(settings: ServerSettings) -> None:
    """Have the gateway's unit load the certificate that the settings name."""
    own, usual = settings.gateway, GatewaySettings()
    lines: list[str] = []
    if (own.certificate, own.key) != (usual.certificate, usual.key):
        lines = [
            f"LoadCredential=server.{kind}:{path}"
            for kind, path in (("crt", own.certificate), ("key", own.key))
        ]
    units.write_drop_in(UNIT, "50-certificate", "your own certificate", lines)


def show_certificate(folder: Path) -> None:
    """Have nginx read its certificate again, if it runs.

    Nodes connect again; the SuperLink and its run are not touched.
    """
    if units.by_systemd(folder):
        units.systemctl("try-restart", UNIT)
        return
    settings = ServerSettings.load(folder / "server.toml")
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid = int((own_files(settings) / "nginx.pid").read_text(encoding="ascii"))
        if psutil.Process(pid).name() == "nginx":
            os.kill(pid, signal.SIGHUP)
