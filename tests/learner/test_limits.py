"""What a node's owner allows, no run can widen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zk0d.config.machine import ClientSettings
from zk0d.errors import ConfigError
from zk0d.learner.contributor import Contributor
from zk0d.learning.spec import PolicySpec

SPEC = PolicySpec(
    policy="smolvla",
    model_name="tiny",
    seed=0,
    fps=30,
    state_width=9,
    action_width=6,
    cameras={"top": (3, 96, 96)},
)


def node(**settings: Any) -> Contributor:
    return Contributor(ClientSettings(name="left", **settings))


@pytest.mark.parametrize("model", ["tiny", "tiny-wide", "mine", "lerobot/smolvla_base", "a/b"])
def test_models_are_those_of_the_nodes_list(model: str) -> None:
    listed = node(
        models={"mine": Path("/models/mine")},
        fetch_models=["lerobot/smolvla_base", "a/b@0123456789abcdef"],
    )
    listed._check_allowed(SPEC.model_copy(update={"model_name": model}))
    narrowed = node(limits={"models": ["other"]})
    with pytest.raises(ConfigError, match="which is not in this node's list") as caught:
        narrowed._check_allowed(SPEC.model_copy(update={"model_name": model}))
    assert caught.value.reason == "model_not_allowed"


def test_a_model_that_only_the_server_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="'evil/model', which is not in this node's list"):
        node()._check_allowed(SPEC.model_copy(update={"model_name": "evil/model"}))


def test_policies_are_those_of_the_nodes_list() -> None:
    with pytest.raises(ConfigError, match="the run trains 'smolvla', this node trains act only"):
        node(limits={"policies": ["act"]})._check_allowed(SPEC)


@pytest.mark.parametrize("hours", ["22-7", "24:00-07:00", "7:00-8:00", "always"])
def test_wrong_hours_are_an_error(hours: str) -> None:
    with pytest.raises(ConfigError, match="are not hours; write them as"):
        ClientSettings.parse({"name": "left", "limits": {"hours": hours}}, where="x")


@pytest.mark.parametrize(
    ("text", "count"),
    [(0, 0), (2_000_000, 2_000_000), ("2 MB", 2_000_000), ("1.5GiB", 1_610_612_736), ("9k", 9000)],
)
def test_bytes_are_numbers_or_texts(text: Any, count: int) -> None:
    values = {"name": "left", "limits": {"download-rate": text}}
    assert ClientSettings.parse(values, where="x").limits.download_rate == count


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("upload-rate", "fast", "'fast' is not a number of bytes; write it as 2000000, '2 MB' or"),
        ("upload-rate", "900 B", "at 900 bytes a second no round is finished; give it 8 kB or"),
        ("download-rate", 7999, "at 7999 bytes a second no round is finished; give it 8 kB or"),
        ("bytes-per-day", 20, "20 bytes hold no round; give it 1 MB or more, or 0 for no limit"),
        ("bytes-per-day", -1, "should be greater than or equal to 0"),
        ("bytes-per-day", True, "should be a valid integer"),
        ("transfer-hours", "nights", "'nights' are not hours; write them as '22:00-07:00'"),
        ("transfer-hours", "22:00-22:00", "begin when they end, so never; leave it empty for"),
        ("hours", "00:00-00:00", "begin when they end, so never; leave it empty for always"),
    ],
)
def test_limits_of_the_line_that_make_no_sense(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        ClientSettings.parse({"name": "left", "limits": {key: value}}, where="x")
    assert caught.value.message.startswith(f"x: 'limits.{key}' is wrong: ")
