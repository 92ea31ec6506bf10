"""How a guest finds out whether its service is ready, played by busybox on this machine's loopback."""

from __future__ import annotations

import http.server
import re
import socket
import subprocess
import threading
from importlib.resources import files


def asked(name: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Call a function of one line of the guest's agent."""
    text = files("gridhypervisor.agent").joinpath("guest/agent.sh").read_text()
    [found] = re.findall(rf"^{name}\(\) \{{.*\}}$", text, re.MULTILINE)
    script = f'{found.replace("/run/ghv/busybox", "/bin/busybox")}\n{name} "$@"'
    return subprocess.run(["busybox", "sh", "-c", script, "sh", *words], capture_output=True, timeout=60, check=False)


def test_a_port_is_knocked_at_without_waiting_for_what_listens_to_say_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert asked("knock", "5", port).returncode == 0
    refused = asked("knock", "5", port)
    assert refused.returncode != 0 and b"refused" in refused.stderr


def test_a_page_is_asked_for_and_has_to_be_there() -> None:
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/up" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with http.server.HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_address[1]}"
        assert asked("fetch", "5", f"{page}/up").returncode == 0
        down = asked("fetch", "5", f"{page}/down")
        server.shutdown()
    assert down.returncode != 0 and b"503" in down.stderr
