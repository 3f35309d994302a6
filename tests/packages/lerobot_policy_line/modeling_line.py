"""The policy. Its loss is random, as that of many is."""

from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from .configuration_line import LineConfig

STATE, ACTION = "observation.state", "action"


class LinePolicy(PreTrainedPolicy):
    """See :class:`LineConfig`."""

    config_class = LineConfig
    name = "line"

    def __init__(self, config: LineConfig, **_: Any) -> None:
        super().__init__(config)
        self.config = config
        (self.width,) = config.action_feature.shape
        (state,) = config.input_features[STATE].shape
        self.line = torch.nn.Linear(state, config.chunk_size * self.width)
        self.reset()

    def get_optim_params(self) -> Any:
        return self.parameters()

    def reset(self) -> None:
        self._queue: deque[torch.Tensor] = deque()

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        state = batch[STATE]
        noise = 0.01 * torch.randn(state.shape, device=state.device)
        off = self._planned(state + noise) - batch[ACTION]
        return (off.square().mean(-1) * ~batch[f"{ACTION}_is_pad"]).mean(), {}

    def predict_action_chunk(self, batch: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        return self._planned(batch[STATE])

    def select_action(self, batch: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        if not self._queue:
            planned = self.predict_action_chunk(batch)
            self._queue.extend(planned[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def _planned(self, state: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.line(state)
        return made.view(len(state), self.config.chunk_size, self.width)
