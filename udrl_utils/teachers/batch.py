"""Batch files: a second way of asking a server, at half the price, with the answers within a day.

Questions go into a file of JSON lines, and the replies are read from another once the server has finished. The
journal keeps the id of a batch that is under way, so that a run that was stopped waits for it again and sends nothing
twice.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import openai

from udrl_utils.errors import RunError
from udrl_utils.teachers.replies import Journal
from udrl_utils.teachers.server import ATTEMPTS, Budget, ChatClient, Question, keep_reply, one_line

MOST = 50_000  # questions in one file
WAIT = 30.0  # seconds between two looks at a batch
ENDED = ("completed", "failed", "expired", "cancelled")


class BatchClient(ChatClient):
    """Asks the first question at once, as a probe, and all others by batch files on the first server."""

    async def _ask_all(self, new: dict[str, Question], journal: Journal, budget: Budget, known: bool) -> None:
        """Wait for batches under way, then ask what they leave. Raises: RunError when a batch is refused."""
        answered: set[str] = set()
        for batch, questions in list(journal.batches.items()):
            budget.spend(questions)
            async with self._files() as files:
                answered |= await self._collect(files, batch, journal)
        left = {key: question for key, question in new.items() if key not in answered}
        if left:
            await super()._ask_all(left, journal, budget, known or bool(answered))

    async def _ask_rest(
        self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal, budget: Budget
    ) -> None:
        todo = iter(new.items())
        async with self._files() as files:
            while part := dict(itertools.islice(todo, MOST)):
                budget.spend(len(part))
                await self._collect(files, await self._send(files, part, journal), journal)

    @asynccontextmanager
    async def _files(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """The server's files and batches. Raises: RunError with the server's words."""
        key, url = os.environ.get("OPENAI_API_KEY", "none"), next(iter(self.base_urls), None)
        try:
            async with openai.AsyncOpenAI(
                api_key=key, base_url=url, max_retries=ATTEMPTS - 1, timeout=self.timeout
            ) as sdk:
                yield sdk
        except openai.OpenAIError as error:
            raise RunError(f"{self.where}, asked by batch files: {one_line(str(error))}") from None

    async def _send(self, files: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal) -> str:
        """Id of a new batch."""
        asked = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [json.dumps({"custom_id": key, **asked, "body": self.body(q, self.room)}) for key, q in new.items()]
        file = await files.files.create(file=("questions.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = await files.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        journal.add_batch(batch.id, len(new))
        print(f"batch {batch.id}: {len(new)} questions sent; a run that is stopped waits for it again", flush=True)
        return batch.id

    async def _collect(self, files: openai.AsyncOpenAI, batch_id: str, journal: Journal) -> set[str]:
        """Wait for a batch and keep its answers; returns the keys of its questions.

        Raises: RunError when the server has refused the batch as a whole.
        """
        keys: set[str] = set()
        while (batch := await files.batches.retrieve(batch_id)).status not in ENDED:
            done = batch.request_counts.completed if batch.request_counts else 0
            print(f"batch {batch_id}: {batch.status}, {done} answered", flush=True)
            await anyio.sleep(WAIT)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in (await files.files.content(file)).text.splitlines():
                answer = json.loads(line)
                key, response = answer["custom_id"], answer.get("response") or {}
                keys.add(key)
                if response.get("status_code") == 200:
                    keep_reply(response["body"], key, journal)
                else:
                    said = one_line(json.dumps(answer.get("error") or response.get("body")))
                    journal.add_failure(key, str(response.get("status_code") or batch.status), said)
        journal.add_batch(batch_id, 0)
        if batch.status == "failed":
            said = "; ".join(error.message or "" for error in (batch.errors and batch.errors.data) or [])
            raise RunError(f"{self.where} refused batch {batch_id}: {one_line(said)}")
        return keys
