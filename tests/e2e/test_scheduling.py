"""Requirements, rank and policies on this machine, as two sites: what is published, who gets what, and what is said."""

from __future__ import annotations

import os

from tests.e2e.installation import Installation, wait_for

TINY = ("--image", "tiny", "--memory", "96M", "--scratch", "32M")


def test_where_work_goes_is_required_ranked_set_and_explained(installation: Installation) -> None:
    lab = installation
    where = ("--workdir", str(lab.folder / "second"), "--scratch", str(lab.scratch), "--slots", "1")
    lab.ghv("site", "add", "second", "--kind", "fork", *where)
    for site in ("local", "second"):
        wait_for(site, lambda site=site: lab.ghv("site", "show", site, "-o", "json").json["health"] == "up", 300)  # type: ignore[misc]
    lab.ghv("site", "check", "local", "--timeout", "10m", timeout=900)

    # What the probe found is published of the site and of its node; of the other site, what its batch system tells.
    [node] = [n for n in lab.ghv("node", "list", "local", "-o", "json").json if n["node"]]
    known = node["published"]
    assert known["OpSys"] == "Linux" and known["Memory"] > 96 and "tcg" in known["Hypervisors"], known
    probed = f'Memory >= {known["Memory"]} && member("tcg", Hypervisors)'
    found = lab.ghv("match", "--requirements", probed, "-o", "json").json
    assert {c["site"]: c["chosen"] for c in found["sites"]} == {"local": True, "second": False}
    verdict = found["sites"][1]["verdict"]
    assert "Hypervisors is not known" in verdict and "(next: ghv site check second)" in verdict
    assert "no site publishes Memmory" in lab.ghv("match", "--requirements", "Memmory > 1", check=False).err

    # It decides, and so does rank among those that are left.
    for words, site in ((("--requirements", probed), "local"), (("--rank", 'Site == "second" ? 1 : 0'), "second")):
        job = lab.detach(*TINY, *words, "--", "true")
        ended = lab.wait(job, 300)
        assert (ended["job"]["state"], ended["job"]["site"]) == ("done", site), ended
        assert b"the same plan" in lab.ghv("replay", job).out

    # What nobody has is waited for, and said.
    waits = lab.detach(
        *TINY, "--requirements", f"Memory > {known['Memory']}", "--rank", "1 / (Jobs - Jobs)", "--", "true"
    )
    explained = wait_for("its turn", lambda: turn_of(lab, waits))
    assert f"does not hold: Memory is {known['Memory']} MiB" in explained
    assert "counts as 0 there" in explained
    lab.ghv("cancel", waits)

    # What no site has is said at once, and by whom it was asked for.
    asked = lab.ghv("run", "--detach", *TINY, "--cpus", "1000", "--rank", "MaintenanceIn", "--", "true")
    assert f"second: it asks for 1000 CPUs; the largest node has {os.cpu_count()}" in asked.err
    lab.ghv("cancel", asked.out.decode().strip())
    asked = lab.ghv("run", "--detach", *TINY, "--rank", "MaintenanceIn", "--", "true")
    assert "rank MaintenanceIn is undefined at every site" in asked.err
    assert lab.wait(asked.out.decode().strip(), 300)["job"]["state"] == "done"

    # How fast guests are that ran here is published, and known when the service starts again.
    lab.ghv("service", "stop")
    for site in ("local", "second"):
        rates = lab.ghv("site", "show", site, "-o", "json").json["rates"]
        assert rates and all(0 < rate <= 1 for rate in rates.values()), rates
    [known, *_] = (n["published"] for n in lab.ghv("node", "list", "local", "-o", "json").json if n["node"])
    assert known.get("KvmRate") == 1 or 0 < known["UmlRate"] < 1, known

    # A policy holds from the next choice on, and when the service starts again; one that is wrong changes nothing.
    policy = lab.work / "policy.yaml"
    policy.write_text("kind: Policy\nresources:\n  fixed: {resources: {local: 0}}\n")
    lab.ghv("policy", "set", str(policy))
    refused = lab.work / "wrong.yaml"
    refused.write_text("kind: Policy\nlimits:\n  user: none\n")
    wrong = lab.ghv("policy", "set", str(refused), check=False)
    assert wrong.code == 65 and "wrong.yaml:3: limits.user" in wrong.err
    urgent = lab.ghv("run", "--detach", *TINY, "--priority", "20", "--", "true", check=False)
    assert urgent.code == 77 and "jobs.fixed.urgent" in urgent.err
    lab.ghv("service", "stop")
    assert lab.ghv("policy", "show", "-o", "json").json["version"] == 1
    assert [e["message"].partition(" ")[0] for e in lab.events() if e["kind"] == "policy"] == ["by"]
    ended = lab.wait(lab.detach(*TINY, "--", "true"), 300)
    assert (ended["job"]["state"], ended["job"]["site"]) == ("done", "second"), ended
    asks = lab.detach(*TINY, "--site", "local", "--", "true")
    why = "local: the policy gives it priority 0"
    wait_for("why", lambda: why in lab.ghv("show", asks, "-o", "json").json["job"]["note"])
    lab.ghv("cancel", asks)

    # A site that was removed stays away as long as there is another, and is missed by who waits for it.
    wait_for("nothing there", lambda: removed(lab, "local"))
    lab.ghv("service", "stop")
    assert [site["name"] for site in lab.ghv("site", "list", "-o", "json").json] == ["second"]
    lab.ghv("site", "drain", "second")
    asks = lab.detach(*TINY, "--site", "second", "--", "true")
    wait_for("why", lambda: "draining" in lab.ghv("show", asks, "-o", "json").json["job"]["note"])
    told = wait_for("nothing there", lambda: removed(lab, "second"))
    assert f"1 job waits for second and no other site: {asks}" in told and "ghv site add local" in told
    wait_for("why", lambda: "there is no site" in lab.ghv("show", asks, "-o", "json").json["job"]["note"])
    lab.ghv("cancel", asks)


def removed(lab: Installation, site: str) -> str:
    """What `ghv site remove` says, once nothing of any job is there."""
    done = lab.ghv("site", "remove", site, "-o", "json", check=False)
    return f"removed: {done.err}" if done.code == 0 else ""


def turn_of(lab: Installation, job: str) -> str:
    """What `ghv explain` prints, once the job waits for a site."""
    told = lab.ghv("explain", job).out.decode()
    return told if "1 of 1 jobs that wait" in told else ""
