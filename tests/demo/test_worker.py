"""A program's lines, whatever they are: a request that waits hears of its end."""

import queue

import pytest

from edgepack.demo.worker import Worker

NO_EVENTS = ["[]", "null", "5", "{}", '{"id": "a"}', '{"id": "a", "event": 5}', "[" * 3000, "x"]


@pytest.mark.parametrize("line", NO_EVENTS)
def test_a_line_that_is_no_event_is_passed_over(tmp_path, line):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nread request\ncat {tmp_path}/lines\n")
    program.chmod(0o755)
    ended = '{"id": "a", "event": "ended", "reason": "stop"}'
    (tmp_path / "lines").write_text(f"{line}\n{ended}\n")
    said = queue.Queue()
    worker = Worker("chat", program)
    worker.ask({"id": "a", "do": "chat"}, said.put)
    try:
        assert said.get(timeout=30)["event"] == "ended"
    finally:
        worker.close()
