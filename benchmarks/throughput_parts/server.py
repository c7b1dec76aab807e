"""The fake server in its own process, with the revision of each row between the markers that the contender asked for.

    python server.py --latency 0.2 --slots 64

prints its base URL, serves until it is terminated, and then prints when it answered, as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import signal
import sys
import time
from typing import Any

from rows import REASONING, revision

from anchorline.llm.fake_server import FakeServer
from anchorline.pairs.markers import CLOSE, OPEN

ORDER = re.compile(r"order (\d+)")


async def serve(latency: float, slots: int) -> None:
    """Until SIGTERM."""
    answered: list[float] = []

    def reply(body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        found = ORDER.search(asked)
        if found is None:  # a contender's own test of the connection is no row
            return "Hello."
        answered.append(time.monotonic())
        text = revision(int(found[1]))
        if OPEN in asked:
            return f"{REASONING}\n{OPEN}\n{text}\n{CLOSE}"
        return f"{{teacher_reasoning}}: {REASONING}\n\n{{corrected_student_solution}}: {text}"

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with FakeServer(reply=reply, latency=latency, slots=slots) as server:
        _say(server.url)
        await stop.wait()
    used = resource.getrusage(resource.RUSAGE_SELF)
    # the first answer's request had come in one latency before
    seconds = answered[-1] - answered[0] + latency if answered else 0.0
    _say(json.dumps({"requests": len(answered), "seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime}))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, required=True, help="seconds that an answer takes")
    parser.add_argument("--slots", type=int, required=True, help="answers at the same time")
    given = parser.parse_args()
    asyncio.run(serve(given.latency, given.slots))
