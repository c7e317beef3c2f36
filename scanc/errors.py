"""Named errors: each says which op and argument, the value seen, the limit broken and the remedy.

Every class carries its message as a template, so that the words stand in one place and tests can rely on them.
All of them are raised before a kernel launches.
"""

from __future__ import annotations


class ScancError(Exception):
    """Base of every error scanc raises on purpose."""

    template = "{reason}"

    def __init__(self, reason: str = "", **fields: object) -> None:
        self.fields = {"reason": reason, **fields}
        super().__init__(self.template.format(**self.fields))


class TraceError(ScancError, TypeError):
    """The DSL program itself is wrong; points at the user's line."""

    template = "{where}: in op '{op}': {reason}. {remedy}"


class VerifyError(ScancError, ValueError):
    """A graph breaks the rules of the stage it is in."""

    template = "graph '{op}' is not valid after stage '{stage}': {reason}"


class ParseError(ScancError, ValueError):
    """The text of a graph cannot be read back."""

    template = "line {line}: {reason}"


class ArgumentError(ScancError, ValueError):
    """A tensor or option given to an op does not fit its signature."""

    template = "{op}: argument '{argument}' is {value}, but {limit}. {remedy}"


class UnsupportedForm(ScancError, ValueError):
    """The graph cannot be evaluated in the form asked for."""

    template = "op '{op}' has no form '{form}': {reason}. Forms it has: {forms}."


class TargetError(ScancError, ValueError):
    """The target's name is unknown or malformed."""

    template = "unknown target '{value}': {reason}. Examples: cuda:sm_90:triton, cuda:sm_90:cuda, hip:gfx942:triton, cpu:native:cpp."


class BackendUnavailable(ScancError, RuntimeError):
    """A compiler or library that a backend needs is missing."""

    template = "backend '{backend}' cannot run here: {reason}. {remedy}"


class CompileError(ScancError, RuntimeError):
    """Generated source did not compile; the source and the compiler's words are kept."""

    template = "{backend} could not compile kernel '{kernel}': {reason}\nSource kept at {path}."


class ScheduleError(ScancError, ValueError):
    """A schedule's field is out of range."""

    template = "schedule field '{field}' is {value}, but {limit}."


class NotProvided(ScancError, ModuleNotFoundError):
    """A rival's name that the drop-in does not serve (yet); an ImportError, so that callers with a fallback take it."""

    template = "scanc's drop-in has no '{name}'. It has: {available}. scanc.dropin.uninstall() gives an installed {package} back."
