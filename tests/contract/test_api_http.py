"""The REST API as any HTTP client sees it, over its real socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gridhypervisor.model.views import ServiceError
from gridhypervisor.service.server import peer_user
from tests.unit.fake_service import WAIT, Service

JOB = {"spec": {"image": "xmm", "command": ["print", "hello"]}, "folder": "/tmp", "destination": "/tmp"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "s.sock") as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(service.socket))
    with httpx.Client(transport=transport, base_url="http://ghv", timeout=WAIT) as client:
        yield client


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == response.status_code
    assert found["title"] and found["detail"]
    return found


def submit(http: httpx.Client, *command: str) -> str:
    response = http.post("/v1/jobs", json=JOB | {"spec": {"image": "xmm", "command": command}})
    assert response.status_code == 202
    return str(response.json()["id"])


def test_a_job_is_accepted_once_for_each_key(http: httpx.Client) -> None:
    first = http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, first.headers["location"]) == (202, "/v1/jobs/j1")
    assert http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k1"}).json()["id"] == "j1"
    assert http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k2"}).json()["id"] == "j2"


def test_a_jobs_life_through_the_api(http: httpx.Client) -> None:
    job = submit(http, "print", "hello", "hold")
    assert http.get(f"/v1/jobs/{job}").json()["job"]["id"] == job
    assert http.get(f"/v1/jobs/{job}/explain").json()["candidates"]
    assert http.get(f"/v1/jobs/{job}/history").json()["attempts"]
    asked = "/v1/accounting?by=site&by=reason&by=site&until=1500"
    assert http.get(asked).json()["accounts"][0]["of"] == {"site": "me", "reason": "me"}
    assert problem(http.get("/v1/accounting", params={"by": "colour"}))["status"] == 400
    assert http.post(f"/v1/jobs/{job}/recover").status_code == 202
    assert http.post(f"/v1/jobs/{job}/move", params={"to": "other"}).json()["site"] == "other"
    assert http.post(f"/v1/jobs/{job}/checkpoint").status_code == 202
    assert http.post(f"/v1/jobs/{job}/pause").json()["note"].startswith("paused")
    assert not http.post(f"/v1/jobs/{job}/pause", params={"undo": "true"}).json()["note"]
    assert http.post(f"/v1/jobs/{job}/suspend").json()["state"] == "suspended"
    [kept] = http.get("/v1/checkpoints", params={"job": job}).json()
    assert http.post(f"/v1/checkpoints/{kept['id']}/restore").json()["state"] == "running"
    assert http.post(f"/v1/checkpoints/{kept['id']}/copy").json()["copy"] == "kept"
    assert http.post(f"/v1/jobs/{job}/resume").status_code == 202
    assert http.post(f"/v1/jobs/{job}/resume", params={"to": "other"}).json()["site"] == "other"
    assert http.delete(f"/v1/checkpoints/{kept['id']}").status_code == 204
    assert problem(http.post(f"/v1/checkpoints/{kept['id']}/restore"))["code"] == "not-found"
    assert http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert problem(http.post(f"/v1/jobs/{job}/recover"))["code"] == "conflict"
    assert http.delete(f"/v1/jobs/{job}").status_code == 204
    assert problem(http.get(f"/v1/jobs/{job}"))["code"] == "not-found"


def test_lists_are_paged_and_filtered(http: httpx.Client) -> None:
    for _ in range(3):
        submit(http, "hold")
    first = http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first] == ["j3", "j2"]
    assert [job["id"] for job in http.get("/v1/jobs", params={"before": "j2"}).json()] == ["j1"]
    assert http.get("/v1/jobs", params={"state": ["done", "failed"]}).json() == []


def test_a_job_is_followed_to_its_end(http: httpx.Client) -> None:
    job = submit(http, "print", "one\n", "warn", "two\n", "exit", "3")
    response = http.get(f"/v1/jobs/{job}/follow", params={"stdout": 2})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    items = [json.loads(line) for line in response.text.splitlines()]
    assert [(i["stream"], i["offset"]) for i in items if i["kind"] == "output"] == [("stdout", 2), ("stderr", 0)]
    assert items[-1]["kind"] == "end"
    assert items[-1]["job"]["exit_code"] == 3
    assert http.get(f"/v1/jobs/{job}/logs", params={"offset": 1, "limit": 2}).content == b"ne"


def test_events_come_as_a_list_as_lines_and_as_server_sent_events(http: httpx.Client) -> None:
    job = submit(http, "print", "x")
    http.get(f"/v1/jobs/{job}/follow")
    listed = http.get("/v1/events", params={"job": job}).json()
    assert [e["after"] for e in listed] == ["pending", "prolog", "queued", "running", "done"]
    with http.stream("GET", "/v1/events", params={"watch": "true", "after": 2}) as lines:
        assert lines.headers["content-type"].startswith("application/x-ndjson")
        assert json.loads(next(lines.iter_lines()))["sequence"] == 3
    accept = {"Accept": "text/event-stream", "Last-Event-ID": "3"}
    with http.stream("GET", "/v1/events", headers=accept) as sent:
        assert sent.headers["content-type"].startswith("text/event-stream")
        text = sent.iter_lines()
        assert [next(text), next(text)] == ["id: 4", "event: job"]
        assert json.loads(next(text).removeprefix("data: "))["after"] == "running"


def test_operations_say_how_they_end(http: httpx.Client) -> None:
    operation = http.post("/v1/images/xmm/verify").json()["id"]
    kinds = [json.loads(line)["kind"] for line in http.get(f"/v1/operations/{operation}").text.splitlines()]
    assert kinds == ["progress", "done"]
    assert http.delete(f"/v1/operations/{operation}").status_code == 204
    for gone in (http.get("/v1/operations/o99"), http.delete("/v1/operations/o99")):
        assert problem(gone)["code"] == "not-found"


def test_sites_and_images_are_kept(http: httpx.Client) -> None:
    assert http.post("/v1/sites", json={"name": "a", "kind": "slurm", "host": "h"}).status_code == 201
    assert {s["name"] for s in http.get("/v1/sites").json()} == {"here", "a"}
    patch = {"port": 2222, "options": {"qos": "low"}}
    assert http.patch("/v1/sites/a", json=patch).json()["settings"]["options"] == {"qos": "low"}
    changed = http.patch("/v1/sites/a", json={"port": None, "options": {"qos": None}}).json()["settings"]
    assert (changed["host"], changed["port"], changed["options"]) == ("h", 0, {})
    assert http.post("/v1/sites/a/drain").json()["draining"] is True
    assert http.post("/v1/sites/a/drain?undo=true").json()["draining"] is False
    assert http.post("/v1/sites/a/login").json()["command"]
    assert problem(http.post("/v1/sites/none/login"))["code"] == "not-found"
    wrong = problem(http.patch("/v1/sites/a", json={"hots": "x"}))
    assert wrong["errors"][0]["field"] == "hots" and "host" in wrong["errors"][0]["allowed"]
    assert problem(http.patch("/v1/sites/a", json={"port": "x"}))["errors"][0]["field"] == "port"
    assert http.delete("/v1/sites/a").json() == {"name": "a", "waiting": [], "sites": ["here"]}
    assert http.get("/v1/images/xmm:latest").json()["tags"] == ["xmm:latest"]
    assert problem(http.get("/v1/images/none"))["hint"]


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/nothing", 404), ("PUT", "/v1/jobs", 405), ("GET", "/v1/jobs?limit=0", 400),
    ("GET", "/v1/jobs?state=asleep", 400), ("GET", "/v1/jobs/j1/logs?stream=secret", 400), ("POST", "/v1/jobs", 400),
])  # fmt: skip
def test_every_refusal_is_a_problem(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    problem(response)


def test_a_fault_of_ours_shows_no_traceback(service: Service, http: httpx.Client) -> None:
    async def fail() -> None:
        raise RuntimeError("the store is on fire")

    service.backend.status = fail  # type: ignore[method-assign, assignment]
    found = problem(http.get("/v1/service"))
    assert (found["code"], found["detail"]) == ("internal", "RuntimeError: the store is on fire")


def test_the_document_describes_what_is_served(http: httpx.Client) -> None:
    assert http.get("/healthz").text == "ok\n"
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/jobs", "/v1/jobs/{job}/follow", "/v1/events", "/healthz"} <= set(document["paths"])
    post = document["paths"]["/v1/jobs"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobRequest")
    assert "application/problem+json" in post["responses"]["422"]["content"]


def test_the_socket_is_the_users_alone(service: Service) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(service.socket))
        assert peer_user(sock) == os.getuid()


def test_another_user_is_turned_away(service: Service) -> None:
    """Even one who got past the folder: here, root's child that became `nobody` with the socket opened to all."""
    os.chmod(service.socket, 0o666)
    os.chmod(service.socket.parent, 0o755)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = b"?"
        try:
            os.chdir(service.socket.parent)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(WAIT)
                sock.connect(service.socket.name)
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: ghv\r\n\r\n")
                answer = sock.recv(100)
        except ConnectionError:
            answer = b""
        finally:
            os.write(write, b"got:" + answer)
            os._exit(0)
    os.close(write)
    with open(read, "rb") as told:
        assert told.read() == b"got:"
    os.waitpid(child, 0)


def test_two_services_do_not_share_a_socket(service: Service) -> None:
    with pytest.raises(ServiceError, match="another service listens there"):
        Service(service.socket).start()


def test_a_client_that_goes_leaves_nothing_behind(service: Service, http: httpx.Client) -> None:
    job = submit(http, "print", "x", "hold")
    for _ in range(3):
        with http.stream("GET", f"/v1/jobs/{job}/follow") as response:
            lines = response.iter_lines()  # held: the stream is closed when its iterator goes
            next(lines)
            assert service.backend.followers
    deadline = time.monotonic() + WAIT
    while service.backend.followers:
        assert time.monotonic() < deadline
        http.get("/healthz")


def test_a_stop_ends_streams_and_takes_the_socket_away(service: Service, http: httpx.Client) -> None:
    job = submit(http, "print", "x", "hold")
    with http.stream("GET", f"/v1/jobs/{job}/follow") as response:
        lines = response.iter_lines()
        next(lines)
        service.stop()
        assert not service.socket.exists()
        assert all(json.loads(line)["kind"] != "end" for line in lines)
    service.start()
    assert http.get("/healthz").status_code == 200


def test_matches_nodes_and_policy_through_the_api(http: httpx.Client) -> None:
    spec = {"image": "", "command": ["true"], "requirements": "Cpus >= 2"}
    assert http.post("/v1/match", json=spec).json()["sites"][0]["chosen"] is True
    wrong = problem(http.post("/v1/match", json=spec | {"requirements": "Cpus + "}))
    assert wrong["status"] == 422 and wrong["errors"][0]["field"] == "requirements"
    submitted = problem(http.post("/v1/jobs", json=JOB | {"spec": JOB["spec"] | {"rank": "Nonsense"}}))  # type: ignore[operator]
    assert submitted["errors"][0]["field"] == "spec.rank"
    assert http.get("/v1/nodes", params={"site": "here"}).json()[1]["published"]["Cpus"] == 4
    assert [each["job"] for each in http.get("/v1/plan").json()] == ["j7", "j8", "j9"]
    assert http.get("/v1/policy").json()["version"] == 0
    assert http.put("/v1/policy", json={"limits": {"user": 2}}).json()["policy"]["limits"]["user"] == 2
    refused = problem(http.put("/v1/policy", json={"limits": {"user": -1}, "jobs": {"shares": {}}}))
    assert {error["field"] for error in refused["errors"]} == {"limits.user", "jobs.shares"}
    assert http.get("/v1/policy").json()["version"] == 1, "what is wrong changes nothing"


def test_a_key_stands_for_one_request(http: httpx.Client) -> None:
    """Of every POST, whatever it makes: repeated, it is answered the same; for another request it is refused."""
    key = {"Idempotency-Key": "k"}
    first = http.post("/v1/jobs", json=JOB, headers=key)
    again = http.post("/v1/jobs", json=JOB, headers=key)
    assert (again.status_code, again.headers["location"], again.json()) == (202, "/v1/jobs/j1", first.json())
    other = JOB | {"spec": {"image": "xmm", "command": ["print", "other"]}}
    assert "another request" in problem(http.post("/v1/jobs", json=other, headers=key))["detail"]
    problem(http.post("/v1/sites", json={"name": "k", "kind": "fork"}, headers=key))
    site = {"Idempotency-Key": "site"}
    added = [http.post("/v1/sites", json={"name": "b", "kind": "fork"}, headers=site) for _ in range(2)]
    assert [answer.status_code for answer in added] == [201, 201] and added[0].json() == added[1].json()
    verified = [http.post("/v1/images/xmm/verify", headers={"Idempotency-Key": "v"}) for _ in range(2)]
    assert verified[0].json() == verified[1].json() == {"id": "o1", "state": "running"}
    assert verified[1].headers["location"] == "/v1/operations/o1"
    assert [each["id"] for each in http.get("/v1/operations").json()] == ["o1"]
    assert problem(http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "x" * 201}))["status"] == 400


def test_what_failed_under_a_key_is_tried_again(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "k"}
    unknown = JOB | {"spec": {"image": "later", "command": ["print", "x"]}}
    assert problem(http.post("/v1/jobs", json=unknown, headers=key))["code"] == "not-found"
    assert http.post("/v1/jobs", json=JOB, headers=key).status_code == 202


def test_requests_of_one_key_at_once_take_turns(http: httpx.Client, service: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k"}), range(8)))
    assert {answer.json()["id"] for answer in answers} == {"j1"}
    assert service.backend.submissions == 1


def test_a_change_may_ask_for_the_version_that_it_was_made_from(http: httpx.Client) -> None:
    etag = http.get("/v1/sites/here").headers["etag"]
    changed = http.patch("/v1/sites/here", json={"slots": 3}, headers={"If-Match": etag})
    assert changed.status_code == 200 and changed.headers["etag"] != etag
    assert problem(http.patch("/v1/sites/here", json={"slots": 4}, headers={"If-Match": etag}))["status"] == 412
    assert http.get("/v1/sites/here").json()["settings"]["slots"] == 3
    policy = http.get("/v1/policy").headers["etag"]
    for wrong in ('"9"', "nonsense", 'W/"0"'):
        assert problem(http.put("/v1/policy", json={}, headers={"If-Match": wrong}))["status"] == 412
    assert http.put("/v1/policy", json={}, headers={"If-Match": policy}).status_code == 200
    assert http.put("/v1/policy", json={}, headers={"If-Match": "*"}).status_code == 200


def test_pages_name_the_next_one(http: httpx.Client) -> None:
    jobs = [submit(http, "hold") for _ in range(5)]
    seen, url = [], "/v1/jobs?limit=2&state=pending&state=prolog&state=queued&state=running"
    while url:
        answer = http.get(url)
        seen += [job["id"] for job in answer.json()]
        url = answer.links["next"]["url"] if "next" in answer.links else ""
    assert seen == jobs[::-1]
    events = http.get("/v1/events", params={"limit": 3, "job": jobs[0], "after": 1})
    last = events.json()[-1]["sequence"]
    assert events.links["next"]["url"] == f"/v1/events?limit=3&job={jobs[0]}&after={last}"


def test_what_is_measured_is_told_in_prometheus_words(http: httpx.Client) -> None:
    submit(http, "hold")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {"ghv_jobs", "ghv_actions", "ghv_store_seconds", "ghv_loop_lag_seconds", "ghv_site_health"} <= set(families)
    health = {(s.labels["site"], s.labels["health"]): s.value for s in families["ghv_site_health"].samples}
    assert health["here", "up"] == 1 and health["here", "unreachable"] == 0
    posts = [s.value for s in families["ghv_requests"].samples if s.labels == {"method": "POST", "status": "2xx"}]
    assert posts == [1]
    assert "me" not in {value for family in families.values() for s in family.samples for value in s.labels.values()}
