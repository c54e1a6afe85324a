"""The configuration: every key with its meaning; reading, overriding, checking.

sections.py   one dataclass per section of the YAML file, and the rules about it
load.py       a file and `section.key=value` overrides → Config; rules between sections
plugins.py    `module:name`: code of one's own that a config names
strict.py     dataclasses from nested mappings: what is unknown or of a wrong type is refused
"""

from miniact.config.load import load_config
from miniact.config.sections import Config

__all__ = ["Config", "load_config"]
