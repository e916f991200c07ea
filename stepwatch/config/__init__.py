"""YAML files and command line to a policy; every complaint says where it stands and what would be right.

The shape, the defaults and the docs of all keys are the dataclasses of ``core.policy``. From bytes to policy: ``strict_yaml`` makes nodes out of
text, ``values`` checks each value by its field's type (pydantic), ``reading`` turns a source into settings and complaints, ``resolving`` stacks
the layers of a folder; ``manual`` goes the other way, to schema, reference, samples and ``config show``.

A user's mistake ends as a ConfigError with all complaints (UsageError for ``--set``), whatever the bytes in the file. pydantic and PyYAML are
imported by the first file that is really there: without configuration, nobody waits for them.
"""

from stepwatch.config.manual import complaints_about, docs, facts, init_file, init_text, reference, schema, show, validate
from stepwatch.config.reading import FILE_NAME, load_service, service_file
from stepwatch.config.resolving import Resolved, resolve_for, watched_folder
from stepwatch.config.values import parse_duration
from stepwatch.core.policy import ServiceConfig

__all__ = [
    "FILE_NAME",
    "Resolved",
    "ServiceConfig",
    "complaints_about",
    "docs",
    "facts",
    "init_file",
    "init_text",
    "load_service",
    "parse_duration",
    "reference",
    "resolve_for",
    "schema",
    "service_file",
    "show",
    "validate",
    "watched_folder",
]
