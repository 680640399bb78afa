"""A real relay as a process, and a page without a browser that talks to it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from contextlib import closing, contextmanager, suppress

import psutil

from tests.support.native import CACHE, LAST, host_program

ENDS = LAST | {
    *("hello", "models", "imported", "cancelled", "removed", "jobs", "forgotten", "device"),
    "benched",
}


def programs(cache):
    """Let a cache have the programs for this machine; the test is skipped without them."""
    for name in ("chat", "tune", "bench"):
        host_program(name)
    cache.mkdir(exist_ok=True)
    (cache / "workers").symlink_to(CACHE / "workers")


class Relay:
    """A running `edgepack demo`."""

    def __init__(self, process, port, token):
        self.process, self.port, self.token = process, port, token
        self.url = f"http://127.0.0.1:{port}/#token={token}"
        self.pages = []

    def request(self, method, path, body=None, **headers):
        """(status, headers, body) of any request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, self.key | headers)
            with connection.getresponse() as answer:
                return answer.status, answer.headers, answer.read()

    @property
    def key(self):
        return {"authorization": f"Bearer {self.token}"}

    def workers(self, name):
        """Processes of a program that the relay has started."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if one.name() == f"edgepack-{name}"]

    @contextmanager
    def slowed(self):
        """Meanwhile `chat` runs for half a millisecond of every tenth of a second, so that a small
        model is caught in the middle of an answer; not at all once the event that comes is set."""
        over, held = threading.Event(), threading.Event()

        def slow():
            while not over.wait(0.1):
                for process in [] if held.is_set() else self.workers("chat"):
                    with suppress(psutil.Error):
                        process.resume()
                        time.sleep(0.0005)
                        process.suspend()
            for process in self.workers("chat"):
                with suppress(psutil.Error):
                    process.resume()

        thread = threading.Thread(target=slow)
        thread.start()
        try:
            yield held
        finally:
            over.set()
            thread.join()

    def end(self, number=signal.SIGINT):
        """End it as a person does; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def relaying(cache, *arguments, threads=1):
    """Start a relay and kill it afterwards if it still runs."""
    command = [sys.executable, "-m", "edgepack", "demo", *map(str, arguments)]
    command += ["--no-open", "--port", "0", "--threads", str(threads)]
    environment = os.environ | {"EDGEPACK_CACHE": str(cache)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        rest = None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+)/#token=([\w-]+)", line):
                    break
            else:
                raise AssertionError("".join(lines))
            rest = threading.Thread(target=process.stderr.read, daemon=True)
            rest.start()
            relay = Relay(process, int(found[1]), found[2])
            try:
                yield relay
            finally:
                for page in relay.pages:
                    page.close()
        finally:
            process.kill()
            if rest:
                rest.join()


class Page:
    """What the page does, without a browser."""

    def __init__(self, relay, first=None):
        """`first`: the number of the first event to hear; those from now on if not given."""
        self.relay = relay
        self._mark, self._number = secrets.token_hex(4), 0
        self._queues = {}
        self._lock = threading.Lock()
        self.unasked = queue.Queue()
        path = "/api/events" if first is None else f"/api/events?next={first}"
        self._stream = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=120)
        self._stream.request("GET", path, headers=relay.key)
        self._socket = self._stream.sock
        self._answer = self._stream.getresponse()
        assert self._answer.status == 200
        self._answer.readline()  # that it is alive
        self._reader = threading.Thread(target=self._read, args=(self._answer,), daemon=True)
        self._reader.start()
        relay.pages.append(self)

    def close(self):
        """Go away."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._answer.close()
        self._stream.close()

    def _read(self, answer):
        try:
            for line in answer:
                event = json.loads(line)
                with self._lock:
                    self._queues.get(event["id"], self.unasked).put(event)
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass  # the relay has ended

    def post(self, to, do, **fields):
        """Send a request; its id."""
        self._number += 1
        name = f"{self._mark}-{self._number}"
        with self._lock:
            self._queues[name] = queue.Queue()
        body = json.dumps({"id": name, "to": to, "do": do, **fields})
        status, _, text = self.relay.request("POST", "/api/post", body)
        assert status == 202, text
        return name

    def next(self, name, timeout=120):
        """The next event of a request."""
        return self._queues[name].get(timeout=timeout)

    def seen(self):
        """Events that nobody here has asked for, until now."""
        return [self.unasked.get() for _ in range(self.unasked.qsize())]

    def rest(self, name, do="", timeout=120):
        """All further events of a request, to its last."""
        found = [self.next(name, timeout)]
        while found[-1]["event"] not in ENDS or (do == "train" and found[-1]["event"] == "planned"):
            found.append(self.next(name, timeout))
        return found

    def ask(self, to, do, **fields):
        """All events of a request."""
        return self.rest(self.post(to, do, **fields), do)

    def last(self, to, do, **fields):
        """Its last event."""
        return self.ask(to, do, **fields)[-1]

    def load(self, model, adapters=()):
        """Load a model with adapters."""
        event = self.last("chat", "load", model=model, adapters=list(adapters), context=512)
        assert event["event"] == "loaded", event
        return event

    def send(self, kind, files, model=None):
        """Import files, name → bytes; the last event."""
        self._number += 1
        name = f"{self._mark}-{self._number}"
        with self._lock:
            self._queues[name] = queue.Queue()
        for part, (file, data) in enumerate(files.items(), 1):
            query = {"id": name, "kind": kind, "name": file, "part": part, "of": len(files)}
            query |= {"model": model} if model else {}
            path = f"/api/import?{urllib.parse.urlencode(query)}"
            status, _, text = self.relay.request("POST", path, data)
            assert status == 202, text
        return self.rest(name)[-1]
