"""A package of policies as others write them, a stand-in for tests: LeRobot calls it a plugin."""

from .configuration_line import LineConfig as LineConfig
from .modeling_line import LinePolicy as LinePolicy
from .processor_line import make_line_pre_post_processors as make_line_pre_post_processors
