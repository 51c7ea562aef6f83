"""JSON logs: one object a line with ids, names, counts. Prompts and answers never reach a logger."""

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

HTTP_LOGGER = "amf.http"  # the server's own complaints

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """What a record says, and everything given to it as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def _unquoted(record: logging.LogRecord) -> bool:
    """The server quotes the bytes of a malformed request, which may be a prompt or a key: its kind is enough."""
    if record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, RequestPayloadError)):
        record.error = type(record.exc_info[1]).__name__
        record.exc_info = None
    return True


def configure_logging(level: str) -> None:
    """Send the project's logs to stderr as JSON. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("amf")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


logging.getLogger(HTTP_LOGGER).addFilter(_unquoted)
