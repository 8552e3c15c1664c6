"""A headless browser, driven through its debugging port: for the tests that look at what a person sees.

Needs Chromium (Debian's `chromium`, or Google Chrome) and the package websocket-client, which JupyterLab brings along.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--headless=new --no-sandbox --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --hide-scrollbars --enable-unsafe-swiftshader --use-gl=angle "
    "--use-angle=swiftshader --remote-debugging-port=0 --remote-allow-origins=*"
).split()
"No window, no network of its own, WebGL by software."


def find():
    "Path of a Chromium, or None; the environment variable MATGEN_BROWSER goes first."
    given = os.environ.get("MATGEN_BROWSER")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    "One browser with one page: use it in a `with` block."

    def __init__(self, width=1200, height=900):
        self.folder = tempfile.mkdtemp(prefix="matgen-browser-")
        self.size, self.messages, self.number = f"--window-size={width},{height}", [], 0

    def __enter__(self):
        profile = f"--user-data-dir={self.folder}"
        command = [find(), *QUIET, self.size, profile, "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self.process.stderr:
            if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise RuntimeError("the browser ended before it was ready")
        self.connect(int(found[1]))
        return self

    def connect(self, port):
        "Talk to the first page of the browser."
        from urllib.request import urlopen

        import websocket

        with urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            page = next(p for p in json.load(answer) if p["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=300)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __exit__(self, *error):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **parameters):
        "One command of the protocol; what the page says meanwhile goes to `messages`."
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.messages.append(message)

    def open(self, address):
        self.call("Page.navigate", url=address)

    def value(self, script):
        "What a JavaScript expression gives; a promise is waited for."
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait(self, script, seconds=60):
        "Whether an expression becomes true in time."
        end = time.time() + seconds
        while time.time() < end:
            try:
                if self.value(script):
                    return True
            except RuntimeError:
                pass  # the page is still loading
            time.sleep(0.25)
        return False

    def errors(self):
        "Exceptions and errors that the page reported so far."
        self.value("1")
        found = []
        for m in self.messages:
            if m.get("method") == "Runtime.exceptionThrown":
                details = m["params"]["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif m.get("method") == "Runtime.consoleAPICalled" and m["params"]["type"] == "error":
                found.append(" ".join(str(a.get("description", a.get("value"))) for a in m["params"]["args"]))
        return found

    def picture(self, path=None, selector=None):
        "A screenshot, or one of the first element that a selector finds, as PNG bytes; written to `path` if given."
        given = {"format": "png"}
        if selector:
            found = f"document.querySelector({json.dumps(selector)})"
            self.value(f"{found}.scrollIntoView({{block: 'center'}})")
            x, y, width, height = self.value(
                f"(r => [r.x, r.y, r.width, r.height])({found}.getBoundingClientRect())"
            )
            given["clip"] = dict(x=x, y=y, width=width, height=height, scale=1)
        data = base64.b64decode(self.call("Page.captureScreenshot", **given)["data"])
        if path:
            Path(path).write_bytes(data)
        return data
