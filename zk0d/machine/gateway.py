"""The gateway's nginx configuration: nodes see the Fleet API and the presence page, no more.

People see the status page, where ``gateway.status-page`` switches it on.
"""

from __future__ import annotations

from pathlib import Path

from zk0d.config.machine import ServerSettings

#: Where systemd puts the gateway's credentials.
CREDENTIALS = Path("/run/credentials/zk0d-gateway.service")
RUNTIME = Path("/run/zk0d-gateway")

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
    limit_conn_zone $binary_remote_addr zone=held:2m;
    limit_req_status 429;
    limit_conn_status 429;

    # Who says nothing, or a byte now and then, does not hold a connection.
    client_header_timeout 10s;
    client_body_timeout 20s;
    send_timeout 30s;
    keepalive_timeout 75s;
    reset_timedout_connection on;
    large_client_header_buffers 4 8k;

    server {{
        listen {listen}{port} ssl;{ipv6}
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        limit_conn held {connections};

        location /v1/fleet/ {{
            limit_req zone=fleet burst={burst} nodelay;
            proxy_pass https://127.0.0.1:{link};
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate "{ca}";
            proxy_ssl_name localhost;
            proxy_ssl_session_reuse on;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header x-zk0d-control-secret "";
            # A message's pieces are 4 MiB; they go through without being kept on disk.
            client_max_body_size {body}m;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_read_timeout 60s;
        }}

        location /zk0d/v1/nodes/ {{
            limit_except GET {{ deny all; }}
            limit_req zone=presence burst=20 nodelay;
            proxy_pass http://127.0.0.1:{presence};
        }}

{page}        location / {{ return 403; }}
    }}
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
    log
        Where each request is written to, or ``off``.
    loopback
        Listen on loopback alone, for tests and demos.
    """
    gateway, link = settings.gateway, settings.superlink
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
        page=_PAGE.format(presence=link.presence_port) if gateway.status_page else "",
    )
