"""A virtual infrastructure on the local site, as its user goes with it: real machines, in real batch jobs."""

from __future__ import annotations

import json

import pytest

from tests.e2e.installation import Installation, wait_for

LAB = """\
kind: VirtualInfrastructure
name: lab
parameters: {clients: {default: 1, max: 4}, probe: {default: index.html}}
roles:
  web:
    image: tiny
    command: [httpd, -f, -p, "8080"]
    inputs: [index.html]
    environment: {COLOUR: red}
    resources: {memory: 128Mi, scratch: 48Mi}
    ready: {http: {port: 8080, path: "/${probe}"}, interval: 1s, timeout: 6s}
  client:
    image: tiny
    count: ${clients}
    after: [web]
    resources: {memory: 128Mi, scratch: 48Mi}
patience: 3m
lease: {duration: 30m}
"""


@pytest.fixture(autouse=True)
def files(lab: Installation) -> None:
    (lab.work / "lab.yaml").write_text(LAB)
    (lab.work / "index.html").write_text("welcome\n")
    lab.ghv("site", "edit", "local", "--slots", "4")
    wait_for("the site", lambda: lab.ghv("site", "show", "local", "-o", "json").json["health"] == "up")


def test_from_its_file_to_its_removal(lab: Installation) -> None:
    planned = lab.ghv("plan", "-f", "lab.yaml", "-o", "json").json
    assert [(vm["name"], vm["site"]) for vm in planned["vms"]] == [("web-0", "local"), ("client-0", "local")]
    applied = lab.ghv("apply", "-f", "lab.yaml", "-o", "json").json
    assert (applied["state"], [vm["ready"] for vm in applied["vms"]]) == ("ready", [True, True])
    assert "2 of 2 VMs ready" in lab.ghv("list").out.decode()
    jobs = {vm["name"]: vm["job"] for vm in applied["vms"]}
    sequence = {(e["job"], e["after"]): e["sequence"] for e in lab.events() if e["kind"] == "job"}
    assert sequence[jobs["client-0"], "pending"] > sequence[jobs["web-0"], "running"], "clients come after the web"

    scaling = lab.start("scale", "lab", "client=2", "-o", "json")  # and meanwhile:
    page = lab.ghv("exec", "lab.web-0", "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/index.html")
    assert page.out == b"welcome\n"
    told = lab.ghv("exec", "lab.client-0", "--", "sh", "-c", "hostname; echo bad >&2; exit 7", check=False)
    assert (told.code, told.out, told.err) == (7, b"client-0\n", "bad\n")
    assert lab.ghv("exec", "lab.web-0", "--", "sh", "-c", "echo $COLOUR; pwd").out == b"red\n/scratch/job\n"
    assert lab.ghv("exec", "--limit", "2s", "lab.web-0", "--", "sleep", "600", check=False).code == 143
    data = bytes(range(256)) * 100
    (lab.work / "data").write_bytes(data)
    lab.ghv("cp", "data", "lab.web-0:/tmp/there")
    lab.ghv("cp", "lab.web-0:/tmp/there", "back")
    assert (lab.work / "back").read_bytes() == data
    out, err = scaling.communicate(timeout=240)
    assert scaling.returncode == 0, err
    scaled = {vm["name"]: vm["job"] for vm in json.loads(out)["vms"]}
    assert scaled.items() > jobs.items() and scaled.keys() == {"web-0", "client-0", "client-1"}

    lab.kill_service()  # the machines serve on, and whoever comes next knows of them
    assert lab.ghv("exec", "lab.web-0", "hostname").out == b"web-0\n"
    shown = lab.ghv("show", "lab", "-o", "json").json
    assert (shown["state"], {vm["name"]: vm["job"] for vm in shown["vms"]}) == ("ready", scaled)

    again = lab.ghv("apply", "-f", "lab.yaml", "-p", "clients=0")
    assert "client: 2 → 0 VMs" in again.out.decode()
    assert [vm["job"] for vm in lab.ghv("show", "lab", "-o", "json").json["vms"]] == [jobs["web-0"]]
    assert lab.ghv("show", jobs["client-0"], check=False).code == 66, "it is gone, its site has confirmed it"
    lab.ghv("delete", "lab")
    wait_for("the removal", lambda: lab.ghv("show", "lab", check=False).code == 66)
    assert lab.ghv("list", "-o", "json").json == [] and not lab.processes()


def test_what_does_not_come_up_is_undone_and_says_why(lab: Installation) -> None:
    applied = lab.ghv("apply", "-f", "lab.yaml", "-p", "probe=nothing", check=False)
    assert applied.code == 75 and "web-0" in applied.err and "was not ready 6s after its start" in applied.err, applied
    shown = lab.ghv("show", "lab", "-o", "json").json
    assert (shown["state"], [vm["name"] for vm in shown["vms"]]) == ("failed", ["web-0"]), "no client was ever made"
    assert "404" in shown["why"], "what the probe was answered"
    wait_for("the end of its machine", lambda: not lab.processes())
    (lab.work / "lab.yaml").write_text(LAB.replace("  client:\n    image: tiny", "  client:\n    image: missing"))
    missing = lab.ghv("apply", "-f", "lab.yaml", check=False)
    assert missing.code == 66 and "roles.client" in missing.err and "missing" in missing.err
    lab.ghv("delete", shown["id"])
    wait_for("the removal", lambda: lab.ghv("show", "lab", check=False).code == 66)
