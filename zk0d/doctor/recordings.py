"""Rules about recordings: their folder first, then, in a process with LeRobot, every number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zk0d.config.names import DatasetUri
from zk0d.daemon.program import end_quickly
from zk0d.doctor.finding import Host, Unchecked, Wrong, rule
from zk0d.doctor.machine import fetch_command
from zk0d.errors import DataError
from zk0d.learning.layout import INFO, is_there, read_info
from zk0d.learning.license import license_of

READ_SECONDS = 300.0


@rule("dataset")
def dataset(host: Host, uri: str | None, key: str = "dataset-uri") -> str:
    """The recordings are here, in the format that this needs; says what they are."""
    if uri is None:
        raise Wrong(
            f"{key} is missing: this node lends no recordings.",
            "the settings name no dataset",
            "zk0bot client start FOLDER names them",
        )
    folder = folder_of(host, uri)
    try:
        if not is_there(folder / INFO, uri):
            fetched = DatasetUri.parse(uri).fetched
            raise Wrong(
                f"{key}: {uri} is not on this machine."
                if fetched
                else f"{key}: {folder} is not a LeRobot dataset.",
                f"there is no {folder / INFO}",
                f"fetch it: {fetch_command(host)}"
                if fetched
                else f"give {key} the folder that holds meta, data and videos",
            )
        info = read_info(folder, uri)
    except DataError as error:
        evidence, _, cure = error.message.removesuffix(".").rpartition("; ")
        raise Wrong(f"{key}: the recordings cannot be used.", evidence, cure) from None
    cameras = sorted(name for name, feature in info.features.items() if feature.is_picture)
    if not cameras:
        raise Wrong(
            f"{key}: {folder} has no camera, and a policy needs one.",
            f"{folder / INFO} names no picture",
            "record with a camera",
        )
    names = ", ".join(name.removeprefix("observation.images.") for name in cameras)
    return (
        f"{folder}: {info.codebase_version}, {info.total_episodes} episodes, {info.fps:g} frames"
        f" per second, cameras {names}, {_license(license_of(folder, info))}"
    )


@rule("dataset-values")
def dataset_values(
    host: Host,
    uri: str,
    cameras: Mapping[str, str],
    most_bad: int = 0,
    *,
    key: str = "dataset-uri",
    seconds: float = READ_SECONDS,
) -> str:
    """The recordings open as the learner opens them, and every state and action is a number."""
    # Another's folder, in which this is typed, must not decide what is imported.
    command = [sys.executable, "-P", "-m", "zk0d.doctor.recordings"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if _is_systemds(host):
        environment["HF_LEROBOT_HOME"] = str(host.hub / "lerobot")
    try:
        said = subprocess.run(
            command,
            input=json.dumps([uri, dict(cameras), key.startswith("evaluation.")]),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise Unchecked(f"{uri} was not read within {seconds:.0f} s") from None
    try:
        found: dict[str, Any] = json.loads(said.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise Unchecked(f"reading {uri} ended with status {said.returncode}") from None
    if "unchecked" in found:
        raise Unchecked(found["unchecked"])
    if "problem" in found:
        raise Wrong(
            f"{key}: the learner cannot open the recordings.",
            found["problem"],
            "correct that; until then the node answers data_error",
        )
    if found["bad"] > most_bad:
        raise Wrong(
            f"{key}: state or action of some frames is NaN or infinity.",
            f"{found['bad']} of {found['frames']} frames, first {found['first']}",
            "record those episodes again, or raise max-bad-frames to leave such frames out",
        )
    if found["wrong"]:
        raise Wrong(
            f"{key}: a policy cannot be trained on these recordings.",
            found["wrong"][0],
            f"zk0bot data check {uri} lists every problem",
        )
    notices = f"; {found['notices']} notices: zk0bot data check {uri}" if found["notices"] else ""
    return (
        f"{found['frames']} frames in {found['episodes']} episodes, {found['bad']} not"
        f" finite{notices}"
    )


def folder_of(host: Host, uri: str) -> Path:
    """Where a dataset is, or would be once it is fetched."""
    from zk0d.learning.layout import datasets_folder

    address = DatasetUri.parse(uri)
    if not address.fetched:
        return address.folder
    return (host.hub / "lerobot" if _is_systemds(host) else datasets_folder()) / address.location


def _is_systemds(host: Host) -> bool:
    return host.systemd and "HF_LEROBOT_HOME" not in os.environ


def _license(named: str | None) -> str:
    return f"license {named}" if named else "no license is named"


def _read(uri: str, cameras: Mapping[str, str], held_out: bool = False) -> dict[str, Any]:
    from zk0d.config.cameras import MappedAt
    from zk0d.errors import Zk0dError

    try:
        from zk0d.learning.inspection import inspect
        from zk0d.learning.recordings import open_recordings
    except ImportError as error:
        return {"unchecked": f"the numbers are read by LeRobot, which does not load ({error})"}
    try:
        at = MappedAt.EVALUATION if held_out else MappedAt.SETTINGS
        recordings = open_recordings(uri, cameras=cameras, mapped_at=at)
    except Zk0dError as error:
        return {"problem": error.message}
    bad = recordings.not_finite()
    remarks = inspect(recordings).remarks
    return {
        # Frames that are no numbers have a limit of their own (max-bad-frames).
        "wrong": [r.text for r in remarks if r.severity == "wrong" and r.check != "not-finite"],
        "notices": sum(remark.severity == "notice" for remark in remarks),
        "frames": len(recordings),
        "episodes": len(recordings.episodes),
        "bad": int(bad.sum()),
        "first": recordings.place(int(bad.nonzero()[0])) if bad.any() else "",
    }


if __name__ == "__main__":
    end_quickly()
    print(json.dumps(_read(*json.load(sys.stdin))))
