"""Batch files: a second way of asking a server, at half the price, with the answers within a day.

Questions go into a file of JSON lines, and the replies are read from another once the server has finished. The
journal keeps the id of a batch that is under way, so that a run that was stopped waits for it again and sends nothing
twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import anyio
import openai

from udrl_utils.errors import RunError
from udrl_utils.teachers.replies import Journal
from udrl_utils.teachers.server import MALFORMED, ChatClient, Question, keep_reply, one_line

MOST = 50_000  # questions in one file
WAIT = 30.0  # seconds between two looks at a batch
ENDED = ("completed", "failed", "expired", "cancelled")


class BatchClient(ChatClient):
    """Asks the first question at once, as a probe, and all others by batch files on the first server."""

    def ask(self, questions: Sequence[Question], journal: Journal) -> list[str | None]:
        """Replies, as ChatClient gives them. Raises: RunError, too, when a server refuses a file or a batch."""
        try:
            return super().ask(questions, journal)
        except openai.OpenAIError as error:
            raise RunError(f"{self.where}, asked by batch files: {one_line(str(error))}") from None

    async def _ask_all(self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal, known: bool) -> None:
        """Wait for batches under way, then ask what they leave."""
        answered: set[str] = set()
        for batch, questions in list(journal.batches.items()):
            self.spend(questions)
            answered |= await self._collect(sdk, batch, journal)
        left = {key: question for key, question in new.items() if key not in answered}
        if left:
            await super()._ask_all(sdk, left, journal, known or bool(answered))

    async def _ask_rest(self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal) -> None:
        todo = iter(new.items())
        while part := dict(itertools.islice(todo, MOST)):
            self.spend(len(part))
            await self._collect(sdk, await self._send(sdk, part, journal), journal)

    async def _send(self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal) -> str:
        """Id of a new batch."""
        asked = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [json.dumps({"custom_id": key, **asked, "body": self.body(q, self.room)}) for key, q in new.items()]
        file = await sdk.files.create(file=("questions.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = await sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        journal.add(batch=batch.id, questions=len(new))
        print(f"batch {batch.id}: {len(new)} questions sent; a run that is stopped waits for it again", flush=True)
        return batch.id

    async def _collect(self, sdk: openai.AsyncOpenAI, batch_id: str, journal: Journal) -> set[str]:
        """Wait for a batch and keep its answers; returns the keys of its questions.

        Raises: RunError when the server has refused the batch as a whole.
        """
        keys: set[str] = set()
        while (batch := await sdk.batches.retrieve(batch_id)).status not in ENDED:
            done = batch.request_counts.completed if batch.request_counts else 0
            print(f"batch {batch_id}: {batch.status}, {done} answered", flush=True)
            await anyio.sleep(WAIT)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in (await sdk.files.content(file)).text.splitlines():
                answer = json.loads(line)
                key, response = answer["custom_id"], answer.get("response") or {}
                keys.add(key)
                try:
                    keep_reply(response["body"], key, journal)
                except MALFORMED:
                    said = one_line(json.dumps(answer.get("error") or response.get("body")))
                    journal.add(key=key, error=str(response.get("status_code") or batch.status), said=said)
        journal.add(batch=batch_id, questions=0)
        if batch.status == "failed":
            said = "; ".join(error.message or "" for error in (batch.errors and batch.errors.data) or [])
            raise RunError(f"{self.where} refused batch {batch_id}: {one_line(said)}")
        return keys
