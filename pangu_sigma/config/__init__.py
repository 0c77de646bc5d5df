"""Configuration: the keys (`schema`), reading and writing them (`load`), and checks across keys (`validate`)."""

from pangu_sigma.config.load import config_from_dict, load_config, save_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate

__all__ = ["Config", "config_from_dict", "load_config", "save_config", "to_dict", "validate"]
