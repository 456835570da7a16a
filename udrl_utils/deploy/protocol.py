"""What requests may hold: OpenAI's completions with one more field, `command`, and refusals that name a wrong field.

Nothing here knows how prompts are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error"}
Intent = Field(max_length=4000)
Words = Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)]


class Part(BaseModel):
    type: str
    text: str = Intent


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """What every request can ask for."""

    model_config = ConfigDict(allow_inf_nan=False)

    command: dict[str, Any] | None = None
    n: int = Field(1, ge=1, le=32)
    seed: int | None = Field(None, ge=0, lt=2**32)
    temperature: float | None = Field(None, ge=0, le=2)
    candidates: int | None = Field(None, ge=1, le=16)
    banned: Words = []
    keep: Words = []


class Completion(Asked):
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)


class TextRequest(Completion):
    prompt: str | list[str] = Field(max_length=4000)


class ChatRequest(Completion):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)


class PromptsRequest(Asked):
    model_config = ConfigDict(extra="forbid")

    intent: str = Intent
    rewards: bool = False


class Refused(HTTPException):
    """A request that is not answered: HTTP status, one line, the field that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(status, message, headers)
        kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    def response(self) -> Response:
        text = json.dumps({"error": self.error})  # as ASCII, since a name may hold half of a surrogate pair
        return Response(text, self.status_code, self.headers, media_type="application/json")


def intent_of(messages: Sequence[Message]) -> str:
    """The last message of the user, its text parts joined. Raises: Refused when there is none."""
    for message in reversed(messages):
        if message.role == "user" and message.content is not None:
            content = message.content
            return content if isinstance(content, str) else " ".join(part.text for part in content)
    raise Refused(400, "messages: there is no message with role='user'", "messages")


def refusal_of(error: RequestValidationError) -> Refused:
    """What is wrong with a body, in one line that names the field."""
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # the nearest to what was sent
    place = [str(part) for part in first["loc"] if part not in ("body", "str", "list[str]", "list[Part]")]
    if first["type"] == "json_invalid":
        return Refused(400, f"the body is not JSON: {first['ctx']['error']}")
    if not place:
        return Refused(400, "the body must be a JSON object, with the header Content-Type: application/json")
    field = ".".join(place)
    given = "" if first["type"] == "missing" else f"={first['input']!r:.60}"
    return Refused(400, f"{field}{given}: {first['msg'][0].lower()}{first['msg'][1:]}", field)
