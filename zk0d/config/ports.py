"""Ports of the services' metrics where the settings name no others."""

from __future__ import annotations

#: By the service's name.
METRICS_PORTS = {
    "superlink": 9470,
    "server-superexec": 9471,
    "supernode": 9472,
    "client-superexec": 9473,
}
