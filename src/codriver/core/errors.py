"""The error tree. Every failure a user can meet is one of these classes.

::

    CodriverError
    ├── RequestError            the caller can mend it (4xx)
    │   ├── MalformedBody       UnknownModel        UnsupportedModality  UnsupportedParameter
    │   ├── PromptTooLong       BadImage            BodyTooLarge
    │   ├── Unauthorized        Forbidden           RateLimited
    │   └── NotFound            MethodNotAllowed
    ├── EngineError             an engine could not answer (5xx, usually retryable elsewhere)
    │   ├── EngineUnavailable   EngineBusy          EngineDied           UpstreamError
    │   ├── UpstreamRejected    UpstreamMalformed   LinkDown             NoEngineLeft
    ├── DeadlineExceeded        FirstTokenTimeout   InterTokenTimeout
    └── SetupError              the operator can mend it (exit code 2)
        ├── UnknownConfigKey    BadConfigValue      MissingFile          MissingExtra
        ├── UnknownEntry        ChecksumMismatch    SourceUnavailable    DiskFull
        ├── PortInUse           CertificateError    NoCloudConfigured    ChildDied
        └── BadModelFile        RequirementMissed

Each class has a stable ``code``, an HTTP ``status``, a ``retryable`` flag and a page section in
``docs/errors.md``. The message is the public sentence: it never holds a request's text or a secret.
"""

from __future__ import annotations

from typing import ClassVar


class CodriverError(Exception):
    """Base of the tree. ``message`` is public; ``param`` names the request field or config key at fault.

    ``told`` is what a router has to tell of its attempts, for those who watch; it never goes to the client.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.told: dict[str, object] | None = None

    def body(self) -> dict[str, object]:
        """The OpenAI error object for this failure."""
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": self.param,
                "code": self.code,
            }
        }


# ---------------------------------------------------------------- the caller can mend it


class RequestError(CodriverError):
    code, status, openai_type = "invalid_request", 400, "invalid_request_error"


class MalformedBody(RequestError):
    code = "malformed_body"


class UnknownModel(RequestError):
    code, status = "model_not_found", 404


class UnsupportedModality(RequestError):
    code = "unsupported_modality"


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class PromptTooLong(RequestError):
    code = "context_length_exceeded"


class BadImage(RequestError):
    code = "invalid_image"


class BodyTooLarge(RequestError):
    code, status = "body_too_large", 413


class Unauthorized(RequestError):
    code, status, openai_type = "invalid_api_key", 401, "authentication_error"


class Forbidden(RequestError):
    code, status, openai_type = "forbidden", 403, "permission_error"


class RateLimited(RequestError):
    """``retry_after_s``: when the next try may come."""

    code, status, retryable, openai_type = "rate_limit_exceeded", 429, True, "rate_limit_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class NotFound(RequestError):
    code, status = "not_found", 404


class MethodNotAllowed(RequestError):
    code, status = "method_not_allowed", 405


# ---------------------------------------------------------------- an engine could not answer


class EngineError(CodriverError):
    """``engine`` names the engine; ``retry_after_s`` is set when the engine said when to come back."""

    code, status, retryable = "engine_error", 502, True

    def __init__(
        self,
        message: str,
        *,
        engine: str = "",
        retry_after_s: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.engine = engine
        self.retry_after_s = retry_after_s


class EngineUnavailable(EngineError):
    """The engine cannot be reached or has not loaded; nothing was attempted."""

    code, status = "engine_unavailable", 503


class EngineBusy(EngineError):
    code, status = "engine_busy", 503


class EngineDied(EngineError):
    """The engine stopped before its answer was complete."""

    code = "engine_died"


class UpstreamError(EngineError):
    """A remote server answered with a 5xx or an error object."""

    code = "upstream_error"


class UpstreamRejected(EngineError):
    """A remote server refused the request (4xx): the same request will be refused again there."""

    code, retryable = "upstream_rejected", False


class UpstreamMalformed(EngineError):
    """A remote server's answer could not be understood."""

    code = "upstream_malformed"


class LinkDown(EngineError):
    """The link to the cloud is down: the cloud was not tried, and is not to blame."""

    code, status = "link_down", 503


class NoEngineLeft(EngineError):
    """Every attempt of the plan failed, or no engine can take this request."""

    code, status = "no_engine_left", 503


# ---------------------------------------------------------------- time ran out


class DeadlineExceeded(CodriverError):
    code, status, retryable, openai_type = "deadline_exceeded", 504, True, "timeout_error"


class FirstTokenTimeout(DeadlineExceeded):
    code = "first_token_timeout"


class InterTokenTimeout(DeadlineExceeded):
    code = "inter_token_timeout"


# ---------------------------------------------------------------- the operator can mend it


class SetupError(CodriverError):
    code, exit_code = "setup_error", 2


class UnknownConfigKey(SetupError):
    code = "unknown_config_key"


class BadConfigValue(SetupError):
    code = "bad_config_value"


class MissingFile(SetupError):
    code = "missing_file"


class MissingExtra(SetupError):
    code = "missing_extra"


class UnknownEntry(SetupError):
    code = "unknown_entry"


class ChecksumMismatch(SetupError):
    code = "checksum_mismatch"


class BadModelFile(SetupError):
    """A model file that exists and cannot be loaded: no model, cut, damaged, or of an unknown version."""

    code = "bad_model_file"


class RequirementMissed(SetupError):
    """No artifact that was made meets what was required; the nearest is kept."""

    code = "requirement_missed"
    exit_code = 3


class SourceUnavailable(SetupError):
    code = "source_unavailable"


class DiskFull(SetupError):
    code = "disk_full"


class PortInUse(SetupError):
    code = "port_in_use"


class CertificateError(SetupError):
    code = "certificate_error"


class NoCloudConfigured(SetupError):
    code = "no_cloud_configured"


class ChildDied(SetupError):
    """A process that was started here ended before it served, or while it was needed."""

    code = "child_died"
