"""Users over the network: who may do what, and that nobody sees what is another's, on any route that there is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gridhypervisor.client import Client, files
from gridhypervisor.model.access import Scope
from gridhypervisor.model.arrays import tasks_of
from gridhypervisor.model.commit import Commit
from gridhypervisor.model.records import Event, JobState
from gridhypervisor.model.views import ServiceError
from gridhypervisor.planning.arrays import births
from gridhypervisor.service import guard
from tests.contract.real_service import RealService

JOB: dict[str, Any] = {"spec": {"image": "xmm", "command": ["adasprogram"], "name": "adasname"}}
BOBS: dict[str, Any] = {"spec": {"image": "xmm", "command": ["true"]}}
LAB: dict[str, Any] = {"name": "adaslab", "roles": {"adasrole": {"image": "xmm"}}}
SHA = hashlib.sha256(b"data").hexdigest()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with RealService(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def ada(service: RealService) -> Iterator[httpx.Client]:
    with service.http(service.token("ada")) as client:
        yield client


@pytest.fixture(scope="module")
def bob(service: RealService) -> Iterator[httpx.Client]:
    with service.http(service.token("bob")) as client:
        yield client


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    found: dict[str, Any] = response.json()
    assert found["status"] == response.status_code == status, found
    return found


def test_on_every_route_another_user_finds_nothing(service: RealService, ada: httpx.Client, bob: httpx.Client) -> None:
    """Each route of the document, with the names of what is ada's: bob learns nothing that he would not learn of names
    that do not exist, and changes nothing."""
    job = ada.post("/v1/jobs", json=JOB).json()["id"]
    group = ada.post("/v1/groups", json={"spec": JOB["spec"] | {"array": "1-3"}}).json()["id"]
    installation = service.app.store.installation
    with service.local() as me:
        lab = me.post("/v1/infrastructures", json={"spec": LAB, "folder": "/"}).json()["id"]
    names = {"job": job, "group": group, "checkpoint": f"{installation}-{job}-1-1", "name": lab, "reference": "xmm",
             "operation": "op1", "sha256": SHA, "token": "0" * 12, "path": "x"}  # fmt: skip
    nothing = names | {"job": "j99999", "group": "a99999", "checkpoint": f"{installation}-j99999-1-1", "name": "i99999"}
    bodies = {"/v1/jobs": BOBS, "/v1/match": BOBS["spec"], "/v1/jobs/{job}/exec": {"command": ["true"]},
              "/v1/infrastructures/{name}/scale": {"counts": {"adasrole": 9}}}  # fmt: skip
    before = ada.get(f"/v1/jobs/{job}").json(), ada.get("/v1/events").json()
    walked = 0
    for path, methods in ada.get("/openapi.json").json()["paths"].items():
        for method in methods:
            if path == "/v1/service/stop":
                continue  # of which `test_what_is_the_service_users_alone` tells
            answers = []
            for given in (names, nothing):
                place = re.sub(r"\{(\w+)\}", lambda part, given=given: given[part[1]], path)  # type: ignore[misc]
                query = {"size": "4"} if method == "put" and "uploads" in path else {}
                body = bodies.get(path, {}) if method in ("post", "put", "patch") else None
                answer = bob.request(method, place, params=query, json=body)
                assert "adas" not in answer.text, place
                answers.append((answer.status_code, _without_names(answer.text, given)))
            if re.search(r"\{(job|group|checkpoint)\}|infrastructures/\{", path):
                assert answers[0] == answers[1], f"{method} {path} tells what is there"
                assert answers[0][0] in (403, 404), f"{method} {path} answers {answers[0]}"
            walked += 1
    assert walked > 60
    assert (ada.get(f"/v1/jobs/{job}").json(), ada.get("/v1/events").json()) == before
    for listed in ("/v1/jobs", "/v1/groups", "/v1/events", "/v1/plan", "/v1/checkpoints", "/v1/infrastructures",
                   f"/v1/jobs?group={group}"):  # fmt: skip
        owners = {item.get("owner") for item in bob.get(listed).json()}
        assert owners <= {"bob"}, listed
    assert f'"{job}"' not in bob.get("/v1/events", params={"job": job}).text


def _without_names(text: str, names: dict[str, str]) -> str:
    for name in sorted(names.values(), key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "NAME", text)
    return text


def test_infrastructures_are_the_service_users_alone(service: RealService, bob: httpx.Client) -> None:
    asked = {"spec": LAB | {"name": "mine"}, "folder": "/"}
    for route in ("/v1/infrastructures", "/v1/infrastructures/plan"):
        assert "on the service's own machine" in problem(bob.post(route, json=asked), 403)["detail"]
    with service.local() as me:
        made = me.post("/v1/infrastructures", json=asked).json()
        assert me.get("/v1/infrastructures/mine").json()["id"] == made["id"]
        problem(bob.get("/v1/infrastructures/mine"), 404)
        problem(bob.delete("/v1/infrastructures/mine"), 404)
        assert me.get(f"/v1/groups/{made['id']}").json()["wish"] == "run"
        assert me.post("/v1/infrastructures", json=asked).json()["id"] == made["id"], "it is as it should be already"


def test_another_users_stream_ends_before_it_begins(ada: httpx.Client, bob: httpx.Client) -> None:
    job = ada.post("/v1/jobs", json=JOB).json()["id"]
    problem(bob.get(f"/v1/jobs/{job}/follow"), 404)
    with ada.stream("GET", f"/v1/jobs/{job}/follow") as lines:
        assert json.loads(next(lines.iter_lines()))["job"]["owner"] == "ada"
    own = bob.post("/v1/jobs", json=JOB).json()["id"]
    with bob.stream("GET", "/v1/events", params={"watch": "true"}) as lines:
        assert json.loads(next(lines.iter_lines()))["owner"] == "bob"
    assert bob.get(f"/v1/jobs/{own}").json()["job"]["project"] == "physics"


def test_a_job_does_not_wait_for_another_users(ada: httpx.Client, bob: httpx.Client) -> None:
    job = ada.post("/v1/jobs", json=JOB).json()["id"]
    after = {"spec": JOB["spec"] | {"after": [job]}}
    problem(bob.post("/v1/jobs", json=after), 404)
    assert ada.post("/v1/jobs", json=after).status_code == 202


def test_without_a_good_token_nothing_is_told(service: RealService) -> None:
    with service.http() as nobody:
        assert nobody.get("/healthz").text == "ok\n"
        refused = nobody.get("/v1/jobs")
        problem(refused, 401)
        assert refused.headers["www-authenticate"].startswith("Bearer")
    token = service.token("eve")
    for wrong in (token[:-1] + ("0" if token[-1] != "0" else "1"), token[4:], "ghv_", f"{token} ", "x" * 5000):
        with service.http(wrong.strip() + ("x" if wrong.endswith(" ") else "")) as client:
            problem(client.get("/v1/caller"), 401)
    with service.http(token) as eve:
        assert eve.get("/v1/caller").json()["owner"] == "eve"


def test_tokens_are_kept_as_hashes_and_end_at_once(service: RealService) -> None:
    with service.local() as me:
        made = me.post("/v1/tokens", json={"owner": "gil", "scope": "read"}, headers={"Idempotency-Key": "t1"})
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
        token = made.json()
        again = me.post("/v1/tokens", json={"owner": "gil", "scope": "read"}, headers={"Idempotency-Key": "t1"})
        assert "told once" in problem(again, 409)["detail"]
        listed = {each["id"]: each for each in me.get("/v1/tokens").json()}
        assert listed[token["id"]]["secret"] == ""
    secret = token["secret"].rpartition("_")[2]
    kept = [path for path in service.socket.parent.rglob("*") if path.is_file()]
    assert kept and not any(secret.encode() in path.read_bytes() for path in kept)
    watching = {"params": {"watch": "true"}}
    with service.http(service.token("gil")) as other:
        job = other.post("/v1/jobs", json=JOB).json()["id"]
    with service.http(token["secret"]) as gil, gil.stream("GET", "/v1/events", **watching) as stream:  # type: ignore[arg-type]
        assert stream.status_code == 200
        with service.local() as me:
            assert me.delete(f"/v1/tokens/{token['id']}").json()["revoked"]
        problem(gil.get("/v1/jobs"), 401)
        with service.http(service.token("gil")) as other:
            other.post(f"/v1/jobs/{job}/cancel")  # which the stream would tell
        with pytest.raises(httpx.RemoteProtocolError):
            list(stream.iter_lines())


def test_a_silent_stream_ends_soon_after_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LOOK", 0.1)
    with RealService(tmp_path) as service, service.http(token := service.token("gil")) as gil:
        name = gil.get("/v1/caller").json()["token"]
        with gil.stream("GET", "/v1/events", params={"watch": "true"}) as stream:
            service.call(service.app.revoke_token(name))
            with pytest.raises(httpx.RemoteProtocolError):
                list(stream.iter_lines())
        assert service.caller(token) is None


def test_a_scope_is_what_a_token_is_good_for(service: RealService) -> None:
    with service.http(service.token("hal", Scope.READ)) as reader:
        assert reader.get("/v1/jobs").json() == []
        assert "takes write" in problem(reader.post("/v1/jobs", json=JOB), 403)["detail"]
        problem(reader.get("/v1/policy"), 403)
    with service.http(service.token("hal", Scope.ADMIN)) as admin, service.http(service.token("ida")) as ida:
        job = ida.post("/v1/jobs", json=JOB).json()["id"]
        problem(ida.get("/v1/tokens"), 403)
        assert admin.get(f"/v1/jobs/{job}").json()["job"]["owner"] == "ida"
        assert admin.get("/v1/policy").status_code == 200
        made = admin.post("/v1/tokens", json={"owner": "jo"}).json()
        assert made["owner"] == "jo"
        assert admin.post(f"/v1/jobs/{job}/cancel").status_code == 202
        own = ida.get("/v1/caller").json()["token"]
        assert ida.delete(f"/v1/tokens/{own}").status_code == 200, "everybody may give his own token up"
        problem(ida.get("/v1/jobs"), 401)


def test_what_is_the_service_users_alone(service: RealService, ada: httpx.Client, tmp_path: Path) -> None:
    """Files, programs and keys of the machine, whatever the scope."""
    spec = JOB["spec"]
    with service.http(service.token("root", Scope.ADMIN)) as admin:
        for client in (ada, admin):
            for paths in ({"folder": "/etc"}, {"destination": str(tmp_path)}):
                problem(client.post("/v1/jobs", json=JOB | paths), 403)
                problem(client.post("/v1/groups", json=JOB | paths | {"spec": spec | {"array": "1-2"}}), 403)
            for inputs in (
                ["/etc/passwd"],
                ["../x"],
                [{"path": "~/.ssh/id_rsa"}],
                ["s3://bucket/key"],
                ["file:///etc/x"],
            ):
                wrong = problem(client.post("/v1/jobs", json={"spec": spec | {"inputs": inputs}}), 422)
                assert wrong["errors"][0]["field"] == "spec.inputs[0]"
            for out in ({"stdout": "/tmp/x"}, {"stderr": "../x"}, {"outputs": ["a"], "destinations": {"a": "/tmp/a"}}):
                problem(client.post("/v1/jobs", json={"spec": spec | out}), 422)
            for method, path, body in (
                ("POST", "/v1/sites", {"name": "x", "kind": "slurm", "host": "h", "key": "/root/.ssh/id_rsa"}),
                ("PATCH", "/v1/sites/x", {"ssh_config": "/tmp/evil"}), ("DELETE", "/v1/sites/x", None),
                ("POST", "/v1/sites/x/login", None), ("POST", "/v1/service/stop", None),
                ("POST", "/v1/images/build", {"recipe": "/etc/passwd"}),
                ("POST", "/v1/images/import", {"path": "/etc/passwd", "tag": "x", "format": "raw"}),
            ):  # fmt: skip
                found = client.request(method, path, json=body)
                assert "own machine" in problem(found, 403)["detail"]
    outbound = {"spec": spec | {"network": "outbound"}}
    assert "--outbound" in problem(ada.post("/v1/jobs", json=outbound), 403)["hint"]
    with service.local() as me:
        trusted = me.post("/v1/tokens", json={"owner": "ada", "outbound": True}).json()["secret"]
    with service.http(trusted) as client:
        assert client.post("/v1/jobs", json=outbound).status_code == 202
    workflow = {"file": "/etc/passwd", "workflow": {"name": "w", "lines": []}}
    assert ada.post("/v1/workflows", json=workflow).status_code in (403, 422)


def test_files_go_there_and_come_back(service: RealService, tmp_path: Path) -> None:
    client = Client(service.remote(service.token("kim")))
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(range(256)) * (40 << 10))  # more than one piece
    told: list[int] = []
    sha256 = files.send(client, large, lambda name, done, size: told.append(done))
    assert told == [8 << 20, 10 << 20] and sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    told.clear()
    assert files.send(client, large, lambda name, done, size: told.append(done)) == sha256
    assert told == [], "what is there is not sent again"
    other = Client(service.remote(service.token("lee")))
    assert other.upload(sha256).size == 0, "an upload is its owner's alone"

    small = hashlib.sha256(b"abcdef").hexdigest()
    assert client.add_upload(small, 0, 6, b"abc").size == 3
    assert client.add_upload(small, 1, 6, b"bcd").size == 4, "a piece that comes twice changes nothing"
    with pytest.raises(ServiceError, match="4 bytes have come"):
        client.add_upload(small, 5, 6, b"f")
    assert client.add_upload(small, 4, 6, b"ef").complete
    with pytest.raises(ServiceError, match="not " + "0" * 64):
        client.add_upload("0" * 64, 0, 3, b"abc")
    assert client.upload("0" * 64).size == 0, "what is not what it says it is, is forgotten"

    with service.http(service.token("kim")) as http:
        spec = JOB["spec"] | {"inputs": [{"path": small, "name": "letters"}]}
        job = http.post("/v1/jobs", json={"spec": spec}).json()
        assert job["destination"] == ""
        problem(http.put(f"/v1/uploads/{small}", params={"size": 4}, content=b"x" * (9 << 20)), 413)
    record = service.app.controller.cases[job["id"]].job
    [staged] = service.call(service.app.plan(record, lambda words: None))
    assert staged.local.read_bytes() == b"abcdef" and staged.described.path == "letters"


def test_results_that_are_kept_are_fetched_by_their_owner(service: RealService, tmp_path: Path) -> None:
    token = service.token("mia")
    client = Client(service.remote(token))
    with service.http(token) as http:
        job = http.post("/v1/jobs", json=JOB).json()["id"]
        http.post(f"/v1/jobs/{job}/cancel")
        assert client.results(job) == (), "not before it has ended"
    home = service.app.logs.home(job)
    (home / "products").mkdir(parents=True)
    (home / "products" / "a b.csv").write_bytes(b"1,2\n" * 1000)
    (home / "newest").symlink_to("products/a b.csv")
    (home / "passwd").symlink_to("/etc/passwd")
    case = service.app.controller.cases[job]
    service.app.controller.cases.put(replace(case, job=replace(case.job, state=JobState.CANCELLED)))
    assert [each.path for each in client.results(job)] == ["newest", "passwd", "products/a b.csv"]
    assert client.result(job, "newest") == b"1,2\n" * 1000
    for wrong in ("passwd", "../1/exit.json", "nothing", "products"):
        with pytest.raises(ServiceError, match="no file"):
            client.result(job, wrong)
    with pytest.raises(ServiceError, match="outside the results"):
        files.fetch(client, job, tmp_path / "here")
    (home / "passwd").unlink()
    assert len(files.fetch(client, job, tmp_path / "here")) == 2
    assert (tmp_path / "here" / "newest").read_bytes() == b"1,2\n" * 1000
    with pytest.raises(ServiceError, match="nothing of this name"):
        files.fetch(Client(service.remote(service.token("ned"))), job, tmp_path / "there")


def test_an_address_that_fails_often_is_told_to_wait_but_good_tokens_pass(tmp_path: Path) -> None:
    with RealService(tmp_path) as service, service.http("wrong") as guesser, service.http(service.token("ada")) as ada:
        answers = [guesser.get("/v1/jobs").status_code for _ in range(25)]
        assert answers[:20] == [401] * 20 and set(answers[20:]) == {429}
        assert int(guesser.get("/v1/jobs").headers["retry-after"]) <= 61
        assert ada.get("/v1/jobs").status_code == 200


def test_an_expired_token_is_good_for_nothing(service: RealService) -> None:
    with service.http(service.token("ola", expires="1s")) as ola:
        while ola.get("/v1/jobs").status_code == 200:
            pass  # a second at most
        problem(ola.get("/v1/jobs"), 401)
    with service.local() as me:
        problem(me.post("/v1/tokens", json={"expires": "367d"}), 422)
        wrong = problem(me.post("/v1/tokens", json={"scope": "all", "owner": "a b"}), 422)
        assert {error["field"] for error in wrong["errors"]} >= {"scope", "owner"}


def test_a_list_tells_of_jobs_that_have_ended_as_they_are_now(service: RealService, ada: httpx.Client) -> None:
    """What lists show again and again is remembered, and never longer than it holds."""
    store, job = service.app.store, ada.post("/v1/jobs", json=JOB).json()["id"]
    other = ada.post("/v1/jobs", json=JOB).json()["id"]
    for each in (job, other):
        service.app.controller.cases.drop(each)

    def state() -> str:
        return str({each["id"]: each["state"] for each in ada.get("/v1/jobs").json()}[job])

    assert [state(), state()] == ["pending", "pending"]
    records = store.these_jobs([job])[0].job
    assert store.commit([Commit((replace(records, state=JobState.FAILED, version=2),))]) == [True]
    assert [state(), state()] == ["failed", "failed"]
    store.delete_job(other, Event(1.0, "ada", "physics", other, "job", other, "pending", "deleted"))
    assert other not in {each["id"] for each in ada.get("/v1/jobs").json()}


def test_the_tasks_of_an_array_have_no_place_here_either(service: RealService, ada: httpx.Client) -> None:
    parts: list[dict[str, Any]] = [{"array": "1-3", "outputs": ["out"], "inputs": [SHA]}, {"gang": {"count": 2}}]
    for many in parts:
        name = ada.post("/v1/groups", json={"spec": JOB["spec"] | many}).json()["id"]
        [group] = [each for each in service.app.controller.groups.alive() if each.id == name]
        assert group.spec is not None
        made = [birth.job for birth in births(group, tasks_of(group.spec), 2, 100, 1.0)]
        assert [(job.owner, job.folder, job.destination) for job in made] == [("ada", "", "")] * 2


def test_tokens_keys_and_uploads_outlive_the_service(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "k"}
    with RealService(tmp_path) as before, before.http(token := before.token("ada")) as ada:
        made = ada.post("/v1/jobs", json=JOB, headers=key)
        ada.put(f"/v1/uploads/{SHA}", params={"size": 4}, content=b"da")
    with RealService(tmp_path) as after, after.http(token) as ada, after.http(after.token("bob")) as bob:
        again = ada.post("/v1/jobs", json=JOB, headers=key)
        assert (again.status_code, again.headers["location"]) == (202, made.headers["location"])
        assert len(ada.get("/v1/jobs").json()) == 1
        problem(ada.post("/v1/jobs", json=BOBS, headers=key), 422)
        assert bob.post("/v1/jobs", json=BOBS, headers=key).json()["owner"] == "bob", "a key is its owner's"
        assert ada.get(f"/v1/uploads/{SHA}").json() == {"sha256": SHA, "size": 2, "complete": False}
        assert ada.put(f"/v1/uploads/{SHA}", params={"size": 4, "offset": 2}, content=b"ta").json()["complete"]
