"""Its processors, with a step of its own."""

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from .configuration_line import LineConfig


@ProcessorStepRegistry.register("line_straight")
class StraightStep(ProcessorStep):
    """Changes nothing."""

    def __call__(self, transition: Any) -> Any:
        return transition

    def transform_features(self, features: Any) -> Any:
        return features


def make_line_pre_post_processors(
    config: LineConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    features = {**config.input_features, **config.output_features}
    before = PolicyProcessorPipeline(
        steps=[
            AddBatchDimensionProcessorStep(),
            StraightStep(),
            DeviceProcessorStep(device=config.device),
            NormalizerProcessorStep(
                features=features, norm_map=config.normalization_mapping, stats=dataset_stats
            ),
        ],
        name="policy_preprocessor",
    )
    after = PolicyProcessorPipeline(
        steps=[
            UnnormalizerProcessorStep(
                features=config.output_features,
                norm_map=config.normalization_mapping,
                stats=dataset_stats,
            ),
            DeviceProcessorStep(device="cpu"),
        ],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
