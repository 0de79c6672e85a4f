"""What a hostile user sends: raw requests, from a process of his own."""

from __future__ import annotations

import json
from typing import Any

from ..users import User
from .agents import Agent

#: Sends requests, given as [method, path, body, headers] with text for bytes; prints the answers.
_ASK = """
import http.client, json, socket, sys

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(100)
        self.sock.connect(sys.argv[1])

answers = []
for method, path, body, headers in json.load(sys.stdin):
    connection = Connection("agent")
    connection._encode_request = lambda request: request.encode("latin-1")
    connection._validate_path = lambda path: None
    try:
        connection.request(method, path, body.encode("latin-1"), headers)
        answer = connection.getresponse()
        answers.append([answer.status, answer.read().decode()])
    except (OSError, http.client.HTTPException) as error:
        answers.append([0, repr(error)])
    connection.close()
print(json.dumps(answers))
"""


class Answer:
    """One answer; of a stream of events the last one counts."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        lines = text.strip().splitlines()
        try:
            said: Any = json.loads(lines[-1]) if lines else {}
        except ValueError:
            said = {}
        self.body: Any = said
        if isinstance(said, dict) and said.get("event") == "error":
            self.body = said["error"]
        elif isinstance(said, dict) and said.get("event") == "result":
            self.body = said["result"]

    @property
    def code(self) -> str:
        """The error's class; empty if there was none."""
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""

    def __repr__(self) -> str:
        return f"{self.status} {self.text[:500]}"


def ask(user: User, agent: Agent, *requests: tuple[str, str, Any]) -> list[Answer]:
    """Let a process of the user's ask: (method, path, body as JSON or as text of bytes)."""
    wanted = []
    for method, path, body in requests:
        text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
        wanted.append([method, path, text, {}])
    said = user.run(_ASK, str(agent.socket), text=json.dumps(wanted))
    return [Answer(status, text) for status, text in json.loads(said)]


def refusals(agent: Agent, user: User) -> list[dict[str, Any]]:
    """What the audit log has of a user's attempts."""
    return [
        line for line in agent.audit() if line["uid"] == user.uid and line["outcome"] == "refused"
    ]
