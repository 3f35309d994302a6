"""The power limit of the learner's GPU: set, put back, kept through kills, refused."""

# ruff: noqa: N802 - the fake has NVIDIA's names

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zk0d.config.machine import ClientSettings
from zk0d.errors import ConfigError, ExitCode, UnavailableError, Zk0dError
from zk0d.learning.nvidia import Trouble
from zk0d.services import gpu_power, standalone
from zk0d.services.gpu_power import AS_IT_IS, FILE, PowerLimit, learners_environment
from zk0d.services.main import command_line
from zk0d.services.status import gather

USUAL = 450_000


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done."""


@dataclass
class FakeCard:
    """A GPU of the fake library."""

    name: str = "RTX 4090"
    limit: int = USUAL
    kept: bool = False
    bounds: tuple[int, int] = (100_000, 480_000)


@dataclass
class FakeNvml:
    """Stands for NVIDIA's library: cards whose limits can be set, or not."""

    cards: list[FakeCard] = field(default_factory=lambda: [FakeCard()])
    refuses: int = 0  #: an error's number
    dies: bool = False  #: whoever sets a limit is killed before it is set
    calls: list[str] = field(default_factory=list)

    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = 3, 4
    NVML_FEATURE_DISABLED, NVML_FEATURE_ENABLED = 0, 1

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: FakeCard) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: FakeCard) -> bytes:
        (place,) = [n for n, each in enumerate(self.cards) if each is card]
        return b"GPU-%d%d" % (place, place)

    def nvmlDeviceGetPowerManagementLimit(self, card: FakeCard) -> int:
        return card.limit

    def nvmlDeviceGetPowerManagementLimitConstraints(self, card: FakeCard) -> list[int]:
        if not card.bounds[1]:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return list(card.bounds)

    def nvmlDeviceGetPersistenceMode(self, card: FakeCard) -> int:
        return int(card.kept)

    def nvmlDeviceSetPersistenceMode(self, card: FakeCard, mode: int) -> None:
        card.kept = bool(mode)

    def nvmlDeviceSetPowerManagementLimit(self, card: FakeCard, limit: int) -> None:
        if self.dies:
            raise Killed
        if self.refuses:
            raise self.NVMLError(self.refuses)
        self.calls.append(f"{limit // 1000} W")
        card.limit = limit


@dataclass
class Machine:
    """A machine with such a library."""

    folder: Path
    nvml: FakeNvml | None = field(default_factory=FakeNvml)
    boot: str = "first"
    trouble: Trouble | None = None

    def limit(self) -> PowerLimit:
        """As each start of the program makes it."""
        return PowerLimit(
            self.folder,
            load=lambda: self.nvml,
            trouble=lambda: self.trouble,
            boot=lambda: self.boot,
        )

    def set(self, watts: int, *devices: str, **environment: str) -> str:
        return self.limit().set(devices or ("auto",), watts, environment)

    @property
    def card(self) -> FakeCard:
        assert self.nvml is not None
        return self.nvml.cards[0]

    @property
    def file(self) -> Path:
        return self.folder / FILE


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_limit_is_set_and_put_back(machine: Machine) -> None:
    said = machine.set(250)
    assert said == "GPU 0 (RTX 4090) may draw 250 W (limits.gpu-power-watts); before it was 450 W"
    assert (machine.card.limit, machine.card.kept) == (250_000, True)
    assert machine.limit().restore() == "GPU 0 (RTX 4090) may draw 450 W again"
    assert (machine.card.limit, machine.card.kept) == (USUAL, False)
    assert not machine.file.exists()
    assert machine.limit().restore() == "", "once is enough"


def test_a_driver_that_keeps_settings_goes_on_doing_so(machine: Machine) -> None:
    machine.card.kept = True
    machine.set(250)
    machine.limit().restore()
    assert machine.card.kept


def test_another_limit_replaces_the_first_and_the_old_one_stays_known(machine: Machine) -> None:
    """A reload, and a start after a process that was killed before its unit's end."""
    machine.set(250)
    machine.set(300)
    assert machine.card.limit == 300_000
    assert json.loads(machine.file.read_text())["gpus"][0]["limit"] == USUAL
    assert machine.set(0) == "GPU 0 (RTX 4090) may draw 450 W again"
    assert machine.card.limit == USUAL
    assert machine.set(0) == AS_IT_IS


def test_another_gpu_of_the_learner_frees_the_first(machine: Machine) -> None:
    assert machine.nvml is not None
    machine.nvml.cards.append(FakeCard())
    machine.set(250, "cuda:0")
    machine.set(250, "cuda:1")
    assert [card.limit for card in machine.nvml.cards] == [USUAL, 250_000]


def test_every_gpu_of_the_learner_gets_the_limit_or_none(machine: Machine) -> None:
    assert machine.nvml is not None
    machine.nvml.cards += [FakeCard(), FakeCard(limit=400_000)]
    said = machine.set(250, "cuda:0", "cuda:2")
    assert said.startswith("GPU 0 (RTX 4090) and GPU 2 (RTX 4090) may draw 250 W")
    assert said.endswith("before it was 450 W, 400 W")
    assert [card.limit for card in machine.nvml.cards] == [250_000, USUAL, 250_000]
    machine.limit().restore()
    assert [card.limit for card in machine.nvml.cards] == [USUAL, USUAL, 400_000]
    machine.nvml.cards[2].bounds = (300_000, 480_000)
    with pytest.raises(ConfigError, match=r"GPU 2 .* takes 300 to 480 W"):
        machine.set(250, "cuda:0", "cuda:2")
    assert machine.card.limit == USUAL


def test_the_note_is_on_disk_before_anything_is_changed(machine: Machine) -> None:
    """Killed between the two, and killed while it sets: the unit's end puts back what was."""
    assert machine.nvml is not None
    machine.nvml.dies = True
    with pytest.raises(Killed):
        machine.set(250)
    assert machine.file.exists()
    assert machine.card.kept, "that was changed before the kill"
    machine.nvml.dies = False
    assert machine.limit().restore() == "", "the limit was not changed yet"
    assert (machine.card.limit, machine.card.kept) == (USUAL, False)
    assert not machine.file.exists()


def test_what_was_before_an_earlier_boot_counts_no_more(machine: Machine) -> None:
    machine.set(250)
    machine.boot, machine.card.limit = "second", 400_000
    assert machine.limit().restore() == ""
    assert machine.card.limit == 400_000, "as the boot, or its owner, has set it"
    machine.set(250)
    machine.limit().restore()
    assert machine.card.limit == 400_000


def test_a_limit_that_the_owner_has_set_since_stays(machine: Machine) -> None:
    machine.set(250)
    machine.card.limit = 200_000
    assert machine.limit().restore() == ""
    assert machine.card.limit == 200_000


def test_a_note_that_cannot_be_read_is_dropped(machine: Machine) -> None:
    for content in ("{", "{}", '{"boot": "first", "gpus": [{}]}', "[]"):
        machine.file.write_text(content)
        assert machine.limit().restore() == ""
        assert not machine.file.exists()


@pytest.mark.parametrize("watts", [99, 481])
def test_a_limit_outside_of_what_the_card_takes_names_the_bounds(
    machine: Machine, watts: int
) -> None:
    machine.set(250)
    with pytest.raises(ConfigError, match=r"RTX 4090\) takes 100 to 480 W") as refused:
        machine.set(watts)
    assert refused.value.exit_code == ExitCode.CONFIG
    assert machine.card.limit == 250_000, "a reload that is refused changes nothing"


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (4, ConfigError, "does not let root set it"),
        (3, ConfigError, "sets no limit for GPU 0"),
        (999, UnavailableError, "did not set 250 W"),
    ],
)
def test_a_driver_that_refuses_leaves_nothing_behind(
    machine: Machine, number: int, kind: type[Zk0dError], said: str
) -> None:
    assert machine.nvml is not None
    machine.nvml.refuses = number
    with pytest.raises(kind, match=said):
        machine.set(250)
    assert (machine.card.limit, machine.card.kept) == (USUAL, False)
    assert not machine.file.exists()


def test_a_card_without_a_limit(machine: Machine) -> None:
    machine.card.bounds = (0, 0)
    with pytest.raises(ConfigError, match=r"as for most laptops.*limits\.power-share"):
        machine.set(250)


def test_without_a_gpu(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"learner\.device is 'cpu'"):
        machine.set(250, "cpu")
    machine.nvml = None
    with pytest.raises(ConfigError, match="shows no NVIDIA GPU; set it to 0"):
        machine.set(250)
    machine.trouble = Trouble("its driver was upgraded", "reboot this machine")
    with pytest.raises(UnavailableError, match=r"\(its driver was upgraded\); reboot"):
        machine.set(250)
    assert machine.set(0) == AS_IT_IS


def test_a_driver_that_is_away_is_asked_again_at_the_next_end(machine: Machine) -> None:
    machine.set(250)
    library, machine.nvml = machine.nvml, None
    with pytest.raises(UnavailableError, match="is not put back yet"):
        machine.limit().restore()
    machine.nvml = library
    machine.limit().restore()
    assert machine.card.limit == USUAL


ALIKE = [FakeCard(), FakeCard(), FakeCard()]
UNLIKE = [FakeCard("GT 1030"), FakeCard(), FakeCard()]


@pytest.mark.parametrize(
    ("cards", "device", "environment", "chosen"),
    [
        (ALIKE, "auto", {}, 0),
        (ALIKE, "cuda", {}, 0),
        (ALIKE, "cuda:2", {}, 2),
        (ALIKE, "auto", {"CUDA_VISIBLE_DEVICES": "2"}, 2),
        (ALIKE, "cuda:1", {"CUDA_VISIBLE_DEVICES": "2, 1"}, 1),
        (UNLIKE, "auto", {"CUDA_VISIBLE_DEVICES": "GPU-11"}, 1),
        (UNLIKE, "cuda:1", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 1),
    ],
)
def test_the_learners_gpu_is_found(
    tmp_path: Path, cards: list[FakeCard], device: str, environment: dict[str, str], chosen: int
) -> None:
    library = FakeNvml([FakeCard(card.name) for card in cards])
    Machine(tmp_path, library).set(250, device, **environment)
    assert [n for n, card in enumerate(library.cards) if card.limit != USUAL] == [chosen]


@pytest.mark.parametrize(
    ("cards", "device", "environment", "said"),
    [
        (ALIKE, "cuda:3", {}, "no such whole GPU; it has GPU 0"),
        (ALIKE, "cuda:1", {"CUDA_VISIBLE_DEVICES": "2"}, r"among CUDA_VISIBLE_DEVICES \('2'\)"),
        (ALIKE, "auto", {"CUDA_VISIBLE_DEVICES": "MIG-1"}, "no such whole GPU among"),
        (ALIKE, "auto", {"CUDA_VISIBLE_DEVICES": "GPU-"}, "no such whole GPU among"),
        (UNLIKE, "auto", {}, "CUDA counts them by their speed"),
        (UNLIKE, "auto", {"CUDA_VISIBLE_DEVICES": "1"}, "CUDA counts them by their speed"),
    ],
)
def test_a_gpu_that_is_not_known_for_sure_is_left_alone(
    tmp_path: Path, cards: list[FakeCard], device: str, environment: dict[str, str], said: str
) -> None:
    library = FakeNvml([FakeCard(card.name) for card in cards])
    with pytest.raises(ConfigError, match=said):
        Machine(tmp_path, library).set(250, device, **environment)
    assert library.calls == []


def test_the_learners_environment_is_read_from_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said:
        stdout = "HF_HUB_OFFLINE=1 'A=with a space' CUDA_VISIBLE_DEVICES=0,1\n"

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(gpu_power, "systemctl", lambda *words: asked.append(words) or Said)
    found = learners_environment()
    assert (found["A"], found["CUDA_VISIBLE_DEVICES"]) == ("with a space", "0,1")
    assert asked[0][:2] == ("show", "zk0d-learner.service")


def client(folder: Path, limits: str) -> Path:
    path = folder / "client.toml"
    state = f"[supernode]\nstate = '{folder}/state'\n[superexec]\nstate = '{folder}/state'\n"
    path.write_text(f"name = 'left'\n{state}[limits]\n{limits}\n")
    return path


def test_the_program_sets_and_restores_with_a_broken_file_too(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(gpu_power, "PowerLimit", lambda folder: machine.limit())
    monkeypatch.setattr(gpu_power, "learners_environment", dict)
    path = client(tmp_path, "gpu-power-watts = 250")

    def program(*more: Any) -> None:
        given = command_line().parse_args(["gpu-power", "--config", str(path), *more])
        given.run(given)

    program()
    assert machine.card.limit == 250_000
    path.write_text("broken")
    with pytest.raises(ConfigError):
        program()
    program("--restore")
    assert machine.card.limit == USUAL


def test_a_limit_without_a_unit_has_no_effect_and_says_so(tmp_path: Path) -> None:
    said = (
        "limits.gpu-power-watts has no effect here: only the system's service"
        " zk0d-gpu-power.service may set it, by the machine's own client.toml; set it to 0, and use"
        " limits.power-share."
    )
    client(tmp_path, "gpu-power-watts = 250")
    assert standalone.without_effect("client", tmp_path) == said
    assert said in gather(["client"], tmp_path)["todo"]
    client(tmp_path, "gpu-power-watts = 0")
    assert standalone.without_effect("client", tmp_path) == ""
    assert standalone.without_effect("server", tmp_path) == ""
    assert said not in gather(["client"], tmp_path)["todo"]
    settings = ClientSettings.load(tmp_path / "client.toml")
    assert "gpu-power" not in [p.name for p in standalone.programs("client", tmp_path / "x")]
    assert settings.limits.gpu_power_watts == 0
